"""Infotext both ways: as WebUI writes and reads it, and as other programs write it."""

from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from sd_parsers import ParserManager

from pipelines.errors import InvalidInput
from pipelines.infotext.reading import GenerationData, read
from pipelines.infotext.syntax import parse, quote, split, unquote, write
from tests.growth import grows_linearly

PROMPT = "masterpiece, best quality, 1girl, (red hair:1.3), [city], smile, blue sky"
NEGATIVE = "lowres, (bad hands:1.4), worst quality"
FIELDS: dict[str, object] = {
    **{"Steps": 10, "Sampler": "DPM++ 2M", "Schedule type": "Karras", "CFG scale": 7, "Seed": 1234},
    **{"Size": "128x192", "Model hash": "89aa3d4988", "Model": "tiny_sd15", "VAE": None},
    **{"Denoising strength": 0.55, "RNG": "CPU", "TI hashes": "tinyemb1: 5c944ffa3bf2"},
    **{"Hires prompt": "a, b", "Hires resize": "256x256", "Hires steps": 6, "Hires upscaler": "Latent"},
    "Version": "v1.10.1",
}
WRITTEN = (
    f"{PROMPT}\nNegative prompt: {NEGATIVE}\n"
    "Steps: 10, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1234, Size: 128x192, "
    "Model hash: 89aa3d4988, Model: tiny_sd15, Denoising strength: 0.55, RNG: CPU, "
    'TI hashes: "tinyemb1: 5c944ffa3bf2", Hires prompt: "a, b", Hires resize: 256x256, Hires steps: 6, '
    "Hires upscaler: Latent, Version: v1.10.1"
)
SHORT = "Steps: 20, Sampler: Euler a, Seed: 1"

# What infotext can hold: no spaces at the ends, no quotation mark first, no other line ends than "\n".
LETTERS = st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp", "Zs"]) | st.sampled_from(' ,:"\\\n')
VALUES = st.text(LETTERS, min_size=1, max_size=20).filter(lambda text: text == text.strip() and text[0] != '"')
KEYS = st.from_regex(r"[A-Za-z][A-Za-z0-9_ /-]{0,10}[A-Za-z0-9]", fullmatch=True)
NUMBERS = st.integers(0, 2**64) | st.floats(0, 1e6).filter(lambda number: "e" not in str(number))


# --- writing


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("a", "a"),
        ("a, b", '"a, b"'),
        ("a: b", '"a: b"'),
        ("a\nb", '"a\\nb"'),
        ('say "x"', 'say "x"'),
        ('say "x", y', '"say \\"x\\", y"'),
        ("café, ü", '"café, ü"'),
        ("\\(x\\), y", '"\\\\(x\\\\), y"'),
        ("", ""),
    ],
)
def test_quote(value: str, quoted: str) -> None:
    assert quote(value) == quoted
    assert unquote(quoted) == value


@pytest.mark.parametrize(("text", "value"), [('"a"', "a"), ('"', '"'), ('"a\tb"', '"a\tb"'), ('"a" b"', '"a" b"')])
def test_unquote_leaves_what_is_no_json(text: str, value: str) -> None:
    assert unquote(text) == value


def test_write() -> None:
    assert write(PROMPT, NEGATIVE, FIELDS) == WRITTEN


def test_write_without_a_negative_prompt_or_fields() -> None:
    assert write("a", "", {"Steps": 1}) == "a\nSteps: 1"
    assert write("a", "b", {}) == "a\nNegative prompt: b"


@given(VALUES, VALUES | st.just(""), st.dictionaries(KEYS, VALUES | NUMBERS, min_size=3))
def test_what_is_written_is_read_back(prompt: str, negative: str, fields: dict[str, Any]) -> None:
    assume(not any(line.strip().startswith("Negative prompt:") for line in f"{prompt}\n{negative}".split("\n")))
    block = split(write(prompt, negative, fields))
    shown = {key: write("", "", {key: value}).removeprefix(f"{key}: ") for key, value in fields.items()}
    assert block.fields == {key: unquote(value) for key, value in shown.items()}
    assert [block.prompt, block.negative_prompt] == [
        "\n".join(line.strip() for line in text.split("\n")).lstrip("\n") for text in (prompt, negative)
    ]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_keep_their_value(number: float) -> None:
    assert float(split(write("", "", {"A1": 1, "B1": number, "C1": 2})).fields["B1"]) == number


# --- reading as WebUI does


def test_parse() -> None:
    parsed = parse("a\n   Negative prompt:   b \nSteps: 20, Sampler: Euler a, Size: 512x768, Version: v1.10.1")
    assert parsed == {
        **{"Steps": "20", "Sampler": "Euler a", "Size-1": "512", "Size-2": "768", "Version": "v1.10.1"},
        **{"Prompt": "a", "Negative prompt": "b", "Clip skip": "1", "Hires resize-1": 0, "Hires resize-2": 0},
        **{"Hires sampler": "Use same sampler", "Hires schedule type": "Use same scheduler"},
        **{"Hires checkpoint": "Use same checkpoint", "Hires prompt": "", "Hires negative prompt": ""},
        **{"Mask mode": "Inpaint masked", "Masked content": "original", "Inpaint area": "Whole picture"},
        **{"Masked area padding": 32, "RNG": "GPU", "Schedule type": "Automatic", "Schedule max sigma": 0},
        **{"Schedule min sigma": 0, "Schedule rho": 0, "VAE Encoder": "Full", "VAE Decoder": "Full"},
        **{"FP8 weight": "Disable", "Refiner switch by sampling steps": False},
    }


@pytest.mark.parametrize(
    ("text", "prompt", "negative", "fields"),
    [
        ("", "", "", {}),
        ("a: b, cd: e", "a: b, cd: e", "", {}),  # fewer than three
        ("style: anime, mood: dark, light: soft", "", "", {"style": "anime", "mood": "dark", "light": "soft"}),
        (f"a\n\n b \n{SHORT}\nafter", f"a\n\nb\n{SHORT}\nafter", "", {}),
        ("a\nNegative prompt: b\n c\nNegative prompt: d", "a", "b\nc\nd", {}),
        ("a\n\nNegative prompt:\n\nb", "a\n", "b", {}),
        ("ab: 1, cd: , ef: 2, ab: 3", "", "", {"ab": "3", "ef": "2"}),  # no value, and a second one
        ('ab: "1, \\"2\\"", cd: "x" y, ef: "z', "", "", {"ab": '1, "2"', "cd": '"x" y', "ef": '"z'}),
        ("a: 1, - bc/d-e: 2, fg: 3, hi:4", "", "", {"bc/d-e": "2", "fg": "3", "hi": "4"}),
    ],
)
def test_split(text: str, prompt: str, negative: str, fields: dict[str, str]) -> None:
    block = split(text)
    assert (block.prompt, block.negative_prompt, block.fields) == (prompt, negative, fields)


@pytest.mark.parametrize(
    ("prompt", "version", "keys"),
    [
        ("a", "v1.5.2", {"Pad conds v0", "Downcast alphas_cumprod"}),
        ("[a:b:3]", "1.5.2", {"Pad conds v0", "Downcast alphas_cumprod", "Old prompt editing timelines"}),
        ("[a:b:3]", "v1.6.0-2-g4afaaf8a", {"Downcast alphas_cumprod"}),
        ("a", "v1.7.0-224-g1", {"Downcast alphas_cumprod"}),
        ("a", "v1.7.0-225-g1", set()),
        ("[a:b:3]", "f0.0.17v1.8.0", set()),
    ],
)
def test_older_versions_bring_back_what_they_did(prompt: str, version: str, keys: set[str]) -> None:
    text = f"{prompt}\nSteps: 20, Sampler: DDIM, Seed: 1, Version: {version}"
    assert {key for key, value in parse(text).items() if value is True} == keys
    assert True not in parse(text, auto_backcompat=False).values()


@pytest.mark.parametrize(
    ("block", "emphasis"),
    [("a", None), ("a BREAK b", None), ("(a)", "Original"), ("a\nNegative prompt: [b]", "Original")],
)
def test_emphasis_is_named_where_it_is_used(block: str, emphasis: str | None) -> None:
    assert parse(f"{block}\n{SHORT}").get("Emphasis") == emphasis


@pytest.mark.parametrize(("first", "expected"), [("512x384", (512, 384)), ("0x0", (448, 640))])
def test_a_first_pass_size_of_2022(first: str, expected: tuple[int, int]) -> None:
    parsed = parse(f"a\n{SHORT}, Size: 768x1152, Denoising strength: 0.7, First pass size: {first}")
    assert (parsed["Size-1"], parsed["Size-2"]) == expected
    assert (parsed["Hires resize-1"], parsed["Hires resize-2"]) == (768, 1152)


@given(
    st.text()
    | st.lists(st.sampled_from(["ab", ": ", ", ", '"', "\\", "\n", "1x1", "[", "First pass size", "-1"])).map("".join)
)
def test_parse_takes_any_text(text: str) -> None:
    assert {"Prompt", "Negative prompt", "RNG"} <= parse(text).keys()


@pytest.mark.parametrize("unit", ["a", " ", "ab", "ab: ", 'ab: "', 'ab: "\\"a, ', ",", "-", "Hashes: [", "\n"])
def test_long_texts_are_read_in_linear_time(unit: str) -> None:
    assert grows_linearly(lambda size: read("ab: 1, " + unit * (size // len(unit))), 100_000)


# --- reading for our own use


def test_read() -> None:
    assert read(WRITTEN) == GenerationData(
        values={
            "prompt": PROMPT,
            "negative_prompt": NEGATIVE,
            "num_inference_steps": 10,
            "sampler": "DPM++ 2M",
            "schedule_type": "Karras",
            "guidance_scale": 7,
            "seed": 1234,
            "width": 128,
            "height": 192,
            "denoising_strength": 0.55,
            "rng": "CPU",
            "hires_prompt": "a, b",
            "hires_width": 256,
            "hires_height": 256,
            "hires_steps": 6,
            "hires_upscaler": "Latent",
        },
        hires=True,
        model_hash="89aa3d4988",
        model="tiny_sd15",
        ti_hashes={"tinyemb1": "5c944ffa3bf2"},
        version="v1.10.1",
    )


def size(found: GenerationData, prefix: str = "") -> tuple[int | None, int | None]:
    return found.values.get(f"{prefix}width"), found.values.get(f"{prefix}height")


def test_only_what_a_block_says_is_in_its_values() -> None:
    assert read("a") == GenerationData(values={"prompt": "a", "negative_prompt": ""})


@pytest.mark.parametrize(
    ("sampler", "own", "schedule_type"),
    [
        ("DPM++ 2M Karras", "DPM++ 2M", "Karras"),
        ("DPM++ 3M SDE Exponential", "DPM++ 3M SDE", "Exponential"),
        ("Euler a SGM Uniform", "Euler a", "SGM Uniform"),
        ("DPM++ 2M SDE Heun", "DPM++ 2M SDE Heun", "Simple"),
        ("k_euler_ancestral", "Euler a", "Simple"),
        ("dpmpp_2m_sde_gpu_karras", "DPM++ 2M SDE", "Karras"),
        ("Turbo Karras", "Turbo", "Karras"),
        ("Undefined", None, "Simple"),
    ],
)
def test_sampler_names(sampler: str, own: str | None, schedule_type: str) -> None:
    found = read(f"a\nSteps: 1, Seed: 1, Sampler: {sampler}, Schedule type: simple")
    assert (found.values.get("sampler"), found.values.get("schedule_type")) == (own, schedule_type)


def test_the_hires_pass_may_name_its_sampler_in_the_old_way() -> None:
    block = f"a\n{SHORT}, Denoising strength: 0.5, Hires upscale: 1.5, Hires sampler: DPM++ SDE Karras"
    found = read(block)
    assert (found.values.get("hires_sampler"), found.values.get("hires_schedule_type")) == ("DPM++ SDE", "Karras")
    assert (found.hires, found.values.get("hires_scale")) == (True, 1.5)
    assert "hires_sampler" not in read(f"a\n{SHORT}, Hires sampler: Use same sampler").values


def test_hires_needs_a_strength_and_a_key() -> None:
    assert not read(f"a\n{SHORT}, Denoising strength: 0.5").hires
    found = read(f"a\n{SHORT}, Hires upscale: 2, Hires upscaler: None")
    assert (found.hires, found.values.get("hires_upscaler")) == (False, "None")
    assert "Denoising strength" in found.warnings[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Steps", "many"),
        ("Steps", "20.5"),
        ("Seed", "1_000"),
        ("CFG scale", "nan"),
        ("Size", "512"),
        ("Hires resize", "big"),
        ("RNG", "TPU"),
        ("Clip skip", "two"),
        ("Denoising strength", "half"),
    ],
)
def test_a_value_that_cannot_be_read_is_named(key: str, value: str) -> None:
    with pytest.raises(InvalidInput, match=f"generation_data='{key}: {value}': {key} must be"):
        read(f"a\nAb: 1, Cd: 2, {key}: {value}")


def test_keys_that_are_not_understood() -> None:
    found = read(f"(a)\n{SHORT}, Face restoration: GFPGAN, Mask mode: Inpaint masked, Token merging ratio: 0.5")
    assert found.unknown == {"Face restoration": "GFPGAN", "Token merging ratio": "0.5"}


@pytest.mark.parametrize(
    ("block", "told"),
    [
        (f"a\n{SHORT.replace('Euler a', 'DDIM')}, Version: v1.5.2", "Pad conds v0"),
        (f"a\n{SHORT.replace('Euler a', 'DPM++ 2M')}, Version: v1.5.2", "schedule_type=Uniform"),
    ],
)
def test_warnings(block: str, told: str) -> None:
    assert told in " ".join(read(block).warnings)
    assert not read(block.replace("1.5.2", "1.10.1")).warnings


@pytest.mark.parametrize(
    "block",
    [
        "parameters\n\n{0}",
        "Parameters: {0}",
        "{0}\nTime taken: 5.1 sec.",
        "{0}\n\nTemplate: a cat\nNegative Template: b",
        "{0:w}",
        "{0:i}",
        "{0:n}",
        "{0:r}",
    ],
)
def test_a_block_is_found_in_what_people_paste(block: str) -> None:
    """Wrapped, in one line, with hard spaces, with Windows' line ends, with what a page shows around it."""
    whole = (
        "a cat, (b:1.2)\nNegative prompt: c\nSteps: 20, Sampler: Euler a, CFG scale: 5, Seed: 1, Size: 64x72, Model: x"
    )
    variants = {
        "{0:w}": whole.replace("scale: 5, ", "scale: 5,\n"),
        "{0:i}": whole.replace("\n", " "),
        "{0:n}": whole.replace("Negative prompt", "Negative\xa0prompt").replace("CFG scale", "CFG\xa0scale"),
        "{0:r}": whole.replace("\n", "\r\n"),
    }
    found = read(variants.get(block) or block.format(whole))
    assert replace(found, warnings=()) == read(whole)
    assert (found.values.get("prompt"), found.values.get("negative_prompt"), found.values.get("guidance_scale")) == (
        "a cat, (b:1.2)",
        "c",
        5,
    )


def test_what_stands_below_the_parameters_is_told() -> None:
    assert "'Time taken: 5 sec.' after the parameters" in read(f"a\n{SHORT}\nTime taken:  5 sec.\n").warnings[0]


@pytest.mark.parametrize(
    ("block", "told"),
    [
        (f"a\n{SHORT}, Version: ComfyUI", "ComfyUI"),
        ("a Steps: 20, Strength: 0.5", "the prompt contains Steps"),
    ],
)
def test_doubts(block: str, told: str) -> None:
    assert told in " ".join(read(block).doubts)
    assert not read(f"a\n{SHORT}").doubts


def test_keys_in_other_cases_win_over_what_webui_adds() -> None:
    found = read(
        "a\nsteps: 30, sampler: euler, seed: 3, size: 64x72, clip skip: 2, rng: CPU, scheduler: karras, "
        "denoising strength: 0.5, hires upscale: 2, hires sampler: Heun, hires prompt: dog, hires upscaler: lanczos"
    )
    assert (
        found.values.get("num_inference_steps"),
        found.values.get("sampler"),
        found.values.get("schedule_type"),
        found.values.get("seed"),
    ) == (30, "Euler", "Karras", 3)
    assert (size(found), found.values.get("clip_skip"), found.values.get("rng")) == ((64, 72), 2, "CPU")
    assert (
        found.values.get("hires_sampler"),
        found.values.get("hires_prompt"),
        found.values.get("hires_upscaler"),
    ) == ("Heun", "dog", "Lanczos")


@pytest.mark.parametrize(("told", "meant"), [("0", 1), ("-2", 2), ("2", 2)])
def test_clip_skip_of_other_programs(told: str, meant: int) -> None:
    assert read(f"a\n{SHORT}, Clip skip: {told}").values["clip_skip"] == meant


def test_values_that_turn_an_unknown_thing_off_ask_for_nothing() -> None:
    off = "Face restoration: False, FreeU: None, ADetailer version: 23, Hires CFG Scale: 7.0, CFG scale: 7"
    assert read(f"a\n{SHORT}, {off}").unknown == {}
    assert read(f"a\n{SHORT}, Eta: 0").values["eta"] == 0  # where 0 is a choice


@pytest.mark.parametrize(
    ("told", "eta", "eta_ddim"),
    [
        ("Sampler: Euler a, Eta: 0.5", 0.5, None),
        ("Sampler: DDIM, Eta: 0.5, Version: v1.3.0", None, 0.5),
        ("Sampler: DDIM, Eta DDIM: 0.5", None, 0.5),
        ("Sampler: DDIM, Eta: 0.5, Hires sampler: Euler a", 0.5, None),
        ("Sampler: Euler a, Eta DDIM: 0.5, Hires sampler: DDIM", None, 0.5),
    ],
)
def test_eta_of_old_and_new_blocks(told: str, eta: float | None, eta_ddim: float | None) -> None:
    values = read(f"a\nSteps: 20, {told}, CFG scale: 7, Seed: 1, Size: 64x64").values
    assert (values.get("eta"), values.get("eta_ddim")) == (eta, eta_ddim)


def test_seed_resize_that_is_off_says_nothing() -> None:
    """As WebUI's API writes it (its issue 11247)."""
    assert not read(f"a\n{SHORT}, Seed resize from: -1x-1").values.keys() & {"seed_resize_width", "seed_resize_height"}
    resized = read(f"a\n{SHORT}, Seed resize from: 512x768").values
    assert (resized["seed_resize_width"], resized["seed_resize_height"]) == (512, 768)


def test_a_hypernetwork_of_a_block_from_before_2023_is_a_tag() -> None:
    found = read(f"a cat\n{SHORT}, Hypernet: ink(12), Hypernet hash: 0123456789, Hypernet strength: 0.6")
    assert found.values["prompt"] == "a cat<hypernet:ink(12):0.6>"
    assert (found.hypernetwork_hash, found.unknown) == ("0123456789", {})


# --- other programs


def test_civitai() -> None:
    found = read(
        "a hero\nSteps: 25, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 3, Size: 512x768, Clip skip: 2, "
        "Created Date: 2024-05-01T10:11:12.0000000Z, "
        'Civitai resources: [{"type":"checkpoint","modelVersionId":1,"modelName":"Dream, on"}], '
        'Hashes: {"model": "4199bcdd14", "lora:add_detail": "7c6bad76eb", "embed:easy": "c74b4e810b"}, Model: rev'
    )
    assert (found.values.get("sampler"), found.values.get("schedule_type"), found.values.get("clip_skip")) == (
        "DPM++ 2M",
        "Karras",
        2,
    )
    assert (found.model_hash, found.model, found.vae_hash) == ("4199bcdd14", "rev", None)
    assert (found.lora_hashes, found.ti_hashes) == ({"add_detail": "7c6bad76eb"}, {"easy": "c74b4e810b"})
    assert not found.unknown


def test_a_hash_beside_the_hashes_wins() -> None:
    found = read(f'a\n{SHORT}, Model hash: 1234567890, Lora hashes: "x: 1", Hashes: {{"model": "0", "lora:x": "2"}}')
    assert (found.model_hash, found.lora_hashes) == ("1234567890", {"x": "1"})


def test_sdnext() -> None:
    found = read(
        "a\nNegative prompt: b\nSteps: 10, Seed: 7, Sampler: DPM++ SDE, CFG scale: 4, Size: 768x1152, "
        "Model: tales, Model hash: f758af2038, Backend: Diffusers, App: SD.Next, Version: 900264a, "
        "Operations: hires; txt2img, Second pass: True, Hires force: True, Hires steps: 25, Hires upscaler: None, "
        "Hires upscale: 1.5, Hires resize: 0x0, Hires size: 1152x1728, Denoising strength: 0.5, "
        "Hires sampler: DPM++ SDE, VAE: Automatic"
    )
    assert (found.hires, found.values.get("hires_scale"), size(found, "hires_")) == (True, 1.5, (None, None))
    assert (found.vae, found.unknown, found.doubts) == (None, {}, ())
    assert [warning.partition(",")[0] for warning in found.warnings] == ["made with SD.Next"]


def test_forge() -> None:
    found = read(
        "a\nSteps: 20, Sampler: Euler a, Schedule type: SGM Uniform, CFG scale: 6, Seed: 5, Size: 512x512, "
        "Denoising strength: 0.7, Hires Module 1: Use same choices, Hires CFG Scale: 6, Hires upscale: 2, "
        "Hires upscaler: Latent, Module 1: vae-ft-mse, Version: f2.0.1v1.10.1-previous-636-gb835f24a"
    )
    assert (found.values.get("schedule_type"), found.vae, found.hires) == ("SGM Uniform", "vae-ft-mse", True)
    assert (found.unknown, found.warnings) == ({}, ())


def test_an_old_version() -> None:
    found = read(
        "a\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 9, Size: 1024x1024, Model hash: 45dee52b, "
        "Batch size: 4, Batch pos: 1, Denoising strength: 0.7, First pass size: 0x0"
    )
    assert (size(found), found.hires, size(found, "hires_")) == ((512, 512), True, (1024, 1024))
    assert not found.unknown


def test_another_library_reads_what_is_written() -> None:
    png, picture = PngImagePlugin.PngInfo(), BytesIO()
    png.add_text("parameters", WRITTEN)
    Image.new("RGB", (8, 8)).save(picture, "PNG", pnginfo=png)
    found = ParserManager().parse(picture)
    assert found is not None
    assert (found.full_prompt, found.full_negative_prompt) == (PROMPT, NEGATIVE)
    (sampler,) = found.samplers
    assert sampler.name == "DPM++ 2M"
    assert {key: str(value) for key, value in sampler.parameters.items()}.items() >= {
        "cfg_scale": "7",
        "seed": "1234",
        "steps": "10",
    }.items()
    assert [(model.name, model.hash) for model in found.models] == [("tiny_sd15", "89aa3d4988")]

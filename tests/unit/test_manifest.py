"""The manifest: its required contents, and errors that name entry and field."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.ask.inputs import Inputs
from pipelines.infotext.asked import read_data, request_from, settle
from weights_script.fetch import OWN_FILE
from weights_script.manifest import DEFAULT_MODEL, ENTRY_RULES, HERE, KINDS, ManifestError, load_manifest

GOOD = """
[thing]
kind = "model"
format = "ldm-safetensors"
base = "sd1"
file = "thing.safetensors"
licence = { name = "MIT", url = "https://example.org" }
sources = [{ url = "https://example.org/thing.safetensors" }]
"""


def load(folder: Path, text: str) -> object:
    path = folder / "manifest.toml"
    path.write_text(text)
    return load_manifest(path)


def test_a_good_entry_loads(tmp_path: Path) -> None:
    load(tmp_path, GOOD)


BROKEN: dict[str, tuple[Callable[[str], str], str]] = {
    "unknown field": (lambda text: text + 'sah256 = "0"', "sah256"),
    "missing field": (lambda text: text.replace('base = "sd1"', ""), "base"),
    "wrong type": (lambda text: text + 'size = "2 GB"', "size"),
    "a truth for a number": (lambda text: text + "size = true", "size"),
    "kind": (lambda text: text.replace('"model"', '"modle"'), "kind"),
    "format": (lambda text: text.replace('"ldm-safetensors"', '"gguf"'), "format"),
    "no source": (lambda text: text.replace("[{ url", "[] #"), "sources"),
    "source without a place": (lambda text: text.replace("[{ url = ", "[{ file = "), "sources"),
    "two places": (lambda text: text.replace("[{ url", '[{ path = "x", url'), "sources"),
    "unknown field inside": (lambda text: text.replace("url = ", 'uri = "x", url = ', 1), "licence.uri"),
    "repo without revision": (lambda text: text.replace("[{ url", '[{ file = "x", repo'), "sources"),
    "odd url": (lambda text: text.replace("https://example.org/thing", "ftp://example.org/thing"), "sources"),
    "source that is no table": (lambda text: text.replace("[{ url = ", "[").replace(" }]", "]"), "sources"),
    "no file name": (lambda text: text.replace('file = "thing.safetensors"', ""), "file"),
    "file outside": (lambda text: text.replace('"thing.safetensors"', '"../thing"'), "file"),
    "negative size": (lambda text: text + "size = -1", "size"),
    "negative rough size": (lambda text: text + "about = -1", "about"),
    "short hash": (lambda text: text + 'sha256 = "0123456789"', "sha256"),
    "capital hash": (lambda text: text + f'sha256 = "{"A" * 64}"', "sha256"),
    "short prefix": (lambda text: text + 'sha256_prefix = "0123"', "sha256_prefix"),
    "two hashes": (lambda text: text + f'sha256 = "{"a" * 64}"\nsha256_prefix = "{"a" * 10}"', "sha256_prefix"),
    "inner hash": (lambda text: text + 'hashes = { "a.bin" = "abc" }', "hashes"),
    "an unknown prediction": (lambda text: text + 'prediction = "x0"', "prediction"),
    "odd width": (lambda text: text + "width = 450", "width"),
    "odd height": (lambda text: text + "height = 0", "height"),
    "a setting that is none": (lambda text: text + "settings = { colour = 2 }", "settings"),
    "a setting out of its range": (lambda text: text + "settings = { clip_skip = 0 }", "settings"),
    "a setting of another type": (lambda text: text + 'settings = { clip_skip = "two" }', "settings"),
    "unknown vae": (lambda text: text + 'vae = "nobody"', "vae"),
    "a model as vae": (lambda text: text + 'vae = "thing"', "vae"),
}


@pytest.mark.parametrize(("change", "field"), BROKEN.values(), ids=BROKEN.keys())
def test_errors_name_entry_and_field(tmp_path: Path, change: Callable[[str], str], field: str) -> None:
    changed = change(GOOD)
    tomllib.loads(changed)
    with pytest.raises(ManifestError) as caught:
        load(tmp_path, changed)
    assert str(caught.value).startswith(f"manifest entry 'thing', field '{field}':")


def test_every_rule_is_tried() -> None:
    assert {field for field, _, _ in ENTRY_RULES} <= {field for _, field in BROKEN.values()}


def test_what_it_must_hold() -> None:
    entries = load_manifest()
    models = {name for name, entry in entries.items() if entry.kind == "model"}
    assert {"pastel-mix", "pastel-mix-fp32", "pastel-mix-stock", "sd-1.5", "pastel-tiny"} <= models
    assert entries["pastel-mix"].picture_size == (448, 640)
    assert entries[DEFAULT_MODEL].picture_size == (160, 160)
    assert {entry.kind for entry in entries.values()} >= {"vae", "upscaler", "safety-checker"}


ANIME = ("pastel-mix", "pastel-mix-fp32", "pastel-mix-stock", "counterfeit-2.5", "anything-3", "abyss-orange-mix-2")


@pytest.mark.parametrize("name", ANIME)
def test_what_the_models_authors_advise_is_what_an_empty_form_draws(name: str) -> None:
    entry = load_manifest()[name]
    own = {"width": entry.width, "height": entry.height, **entry.settings}
    request = request_from(settle(Inputs(), read_data(""), own))
    assert request.clip_skip == 2
    assert "1girl" in request.prompt
    assert "worst quality" in request.negative_prompt
    assert (request.width, request.height) == (448, 640)
    asked = Inputs(prompt="a boat", negative_prompt=" ", clip_skip=1)
    changed = request_from(settle(asked, read_data("Seed: 3"), own))
    assert (changed.prompt, changed.negative_prompt, changed.clip_skip) == ("a boat", "", 1)


@pytest.mark.parametrize(
    ("name", "sampler", "rescale", "first", "last"),
    [
        ("animagine-xl-4", "Euler a", 0, "1girl", "absurdres"),
        ("noobai-xl-v", "Euler", 0.2, "masterpiece", "upper body"),
        ("illustrious-xl-2", "Euler a", 0, "masterpiece", "upper body"),
    ],
)
def test_sdxl_anime_models_draw_as_their_authors_advise(
    name: str, sampler: str, rescale: float, first: str, last: str
) -> None:
    entry = load_manifest()[name]
    own = {"width": entry.width, "height": entry.height, **entry.settings}
    request = request_from(settle(Inputs(), read_data(""), own))
    assert (request.sampler, request.num_inference_steps, request.guidance_scale) == (sampler, 28, 5)
    assert request.guidance_rescale == rescale
    assert (request.width, request.height) == (832, 1216)
    assert (request.prompt.split(", ")[0], request.prompt.split(", ")[-1]) == (first, last)


def test_every_model_has_an_example() -> None:
    """That is what an empty prompt stands for on the form."""
    models = [entry for entry in load_manifest().values() if entry.kind == "model"]
    assert [entry.name for entry in models if not entry.settings.get("prompt")] == []


def test_what_is_fetched_as_one_file_has_a_published_hash() -> None:
    fetched = [entry for entry in load_manifest().values() if entry.file]
    assert [entry.name for entry in fetched if not (entry.sha256 or entry.sha256_prefix)] == []


def test_no_code_can_hide_in_the_default_model_files() -> None:
    """Models come as safetensors; a pickle is only accepted for a VAE that exists in no other form."""
    pickles = {entry.name for entry in load_manifest().values() if entry.format == "ldm-ckpt"}
    assert pickles == {"kl-f8-anime2"}


def test_the_manifest_lies_beside_its_reader() -> None:
    assert (HERE / "manifest.toml").is_file()


def test_every_kind_has_a_way_out_when_it_cannot_be_had() -> None:
    assert set(OWN_FILE) == set(KINDS)

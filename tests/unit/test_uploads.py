"""Uploaded files, told apart by their content and named by their file names."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.ask.inputs import Inputs
from pipelines.ask.networks import Extras
from pipelines.errors import InvalidInput, ModelError
from pipelines.infotext.asked import Asked, request_from, settle, with_networks
from pipelines.infotext.reading import GenerationData, read_settings
from pipelines.infotext.unused import unused_inputs
from script.schema import ROOT
from weights_script.extras import Library
from weights_script.uploads import FILES_MAX, Uploads, sort_uploads

DATA = ROOT / "tests" / "data"
LORA = DATA / "loras" / "snowman.safetensors"
EMBEDDING = DATA / "embeddings" / "afterglow.safetensors"
CONTROL = DATA / "controlnets" / "canny-tiny.safetensors"
UPSCALER = DATA / "upscalers" / "4x-tiny.safetensors"
CHECKPOINT = ROOT / "weights_script" / "embedded" / "pastel-tiny.safetensors"
OWN = {"width": 64, "height": 64}


def names(uploads: Uploads) -> dict[str, list[str]]:
    return {kind: list(files) for kind, files in vars(uploads).items() if files}


def sent(folder: Path, source: Path, name: str) -> Path:
    """A copy of the file, as the server calls it."""
    return Path(shutil.copy(source, folder / name))


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PASTEL_CACHE", str(tmp_path / "cache"))


def test_each_kind_is_known_by_its_content() -> None:
    assert names(sort_uploads((UPSCALER, CONTROL, EMBEDDING, LORA), "")) == {
        "loras": ["snowman"],
        "embeddings": ["afterglow"],
        "controls": ["canny-tiny"],
        "upscalers": ["4x-tiny"],
    }


def test_the_ending_says_nothing_and_what_the_server_puts_before_a_name_is_left_out(tmp_path: Path) -> None:
    lora = sent(tmp_path, LORA, "tmpab12_xyzmine.bin")
    torch.save({"string_to_param": {"*": torch.ones(2, 8)}}, tmp_path / "tmpab12_xyzwords.png")
    uploads = sort_uploads((lora, tmp_path / "tmpab12_xyzwords.png"), "")
    assert names(uploads) == {"loras": ["mine"], "embeddings": ["words"]}
    assert uploads.loras["mine"].origin == "files='mine.bin'"


def test_an_embedding_of_one_tensor_has_any_name(tmp_path: Path) -> None:
    save_file({"anything": torch.ones(2, 8)}, tmp_path / "words.safetensors")
    assert names(sort_uploads((tmp_path / "words.safetensors",), "")) == {"embeddings": ["words"]}


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        ("body.0.block1.weight", "controls"),  # of an upscaler it would be body.0.weight
        ("adapter.body.0.resnets.0.block1.weight", "controls"),
        ("body.0.body.0.block1.weight", "controls"),
        ("ip_adapter.1.to_k_ip.weight", "controls"),
        ("lora_controlnet", "controls"),
        ("vision_model.embeddings.class_embedding", "encoders"),
        ("body.0.weight", "upscalers"),
        ("model.0.lora_up.weight", "loras"),
    ],
)
def test_networks_of_like_names_are_told_apart(tmp_path: Path, tensor: str, kind: str) -> None:
    save_file({tensor: torch.ones(2, 2), "other": torch.ones(1)}, tmp_path / "it.safetensors")
    assert names(sort_uploads((tmp_path / "it.safetensors",), "")) == {kind: ["it"]}


@pytest.mark.parametrize(
    ("tensor", "words"),
    [("style_embedding", "is a T2I style adapter"), ("spatial_ch_projs.0.weight", "is a fuser of CoAdapters")],
)
def test_what_goes_with_adapters_and_is_none_is_named(tmp_path: Path, tensor: str, words: str) -> None:
    save_file({tensor: torch.ones(2, 2), "other": torch.ones(1)}, tmp_path / "it.safetensors")
    with pytest.raises(InvalidInput, match=words):
        sort_uploads((tmp_path / "it.safetensors",), "")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (CHECKPOINT, r"files='sent\.safetensors': is a Stable Diffusion checkpoint\. Send a LoRA, an embedding"),
        (ROOT / "weights_script" / "embedded" / "pastel-tiny-better.vae.safetensors", "is a VAE"),
    ],
)
def test_another_kind_is_refused_by_what_it_is(tmp_path: Path, source: Path, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        sort_uploads((sent(tmp_path, source, "tmpab12_xyzsent.safetensors"),), "")


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "an empty file"), (b"<html>", "a web page"), (b"\x89PNG\r\n", "neither safetensors")]
)
def test_what_holds_no_weights_is_refused_by_what_it_is(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "tmpab12_xyzsent.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"^files='sent\.safetensors': .*{words}"):
        sort_uploads((path,), "")


def test_a_text_that_is_no_address_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"^files='/etc/hostname': must be a file"):
        sort_uploads(("/etc/hostname",), "")  # type: ignore[arg-type]


def test_what_nobody_knows_is_left_to_the_library_for_upscalers(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "odd.safetensors")
    assert names(sort_uploads((tmp_path / "odd.safetensors",), "")) == {"upscalers": ["odd"]}


def test_two_of_one_name_are_refused_and_names_mend_it(tmp_path: Path) -> None:
    files = tuple(sent(tmp_path, LORA, f"tmp{number}2345678mine.bin") for number in (1, 2))
    with pytest.raises(InvalidInput, match=r"files='mine': two files have this name\. .*File names: first, second"):
        sort_uploads(files, "")
    assert names(sort_uploads(files, "first, second")) == {"loras": ["first", "second"]}
    assert names(sort_uploads((files[0], EMBEDDING), ", glow")) == {"loras": ["mine"], "embeddings": ["glow"]}


def test_an_error_names_the_file_once_and_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    path = folder / "tmpab12_xyznotes.bin"
    path.write_bytes(b"no weights at all")
    with pytest.raises(ModelError, match=r"^files='notes\.bin': neither safetensors nor a pickle"):
        sort_uploads([path], "")


def test_a_name_that_no_tag_can_hold_is_refused() -> None:
    with pytest.raises(
        InvalidInput, match=r"file_names='my:style': a name in tags must not contain < > : .* Call it my_s"
    ):
        sort_uploads([LORA], "my:style")


def test_a_lora_and_an_embedding_may_share_a_name(tmp_path: Path) -> None:
    assert names(sort_uploads((LORA, EMBEDDING), "mine, mine")) == {"loras": ["mine"], "embeddings": ["mine"]}


def test_no_more_than_are_looked_into_in_a_moment() -> None:
    with pytest.raises(InvalidInput, match=f"files='{FILES_MAX + 1} sent': at most {FILES_MAX} files"):
        sort_uploads((LORA,) * (FILES_MAX + 1), "")


def test_a_data_uri_has_no_name_but_that_of_its_training_or_of_the_generation_data(tmp_path: Path) -> None:
    nameless = sent(tmp_path, EMBEDDING, "tmpab12_xyzfile.bin")
    trained = tmp_path / "tmpab12_abcfile.bin"
    save_file({"lora_unet_x.lora_up.weight": torch.ones(1, 1)}, trained, {"ss_output_name": "trained, v2"})
    assert names(sort_uploads((nameless, trained), "")) == {"loras": ["trained_ v2"], "embeddings": ["file"]}
    assert names(sort_uploads((nameless, trained), "glow")) == {"loras": ["trained_ v2"], "embeddings": ["glow"]}


# --- what a request makes of them


def asked(inputs: Inputs, data: GenerationData | None = None) -> Asked:
    return settle(inputs, data or GenerationData(whole=False), OWN)


def loaded(inputs: Inputs, data: GenerationData | None = None) -> tuple[Extras, Asked]:
    """What is asked for with what the inputs bring."""
    found = asked(inputs, data)
    fetched = Library().load_only(found.wanted, inputs)
    return fetched.extras, with_networks(found, fetched)


@pytest.mark.parametrize(
    ("prompt", "name", "expected"),
    [
        ("a <lora:mine:0.5>", "mine", "a <lora:mine:0.5>"),
        ("a", "some", "a <lora:some:1>"),
        ("a <lora:y:1> <lora:z:1>", "some", "a <lora:y:1> <lora:z:1> <lora:some:1>"),
    ],
)
def test_one_lora_is_what_the_prompt_lacks(tmp_path: Path, prompt: str, name: str, expected: str) -> None:
    inputs = Inputs(prompt=prompt, files=(sent(tmp_path, LORA, "tmpab12_xyzsome.bin"),))
    extras, made = loaded(inputs)
    assert extras.loras[name].path == inputs.files[0]
    assert made.settings.prompt == expected


@pytest.mark.parametrize(
    ("prompt", "wildcards"),
    [
        ("a {<lora:some:0.5>|b}", {}),
        ("a {<lora:called otherwise:0.5>|b}", {}),
        ("a __w__", {"w": "__v__ | b", "v": "<lora:some:1> | {c|d}"}),
    ],
)
def test_a_lora_that_an_option_names_is_not_added_where_another_is_picked(
    tmp_path: Path, prompt: str, wildcards: dict[str, str]
) -> None:
    inputs = Inputs(files=(sent(tmp_path, LORA, "tmpab12_xyzsome.bin"),))
    made = set[str]()
    for seed in range(20):
        data = GenerationData(values={"dynamic_prompts": True}, whole=False, wildcards=wildcards)
        extras, wanted = loaded(replace(inputs, prompt=prompt, seed=seed), data)
        request = request_from(wanted, extras=extras)
        made.add(request.prompt)
        assert not [line for line in unused_inputs(wanted, request) if "some" in line]
    assert not any(each.count("<lora:") > 1 or ("<lora:" in each and "b" in each.split()) for each in made)
    assert "a b" in made
    assert any("<lora:" in each for each in made)


def test_an_upscaler_that_is_sent_is_used_unless_the_form_names_another() -> None:
    inputs = Inputs(prompt="a", files=(UPSCALER,))
    extras, made = loaded(inputs)
    request = request_from(made, extras=extras)
    assert request.hires is not None
    assert (request.hires.upscaler, request.hires.upscaler_file) == ("4x-tiny", UPSCALER)
    assert list(unused_inputs(made, request)) == []

    other = Inputs(prompt="a", hires_upscaler="Lanczos", files=(UPSCALER,))
    extras, made = loaded(other)
    request = request_from(made, extras=extras)
    assert request.hires is not None
    assert (request.hires.upscaler, request.hires.upscaler_file) == ("Lanczos", None)
    assert list(unused_inputs(made, request)) == [
        "No highres fix uses the upscaler 4x-tiny from files, so it does nothing."
    ]


def test_files_are_called_by_the_names_of_the_generation_data() -> None:
    inputs = Inputs(prompt="a sunset sky", files=(EMBEDDING, LORA))
    extras, made = loaded(inputs, read_settings("File names: sunset, ice"))
    assert (list(extras.embeddings), made.settings.prompt) == (["sunset"], "a sunset sky <lora:ice:1>")

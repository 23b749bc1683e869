"""Results of trainings come back: as COG_WEIGHTS, as a line of `loras`, in `files`."""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from pipelines.ask.inputs import Inputs
from pipelines.errors import InvalidInput, ModelError
from pipelines.infotext.asked import NO_PICTURES, Asked, Wanted, read_data, settle, with_networks
from script.schema import ROOT
from tests.tiny.misbehaving import Answer, Server
from weights_script import extras
from weights_script.extras import Library
from weights_script.resolve import resolve
from weights_script.uploads import FILES_MAX

LORA = ROOT / "tests" / "data" / "loras" / "snowman.safetensors"
NOTHING = Wanted(loras=frozenset(), optional_loras=frozenset(), controls=(), upscaler="", file_names="")
Make = Callable[..., Path]


@pytest.fixture
def archive(tmp_path: Path) -> Make:
    """Write the result of a training with this content."""

    def made(task: str, content: bytes, name: str = "TOK", **changes: object) -> Path:
        told = {"task": task, "token": "TOK", "name": name, "base": "pastel-tiny", **changes}
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.tar"
        with tarfile.open(path, "w") as tar:
            for inside, what in (("training.json", json.dumps(told).encode()), (f"{name}.safetensors", content)):
                info = tarfile.TarInfo(inside)
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what))
        return path

    return made


WORD = save({"TOK": torch.ones(1, 64)})


@pytest.fixture(autouse=True)
def here(no_settings: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PASTEL_CACHE", str(tmp_path / "cache"))


def asked_for(prompt: str, **inputs: object) -> tuple[Asked, Inputs]:
    sent = Inputs(prompt=prompt, **inputs)  # type: ignore[arg-type]
    return settle(sent, read_data(sent.generation_data), {"width": 128, "height": 128}, NO_PICTURES), sent


@pytest.mark.parametrize(
    ("prompt", "drawn"),
    [
        ("a TOK on a hill", "a TOK on a hill <lora:TOK:1>"),
        ("a tok, at night", "a tok, at night <lora:TOK:1>"),
        ("a TOK <lora:TOK:0.5>", "a TOK <lora:TOK:0.5>"),
        ("a TOKEN on a hill", "a TOKEN on a hill"),
        ("a hill", "a hill"),
    ],
)
def test_a_lora_as_the_containers_weights_is_used_by_its_word(archive: Make, prompt: str, drawn: str) -> None:
    task = "pivotal tuning" if "hill" in prompt else "LoRA"
    resolved = resolve(str(archive(task, LORA.read_bytes())), None)
    assert resolved.files.name == "pastel-tiny"
    assert "prompts with TOK use it" in resolved.description
    assert resolved.trained is not None
    library = Library([resolved.trained])
    asked, sent = asked_for(prompt)
    fetched = library.load_only(asked.wanted, sent)
    assert with_networks(asked, fetched).settings.prompt == drawn
    assert fetched.extras.loras["TOK"].path.read_bytes() == LORA.read_bytes()
    library.release()
    assert fetched.extras.loras["TOK"].path.exists()


def test_generation_data_says_itself_what_it_uses(archive: Make) -> None:
    resolved = resolve(str(archive("LoRA", LORA.read_bytes())), None)
    assert resolved.trained is not None
    block = "a TOK\nSteps: 5, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 128x128"
    asked, sent = asked_for("", generation_data=block)
    fetched = Library([resolved.trained]).load_only(asked.wanted, sent)
    assert with_networks(asked, fetched).settings.prompt == "a TOK"


def test_a_word_as_the_containers_weights(archive: Make) -> None:
    resolved = resolve(str(archive("textual inversion", WORD)), None)
    assert resolved.trained is not None
    fetched = Library([resolved.trained]).load_only(NOTHING, Inputs())
    assert fetched.extras.embeddings["TOK"].path.read_bytes() == WORD
    assert fetched.words == {}


def test_a_checkpoint_is_the_containers_model(archive: Make) -> None:
    resolved = resolve(str(archive("DreamBooth", b"weights")), None)
    assert resolved.trained is None
    assert resolved.files.name == "TOK"
    assert resolved.files.checkpoint.read_bytes() == b"weights"


def test_the_base_of_a_file_is_named_by_the_operator(archive: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive("LoRA", LORA.read_bytes(), base="my own model")
    with pytest.raises(
        ModelError, match=r"trained on 'my own model', which the manifest does not know\. Name that model"
    ):
        resolve(str(path), None)
    monkeypatch.setenv("PASTEL_MODEL", "pastel-tiny")
    assert resolve(str(path), None).files.name == "pastel-tiny"


def test_results_in_files_are_what_is_inside(archive: Make) -> None:
    files = (archive("pivotal tuning", LORA.read_bytes()), archive("textual inversion", WORD, name="other"))
    library = Library()
    fetched = library.load_only(NOTHING, Inputs(files=files))
    assert fetched.extras.loras["TOK"].path.read_bytes() == LORA.read_bytes()
    assert fetched.multipliers == {"TOK": (1.0,)}
    assert fetched.extras.embeddings["other"].path.read_bytes() == WORD
    library.release()
    assert not fetched.extras.loras["TOK"].path.exists()


@pytest.mark.parametrize(
    ("task", "name", "said"),
    [("DreamBooth", "TOK", "holds a checkpoint. Start a container"), ("LoRA", "../TOK", "names no file")],
)
def test_other_archives_in_files_are_refused(archive: Make, task: str, name: str, said: str) -> None:
    with pytest.raises(ModelError, match=r"^files='0\.tar': ") as refused:
        Library().load_only(NOTHING, Inputs(files=(archive(task, b"x", name=name),)))
    assert said in str(refused.value)


def test_a_result_in_a_line_of_loras(archive: Make, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    results = {"lora": archive("LoRA", LORA.read_bytes()), "word": archive("textual inversion", WORD)}
    for name, path in results.items():
        server.script[f"/me/trained/resolve/main/{name}.tar"] = [Answer(body=path.read_bytes())]
    place = f"{server.address}/me/trained/resolve/main"
    lines = f"cat = {place}/lora.tar : 0.7\n{place}/word.tar"
    library = Library()  # its end deletes what it unpacked
    fetched = library.load_only(NOTHING, Inputs(loras=lines))
    assert fetched.multipliers == {"cat": (0.7,)}
    assert fetched.extras.loras["cat"].path.read_bytes() == LORA.read_bytes()
    assert fetched.extras.embeddings["TOK"].path.read_bytes() == WORD


def test_the_containers_weights_by_their_address(archive: Make, server: Server) -> None:
    server.script["/x/TOK.tar"] = [Answer(body=archive("LoRA", LORA.read_bytes()).read_bytes())]
    resolved = resolve(f"{server.address}/x/TOK.tar", None)
    assert resolved.trained is not None
    assert resolved.trained.token == "TOK"


def test_the_results_of_a_request_have_a_limit_together(archive: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their number is looked at before any of them is unpacked."""
    first, second = archive("LoRA", LORA.read_bytes(), "one"), archive("LoRA", LORA.read_bytes(), "two")
    monkeypatch.setattr(extras, "STRANGERS", replace(extras.STRANGERS, total=400_000))
    library = Library([])
    assert library.load_only(NOTHING, Inputs(prompt="", files=(first,))).extras.loras.keys() == {"one"}
    with pytest.raises(ModelError, match="unpacks to more than"):
        library.load_only(NOTHING, Inputs(prompt="", files=(first, second)))
    monkeypatch.setattr(extras, "opened", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(InvalidInput, match=f"at most {FILES_MAX} files"):
        library.load_only(NOTHING, Inputs(prompt="", files=(first,) * (FILES_MAX + 1)))

"""What both ways into a training do first."""

import inspect
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import cog
import pytest

import script.train
import train
from pipelines.training.wishes import Wishes
from tests.unit.test_archives import zipped
from tests.unit.test_training_pictures import picture


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models whose weights were asked for."""
    asked = list[str]()

    def base_of(model: str) -> Any:
        asked.append(model)
        raise RuntimeError("nothing is fetched here")

    for way in (train, script.train):
        monkeypatch.setattr(way, "base_of", base_of)
    return asked


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    return zipped(tmp_path / "broken.zip", {"a.png": b"\x89PNG"})


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return zipped(tmp_path / "good.zip", {"a.png": picture()})


def serve(**inputs: Any) -> None:
    defaults = {name: each.default.default for name, each in inspect.signature(train.train).parameters.items()}
    train.train(**{**defaults, **inputs})


def test_a_service_looks_at_everything_before_it_fetches_weights(
    fetched: list[str], broken: Path, good: Path, tmp_path: Path
) -> None:
    for said, inputs in (
        (r"has no picture that can be used \(a.png: left out", {"input_images": cog.Path(broken)}),
        ("token='<s1>': must be", {"token": "<s1>"}),
        ("resume='good.zip': is no result of a training", {"resume": cog.Path(good)}),
        ("resume='training.json': its steps and losses do not match", {"resume": cog.Path(result(tmp_path, step=2))}),
    ):
        with pytest.raises(Exception, match=said):
            serve(**{"input_images": cog.Path(good), **inputs})
    assert fetched == []
    with pytest.raises(Exception, match="nothing is fetched here"):
        serve(input_images=cog.Path(good), resume=cog.Path(result(tmp_path, step=1)))
    assert fetched == [""]


def result(folder: Path, step: int) -> Path:
    """An earlier result that claims so many steps, and has the losses of one."""
    told = json.dumps({"settings": {}, "step": step, "losses": [0.1]})
    return zipped(folder / f"{step}.zip", {"training.json": told.encode()})


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"{", "training.json cannot be read"), (b"[]", "has no settings"), (b'{"settings": 1}', "has no settings")],
)
def test_a_foreign_archive_is_told_apart_from_a_result(
    fetched: list[str], good: Path, tmp_path: Path, content: bytes, said: str
) -> None:
    other = cog.Path(zipped(tmp_path / "tmp12345678other.zip", {"training.json": content}))
    with pytest.raises(Exception, match="is no result of a training") as refused:
        serve(input_images=cog.Path(good), resume=other)
    assert said in str(refused.value)
    assert str(refused.value).count("resume=") == str(refused.value).count("Send") == 1


def test_so_does_the_command(
    fetched: list[str], broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["script/train", str(broken), "-o", str(broken.parent)])
    assert script.train.main() == 1
    assert "has no picture that can be used (a.png: left out" in capsys.readouterr().err
    assert fetched == []


def test_the_command_refuses_wishes_before_it_looks_at_pictures(
    fetched: list[str], broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["script/train", str(broken), "-o", str(broken.parent), "--steps", "-1"])
    assert script.train.main() == 1
    assert capsys.readouterr().err == "error: steps=-1: must be from 1 to 20000. Use a number in between.\n"
    assert fetched == []


def test_the_command_describes_every_option() -> None:
    parser = script.train.arguments()
    assert {name for name in script.train.described() if name not in ("input_images", "model", "resume")} == {
        field.name for field in fields(Wishes)
    }
    assert "Training steps. Empty: 500" in parser.format_help()
    assert parser.parse_args(["a.zip", "-o", "b"]).text_learning_rate == 0.0

"""What both ways into a training do first."""

import inspect
import sys
from pathlib import Path
from typing import Any

import cog
import pytest

import script.train
import train
from tests.unit.test_archives import zipped


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


def test_a_service_looks_at_the_pictures_before_it_fetches_weights(fetched: list[str], broken: Path) -> None:
    inputs = {name: each.default.default for name, each in inspect.signature(train.train).parameters.items()}
    with pytest.raises(Exception, match=r"has no picture that can be used \(a.png: left out"):
        train.train(**{**inputs, "input_images": cog.Path(broken)})
    assert fetched == []


def test_so_does_the_command(
    fetched: list[str], broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["script/train", str(broken), "-o", str(broken.parent)])
    assert script.train.main() == 1
    assert "has no picture that can be used (a.png: left out" in capsys.readouterr().err
    assert fetched == []

"""script/grid against a running server."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from script import grid
from script.cog_server import CogServer

ALL_CELLS = "width=64", "height=64", "num_inference_steps=2", "highres_fix=Off", "seed=5"


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    given = [word for assignment in ALL_CELLS for word in ("-i", assignment)]
    monkeypatch.setattr(sys, "argv", ["script/grid", *given, *words])
    return grid.main()


def test_a_failed_cell_leaves_the_others_and_ends_with_status_1(
    server: CogServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet, kept = tmp_path / "grid.webp", tmp_path / "kept"
    options = ["--url", f"http://127.0.0.1:{server.port}", "-o", str(sheet), "--keep", str(kept)]
    prompt = "-i", "prompt=a pink sun over the sea"
    assert run(monkeypatch, *options, *prompt, "--x", "generation_data=,FreeU: 1 2", "--y", "prompt~=sun,moon") == 1
    told = capsys.readouterr().err
    assert told.count("InvalidInput: generation_data='FreeU: 1 2': FreeU must be the four numbers") == 2
    assert [Image.open(kept / name).info["parameters"].split("\n")[0] for name in ("1.png", "2.png")] == [
        f"a pink {what} over the sea" for what in ("sun", "moon")
    ]
    assert Image.open(sheet).width > 2 * 64


def test_values_are_checked_by_the_served_schema(
    server: CogServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--url", f"http://127.0.0.1:{server.port}", "--x", "clip_skip=1,13") == 1
    assert "--x clip_skip=13: 13 is greater than the maximum of 12" in capsys.readouterr().err

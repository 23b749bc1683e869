"""Every request of docs/cookbook.md for the embedded model does what it says."""

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from script import grid
from script.client import read_inputs
from script.cog_server import CogServer
from script.compatibility import inputs as schema_inputs
from script.schema import ROOT
from tests.contract.pictures import draw, parameters, picture
from tests.contract.test_img2img import uri

COOKBOOK = (ROOT / "docs" / "cookbook.md").read_text(encoding="utf-8").split("\n## ")[1]
REQUESTS = {
    name: shlex.split(re.sub(r"^    ", "", block, flags=re.M).replace("\\\n", " "))
    for name, block in re.findall(r"\*\*(.+?)\.\*\*.*\n\n((?:    .+\n)+)", COOKBOOK)
}
STEPS, SIDE = 3, 160
"""Fewer steps than the model's own, and pictures of half their size: what is checked here shows in them, too."""
BEFORE = np.asarray(Image.open(ROOT / "docs/pictures/default.webp").convert("RGB").resize((SIDE, SIDE)))


def tells(size: tuple[int, int], *told: str) -> Callable[[list[Image.Image]], None]:
    """A picture of this size for every text, in whose generation data that is found."""

    def check(made: list[Image.Image]) -> None:
        assert [image.size for image in made] == [size] * len(told)
        for image, text in zip(made, told, strict=True):
            assert re.search(text, parameters(image)), parameters(image)

    return check


def is_drawn_under_the_mask_alone(made: list[Image.Image]) -> None:
    tells((SIDE, SIDE), "Denoising strength: 0.9, .*Mask blur: 4")(made)
    changed = (np.asarray(made[0]) != BEFORE).any(-1)
    assert changed[94:144, 44:115].mean() > 0.5
    assert not changed[:75].any()


CHECKS = {
    "Text to image": tells((SIDE, SIDE), "Seed: 5, ", "Seed: 6, "),
    "Shape": tells((208, 128), "Seed: 5, Size: 208x128"),
    "Dynamic prompts": tells((SIDE, SIDE), r"^a (pink|dark (red|blue)) (sun|moon) over the sea\n"),
    "Generation data": tells((SIDE, SIDE), f"^a pink sun over the sea\nSteps: {STEPS}, Sampler: Euler a, .*Seed: 3, "),
    "Guidance": tells((SIDE, SIDE), "CFG scale: 9, Guidance rescale: 0.7, FreeU: 1.2 1.2 0.9 0.9, "),
    "Image to image": tells((SIDE, SIDE), "Denoising strength: 0.6"),
    "Inpainting": is_drawn_under_the_mask_alone,
    "Variations": tells((SIDE, SIDE), "Variation seed: 6, Variation seed strength: 0.2"),
    "Outpainting": tells((SIDE + 64, SIDE), "Denoising strength: 0.85, .*Outpaint: 0 0 64 0"),
    "Highres fix": tells((240, 240), "Denoising strength: 0.4, .*Hires upscale: 1.5"),
    "LoRA": tells((SIDE, SIDE), 'Lora hashes: "snowman: '),
    "Textual inversion": tells((SIDE, SIDE), 'TI hashes: "afterglow: '),
    "ControlNet": tells((SIDE, SIDE), 'ControlNet 0: "Module: canny, Model: canny-tiny .*Weight: 1.2, '),
    "Enlarge": tells((2 * SIDE, 2 * SIDE), "Postprocess upscale by: 2, Postprocess upscaler: 4x-tiny"),
}


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are named from there."""
    monkeypatch.chdir(ROOT)


def test_every_request_is_checked() -> None:
    assert REQUESTS.keys() == {*CHECKS, "Compare settings"}
    assert COOKBOOK.count("\n\n    ") == len(REQUESTS)


@pytest.mark.parametrize("name", CHECKS)
def test_a_request_does_what_it_says(server: CogServer, name: str) -> None:
    command, *words = REQUESTS[name]
    assert (command, *words[::2]) == ("script/predict", *["-i"] * (len(words) // 2))
    reply = server.request("GET", "/openapi.json")
    inputs = read_inputs(words[1::2], schema_inputs(reply.body))
    if "Steps: 20" in inputs.get("generation_data", ""):
        inputs["generation_data"] = inputs["generation_data"].replace("Steps: 20", f"Steps: {STEPS}")
    else:
        inputs = {"num_inference_steps": STEPS, **inputs}
    pictures = {name: picture(inputs[name]) for name in ("image", "mask") if name in inputs}
    inputs |= {name: uri(sent.resize((SIDE, SIDE))) for name, sent in pictures.items()}
    CHECKS[name]([picture(uri) for uri in draw(server, inputs)["output"]])


def test_settings_are_compared(server: CogServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, *words = REQUESTS["Compare settings"]
    assert (command, words[-2:]) == ("script/grid", ["-o", "grid.png"])
    sheet, kept = tmp_path / "grid.png", tmp_path / "kept"
    options = ["--url", f"http://127.0.0.1:{server.port}", "--keep", str(kept), "-o", str(sheet)]
    fewer = ["-i", f"num_inference_steps={STEPS}"]
    monkeypatch.setattr(sys, "argv", [command, *words[:-2], *fewer, *options])
    assert grid.main() == 0
    assert len(list(kept.iterdir())) == 4
    assert min(Image.open(sheet).size) > 2 * SIDE

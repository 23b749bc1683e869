"""ControlNets and their pictures through HTTP."""

import pytest
from PIL import ImageOps

from pipelines.models.loader import load
from script.client import data_uri
from script.cog_server import CogServer, reasons
from tests.contract.pictures import DRAFT, ask, draw, parameters, picture
from tests.contract.test_img2img import IMAGE, uri
from tests.controls import random_control, write
from weights_script.resolve import resolve

Inputs = dict[str, object]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A random ControlNet of the embedded model and a picture, as data URIs."""
    unet = load(resolve(None, None).files).unet.network
    file = write(tmp_path_factory.mktemp("control") / "some.safetensors", random_control(unet))
    return DRAFT | {"prompt": "a boat", "files": [data_uri(file.path)], "control_images": [uri(IMAGE)]}


def test_a_control_is_there_for_its_prediction_alone_and_its_block_brings_it_back(
    server: CogServer, inputs: Inputs
) -> None:
    (before,) = draw(server, DRAFT | {"prompt": "a boat"})["output"]
    (changed,) = draw(server, inputs | {"controls": "my canny: 0.8, end=0.5"})["output"]
    (after,) = draw(server, DRAFT | {"prompt": "a boat"})["output"]
    assert after == before != changed
    text = parameters(picture(changed))
    assert 'ControlNet 0: "Module: canny, Model: my canny [' in text
    assert "Weight: 0.8, Resize Mode: Crop and Resize" in text
    sent = {name: inputs[name] for name in ("files", "control_images")}
    again = draw(server, sent | {"generation_data": text})
    assert again["output"] == [changed]
    assert again["metrics"]["not_honoured"] == []


def test_what_is_wrong_is_named(server: CogServer, inputs: Inputs) -> None:
    told: dict[str, Inputs] = {
        "there is no ControlNet to follow them": {"files": [], "controls": ""},
        "controls, weight of my=3": {"controls": "my: 3"},
        "cannot be read as a picture": {"control_images": ["data:image/png;base64,bm8gcGljdHVyZQ=="]},
        "there is no picture for it to follow": {"control_images": []},
        # of the manifest: told before it would be fetched
        "controls='canny': there is no picture": {"controls": "canny", "files": [], "control_images": []},
    }
    for words, changes in told.items():
        reply = ask(server, inputs | changes)
        assert words in " ".join(reasons(reply.body)), reply.body


def test_two_at_once_with_a_picture_each(server: CogServer, inputs: Inputs) -> None:
    lines = {"controls": "my canny: 0.8\nmy canny: 0.4, mode=control, preprocessor=lineart"}
    made = draw(server, inputs | lines | {"control_images": [uri(IMAGE), uri(ImageOps.mirror(IMAGE))]})
    assert "ControlNet 1: " in parameters(picture(made["output"][0]))

"""ControlNets, adapters and their pictures over HTTP."""

from pathlib import Path

import pytest
import torch
from PIL import ImageOps

from pipelines.models.model import Model
from script.client import data_uri
from script.cog_server import CogServer, reasons
from tests.contract.pictures import DRAFT, ask, draw, parameters, picture
from tests.contract.test_img2img import IMAGE, uri
from tests.controls import (
    by_authors_names,
    random_control,
    random_image_encoder,
    random_ip_adapter,
    random_t2i,
    write,
)

Inputs = dict[str, object]


@pytest.fixture(scope="module")
def inputs(networks: Model, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A random ControlNet of the embedded model and a picture, as data URIs."""
    control = random_control(networks.unet.network)
    file = write(tmp_path_factory.mktemp("control") / "some.safetensors", control)
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


def test_adapters_are_known_by_their_content_and_their_block_brings_them_back(
    server: CogServer, inputs: Inputs, networks: Model, tmp_path: Path
) -> None:
    unet = networks.unet.network
    adapter = write(tmp_path / "a.safetensors", by_authors_names(random_t2i(unet)))
    encoder = write(tmp_path / "b.safetensors", dict(random_image_encoder().state_dict()))
    torch.save(random_ip_adapter(unet), tmp_path / "c.bin")
    files = [data_uri(path) for path in (adapter.path, encoder.path, tmp_path / "c.bin")]
    sent = {"files": files, "control_images": [uri(IMAGE)]}
    names = "File names: my lineart, eyes, look"
    lines = {"controls": "look: 0.6, end=0.5\nmy lineart: 0.7", "generation_data": names}
    (changed,) = draw(server, inputs | sent | lines)["output"]
    text = parameters(picture(changed))
    assert 'ControlNet 0: "Module: ip-adapter_clip_sd15, Model: look [' in text
    assert 'ControlNet 1: "Module: lineart_standard (from white bg & black line), Model: my lineart [' in text
    again = draw(server, sent | {"generation_data": f'{text}, File names: "my lineart, eyes, look"'})
    assert again["output"] == [changed]
    assert again["metrics"]["not_honoured"] == []
    reply = ask(server, inputs | sent | {"controls": "look: mode=prompt", "generation_data": names})
    assert "it has no effect on an IP-Adapter" in " ".join(reasons(reply.body))

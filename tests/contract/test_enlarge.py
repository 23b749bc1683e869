"""Enlarging a picture over HTTP, without drawing."""

import pytest
from PIL import Image

from script.client import data_uri
from script.cog_server import CogServer, reasons
from tests.contract.pictures import DRAFT, ESRGAN, ask, draw, parameters, picture
from tests.contract.test_img2img import IMAGE, uri

ALONE = {"generation_data": "Upscale only: True"}


def test_a_drawn_picture_is_enlarged_and_tells_both(server: CogServer) -> None:
    (drawn,) = draw(server, DRAFT)["output"]
    inputs = ALONE | {"image": drawn, "hires_scale": 3, "files": [data_uri(ESRGAN)]}
    done = draw(server, inputs)
    (made,) = map(picture, done["output"])
    assert made.size == (192, 192)
    before = parameters(picture(drawn))
    assert parameters(made).startswith(f"{before}, Postprocess upscale by: 3, Postprocess upscaler: ")
    assert done["metrics"].keys() >= {"image_output_count", "timing"}


def test_lanczos(server: CogServer) -> None:
    inputs = ALONE | {"image": uri(IMAGE), "hires_upscaler": "Lanczos", "output_format": "webp"}
    (made,) = map(picture, draw(server, inputs)["output"])
    assert made.size == (272, 144)
    assert parameters(made) == "Postprocess upscale by: 2, Postprocess upscaler: Lanczos"


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, ["image=''", "Upscale only needs an image"]),
        ({"image": uri(IMAGE), "hires_upscaler": "Latent"}, ["hires_upscaler='Latent'", "Use Nearest, Lanczos"]),
        ({"image": uri(Image.new("RGB", (20, 90))), "hires_upscaler": "Lanczos"}, ["hires_scale=2", "40x180"]),
    ],
)
def test_what_is_wrong_is_named(server: CogServer, inputs: dict[str, object], words: list[str]) -> None:
    reply = ask(server, inputs | ALONE)
    assert reply.body["status"] == "failed"
    told = " ".join(reasons(reply.body))
    assert [word for word in words if word not in told] == [], told

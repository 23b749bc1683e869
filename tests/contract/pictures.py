"""Requests that are drawn in a fraction of a second, and checks of their replies."""

import base64
import io
import time
from typing import Any

from PIL import Image

from script.cog_server import CogServer, Reply
from script.schema import ROOT

ESRGAN = ROOT / "tests" / "data" / "upscalers" / "4x-tiny.safetensors"
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286

DRAFT: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 2, "seed": 5, "highres_fix": "Off"}
HIRES: dict[str, Any] = DRAFT | {"highres_fix": "On", "hires_steps": 2}
LONG: dict[str, Any] = DRAFT | {"num_inference_steps": 150}


def picture(uri: str) -> Image.Image:
    """A data URI, decoded to the last pixel."""
    head, _, data = uri.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    image.load()
    assert head == f"data:{Image.MIME[image.format or '']}"
    return image


def parameters(image: Image.Image) -> str:
    """The generation parameters that the file carries."""
    if image.format == "PNG":
        return str(image.info["parameters"])
    comment: bytes = image.getexif().get_ifd(EXIF_IFD)[USER_COMMENT]
    assert comment.startswith(b"UNICODE\0")
    return comment[8:].decode("utf-16-be")


def ask(server: CogServer, inputs: dict[str, Any]) -> Reply:
    """A prediction, once the server is free."""
    return server.predict_when_free(inputs)


def draw(server: CogServer, inputs: dict[str, Any]) -> dict[str, Any]:
    """A prediction that succeeds."""
    reply = ask(server, inputs)
    assert reply.status == 200, reply
    assert reply.body["status"] == "succeeded", reply.body["error"]
    body: dict[str, Any] = reply.body
    return body


def assert_ready_soon(server: CogServer, seconds: float = 100) -> None:
    """READY again, and able to draw. The limit is a guard against hangs and no measure."""
    end = time.monotonic() + seconds
    while server.status() != "READY":
        assert time.monotonic() < end, server.status()
        time.sleep(0.02)
    draw(server, DRAFT)

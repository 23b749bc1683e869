"""Cancelling, hanging up and asking twice: the server is ready again within seconds."""

import base64
import io
import time

import pytest
from PIL import Image

from script.cog_server import CogServer
from tests.contract.pictures import DRAFT, ESRGAN, HIRES, LONG, assert_ready_soon

GUARD_SECONDS = 30
"""Nothing is measured here: what is cancelled below would go on for minutes by itself."""


def large_picture() -> str:
    stream = io.BytesIO()
    Image.new("RGB", (2000, 2000), "pink").save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def network() -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(ESRGAN.read_bytes()).decode()}"


MOMENTS = {
    "while drafting": (LONG, lambda event: event.name == "log" and "Draft:" in event.data["data"]),
    "while enlarging": (HIRES | {"show_phases": True, "hires_steps": 150}, lambda event: event.name == "output"),
    "while refining": (
        HIRES | {"hires_steps": 150},
        lambda event: event.name == "log" and "Refinement:" in event.data["data"],
    ),
    "during one step of a large picture": (
        LONG | {"width": 2048, "height": 2048},
        lambda event: event.name == "log" and "Draft:" in event.data["data"],
    ),
    "while a network enlarges a large picture": (
        {"generation_data": "Upscale only: True", "image": large_picture(), "files": [network()]},
        lambda event: event.name == "log" and "Plan:" in event.data["data"],
    ),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_cancelling(server: CogServer, moment: str) -> None:
    inputs, is_now = MOMENTS[moment]
    identifier = moment.replace(" ", "-")
    events = server.events(identifier, inputs)
    next(event for event in events if is_now(event))
    assert server.cancel(identifier).status == 200
    cancelled = time.monotonic()
    *_, done = events
    assert done.data["status"] == "canceled"
    assert time.monotonic() - cancelled < GUARD_SECONDS
    assert_ready_soon(server, GUARD_SECONDS)


def test_a_background_prediction_can_be_cancelled(server: CogServer) -> None:
    assert server.start("background", LONG).status == 202
    while server.status() != "BUSY":
        time.sleep(0.01)
    assert server.cancel("background").status == 200
    assert_ready_soon(server)


def test_cancelling_what_is_not_there(server: CogServer) -> None:
    assert server.cancel("nothing").status == 404


def test_hanging_up_cancels(server: CogServer) -> None:
    events = server.events("hang-up", LONG)
    next(event for event in events if event.name == "log")
    events.close()
    assert_ready_soon(server)


def test_a_second_request_is_told_to_come_back(server: CogServer) -> None:
    events = server.events("first", DRAFT | {"num_inference_steps": 20})
    next(event for event in events if event.name == "log")
    assert server.predict(DRAFT).status == 409
    *_, done = events
    assert done.data["status"] == "succeeded"
    assert_ready_soon(server)

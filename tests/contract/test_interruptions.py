"""Cancelling, hanging up and asking twice: the server is ready again within seconds."""

import time

import pytest

from script.cog_server import CogServer
from tests.contract.pictures import DRAFT, HIRES, LONG, assert_ready_soon

MOMENTS = {
    "while drafting": (LONG, lambda event: event.name == "log" and "Draft:" in event.data["data"]),
    "while enlarging": (HIRES | {"show_phases": True, "hires_steps": 150}, lambda event: event.name == "output"),
    "while refining": (
        HIRES | {"hires_steps": 150},
        lambda event: event.name == "log" and "Refinement:" in event.data["data"],
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
    assert time.monotonic() - cancelled < 2, "takes longer than a few steps"
    assert_ready_soon(server)


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

"""Requests from valid to hostile: a small part of what `script/soak requests` sends."""

import json
from typing import Any

import pytest

from script import hostile
from script.cog_server import CogServer

OURS = "Prediction failed: Generator iteration error: "


def test_nothing_that_is_sent_breaks_the_server(server: CogServer) -> None:
    """Each is answered well and in time, and the same worker is ready after it."""
    workers = hostile.workers(server)
    with hostile.junk_web() as web:
        hostile.for_each(hostile.messages(web), 40, 3, lambda message: hostile.check(server, message, workers))


@pytest.mark.parametrize("file", ["/etc/hostname", "ftp://x/y", "data:application/octet-stream;base64,AAAA"])
def test_what_is_no_file_of_weights_is_refused_by_the_name_of_its_input(server: CogServer, file: str) -> None:
    message = hostile.prediction(hostile.cheap({"files": [file]}))
    assert hostile.check(server, message, hostile.workers(server)).failed


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, {}),
        (409, {}),
        (200, []),
        (200, {"id": "no prediction"}),
        (200, {"logs": "", "status": "succeeded", "output": []}),
        (200, {"logs": "", "status": "canceled"}),
        (200, {"logs": "", "status": "failed", "error": ""}),
        (200, {"logs": "", "status": "failed", "error": "prompt: Traceback (most recent call last)"}),
        (200, {"logs": "", "status": "failed", "error": f"{OURS}KeyError: 'prompt'"}),
        (200, {"logs": "", "status": "failed", "error": f"{OURS}ModelError: it names no input"}),
        (200, {"logs": "", "status": "failed", "error": f"{OURS}InvalidInput: prompt:\nmore than a line"}),
    ],
)
def test_the_invariants_can_fail(status: int, body: Any) -> None:
    answer = hostile.Answer(status, "application/json", json.dumps(body).encode(), 0.1)
    assert hostile.faults(hostile.prediction({}), answer) != []

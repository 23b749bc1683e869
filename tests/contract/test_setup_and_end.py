"""Servers that cannot start, and one that is told to stop while it draws."""

from pathlib import Path

import pytest

from script.cog_server import ServerError
from tests.contract.conftest import StartServer
from tests.contract.pictures import DRAFT, picture


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("COG_WEIGHTS", "/nonexistent/model.safetensors", ["/nonexistent/model.safetensors"]),
        ("COG_WEIGHTS", "broken.safetensors", ["broken.safetensors", "safetensors file"]),
        ("PASTEL_MODEL", "pastel-mixx", ["PASTEL_MODEL", "pastel-mixx", "pastel-mix"]),
    ],
)
def test_a_model_that_cannot_be_had_fails_setup(
    start_server: StartServer, tmp_path: Path, setting: str, value: str, words: list[str]
) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{ not a header ")
    value = str(tmp_path / value) if value == "broken.safetensors" else value
    server = start_server({setting: value})
    with pytest.raises(ServerError) as failed:
        server.wait_until_ready()
    said = str(failed.value)
    assert said.count("\n") == 0
    assert [word for word in words if word not in said] == [], said
    assert server.status() == "SETUP_FAILED"
    assert server.predict(DRAFT).status == 503


def test_sigterm_lets_the_running_prediction_finish(start_server: StartServer) -> None:
    server = start_server({})
    server.wait_until_ready()
    events = server.events("last", DRAFT | {"num_inference_steps": 20})
    next(event for event in events if event.name == "log")
    server.process.terminate()
    *_, done = events
    assert done.data["status"] == "succeeded"
    assert picture(done.data["output"][0]).size == (64, 64)
    assert server.process.wait(100) == 0

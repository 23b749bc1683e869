"""Servers that cannot start, and one that does not end. tests/unit/test_resolve.py has more reasons."""

import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from script.cog_server import ServerError
from tests.contract.conftest import StartServer
from tests.contract.pictures import DRAFT


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("COG_WEIGHTS", "broken.safetensors", ["broken.safetensors", "safetensors file"]),
        (
            "PASTEL_MODEL",
            "pastel-mixx, /x/gone.safetensors",  # one alone: tests/unit/test_resolve.py
            [
                "None of the models can be used",
                "PASTEL_MODEL=pastel-mixx: ",
                "pastel-mix,",
                "gone: PASTEL_MODEL=/x/gone",
            ],
        ),
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
    assert server.stop() == 0


def test_a_server_that_must_be_killed_tells_what_it_waited_for(start_server: StartServer) -> None:
    server = start_server({})
    process = psutil.Process(server.process.pid)
    process.suspend()
    while process.status() != psutil.STATUS_STOPPED:  # SIGTERM would overtake
        time.sleep(0.01)
    assert server.stop(0.1) == -signal.SIGKILL
    told = server.end(3000)
    assert "ended with exit code -9: " in told
    assert "did not end within 0.1 s of SIGTERM" in told
    assert re.search(rf"^{server.process.pid} \S+ -m cog\.server\.http .*: 1 x \S+ in \S+", told, re.M), told

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


def test_models_that_cannot_be_had_fail_setup(start_server: StartServer, tmp_path: Path) -> None:
    """A misspelt name, a file that is not there and one that is none. One model alone: tests/unit/test_resolve.py."""
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x10\0\0\0\0\0\0\0{ not a header ")
    server = start_server({"PASTEL_MODEL": f"pastel-mixx, /x/gone.safetensors, {broken}"})
    with pytest.raises(ServerError) as failed:
        server.wait_until_ready()
    said = str(failed.value)
    assert said.count("\n") == 0
    words = [
        "None of the models can be used",
        "PASTEL_MODEL=pastel-mixx: ",
        "pastel-mix,",
        "gone: PASTEL_MODEL=/x/gone",
    ]
    words += [f"{broken}", "safetensors file"]
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

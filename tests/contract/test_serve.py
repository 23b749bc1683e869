"""script/serve: what it prints works, and Ctrl-C ends it."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from script.cog_server import HOST, free_port
from script.schema import ROOT


def start(port: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "script.serve", "--port", str(port)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.timeout(300)  # a server of its own, on a machine that may be busy
def test_the_example_draws_a_picture_and_ctrl_c_stops_the_server(embedded_default: None, tmp_path: Path) -> None:
    port = free_port()
    process = start(port)
    assert process.stdout is not None
    try:
        shown = ""
        while "openapi.json" not in shown:
            line = process.stdout.readline()
            assert line, "the server ended"
            shown += line
        assert shown.startswith(f"The server is ready at http://{HOST}:{port}.")
        example = shown[shown.index("curl ") : shown.index("\n\nThe inputs")]
        subprocess.run(["bash", "-c", f"set -o pipefail; {example}"], cwd=tmp_path, check=True)
        picture = Image.open(tmp_path / "picture.webp")
        assert (picture.format, picture.size) == ("WEBP", (256, 256))
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert said.endswith("script/serve: stopped\n")
    assert process.returncode == 0
    assert free_port(port) == port, "nothing listens any more"


@pytest.mark.parametrize("port", ["taken", "70000"])
def test_a_port_that_cannot_be_used_is_told(port: str) -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        number = other.getsockname()[1] if port == "taken" else int(port)
        process = start(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"script/serve: port {number} cannot be used: " in said
    assert "Choose another with --port." in said

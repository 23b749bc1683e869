"""script/serve: what it prints works, and Ctrl-C ends it."""

import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from PIL import Image

from script.cog_server import HOST, CogClient, free_port
from script.schema import ROOT
from tests.contract.pictures import DRAFT, picture


def start(port: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "script.serve", "--port", str(port)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.timeout(300)  # a server of its own, on a machine that may be busy
def test_the_example_draws_a_picture_and_ctrl_c_lets_the_next_one_finish(
    embedded_default: None, tmp_path: Path
) -> None:
    """Ctrl-C sends the server SIGTERM, and would tell if it did not end well."""
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
        form = shown.split("Draw pictures in your browser:\n\n    ")[1].split("\n")[0]
        assert b'id="draw"' in urlopen(form).read()
        example = shown[shown.index("curl ") : shown.index("\n\nThe inputs")]
        # the time is the picture's
        fewer = example.replace('"seed": 5', '"seed": 5, "num_inference_steps": 2, "hires_steps": 2')
        assert fewer != example
        subprocess.run(["bash", "-c", f"set -o pipefail; {fewer}"], cwd=tmp_path, check=True)
        drawn = Image.open(tmp_path / "picture.webp")
        assert (drawn.format, drawn.size) == ("WEBP", (320, 320))

        client = CogClient(f"http://{HOST}:{port}")
        client.wait_until_ready()
        events = client.events("last", DRAFT | {"num_inference_steps": 20})
        next(event for event in events if event.name == "log")
        process.send_signal(signal.SIGINT)
        *_, done = events
        assert done.data["status"] == "succeeded"
        assert picture(done.data["output"][0]).size == (64, 64)
    except BaseException:
        process.send_signal(signal.SIGINT)
        raise
    finally:
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

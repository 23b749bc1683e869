"""script/predict turns its arguments into the inputs that it sends."""

import http.server
import json
import shlex
import threading
from pathlib import Path

import pytest

from pipelines.infotext.asked import read_data
from script.client import Failure, Json, guide, read_inputs
from script.cog_server import CogClient, Refused
from script.compatibility import inputs as schema_inputs
from script.schema import COMMITTED

FIELDS = schema_inputs(json.loads(COMMITTED.read_text(encoding="utf-8")))
BLOCK = "a sun\nNegative prompt: text\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    path = tmp_path / "my lora.safetensors"
    path.write_bytes(b"weights")
    return path


def read(*assignments: str) -> Json:
    return read_inputs(assignments, FIELDS)


def test_values_take_the_types_of_the_schema() -> None:
    assert read("width=64", "guidance_scale=7", "show_phases=true", "outpaint=right 64, top 32") == {
        "width": 64,
        "guidance_scale": 7.0,
        "show_phases": True,
        "outpaint": "right 64, top 32",
    }


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("width", "write name=value"),
        ("widht=64", "there is no input widht; --list shows them all"),
        ("width=63", "width=63: 63 is less than the minimum of 64"),
        ("sampler=Euler b", "'Euler b' is not one of"),
        ("image=@nothing.png", "No such file"),
    ],
)
def test_what_cannot_be_sent_is_told(assignment: str, told: str) -> None:
    with pytest.raises(Failure) as failure:
        read(assignment)
    assert told in str(failure.value)


def test_files_are_sent_with_their_names(lora: Path) -> None:
    inputs = read(f"files=@{lora},@{lora}")
    assert inputs["files"] == ["data:application/octet-stream;base64,d2VpZ2h0cw=="] * 2
    assert inputs["generation_data"] == "File names: my lora, my lora"
    assert "generation_data" not in read("files=https://example.com/a.safetensors")
    mixed = read(f'files=["https://example.com/a.safetensors", "@{lora}"]')
    assert mixed["generation_data"] == "File names: , my lora"


@pytest.mark.parametrize("said", ["ENSD: 31337, RNG: CPU", "Wildcard colour: red | blue, green", BLOCK])
@pytest.mark.parametrize("files_first", [True, False])
def test_names_stand_beside_what_generation_data_says(lora: Path, said: str, files_first: bool) -> None:
    words = [f"files=@{lora},@{lora}", f"generation_data={said}"]
    made = read_data(read(*(words if files_first else reversed(words)))["generation_data"])
    before = read_data(said)
    assert made.values == {**before.values, "file_names": "my lora, my lora"}
    assert (made.whole, made.wildcards) == (before.whole, before.wildcards)


def test_a_newcomer_is_told_what_happens_where_and_what_to_try() -> None:
    told = guide(Path("outputs"))
    assert "The picture will be in the folder outputs." in told
    examples = [shlex.split(line, comments=True) for line in told.splitlines() if line.startswith("    script/")]
    assert len(examples) == 3
    for command, *words in examples:
        assert (COMMITTED.parents[1] / command).exists()
        assert words[:1] != ["-i"] or read(words[1])


def test_a_server_that_hangs_up_on_a_large_request_refuses_it() -> None:
    """It answers before it has read the request, and the answer may be lost."""

    class Strict(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.send_error(413)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Strict) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(Refused) as refusal:
            list(CogClient(f"http://127.0.0.1:{server.server_port}").events("one", {"files": "a" * 30_000_000}))
        server.shutdown()
    assert refusal.value.status == 413

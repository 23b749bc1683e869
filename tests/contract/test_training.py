"""Trainings through the real Cog server, and their result back in the server for predictions."""

import base64
import http.server
import json
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pillow_heif
import pytest
from PIL import Image

from script.cog_server import CogServer, TrainingServer
from tests.contract.pictures import DRAFT
from tests.unit.test_archives import zipped
from tests.unit.test_training_pictures import picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trainings")


@pytest.fixture(scope="module")
def trainer(embedded_default: None, folder: Path) -> Iterator[CogServer]:
    with TrainingServer({"PASTEL_TRAININGS": str(folder)}, log=lambda line: None) as server:
        server.wait_until_ready()
        yield server


def uri(content: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Five pictures as a stranger takes them: one turned, one HEIC, one broken, one alone in a folder, and clutter."""
    turned = Image.Exif()
    turned[0x0112] = 6
    pillow_heif.register_heif_opener()
    files = {
        "a.png": picture(),
        "my cat/b.jpg": picture((192, 128), "JPEG", exif=turned),
        "my cat/c.png": b"\x89PNG",
        "my cat/d.HEIC": picture((144, 144), "HEIF"),
        "my cat/old/e.webp": picture(form="WEBP"),
        "__MACOSX/my cat/._b.jpg": b"x",
    }
    return uri(zipped(tmp_path_factory.mktemp("in") / "a", files).read_bytes())


SMALL = {"steps": 2, "resolution": 64}


@pytest.fixture(scope="module")
def result(trainer: CogServer, pictures: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of a few steps."""
    reply = trainer.predict({"input_images": pictures, **SMALL, "seed": 1, "learning_rate": 0.05, "token": "TOK"})
    assert reply.body["status"] == "succeeded", reply.body
    lines = reply.body["logs"].splitlines()
    told = [
        "a.png: used, 128x128 as 64x64",
        "my cat/b.jpg: used, 128x192 as 64x80, 17% of its height cropped evenly",
        "my cat/c.png: left out, cannot be read as a picture (it is a PNG that is cut or broken)",
        "my cat/d.HEIC: used, 144x144 as 64x64",
        "my cat/old/e.webp: used, 128x128 as 64x64",
    ]
    assert [line for line in lines if ": used" in line or ": left out" in line] == told
    assert "2/2" in reply.body["logs"]
    assert reply.body["metrics"]["step"] == 2
    assert reply.body["metrics"]["loss"] > 0
    path = tmp_path_factory.mktemp("result") / "TOK.tar"
    with urlopen(reply.body["output"]["weights"]) as sent:
        path.write_bytes(sent.read())
    return path


def test_bad_archives_are_refused_with_advice(trainer: CogServer, pictures: str) -> None:
    reply = trainer.predict_when_free({"input_images": uri(b"hello")})
    assert reply.body["status"] == "failed"
    assert "neither a ZIP nor a TAR archive (.tar, .tar.gz or .tar.bz2). Send a ZIP" in reply.body["error"]
    assert trainer.predict_when_free({}).status == 422
    assert trainer.predict_when_free({"input_images": pictures, "rank": 0}).status == 422
    reply = trainer.predict_when_free({"input_images": pictures, "resume": uri(b"hello"), "steps": 2})
    assert "resume='file.bin': is no result of a training" in reply.body["error"]
    for field, value in (("input_images", "/etc/passwd"), ("resume", "earlier.tar")):
        reply = trainer.predict_when_free({"input_images": pictures, field: value})
        assert f"{field}='{value}': must be a file. Send a data, http or https URL." in reply.body["error"]


def test_a_training_that_cannot_begin_says_why_and_leaves_nothing(
    trainer: CogServer, pictures: str, result: Path, folder: Path
) -> None:
    before = set(folder.iterdir())
    for wrong, said in (
        ({"token": "a,b"}, "token='a,b': must be a word"),
        ({"learning_rate": 0}, "learning_rate=0: nothing would be trained"),
        ({"resume": uri(result.read_bytes()), "rank": 8, "steps": 4}, "rank=8: the training to resume had 4"),
    ):
        reply = trainer.predict_when_free({"input_images": pictures, **SMALL, **wrong})
        assert reply.body["status"] == "failed"
        assert said in reply.body["error"]
    assert set(folder.iterdir()) == before


def test_a_cancel_leaves_the_last_save(trainer: CogServer, pictures: str, result: Path, folder: Path) -> None:
    """The server tells it by a webhook."""
    told: queue.Queue[str] = queue.Queue()

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["status"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        before = set(folder.glob("*/TOK.tar"))
        trainer.wait_until_ready()
        message = {
            "input": {"input_images": pictures, **SMALL, "steps": 10_000, "save_every": 1},
            "webhook": f"http://127.0.0.1:{listener.server_port}",
            "webhook_events_filter": ["completed"],
        }
        reply = trainer.request("PUT", "/trainings/one", message, {"Prefer": "respond-async"})
        assert reply.status == 202
        while not (saved := set(folder.glob("*/TOK.tar")) - before):
            time.sleep(0.1)
        assert trainer.cancel("one").status == 200
        assert told.get(timeout=60) == "canceled"
        listener.shutdown()
    trainer.wait_until_ready()
    assert all(path.exists() for path in saved)


def test_the_result_comes_back(server: CogServer, result: Path) -> None:
    """In `files` of a prediction it is a LoRA as any. tests/tiny/test_trained.py has the other ways."""
    files = [uri(result.read_bytes())]
    with_it = server.predict_when_free({**DRAFT, "prompt": "a photo of TOK", "seed": 3, "files": files})
    off = server.predict_when_free({**DRAFT, "prompt": "a photo of TOK <lora:TOK:0>", "seed": 3, "files": files})
    drawn = [reply.body["output"][0] for reply in (with_it, off)]
    assert drawn[0] != drawn[1]

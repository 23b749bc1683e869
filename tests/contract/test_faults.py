"""Faults: a full disk, a missing folder, a killed worker, an id that cannot be a folder name."""

import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from script.cog_server import CogServer, reasons
from script.hostile import workers
from tests.contract.conftest import StartServer
from tests.contract.pictures import DRAFT, HIRES, LONG, ask, draw

GUARD_SECONDS = 60
"""What hangs ends; nothing is measured."""


@contextmanager
def no_file_above(server: CogServer, size: int) -> Iterator[None]:
    """Let the worker write no file of more bytes, as on a disk that is full."""
    (worker,) = map(psutil.Process, workers(server))
    before = worker.rlimit(resource.RLIMIT_FSIZE)
    worker.rlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        worker.rlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("output_format", ["png", "webp", "jpg"])
def test_a_disk_without_room(server: CogServer, scratch: Path, output_format: str) -> None:
    with no_file_above(server, 1000):
        reply = ask(server, DRAFT | {"output_format": output_format})
    assert reply.body["status"] == "failed"
    (told,) = reasons(reply.body)
    assert [word for word in ("OutputError: ", str(scratch), "File too large", "set TMPDIR") if word not in told] == []
    assert [path for path in scratch.rglob("*") if path.is_file()] == []
    draw(server, DRAFT)


def test_the_pictures_before_the_disk_was_full_are_kept(server: CogServer) -> None:
    """The draft is smaller than the picture."""
    sizes = [len(uri) * 3 // 4 for uri in draw(server, HIRES | {"show_phases": True})["output"]]
    server.wait_until_ready()
    with no_file_above(server, (sizes[0] + sizes[2]) // 2):
        events = list(server.events("half-full", HIRES | {"show_phases": True}))
    assert [event.name for event in events].count("output") in (1, 2)
    assert events[-1].data["status"] == "failed"
    assert "OutputError" in events[-1].data["error"]


def test_a_server_that_loses_its_folder_and_then_its_worker(start_server: StartServer) -> None:
    """Without its folder it says so and goes on. Without its worker it tells the client at once and, as Cog starts no
    other one, is ended with an error, so that whoever runs it starts another server."""
    with tempfile.TemporaryDirectory() as folder:
        server = start_server({"TMPDIR": folder})
        server.wait_until_ready()
        shutil.rmtree(folder)
        (told,) = reasons(ask(server, DRAFT).body)
        assert f"OutputError: {folder}: " in told
        assert "No such file or directory" in told
        Path(folder).mkdir()
        draw(server, DRAFT)

        server.wait_until_ready()
        events = server.events("killed", LONG)
        next(event for event in events if event.name == "log")
        for worker in workers(server):
            psutil.Process(worker).kill()
        *_, done = events
        assert (done.data["status"], done.data["error"]) == ("failed", "Worker crashed")
        assert server.process.wait(GUARD_SECONDS) != 0
        assert "its worker is gone" in "".join(server.lines)


def test_an_id_that_takes_the_only_slot_ends_the_server(start_server: StartServer) -> None:
    """And a prediction that lasts longer than a slot may be taken does not, nor the time without any."""
    seconds = 2.0  # of which the watchdog looks after each half
    server = start_server({"PASTEL_WATCHDOG": str(seconds)})
    server.wait_until_ready()
    long = LONG | {"num_inference_steps": 60}
    while draw(server, long)["metrics"]["predict_time"] < 1.5 * seconds:
        long = long | {"width": long["width"] + 64}
    time.sleep(1.5 * seconds)
    server.wait_until_ready(GUARD_SECONDS)
    reply = server.request("POST", "/predictions", {"id": "a\0b", "input": DRAFT})
    assert "Failed to create output dir" in reply.body["error"]
    assert server.process.wait(GUARD_SECONDS) != 0
    assert "nothing runs" in "".join(server.lines)


def test_without_the_watchdog_coglet_lives_on_and_refuses_everything(start_server: StartServer) -> None:
    """Its own behaviour (docs/reliability.md), so that a change of it is noticed."""
    server = start_server({"PASTEL_WATCHDOG": "off"})
    server.wait_until_ready()
    helpers = psutil.Process(workers(server)[0]).children()
    assert not any("watchdog" in word for helper in helpers for word in helper.cmdline())
    server.request("POST", "/predictions", {"id": "a\0b", "input": DRAFT})
    time.sleep(1)
    assert server.status() == "BUSY"
    assert server.predict(DRAFT).status == 409
    for worker in workers(server):
        psutil.Process(worker).kill()
    time.sleep(1)
    assert server.status() == "UNHEALTHY"
    assert server.stop() == 0

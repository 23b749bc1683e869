"""The watchdog's verdicts about a server, without one. tests/contract/test_faults.py uses real ones."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pipelines.runtime import watchdog
from pipelines.runtime.watchdog import SETTING, ailment, fetches, status


def never() -> bool:
    return False


def always() -> bool:
    return True


@pytest.mark.parametrize("state", ["READY", "STARTING", ""])
def test_a_server_that_is_ready_or_starts_or_shuts_down_is_well(state: str) -> None:
    assert ailment(state, running=False, worker_lives=True, fetching=never) == ""


def test_a_prediction_may_take_as_long_as_it_likes() -> None:
    assert ailment("BUSY", running=True, worker_lives=True, fetching=never) == ""


@pytest.mark.parametrize(
    ("state", "worker_lives", "fetching", "words"),
    [
        ("UNHEALTHY", False, never, "gone"),
        ("UNHEALTHY", True, never, "does not answer"),
        ("BUSY", True, never, "nothing runs"),
        ("BUSY", True, always, "fetches"),
    ],
)
def test_a_server_past_help(state: str, worker_lives: bool, fetching: watchdog.Question, words: str) -> None:
    assert words in ailment(state, running=False, worker_lives=worker_lives, fetching=fetching)


def test_outside_of_a_server_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    with watchdog.start().working():
        pass


@pytest.fixture
def answering() -> Iterator[tuple[HTTPServer, list[bytes]]]:
    bodies = [b'{"status": "BUSY"}']

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(bodies[0])

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server, bodies
        server.shutdown()


def test_the_state_is_read_from_the_body(answering: tuple[HTTPServer, list[bytes]]) -> None:
    server, bodies = answering
    assert status(server.server_port) == "BUSY"
    for odd in (b"", b"{}", b"[]", b"7", b"<html>", b'{"status": '):
        bodies[0] = odd
        assert status(server.server_port) == ""


@pytest.mark.parametrize(
    ("state", "code"), [("READY", 0), ("BUSY", 0), ("STARTING", 0), ("UNHEALTHY", 1), ("DEFUNCT", 1)]
)
def test_the_probe(answering: tuple[HTTPServer, list[bytes]], state: str, code: int) -> None:
    server, bodies = answering
    bodies[0] = f'{{"status": "{state}"}}'.encode()
    command = [sys.executable, "-S", "-m", "pipelines.runtime.watchdog"]
    assert subprocess.run(command, env={"PORT": str(server.server_port)}, check=False).returncode == code


def test_the_probe_fails_where_nobody_answers() -> None:
    command = [sys.executable, "-S", "-m", "pipelines.runtime.watchdog"]
    assert subprocess.run(command, env={"PORT": "1"}, check=False).returncode == 1


def test_what_a_process_fetches_is_seen(answering: tuple[HTTPServer, list[bytes]]) -> None:
    connect = (
        f"import socket; s = socket.create_connection(('127.0.0.1', {answering[0].server_port})); print(1); input()"
    )
    for code, fetching in ((connect, True), ("print(1); input()", False)):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen([sys.executable, "-S", "-c", code], **pipes) as process:  # type: ignore[call-overload]
            assert process.stdout.readline() == b"1\n"
            assert fetches(process.pid) is fetching
            process.communicate(b"\n")


def test_an_odd_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coglet", type("coglet", (), {"server": type("server", (), {"active": True})}))  # type: ignore[arg-type]
    monkeypatch.setenv(SETTING, "never")
    with pytest.raises(ValueError, match="PASTEL_WATCHDOG='never'"):
        watchdog.start()

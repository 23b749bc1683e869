"""A small process beside a Cog server that ends the server when it can no longer draw.

Cog's server does not replace a worker that died, and a prediction id that cannot become a folder name blocks its only
slot forever. The server then keeps running and refuses everything; the container looks healthy and is not restarted.
`setup` starts this file as a separate process, which polls the server's health check. A server that cannot recover is
killed, so that it exits with an error and any restart policy starts another one. The process only needs the standard
library, and ends with its server.

    python -m pipelines.runtime.watchdog    # check once, for a liveness probe: exits with 1 if the server is lost
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SETTING = "PASTEL_WATCHDOG"
"""`off`, or how many seconds a server may be busy while no prediction runs."""
IDLE_SECONDS = 20.0
"""Cog needs a few seconds to read inputs of 100 MB before it calls `predict`."""
LOOK_SECONDS = 2.0
"""Half of what the setting says, where that is less."""
DEAD_SECONDS = 2.0
"""How long a server may be unhealthy after its worker is gone."""
SILENT_SECONDS = 120.0
"""How long a worker may leave the health check unanswered: Python cannot answer while C code reads a large file."""
FETCHING_SECONDS = 1800.0
"""How long Cog may fetch files that a request names by URL. Cog itself has no limit."""
REFUSED = ("UNHEALTHY", "DEFUNCT", "SETUP_FAILED")
"""States from which a server does not recover."""

Question = Callable[[], bool]


class Watchdog:
    """The worker's connection to the watchdog process, which it informs when a prediction begins and ends."""

    def __init__(self, process: "subprocess.Popen[bytes] | None") -> None:
        """Connect to the watchdog's process. None: there is no watchdog."""
        self._process = process

    @contextmanager
    def working(self) -> Iterator[None]:
        """Inform the watchdog that a prediction runs while the context lasts."""
        self._tell(b"+")
        try:
            yield
        finally:
            self._tell(b"-")

    def _tell(self, what: bytes) -> None:
        if self._process and self._process.stdin:
            with suppress(OSError):  # the watchdog is gone; the prediction continues
                os.write(self._process.stdin.fileno(), what)


def start() -> Watchdog:
    """Start to watch the server whose worker this process is. Outside a server, or if turned off, do nothing.

    Raises ValueError for a setting that is neither `off` nor a number.
    """
    setting = os.environ.get(SETTING) or str(IDLE_SECONDS)
    in_a_worker = getattr(getattr(sys.modules.get("coglet"), "server", None), "active", False)
    if setting == "off" or not in_a_worker or not hasattr(os, "pidfd_open"):  # only Linux has it
        return Watchdog(None)
    try:
        float(setting)
    except ValueError:
        raise ValueError(f"{SETTING}={setting!r}: write off, or a number of seconds such as 20") from None
    port = os.environ.get("PORT", "5000")
    # -S -E: without site-packages the process takes 10 MB
    command = [sys.executable, "-S", "-E", __file__, str(os.getppid()), str(os.getpid()), port, setting]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)
    assert process.stdin
    os.set_blocking(process.stdin.fileno(), False)
    return Watchdog(process)


def watch(server: int, worker: int, port: int, idle_seconds: float) -> None:
    """Check the server's process every few seconds until it is gone or must be ended."""
    limits = {
        "its worker is gone": DEAD_SECONDS,
        "its worker does not answer": SILENT_SECONDS,
        "it is busy, and nothing runs": idle_seconds,
        "it fetches the files of a request without an end": FETCHING_SECONDS,
    }
    look = max(0.1, min(LOOK_SECONDS, idle_seconds / 2))
    running, ill, since = False, "", time.monotonic()
    handle = os.pidfd_open(server)
    poll = select.poll()
    poll.register(handle, select.POLLIN)  # readable when the process ends
    os.set_blocking(sys.stdin.fileno(), False)
    while not poll.poll(look * 1000):
        told = _told()
        running = told.endswith(b"+") if told else running
        state = status(port)
        running = running and state != "READY"  # then the prediction is over, even if its end was not reported
        found = "" if told else ailment(state, running, os.getppid() == worker, lambda: fetches(worker))
        if found != ill:
            ill, since = found, time.monotonic()
        if ill and time.monotonic() - since >= limits[ill]:
            _say(server, f"The server is ended so that another one can be started: {ill}.")
            return end(handle, server, worker)


def ailment(state: str, running: bool, worker_lives: bool, fetching: Question) -> str:
    """Return what is wrong with a server; empty if nothing is, or if it does not answer, as during shutdown."""
    if state in REFUSED:
        return "its worker does not answer" if worker_lives else "its worker is gone"
    if state == "BUSY" and not running:
        return "it fetches the files of a request without an end" if fetching() else "it is busy, and nothing runs"
    return ""


def status(port: int, host: str = "127.0.0.1") -> str:
    """Return the state in the server's health check; empty if it does not answer."""
    ask = f"GET /health-check HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    try:
        with socket.create_connection((host, port), timeout=15) as connection:
            connection.sendall(ask)
            with connection.makefile("rb") as answer:
                _, _, body = answer.read().partition(b"\r\n\r\n")
        return str(json.loads(body)["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def fetches(process: int) -> bool:
    """Return whether the process has a TCP connection. A worker only has one while it fetches files."""
    sockets = set()
    with suppress(OSError):
        for entry in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):  # it was closed in the meantime
                sockets.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
    tables = [Path(f"/proc/{process}/net/{name}") for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    return any(line[9] in sockets for line in lines)


def end(handle: int, server: int, worker: int) -> None:
    """Kill the server, and the worker if it outlives the server.

    Process 1 of a container cannot be killed from inside, so it gets a request to end instead.
    """
    signal.pidfd_send_signal(handle, signal.SIGTERM if server == 1 else signal.SIGKILL)
    time.sleep(LOOK_SECONDS)
    if os.getppid() == worker:
        os.kill(worker, signal.SIGKILL)


def _told() -> bytes:
    """Return what the worker sent since the last check: + when a prediction began, - when it ended."""
    try:
        return os.read(sys.stdin.fileno(), 1 << 16)
    except BlockingIOError:
        return b""


def _say(server: int, text: str) -> None:
    """Write a line directly to the server's log, because a worker that is gone cannot pass it on."""
    with suppress(OSError), open(f"/proc/{server}/fd/2", "a", encoding="utf-8") as log:
        log.write(f"{text}\n")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(status(int(os.environ.get("PORT", "5000"))) in ("", *REFUSED))
    server, worker, port = map(int, sys.argv[1:4])
    watch(server, worker, port, float(sys.argv[4]))

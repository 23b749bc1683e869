"""A small process beside a Cog server, which ends the server when that cannot draw any more.

Cog's server replaces no worker that died, and an id from which no folder can be made takes its only slot for good. It
lives on and refuses everything; whoever runs the container sees no fault and restarts nothing. `setup` starts this file
as a process of its own, which reads the server's health check. A server that is past help is killed, so that its exit
code is an error and any restart policy starts another one. The process needs nothing but the standard library, and ends
with its server.

    python -m pipelines.runtime.watchdog    # one look, for a liveness probe: ends with 1 where the server is past help
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
"""`off`, or for how many seconds a server may be busy while nothing runs."""
IDLE_SECONDS = 20.0
"""Cog reads inputs of 100 MB in a few seconds before it calls `predict`."""
LOOK_SECONDS = 2.0
"""Half of what the setting says, where that is less."""
DEAD_SECONDS = 2.0
"""How long a server may be unhealthy once its worker is gone."""
SILENT_SECONDS = 120.0
"""How long a worker may leave the health check unanswered: Python answers none while it reads a large file in C."""
FETCHING_SECONDS = 1800.0
"""How long Cog may fetch the files that a request names by URL. It has no limit of its own."""
REFUSED = ("UNHEALTHY", "DEFUNCT", "SETUP_FAILED")
"""States of a server from which it does not come back."""

Question = Callable[[], bool]


class Watchdog:
    """The worker's end of the process: it is told when a prediction begins and when it ends."""

    def __init__(self, process: "subprocess.Popen[bytes] | None") -> None:
        """None: nobody watches."""
        self._process = process

    @contextmanager
    def working(self) -> Iterator[None]:
        """A prediction runs inside this context."""
        self._tell(b"+")
        try:
            yield
        finally:
            self._tell(b"-")

    def _tell(self, what: bytes) -> None:
        if self._process and self._process.stdin:
            with suppress(OSError):  # it is gone; the prediction goes on
                os.write(self._process.stdin.fileno(), what)


def start() -> Watchdog:
    """Start to watch the server whose worker this process is; elsewhere, and where the setting says so, do nothing.

    Raises ValueError for a setting that is neither `off` nor a number.
    """
    setting = os.environ.get(SETTING) or str(IDLE_SECONDS)
    in_a_worker = getattr(getattr(sys.modules.get("coglet"), "server", None), "active", False)
    if setting == "off" or not in_a_worker or not hasattr(os, "pidfd_open"):  # which Linux has
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
    """Look every few seconds until the server, a process, is gone or past help."""
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
        running = running and state != "READY"  # a prediction whose end could not be told is over
        found = "" if told else ailment(state, running, os.getppid() == worker, lambda: fetches(worker))
        if found != ill:
            ill, since = found, time.monotonic()
        if ill and time.monotonic() - since >= limits[ill]:
            _say(server, f"The server is ended for another one to be started: {ill}.")
            return end(handle, server, worker)


def ailment(state: str, running: bool, worker_lives: bool, fetching: Question) -> str:
    """What is wrong with a server; empty where all is well, or where it does not answer, as while it shuts down."""
    if state in REFUSED:
        return "its worker does not answer" if worker_lives else "its worker is gone"
    if state == "BUSY" and not running:
        return "it fetches the files of a request without an end" if fetching() else "it is busy, and nothing runs"
    return ""


def status(port: int, host: str = "127.0.0.1") -> str:
    """The state in the server's health check; empty where it does not answer."""
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
    """Whether the process has a connection by TCP: a worker has none but to fetch files."""
    sockets = set()
    with suppress(OSError):
        for entry in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):  # closed by now
                sockets.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
    tables = [Path(f"/proc/{process}/net/{name}") for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    return any(line[9] in sockets for line in lines)


def end(handle: int, server: int, worker: int) -> None:
    """Kill the server, and the worker where that outlives it.

    Process 1 of a container cannot be killed from inside of it; it is asked to end instead.
    """
    signal.pidfd_send_signal(handle, signal.SIGTERM if server == 1 else signal.SIGKILL)
    time.sleep(LOOK_SECONDS)
    if os.getppid() == worker:
        os.kill(worker, signal.SIGKILL)


def _told() -> bytes:
    """What the worker told since the last look: + where a prediction began, - where it ended."""
    try:
        return os.read(sys.stdin.fileno(), 1 << 16)
    except BlockingIOError:
        return b""


def _say(server: int, text: str) -> None:
    """A line in the server's log: a worker that is gone hands on none."""
    with suppress(OSError), open(f"/proc/{server}/fd/2", "a", encoding="utf-8") as log:
        log.write(f"{text}\n")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(status(int(os.environ.get("PORT", "5000"))) in ("", *REFUSED))
    server, worker, port = map(int, sys.argv[1:4])
    watch(server, worker, port, float(sys.argv[4]))

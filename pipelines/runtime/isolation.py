"""Runs work on untrusted files in a separate process, which may crash and is killed if it uses too much.

A helper process imports what the work needs once. For every job it forks a child. The child gets the open file and
nothing else of this process, limits its own memory and processor time, and writes bytes to a shared file and a small
answer to a socket. The waiting thread wakes up every few milliseconds, so that a cancel ends the wait and the child at
once.

`python -m pipelines.runtime.isolation MODULE` runs the helper. MODULE has a table `JOBS` of functions
(file, output, **arguments) -> an answer that can be written as JSON.
"""

import importlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

ANSWER_MAX = 16 << 20
"""Limit for the bytes of an answer. The longest is the text of a picture."""
WAIT = 0.02
"""Seconds between two checks for a cancelled prediction."""
START_SECONDS = 60.0
"""The time limit for the helper's imports."""


@dataclass(frozen=True)
class Limits:
    """Limits for a job: bytes of memory in addition to the helper's, and seconds of processor time and of waiting."""

    memory: int
    processor: int
    seconds: float


class Failed(Exception):
    """The job raised an error, crashed or exceeded its limits; the text says which."""


class Helper:
    """The helper process of one module. It starts with the first job, or earlier with `start`."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Start the helper unless it is running. Its imports run in the background."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._close()
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
                with theirs:
                    self._process = subprocess.Popen(
                        [sys.executable, "-W", "ignore", "-m", __name__, self._module, str(theirs.fileno())],
                        cwd=Path(__file__).resolve().parents[2],
                        env=os.environ
                        | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        pass_fds=[theirs.fileno()],
                    )
                self._socket = ours

    def stop(self) -> None:
        """Kill the helper."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._socket = self._process = None

    def run(self, job: str, file: BinaryIO, limits: Limits, **arguments: Any) -> tuple[Any, BinaryIO]:
        """Run a job on an open file. Return its answer and the shared file that it wrote, positioned at the start.

        Raises Failed. However the wait ends, the child does not outlive it.
        """
        told = {"job": job, "memory": limits.memory, "processor": limits.processor, "arguments": arguments}
        output = shared_file()
        try:
            with self._child(json.dumps(told).encode(), file, output) as child:
                answer = json.loads(_received(child, time.monotonic() + limits.seconds))
        except BaseException:
            output.close()
            raise
        if "failed" in answer:
            output.close()
            raise Failed(answer["failed"])
        output.seek(0)
        return answer["answer"], output

    @contextmanager
    def _child(self, told: bytes, file: BinaryIO, output: BinaryIO) -> Iterator[socket.socket]:
        """Start a child and yield the socket of its answer. Kill it at the end if it is still running."""
        try:
            number, connection = self._forked(told, file, output)
        except (OSError, Failed):  # the helper was killed, which `poll` may not have noticed yet
            self.stop()
            number, connection = self._forked(told, file, output)
        with connection:
            try:
                yield connection
            finally:
                if not _ended(connection):
                    with suppress(ProcessLookupError):
                        os.kill(number, signal.SIGKILL)

    def _forked(self, told: bytes, file: BinaryIO, output: BinaryIO) -> tuple[int, socket.socket]:
        """Fork a new child. Return its process id and the socket of its answer."""
        self.start()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs, self._lock:
                assert self._socket is not None
                socket.send_fds(self._socket, [told], [file.fileno(), output.fileno(), theirs.fileno()])
                theirs.close()  # so that the end of the child is noticed
                return int(_line(ours, time.monotonic() + START_SECONDS)), ours
        except BaseException:
            ours.close()
            raise


def shared_file() -> BinaryIO:
    """Create a file without a name, in memory if the system supports it."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("pastel"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _readable(connection: socket.socket, deadline: float) -> bool:
    """Wait in short slices, so that Python can raise a cancel in between. Raises Failed at the deadline."""
    while not select.select([connection], [], [], WAIT)[0]:
        if time.monotonic() > deadline:
            raise Failed("it takes too long")
    return True


def _line(connection: socket.socket, deadline: float) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        _readable(connection, deadline)
        letter = connection.recv(1)
        if not letter:
            raise Failed("the helper process ended")
        line += letter
    return line


def _received(connection: socket.socket, deadline: float) -> bytes:
    """Return the whole answer. Raises Failed if the child ended without one."""
    parts: list[bytes] = []
    while _readable(connection, deadline):
        part = connection.recv(1 << 16)
        if not part:
            break
        parts.append(part)
        if sum(map(len, parts)) > ANSWER_MAX:
            raise Failed("it says too much")
    if not parts:
        raise Failed("the process that reads it crashed, or exceeded its limits for memory or time")
    return b"".join(parts)


def _ended(connection: socket.socket) -> bool:
    """Return whether the child has closed its end, which is the last thing it does."""
    try:
        return connection.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


# --- the helper process -----------------------------------------------------------------------------------------------


def serve(jobs: Mapping[str, Any], requests: socket.socket) -> None:
    """Fork a child for every request until the other end of the socket is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for children
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        told, descriptors, _, _ = socket.recv_fds(requests, 1 << 16, 3)
        if not told:
            return
        if os.fork() == 0:
            requests.close()
            _work(jobs, json.loads(told), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _work(jobs: Mapping[str, Any], told: dict[str, Any], file: int, output: int, answer: int) -> None:
    """Do the work of a child. Never returns."""
    connection = socket.socket(fileno=answer)
    try:
        connection.sendall(b"%d\n" % os.getpid())
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit_time(told["processor"])
        limit_memory(told["memory"])
        with open(file, "rb") as read, open(output, "wb") as written:
            made = jobs[told["job"]](read, written, **told["arguments"])
        reply = {"answer": made}
    except MemoryError:
        reply = {"failed": "it needs more memory than its limit"}
    except BaseException as error:
        reply = {"failed": str(error)[:1000] or type(error).__name__}
    with suppress(OSError):
        connection.sendall(json.dumps(reply).encode())
    os._exit(0)


def limit_memory(more: int) -> None:
    """Limit this process to this many bytes in addition to those it has. A lower limit is kept."""
    with suppress(OSError, ValueError):  # on systems without /proc
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before, most = resource.getrlimit(resource.RLIMIT_AS)
        bound = used + more if before == resource.RLIM_INFINITY else min(before, used + more)
        resource.setrlimit(resource.RLIMIT_AS, (bound, most))


def limit_time(processor: int) -> None:
    """Limit this process to this many seconds of processor time, and to ten times as many of real time."""
    resource.setrlimit(resource.RLIMIT_CPU, (processor, processor))
    signal.alarm(10 * processor)  # in case nobody is left to kill it


if __name__ == "__main__":
    module, descriptor = sys.argv[1:]
    serve(importlib.import_module(module).JOBS, socket.socket(fileno=int(descriptor)))

"""Work on files of strangers, done in a process of its own: it may crash, and is killed when it takes too much.

A helper process imports what the work needs once. For every job it forks a child, which gets the open file and nothing
else of this process, bounds its own memory and processor time, and writes bytes into a shared file and a small answer
into a socket. Whoever waits looks up every few milliseconds, so that a cancel ends the wait, and the child, at once.

Run as `python -m pipelines.runtime.isolation MODULE`, it is the helper. MODULE has a table `JOBS` of functions
(file, output, **arguments) -> an answer that JSON can hold.
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
"""The most bytes in an answer, which holds at most the text of a picture."""
WAIT = 0.02
"""Seconds between two looks at whether the prediction was cancelled."""
START_SECONDS = 60.0
"""The time limit for the helper's imports."""


@dataclass(frozen=True)
class Limits:
    """What a job may take: bytes of memory beside what the helper has, and seconds of processor and of waiting."""

    memory: int
    processor: int
    seconds: float


class Failed(Exception):
    """The job raised, crashed or took too much; the text says which."""


class Helper:
    """The helper process of one module. It starts with the first job, or before it with `start`."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Start it if it does not run. Imports go on while the caller does something else."""
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
        """End it, and what it does."""
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
        """Do a job with an open file. Returns its answer, and the shared file that it wrote into, at its beginning.

        Raises Failed. Whatever ends the wait, the child is gone after it.
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
        """A child at work, by the socket of its answer. It is killed at the end if it still runs."""
        try:
            number, connection = self._forked(told, file, output)
        except (OSError, Failed):  # the helper was killed, which may take a moment to be seen
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
        """A new child: its process id, and the socket of its answer."""
        self.start()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs, self._lock:
                assert self._socket is not None
                socket.send_fds(self._socket, [told], [file.fileno(), output.fileno(), theirs.fileno()])
                theirs.close()  # so that the child's end is seen
                return int(_line(ours, time.monotonic() + START_SECONDS)), ours
        except BaseException:
            ours.close()
            raise


def shared_file() -> BinaryIO:
    """A file without a name: in memory where the system has that."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("pastel"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _readable(connection: socket.socket, deadline: float) -> bool:
    """Wait in short slices, between which Python raises what cancels a prediction."""
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
    """The whole answer. Raises Failed where the child ended without one."""
    parts: list[bytes] = []
    while _readable(connection, deadline):
        part = connection.recv(1 << 16)
        if not part:
            break
        parts.append(part)
        if sum(map(len, parts)) > ANSWER_MAX:
            raise Failed("it says too much")
    if not parts:
        raise Failed("what reads it crashed, or took more memory or time than it may")
    return b"".join(parts)


def _ended(connection: socket.socket) -> bool:
    """Whether the child has closed its end, which it does last."""
    try:
        return connection.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


# --- the helper process -----------------------------------------------------------------------------------------------


def serve(jobs: Mapping[str, Any], requests: socket.socket) -> None:
    """Fork a child for every request, until whoever asks is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for
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
    """What a child does. It never returns."""
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
        reply = {"failed": "it takes more memory than it may"}
    except BaseException as error:
        reply = {"failed": str(error)[:1000] or type(error).__name__}
    with suppress(OSError):
        connection.sendall(json.dumps(reply).encode())
    os._exit(0)


def limit_memory(more: int) -> None:
    """Bound this process to so many bytes beside those that it has; a bound that is lower already stays."""
    with suppress(OSError, ValueError):  # systems without /proc
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before, most = resource.getrlimit(resource.RLIMIT_AS)
        bound = used + more if before == resource.RLIM_INFINITY else min(before, used + more)
        resource.setrlimit(resource.RLIMIT_AS, (bound, most))


def limit_time(processor: int) -> None:
    """Bound this process to so many seconds of processor time, and to ten times as many in all."""
    resource.setrlimit(resource.RLIMIT_CPU, (processor, processor))
    signal.alarm(10 * processor)  # for when nobody is there to kill it


if __name__ == "__main__":
    module, descriptor = sys.argv[1:]
    serve(importlib.import_module(module).JOBS, socket.socket(fileno=int(descriptor)))

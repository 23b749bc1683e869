"""A web server on the loopback address that gives a scripted answer to each request. Only for tests."""

import os
import random
import re
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

import numpy as np
from safetensors.numpy import save


def weights(seed: int) -> bytes:
    """A weight file of 300,000 bytes and its header."""
    return save({"x": np.frombuffer(random.Random(seed).randbytes(300_000), np.uint8)})


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How one request is answered. By default as a good server would, ranges included."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    ranges: bool = True
    etag: str = '"v1"'
    if_range: bool = True
    """Whether If-Range is understood."""
    cut: int | None = None
    """Bytes of this answer's body after which the connection is closed."""
    announced: int | None = None
    """A false Content-Length."""
    no_length: bool = False
    """HTTP/1.0 style: the body ends where the connection does."""
    chunked: bool = False
    pause: float = 0.0
    """Seconds before the body."""
    drip: float = 0.0
    """Seconds after each thousandth of the body."""
    at_once: int | None = None
    """Requests that are answered at the same time; more get 429."""


class Server(ThreadingHTTPServer):
    """`script[path]` holds the answers in turn; the last one stays. `seen` logs (path, headers) of every request.

    As a proxy it is asked for whole addresses: then these are the paths.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: dict[str, list[Answer]] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.lock = threading.Lock()
        self.busy = self.most_busy = 0
        """Requests being answered, and how many that were at most."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the play."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = cast(Server, self.server)
        with server.lock:
            server.seen.append((self.path, dict(self.headers)))
            answers = server.script.get(self.path.split("?")[0], [Answer(status=404, body=b"nothing here")])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            server.busy += 1
            server.most_busy = max(server.most_busy, server.busy)
            too_many = answer.at_once is not None and server.busy > answer.at_once
        try:
            self.play(Answer(status=429) if too_many else answer)
        finally:
            with server.lock:
                server.busy -= 1

    def play(self, answer: Answer) -> None:
        size, asked = len(answer.body), self.asked(answer)
        start, stop = asked or (0, size)
        if start >= size and start:
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = memoryview(answer.body)[start:stop]
        self.send_response(206 if asked else answer.status)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{size}")
        for name, value in self.described(answer, body).items():
            self.send_header(name, value)
        self.end_headers()
        time.sleep(answer.pause)
        self.send_body(answer, body)

    def asked(self, answer: Answer) -> tuple[int, int] | None:
        """The range that is asked for and will be sent: its first byte, and the one after its last."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        fresh = not answer.if_range or self.headers.get("If-Range") in (None, answer.etag)
        if not asked or not fresh or not answer.ranges or answer.status != 200:
            return None
        return int(asked[1]), int(asked[2]) + 1 if asked[2] else len(answer.body)

    def described(self, answer: Answer, body: memoryview) -> dict[str, str]:
        headers = {"Content-Type": "application/octet-stream"}
        if answer.ranges:
            headers["Accept-Ranges"] = "bytes"
        if answer.etag:
            headers["ETag"] = answer.etag
        if answer.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif not answer.no_length:
            headers["Content-Length"] = str(len(body) if answer.announced is None else answer.announced)
        return headers | answer.headers

    def send_body(self, answer: Answer, body: memoryview) -> None:
        self.close_connection = True
        part: bytes | memoryview = body[: answer.cut]
        if answer.chunked:
            part = b"%x\r\n%s\r\n" % (len(body), part) if answer.cut is None else b"%x\r\n%s" % (len(body), part)
            part += b"0\r\n\r\n" if answer.cut is None else b""
        step = max(1, len(part) // 1000) if answer.drip else len(part) or 1
        for begin in range(0, len(part), step):
            self.wfile.write(part[begin : begin + step])
            self.wfile.flush()
            time.sleep(answer.drip)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def running() -> Generator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def wait_for_part(folder: Path, size: int) -> None:
    """Wait until another process has more than so many bytes of a file that it is fetching into the folder."""
    until = time.monotonic() + 100
    while size_of_parts(folder) <= size:
        assert time.monotonic() < until
        time.sleep(0.01)


def size_of_parts(folder: Path) -> int:
    """Bytes of unfinished files. `os.walk`, unlike `Path.rglob`, allows for folders that vanish meanwhile."""
    found = 0
    for here, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".part"):
                with suppress(FileNotFoundError):  # the other process may have given it its name
                    found += os.path.getsize(os.path.join(here, name))
    return found

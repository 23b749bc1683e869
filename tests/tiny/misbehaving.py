"""A web server on the loopback address that gives a scripted answer to each request. Only for tests."""

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast


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


class Server(ThreadingHTTPServer):
    """`script[path]` holds the answers in turn; the last one stays. `seen` logs (path, headers) of every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: dict[str, list[Answer]] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the play."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = cast(Server, self.server)
        server.seen.append((self.path, dict(self.headers)))
        answers = server.script.get(self.path.split("?")[0], [Answer(status=404, body=b"nothing here")])
        self.play(answers.pop(0) if len(answers) > 1 else answers[0])

    def play(self, answer: Answer) -> None:
        start = self.asked_start(answer)
        if start >= len(answer.body) and start:
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = answer.body[start:]
        self.send_response(206 if start else answer.status)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(answer.body) - 1}/{len(answer.body)}")
        for name, value in self.described(answer, body).items():
            self.send_header(name, value)
        self.end_headers()
        time.sleep(answer.pause)
        self.send_body(answer, body)

    def asked_start(self, answer: Answer) -> int:
        asked = self.headers.get("Range")
        fresh = not answer.if_range or self.headers.get("If-Range") in (None, answer.etag)
        return int(asked.removeprefix("bytes=").removesuffix("-")) if asked and answer.ranges and fresh else 0

    def described(self, answer: Answer, body: bytes) -> dict[str, str]:
        headers = {"Content-Type": "application/octet-stream"}
        if answer.etag:
            headers["ETag"] = answer.etag
        if answer.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif not answer.no_length:
            headers["Content-Length"] = str(len(body) if answer.announced is None else answer.announced)
        return headers | answer.headers

    def send_body(self, answer: Answer, body: bytes) -> None:
        self.close_connection = True
        part = body[: answer.cut]
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

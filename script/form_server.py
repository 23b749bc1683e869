"""A page with a form for a Cog server. It sends the form's requests on to that server.

Browsers only let a page talk to the server that it came from, and Cog's server has no page of its own. (The command
`cog serve --playground` has one, but needs Docker.)
"""

import re
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from script.cog_server import HOST, CogClient, ServerError, free_port

FORM = Path(__file__).with_name("form.html")
PASSED_ON = re.compile(r"/(openapi\.json|predictions(/[\w-]+){0,2})")
"""Paths that go to the Cog server. Its others, such as /shutdown, do not."""
HEADERS = "Content-Type", "Accept"
PIECE = 65_536
"""Bytes that are sent on at once, at most."""


@contextmanager
def form_for(cog: CogClient, port: int = 0) -> Iterator[str]:
    """Serve the form of a Cog server; yield its address. If `port` is taken, another one is used."""
    server = ThreadingHTTPServer((HOST, free_port_near(port)), handler(cog))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def free_port_near(wanted: int) -> int:
    """Return the wanted port, or any free one if it is taken or not allowed."""
    try:
        return free_port(wanted)
    except ServerError:
        return free_port()


def handler(cog: CogClient) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers one request. A reply ends when its connection is closed, so that events need no length."""

        def do_GET(self) -> None:
            if self.path == "/":
                self.reply(200, "text/html; charset=utf-8")
                self.wfile.write(FORM.read_bytes())
            else:
                self.pass_on()

        def do_POST(self) -> None:
            self.pass_on()

        def do_PUT(self) -> None:
            self.pass_on()

        def pass_on(self) -> None:
            """Send the request to the Cog server, and its reply back as it comes. If the browser hangs up, so do we,
            which cancels the prediction."""
            if not PASSED_ON.fullmatch(self.path):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name: self.headers[name] for name in HEADERS if name in self.headers}
            with closing(HTTPConnection(cog.host, cog.port)) as connection, suppress(ConnectionError):
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                self.reply(answer.status, answer.headers.get("Content-Type", "text/plain"))
                while piece := answer.read1(PIECE):
                    self.wfile.write(piece)

        def reply(self, status: int, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing: the Cog server has a log of its own."""

    return Handler

"""Cog's HTTP protocol, and a real server as a child process. Uses only the standard library."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from script.compatibility import inputs as known_inputs

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / ".cog" / "openapi_schema.json"
HOST = "127.0.0.1"
POLL_SECONDS = 0.1
BUSY = 409
"""HTTP status of a server that is still drawing another prediction."""
CONNECTIONS = {"http": HTTPConnection, "https": HTTPSConnection}

Json = dict[str, Any]


class ServerError(Exception):
    """The server did not start, or is gone."""


class Refused(Exception):
    """The server refused a request; the text contains its reasons, `status` is the HTTP status."""

    def __init__(self, status: int, reply: Any) -> None:
        self.status, self.reply = status, reply
        super().__init__("; ".join(reasons(reply)))


class Reply(NamedTuple):
    """The HTTP status and the body of an answer."""

    status: int
    body: Any


class Event(NamedTuple):
    """A server-sent event (`start`, `log`, `metric`, `output` or `completed`) and its data."""

    name: str
    data: Json


class CogClient:
    """A client for a Cog server at any URL."""

    route = "/predictions"

    def __init__(self, url: str) -> None:
        """Raise ValueError if the URL is not that of an HTTP server."""
        parts = urlsplit(url)
        if parts.scheme not in CONNECTIONS or not parts.hostname:
            raise ValueError(f"{url}: not a URL; write http://HOST:PORT")
        self._connection, self._path = CONNECTIONS[parts.scheme], parts.path.rstrip("/")
        self.host, self.port = parts.hostname, parts.port

    def status(self) -> str:
        """Return STARTING, READY, BUSY, SETUP_FAILED, DEFUNCT or UNHEALTHY."""
        return str(self._health()["status"])

    def wait_until_ready(self, seconds: float = 600) -> None:
        """Raise ServerError with the reason if setup fails, the process ends or the time is up."""
        end = time.monotonic() + seconds
        while (health := self._health())["status"] != "READY":
            if health["status"] in ("SETUP_FAILED", "DEFUNCT"):
                raise ServerError(setup_error(health))
            if time.monotonic() > end:
                raise ServerError(f"still {health['status']} after {seconds:.0f} s")
            time.sleep(POLL_SECONDS)

    def predict(self, inputs: Json) -> Reply:
        """Run one prediction and wait for it."""
        return self.request("POST", self.route, self._message(inputs))

    def predict_when_free(self, inputs: Json, seconds: float = 60) -> Reply:
        """Run one prediction. While the server is busy, retry with growing waits until the time is up.

        Cog answers a moment before it is free again, and refuses requests until then.
        """
        end, wait = time.monotonic() + seconds, 0.02
        while (reply := self.predict(inputs)).status == BUSY and time.monotonic() < end:
            time.sleep(wait)
            wait = min(2 * wait, 1.0)
        return reply

    def start(self, identifier: str, inputs: Json) -> Reply:
        """Start one prediction in the background; the reply comes at once."""
        message, headers = self._message(inputs), {"Prefer": "respond-async"}
        return self.request("PUT", f"{self.route}/{identifier}", message, headers)

    def cancel(self, identifier: str) -> Reply:
        return self.request("POST", f"{self.route}/{identifier}/cancel")

    def events(self, identifier: str, inputs: Json) -> Iterator[Event]:
        """Yield the events of one prediction. Closing the iterator hangs up, which cancels it. Raises Refused."""
        with closing(self._connection(self.host, self.port)) as connection:
            headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
            path = f"{self._path}/predictions/{identifier}"
            response = _answer(connection, "PUT", path, json.dumps(self._message(inputs)), headers)
            if response.status != 200:
                raise Refused(response.status, decoded(response.read()))
            yield from read_events(response)

    def request(
        self, method: str, path: str, body: Json | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        with closing(self._connection(self.host, self.port)) as connection:
            text = None if body is None else json.dumps(body)
            headers = {"Content-Type": "application/json", **(headers or {})}
            response = _answer(connection, method, f"{self._path}{path}", text, headers)
            return Reply(response.status, decoded(response.read()))

    def _message(self, inputs: Json) -> Json:
        return {"input": inputs}

    def _health(self) -> Json:
        try:
            health: Json = self.request("GET", "/health-check").body
        except (OSError, HTTPException):
            return {"status": "STARTING"}
        return health


def _answer(
    connection: HTTPConnection, method: str, path: str, text: str | None, headers: Mapping[str, str]
) -> HTTPResponse:
    """Send a request. A server refuses one that is too large before it has read it, and may hang up. Raises OSError."""
    try:
        connection.request(method, path, text, headers)
    except (BrokenPipeError, ConnectionResetError) as error:
        try:
            return connection.getresponse()
        except (OSError, HTTPException):
            told = "The server hung up. It refuses requests of more than 100 MB: send addresses instead of large files."
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"detail": told}) from error
    return connection.getresponse()


class CogServer(CogClient):
    """A server on this machine for the duration of a `with` block. `log` receives each line that it writes."""

    mode, form = "predict", "Input"
    """What Cog calls the kind of work, and the schema of its inputs."""

    def __init__(self, environment: Mapping[str, str], log: Callable[[str], None], port: int | None = None) -> None:
        """Listen at `port`, or at any free one. Raises ServerError if the port is taken."""
        port = free_port(port or 0)
        super().__init__(f"http://{HOST}:{port}")
        self.lines: deque[str] = deque(maxlen=200)
        self._log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cog.server.http", "--host", HOST, "--x-mode", self.mode],
            cwd=ROOT,
            env=server_environment(environment, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",  # a server whose log nobody reads any more would hang
            start_new_session=True,  # so that Ctrl-C only reaches the client, which cancels first
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, seconds: float = 30) -> int:
        """Ask the server to end, as a container's host does: it finishes a running prediction. Return the exit code.

        A server that does not end in time is killed, and its log then shows what its threads were waiting for.
        """
        found: list[str] = []
        self.process.terminate()
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            found = [f"It did not end within {seconds:g} s of SIGTERM, and was killed.\n", *waits(self.process.pid)]
            os.killpg(self.process.pid, signal.SIGKILL)
            code = self.process.wait()
        self._reader.join(seconds)
        self.lines.extend(found)
        return code

    def end(self, characters: int = 500) -> str:
        """Return how it ended, and the last lines that it wrote."""
        return f"the server ended with exit code {self.process.returncode}: {''.join(self.lines)[-characters:]}"

    def _message(self, inputs: Json) -> Json:
        """Return the request's message. Raises ValueError for unknown inputs, which Cog would silently drop."""
        if unknown := inputs.keys() - known_inputs(json.loads(SCHEMA.read_bytes()), self.form):
            raise ValueError(f"{self.mode}.py has no input {', '.join(sorted(unknown))}")
        return super()._message(inputs)

    def _health(self) -> Json:
        if self.process.poll() is not None:
            raise ServerError(self.end())
        return super()._health()

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            self._log(line)


class TrainingServer(CogServer):
    """A server for trainings: `predict`, `start` and `cancel` are for trainings then."""

    mode, form, route = "train", "TrainingInput", "/trainings"


def waits(group: int) -> list[str]:
    """Return each process of a group, with its threads and the kernel functions in which they wait (Linux)."""
    told = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended by now
            if os.getpgid(int(process.name)) == group:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                threads = Counter(
                    f"{(task / 'comm').read_text().strip()} in {(task / 'wchan').read_text()}"
                    for task in process.glob("task/*")
                )
                told.append(f"{process.name} {command[:100]}: {', '.join(f'{n} x {t}' for t, n in threads.items())}\n")
    return told


def free_port(wanted: int = 0) -> int:
    """Return the wanted port, or any free one for 0. Raises ServerError if it is taken or not allowed."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just closed counts as free
        try:
            probe.bind((HOST, wanted))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "ports go from 1 to 65535"
            raise ServerError(f"port {wanted} cannot be used: {reason}. Choose another with --port.") from error
        return int(probe.getsockname()[1])


AS_IN_THE_IMAGE = {"MALLOC_ARENA_MAX": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""Settings of the allocator and of OpenMP, for which cog.yaml gives the reasons."""


def server_environment(changes: Mapping[str, str], port: int) -> dict[str, str]:
    """Return our environment, with the image's settings where it has none.

    The server starts a bare `python`, so ours is first on PATH.
    """
    search_path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    stubs = {"COG_PREDICT_TYPE_STUB": "predict.py:Predictor", "COG_TRAIN_TYPE_STUB": "train.py:train"}
    cog = {"PATH": search_path, "PORT": str(port), **stubs}
    return {**AS_IN_THE_IMAGE, **os.environ, **cog, **changes}


def decoded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")


def reasons(reply: Any) -> list[str]:
    """Return what a refusal complains about, one entry per field."""
    detail = reply.get("detail", reply.get("error", reply)) if isinstance(reply, dict) else reply
    if isinstance(detail, list):
        return [f"{problem['loc'][-1]}: {problem['msg']}" for problem in detail]
    return [str(detail)]


def read_events(lines: Iterable[bytes]) -> Iterator[Event]:
    name = ""
    for line in lines:
        field, _, value = line.decode().rstrip("\r\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield Event(name, json.loads(value))


def setup_error(health: Json) -> str:
    """Return the message that setup() raised, without the names of the processes that passed it on."""
    return str(health.get("setup", {}).get("logs", "")).rpartition("setup failed: ")[2].strip() or "setup failed"

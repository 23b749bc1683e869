"""Requests from valid to hostile, as Hypothesis strategies, and the rules for every answer.

Two things are left out, because they are the server's own and cannot be fixed here (docs/reliability.md): ids that
coglet cannot use as a folder name, and POST /shutdown, which works as intended.
"""

import base64
import io
import json
import re
import string
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import quote

import psutil
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisWarning
from hypothesis.strategies import DrawFn, SearchStrategy
from PIL import Image

from pipelines.errors import PastelError
from script.cog_server import HOST, CogServer, ServerError, decoded, read_events, reasons
from script.compatibility import inputs as schema_inputs
from script.schema import COMMITTED

Json = dict[str, Any]

SCHEMA: Json = json.loads(COMMITTED.read_text(encoding="utf-8"))
INPUTS = schema_inputs(SCHEMA)
FILES = [name for name, field in INPUTS.items() if "uri" in (field.get("format"), field.get("items", {}).get("format"))]
ANSWER_SECONDS = 120.0
"""A guard against hangs, for one answer and again until the server is ready. It does not measure speed: on two shared
cores with a load of 15, requests that take 10 s took more than 30 s."""
HANG_SECONDS = 30.0
"""How long a hanging address keeps the server waiting."""

CHEAP: Mapping[str, tuple[int, int]] = {
    "width": (64, 192),
    "height": (64, 192),
    "num_inference_steps": (1, 3),
    "num_outputs": (1, 2),
    "hires_steps": (1, 3),
    "hires_scale": (1, 2),
}
"""Limits within which a valid picture takes a second or two."""
FETCHED = ("R-ESRGAN 4x+", "R-ESRGAN 4x+ Anime6B", "SD x2 latent upscaler")
"""Upscalers whose weights are fetched, which would test the network instead of the server."""
JSON_TYPE = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Message:
    """One HTTP request."""

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        body = self.body if self.body is None or len(self.body) < 600 else self.body[:600] + b"..."
        return f"{self.method} {self.path[:200]} {dict(self.headers)} {body!r}"


@dataclass(frozen=True)
class Answer:
    """An answer and the seconds that it took."""

    status: int
    content_type: str
    body: bytes
    seconds: float

    @property
    def failed(self) -> bool:
        """Return whether this is the end of a prediction without pictures."""
        body = decoded(self.body)
        return self.status == 200 and isinstance(body, dict) and body.get("status") == "failed"


def send(server: CogServer, message: Message) -> Answer:
    """Return the answer to a message. Raises OSError or HTTPException if there is none within ANSWER_SECONDS."""
    started = time.monotonic()
    with closing(HTTPConnection(HOST, server.port, timeout=ANSWER_SECONDS)) as connection:
        connection.request(message.method, message.path, message.body, dict(message.headers))
        response = connection.getresponse()
        body = response.read()
    return Answer(response.status, response.getheader("Content-Type", ""), body, time.monotonic() - started)


def workers(server: CogServer) -> list[int]:
    """Return the ids of the server's child processes; a new one would be a restart. Their children are helpers."""
    return sorted(child.pid for child in psutil.Process(server.process.pid).children())


# --- what must hold ---------------------------------------------------------------------------------------------------

_NAMES = "|".join(error.__name__ for error in PastelError.__subclasses__())
_OURS = re.compile(rf"Prediction failed: Generator iteration error: (?:{_NAMES}): .+")
_OF_COG = re.compile(r"Input validation error: .+")
"""Cog's message for a file URL that it cannot read, before predict() is called."""


def faults(message: Message, answer: Answer) -> list[str]:
    """Return what is wrong with an answer; empty if nothing is."""
    if answer.status >= 500:
        return [f"status {answer.status}"]
    if answer.seconds > ANSWER_SECONDS:
        return [f"took {answer.seconds:.0f} s"]
    if "event-stream" in answer.content_type:
        *_, last = read_events(answer.body.splitlines())
        return faults_of_prediction(message, last.data) if last.name == "completed" else [f"the last event is {last}"]
    if "json" not in answer.content_type:
        return [] if answer.status >= 400 else [f"status {answer.status} with {answer.content_type!r}"]
    if message.method == "HEAD":  # describes a body but has none
        return []
    body = decoded(answer.body)
    if not isinstance(body, dict):
        return [f"no JSON object: {answer.body[:200]!r}"]
    if answer.status == 422:
        return [] if all(reasons(body)) else ["a refusal without reasons"]
    if answer.status == 409:
        return ["refused as busy, though it was ready"]
    draws = message.path.startswith("/predictions") and not message.path.endswith("/cancel")
    return faults_of_prediction(message, body) if draws and answer.status == 200 else []


def faults_of_prediction(message: Message, body: Json) -> list[str]:
    """Return what is wrong with a prediction's end. Without pictures, it needs our sentence that names an input."""
    if body.get("status") == "succeeded":
        output = body.get("output")
        return [] if output and all(uri.startswith("data:image/") for uri in output) else ["no pictures"]
    told = str(body.get("error"))
    if body.get("status") != "failed":
        return [f"ended as {body.get('status')}"]
    if _OF_COG.fullmatch(told) and any(name.encode() in (message.body or b"") for name in FILES):
        return []
    names_an_input = not INPUTS.keys().isdisjoint(re.findall(r"\w+", told))
    return [] if _OURS.fullmatch(told) and names_an_input else [f"the error is {told!r}"]


class Broken(Exception):
    """An invariant did not hold; the text contains the message and what went wrong."""


def check(server: CogServer, message: Message, expected_workers: list[int]) -> Answer:
    """Send a message to a ready server; check that it answers well and is ready again. Raises Broken."""
    try:
        answer = send(server, message)
    except (OSError, HTTPException) as error:
        raise Broken(f"{message}: no answer ({error})") from error
    if found := faults(message, answer):
        raise Broken(f"{message}: {'; '.join(found)}")
    try:
        server.wait_until_ready(ANSWER_SECONDS)
    except ServerError as error:
        raise Broken(f"{message}: {error}") from error
    if workers(server) != expected_workers:
        raise Broken(f"{message}: the worker was replaced")
    return answer


def for_each(strategy: SearchStrategy[Any], count: int, start: int, act: Callable[[Any], object]) -> None:
    """Call `act` with `count` examples, the same ones for the same `start`. Raises the first failure."""
    failures: list[Exception] = []

    @seed(start)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(example: Any) -> None:
        if not failures:
            try:
                act(example)
            except (Broken, ServerError) as failure:  # hidden from Hypothesis, which would try it again
                failures.append(failure)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisWarning)  # warns that the strategies' names are long
        each()
    if failures:
        raise failures[0]


# --- inputs -----------------------------------------------------------------------------------------------------------


def _repeated(piece: str, most: int) -> SearchStrategy[str]:
    return st.integers(1, most).map(lambda count: piece * count)


def odd_texts() -> SearchStrategy[str]:
    """Generate prompts that test the grammar, the tokeniser and encodings."""
    pieces = ["(", ")", "[", "]", ":", "|", "\\", "(a:1.2)", "[a:b:0.5]", "[a|b]", "AND", "BREAK", "<lora:x:1>", "a, "]
    weights = ["1e400", "-1e400", "1e38", "-0", "nan", "inf", "9" * 400, "0.0000001", "1_0", "\u0661"]
    return st.one_of(
        st.text(max_size=200),
        st.text(st.sampled_from("\t\n\r\x1b\x7f\u200b\u202e\ufeff\ufffe\U0001f305\u0301\u6d77"), max_size=60),
        st.lists(st.sampled_from([*pieces, " "]), max_size=80).map("".join),
        st.builds("({}:{}) [b:c:{}] AND d:{}".format, st.text(max_size=5), *[st.sampled_from(weights)] * 3),
        st.sampled_from(
            ["a AND ", "AND", "BREAK ", "(", "[", "[a:", "((a:1.1", "[a|", "<a:", "x", "\u6d77", "\0"]
        ).flatmap(lambda piece: _repeated(piece, 10_000 // len(piece))),
    )


def pictures() -> SearchStrategy[str]:
    """Generate small pictures of all kinds as data URLs, some of them truncated."""
    sizes = st.sampled_from([(64, 64), (80, 64), (64, 64), (1, 1), (300, 2)])
    modes = st.sampled_from(["RGB", "L", "RGBA", "P", "1", "I;16", "LA"])
    wholes = st.builds(_picture, modes, sizes, st.integers(0, 255))
    return wholes | st.builds(lambda url, share: url[: int(len(url) * share)], wholes, st.floats(0.1, 1))


def _picture(mode: str, size: tuple[int, int], value: int) -> str:
    stream = io.BytesIO()
    Image.new("L", size, value).convert(mode).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def value_of(name: str, rules: Json) -> SearchStrategy[Any]:
    """Generate valid values of an input, within CHEAP."""
    kind = rules["type"]
    if "enum" in rules:
        return st.sampled_from([choice for choice in rules["enum"] if choice not in FETCHED])
    if kind == "boolean":
        return st.booleans()
    if name in ("image", "mask"):
        return pictures()
    if name == "control_images":
        return st.lists(pictures(), max_size=2)
    if name == "files":
        return st.just([])
    if name == "outpaint":
        return st.sampled_from(["", "right 8", "Left: 16, top = 3"])
    if name == "generation_data":
        return st.just("") | single_settings()
    if kind == "string":
        return st.text(max_size=60) | odd_texts()
    low, high = CHEAP.get(name, (rules.get("minimum", -(2**31)), rules.get("maximum", 2**31)))
    return st.integers(int(low), int(high)) if kind == "integer" else st.floats(low, high, width=32)


def single_settings() -> SearchStrategy[str]:
    """Generate settings that are not on the form, inside and outside of their ranges."""
    valid = ["ENSD: 31337", "RNG: CPU", "Hires sampler: Euler a", "FreeU: 1.2 1.2 0.9 0.9", "Guidance rescale: 0.7"]
    valid += ["Variation seed: 5, Variation seed strength: 0.2", "Hires resize: 128x0", "Dynamic prompts: True"]
    valid += ["Wildcard a: b | c", "Resize mode: crop", "Soft mask: True", "Hires prompt: a, night", "File names: x"]
    odd = ["ENSD: much", "Upscale only: True", "ENDS: 1", "RNG:", "Wildcard : x", "Hires resize: 99999x1", "and so on"]
    return st.lists(st.sampled_from([*valid, *odd]) | st.text(max_size=20), min_size=1, max_size=4).map("\n".join)


def cheap(inputs: Json) -> Json:
    """Return the inputs, with valid values that would take minutes replaced."""
    tamed = {name: CHEAP[name][0] for name in ("width", "height", "num_inference_steps")} | inputs
    for name, (_, high) in CHEAP.items():
        value = tamed.get(name)
        if isinstance(value, (int, float)) and high < value <= INPUTS[name].get("maximum", high):
            tamed[name] = high
    return {name: value for name, value in tamed.items() if value not in list[Any](FETCHED)}


def valid_inputs() -> SearchStrategy[Json]:
    """Generate any of the inputs, always with sizes and steps, because their defaults take seconds."""
    always = {name: value_of(name, INPUTS[name]) for name in ("width", "height", "num_inference_steps")}
    others = {name: value_of(name, INPUTS[name]) for name in INPUTS if name not in always}
    return st.fixed_dictionaries(always, optional=others)


def junk() -> SearchStrategy[Any]:
    """Generate JSON values, and what Python's json writes for numbers that JSON does not have."""
    scalars = (
        st.none()
        | st.booleans()
        | st.integers(-(10**40), 10**40)
        | st.floats(allow_nan=True)
        | st.text(max_size=30)
        | st.sampled_from([2**31, 2**32, 2**63, 2**64, -1, 0, 1e308, "7", "1e400", "true", "null"])
    )
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=8,
    )


def invalid_inputs() -> SearchStrategy[Json]:
    """Generate valid inputs, some of them replaced by junk, and unknown inputs."""
    names = st.sampled_from(list(INPUTS)) | st.text(max_size=12)
    broken = st.dictionaries(names, junk(), min_size=1, max_size=4)
    return st.builds(lambda inputs, bad: cheap(inputs | bad), valid_inputs(), broken)


BLOCK = (
    "a pink sun over the (sea:1.2), [red:blue:0.5]\nNegative prompt: lowres, text\n"
    "Steps: 2, Sampler: Euler a, Schedule type: Karras, CFG scale: 5, Seed: 3, Size: 64x64, Model hash: 0123456789, "
    "Model: other, VAE hash: abcdef, VAE: x.vae.pt, Denoising strength: 0.6, Clip skip: 2, ENSD: 31337, RNG: CPU, "
    'Hires upscale: 1.5, Hires steps: 2, Hires upscaler: Latent, Hires prompt: "a boat, night", '
    'Lora hashes: "a: 0123, b: 4567", Variation seed: 9, Variation seed strength: 0.2, Version: v1.9.4'
)


@st.composite
def blocks(draw: DrawFn) -> Json:
    """Draw generation data of WebUI with some values, letters and lines changed."""
    text = BLOCK
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["value", "letters", "cut", "twice", "prompt"]))
        start, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        if kind == "value" and (keys := re.findall(r"[A-Z][\w ]+: ", text)):
            odd = st.sampled_from(["", "0", "-1", "1e999", "nan", "99999", "0x10", '"', "{", "\uff11\uff12", "x" * 99])
            before, key, after = text.partition(draw(st.sampled_from(keys)))
            text = before + key + draw(odd | st.text(max_size=9)) + after[after.find(",") :]
        elif kind == "letters":
            text = text[:start] + draw(st.text(max_size=6)) + text[min(end, start + 6) :]
        elif kind == "cut":
            text = text[:start] + text[end:]
        elif kind == "twice":
            text = text[:end] + text[start:]
        else:
            text = draw(odd_texts()) + text[text.find("\nSteps") :]
    fix = st.sampled_from(["Automatic", "On", "Off"])
    inputs = draw(st.fixed_dictionaries({}, optional={"highres_fix": fix, "hires": st.none() | st.booleans()}))
    return inputs | {"generation_data": text + draw(st.sampled_from(["", ", Strict: False"]))}


def weight_files(web: str) -> SearchStrategy[Json]:
    """Generate files without weights, sent in every possible way; `web` is the address of `junk_web`."""
    addresses = st.sampled_from(["garbage.pth", "missing.pth", "a" * 300, "%00%2e%2e%2f%ff", "loop", "hang"])
    files = st.one_of(
        addresses.map(lambda path: f"{web}/{path}"),
        st.binary(max_size=300).map(lambda data: f"data:application/octet-stream;base64,{data.hex()}"),
        st.text(max_size=40).map(lambda text: f"data:{text}"),
        st.sampled_from(["/etc/hostname", "file:///etc/hostname", "ftp://x/y", "http://", f"http://{HOST}:9/x.pth"]),
        st.text(max_size=40),
    )
    return st.builds(
        lambda inputs, sent: inputs | {"files": sent}, valid_inputs(), st.lists(files, min_size=1, max_size=3)
    )


# --- messages ---------------------------------------------------------------------------------------------------------


def prediction(inputs: Any, headers: Mapping[str, str] = JSON_TYPE, **others: Any) -> Message:
    return Message("POST", "/predictions", json.dumps({"input": inputs, **others}).encode(), headers)


def identifiers() -> SearchStrategy[str]:
    """Generate ids that can be folder names."""
    letters = st.characters(codec="utf-8", exclude_characters="/\0")
    return st.text(letters, min_size=1, max_size=60).filter(lambda name: name not in (".", ".."))


def malformed() -> SearchStrategy[Message]:
    """Generate malformed bodies."""
    whole = json.dumps({"input": {"prompt": "a", "width": 64}}).encode()
    bodies = st.one_of(
        st.binary(max_size=200),
        st.integers(0, len(whole) - 1).map(lambda end: whole[:end]),
        st.sampled_from([b"", b"null", b"[]", b"7", b'""', b"\xff\xfe{}", b'{"input":[]}', b'{"input":7}']),
        st.integers(1, 100_000).map(lambda depth: b'{"input":{"prompt":' + b"[" * depth),
        st.sampled_from(["NaN", "Infinity", "-Infinity", "1e400", "1" * 5000, '"\\ud800"']).map(
            lambda number: f'{{"input":{{"guidance_scale":{number},"width":64}}}}'.encode()
        ),
    )
    kinds = st.sampled_from(
        ["application/json", "application/json; charset=utf-16", "text/plain", "multipart/form-data", "x"]
    )
    return st.builds(lambda body, kind: Message("POST", "/predictions", body, {"Content-Type": kind}), bodies, kinds)


def huge() -> SearchStrategy[Message]:
    """Generate tens of MB in a field, in an unknown field, and in the body as a whole."""
    text = st.integers(1, 40).map(lambda megabytes: "x" * megabytes * 2**20)
    where = st.sampled_from(["prompt", "generation_data", "outpaint", "colour"])
    in_field = st.builds(lambda name, value: prediction(cheap({"highres_fix": "Off", name: value})), where, text)
    return in_field | text.map(lambda value: Message("POST", "/predictions", value.encode(), JSON_TYPE))


def odd_ways() -> SearchStrategy[Message]:
    """Generate methods and paths that do not exist."""
    methods = ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"]
    segment = identifiers().map(lambda name: quote(name, safe=""))
    paths = st.one_of(
        st.sampled_from(["/", "/health-check", "/openapi.json", "/predictions", "/predictions/", "/docs", "//", "*"]),
        segment.map(lambda name: f"/{name}"),
        segment.map(lambda name: f"/predictions/{name}/cancel"),
        st.sampled_from(["/predictions/%ff", "/%00", "/predictions/../..", "/" + "a" * 70_000, "/?" + "b" * 9000]),
    )
    # without a body and with another content type, so that no PUT or POST draws the default picture
    return st.builds(
        lambda method, path: Message(method, path, None, {"Content-Type": "x"}), st.sampled_from(methods), paths
    )


def odd_envelopes(web: str) -> SearchStrategy[Message]:
    """Generate requests for a small picture with odd ids, webhooks and headers."""
    inputs = {"width": 64, "height": 64, "num_inference_steps": 1, "highres_fix": "Off"}
    addresses = st.sampled_from([web, f"{web}/missing", f"http://{HOST}:9", "ftp://x", "junk", "", "http://[", None, 7])
    filters = st.sampled_from([["start"], ["completed"], ["bogus"], [], None, "completed", [None]])
    members = {"webhook": addresses, "webhook_events_filter": filters, "id": identifiers() | junk().filter(_no_text)}
    header = st.text(string.ascii_letters + ' ;=,"', max_size=40)
    prefer = st.sampled_from(["respond-async", "respond-async;x", "wait", "wait=0", "wait=nan"]) | header
    headers = st.fixed_dictionaries(
        {"Content-Type": st.sampled_from(["application/json", "application/json; charset=utf-8"])},
        optional={
            "Prefer": prefer,
            "Accept": st.sampled_from(["text/event-stream", "image/png", ""]),
            "traceparent": header,
        },
    )
    posted = st.builds(
        lambda members, headers: prediction(inputs, headers, **members),
        st.fixed_dictionaries({}, optional=members),
        headers,
    )
    put = st.builds(
        lambda name, headers: replace(
            prediction(inputs, headers), method="PUT", path=f"/predictions/{quote(name, safe='')}"
        ),
        identifiers(),
        headers,
    )
    return posted | put


def _no_text(value: Any) -> bool:
    return not isinstance(value, str)


def from_schema() -> SearchStrategy[Message]:
    """Generate what schemathesis makes of the committed schema: valid and invalid requests."""
    modes = list(schemathesis.GenerationMode)
    operations = [operation.ok() for operation in schemathesis.openapi.from_dict(SCHEMA).get_all_operations()]
    return st.one_of([each.as_strategy(generation_mode=mode).map(_of_case) for each in operations for mode in modes])


class Case(Protocol):
    """A request as schemathesis makes it."""

    def as_transport_kwargs(self, base_url: str) -> Json: ...


def _of_case(case: Case) -> Message:
    made = case.as_transport_kwargs(base_url=f"http://{HOST}")
    known = {name: made.get(name) for name in ("method", "url", "headers", "json", "data", "params")}
    ready: Any = requests.Request(**known).prepare()
    body = ready.body.encode() if isinstance(ready.body, str) else ready.body
    headers = {name: value for name, value in ready.headers.items() if name != "Content-Length"}
    return Message(ready.method, ready.path_url, _cheap_body(body), headers)


def _cheap_body(body: bytes | None) -> bytes | None:
    """Return the body with a cheap prediction and an id that can be a folder name; other bodies unchanged."""
    document = decoded(body or b"")
    if not isinstance(document, dict):
        return body
    if isinstance(document.get("id"), str):
        document["id"] = quote(document["id"], safe="")[:60]
    asked = document.get("input") or {}
    return json.dumps({**document, "input": cheap(asked) if isinstance(asked, dict) else asked}).encode()


def messages(web: str) -> SearchStrategy[Message]:
    """Generate all kinds of messages, in equal shares."""
    kinds = [
        st.one_of(valid_inputs(), invalid_inputs(), blocks(), weight_files(web)).map(prediction),
        invalid_inputs().map(prediction),
        odd_texts().map(lambda text: prediction(cheap({"prompt": text, "highres_fix": "Off"}))),
        malformed(),
        odd_ways(),
        odd_envelopes(web),
        from_schema(),
        huge(),
    ]
    return st.sampled_from(kinds).flatmap(lambda kind: kind)


# --- a hostile web server ---------------------------------------------------------------------------------------------


class _Junk(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/hang"):
            time.sleep(HANG_SECONDS)
        if self.path.startswith("/loop"):
            self.send_response(302)
            self.send_header("Location", self.path)
        else:
            self.send_response(404 if self.path.startswith("/missing") else 200)
        self.end_headers()
        with suppress(OSError):  # the client did not wait
            self.wfile.write(b"garbage")

    do_POST = do_GET  # noqa: N815  # webhooks

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def junk_web() -> Iterator[str]:
    """Run a web server that answers garbage, redirects in circles or hangs, by the path. Yield its address."""
    with served(_Junk) as address:
        yield address


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Run a web server on this machine that answers by this handler. Yield its address."""
    with ThreadingHTTPServer((HOST, 0), handler) as web:
        web.daemon_threads, web.block_on_close = True, False
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://{HOST}:{web.server_port}"
        web.shutdown()

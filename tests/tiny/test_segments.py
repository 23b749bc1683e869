"""Several connections for one file, from a misbehaving server: the right file or a clear error, never a mixture."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import CancelledError
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiny.misbehaving import Answer, Server, wait_for_part, weights
from tests.tiny.test_fetch import patience_with
from weights_script.download import Expected, download
from weights_script.fetch import fetch_url
from weights_script.segments import CONNECTIONS, Segments
from weights_script.web import OPEN, Patience, SourceFailed

pytestmark = pytest.mark.usefixtures("no_settings", "small_segments")

SEGMENT = 1 << 14
DATA, OTHER = weights(0), weights(1)
GOOD = Answer(body=DATA)
OLD = Answer(body=OTHER, etag='"v0"')
GONE = Answer(status=404)
PAGE = Answer(body=b"<html>", headers={"Content-Type": "text/html"})
OTHER_PART = Answer(
    status=206,
    body=DATA[SEGMENT : 2 * SEGMENT],
    headers={"Content-Range": f"bytes {SEGMENT}-{2 * SEGMENT - 1}/{len(DATA)}"},
)
"""The second segment, whichever is asked for."""
KNOWN = Expected(size=len(DATA), sha256=hashlib.sha256(DATA).hexdigest())
NOTHING_KNOWN = Expected()
HURRY = Patience(timeout=20, first_wait=0.01, longest_wait=0.5, slowest=1e6)


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weights_script.segments.SEGMENT", SEGMENT)
    monkeypatch.setattr("weights_script.download.LARGE", 4 * SEGMENT)


def fetched(server: Server, folder: Path, expected: Expected, *answers: Answer) -> bytes:
    server.script["/weights"] = list(answers)
    target = folder / "weights"
    sha256 = download(f"{server.address}/weights", target, expected, patience=patience_with(answers))
    content = target.read_bytes()
    assert hashlib.sha256(content).hexdigest() == sha256
    assert list(folder.iterdir()) == [target]
    return content


def asked_ranges(server: Server) -> list[tuple[int, int]]:
    """First and last byte of every segment that was asked for."""
    asked = (headers.get("Range", "").removeprefix("bytes=") for _, headers in server.seen)
    return sorted((int(start), int(end)) for start, _, end in (text.partition("-") for text in asked) if end)


def segments_from(start: int) -> list[tuple[int, int]]:
    return [(begin, min(begin + SEGMENT, len(DATA)) - 1) for begin in range(start, len(DATA), SEGMENT)]


def test_a_large_file_comes_over_several_connections(server: Server, tmp_path: Path) -> None:
    assert fetched(server, tmp_path, NOTHING_KNOWN, replace(GOOD, pause=0.05)) == DATA
    assert asked_ranges(server) == segments_from(0)
    assert all(headers["If-Range"] == '"v1"' for _, headers in server.seen[1:])
    assert 2 < server.most_busy <= CONNECTIONS + 1  # the first answer, which is left, may still be busy


def test_goes_on_with_several_connections_where_a_cut_left_it(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.part").write_bytes(DATA[:100_000])
    (tmp_path / "weights.part.json").write_text(json.dumps({"version": '"v1"'}))
    assert fetched(server, tmp_path, NOTHING_KNOWN, GOOD) == DATA
    assert asked_ranges(server) == segments_from(100_000)


ONE_CONNECTION = {
    "no ranges": replace(GOOD, ranges=False),
    "no version": replace(GOOD, etag=""),
    "weak version": replace(GOOD, etag='W/"v1"'),
    "no length": replace(GOOD, chunked=True),
}


@pytest.mark.parametrize("answer", ONE_CONNECTION.values(), ids=ONE_CONNECTION.keys())
def test_one_connection_where_pieces_might_not_fit(server: Server, tmp_path: Path, answer: Answer) -> None:
    assert fetched(server, tmp_path, Expected(sha256=KNOWN.sha256), answer) == DATA
    assert len(server.seen) == 1


def test_one_connection_for_a_small_file(server: Server, tmp_path: Path) -> None:
    small = DATA[: 4 * SEGMENT - 1]
    assert fetched(server, tmp_path, NOTHING_KNOWN, Answer(body=small)) == small
    assert len(server.seen) == 1


RECOVERED: dict[str, list[Answer]] = {
    "cuts": [GOOD, *(replace(GOOD, cut=cut) for cut in (0, 1, 5000, SEGMENT - 1)), GOOD],
    "429 now and then": [GOOD, GOOD, *[Answer(status=429, headers={"Retry-After": "0"})] * 4, GOOD],
    "429 for all but one": [replace(GOOD, at_once=1, pause=0.02)],
    "429 for an hour": [GOOD, GOOD, Answer(status=429, headers={"Retry-After": "3600"}), GOOD],
    "500 502": [GOOD, Answer(status=500), GOOD, Answer(status=502), GOOD],
    "hangs once": [GOOD, GOOD, replace(GOOD, pause=0.6), GOOD],
    "parts not found": [GOOD, GOOD, GONE, GONE, GOOD],
    "parts out of bounds": [GOOD, GOOD, Answer(status=416), GOOD],
    "stops to honour ranges": [GOOD, GOOD, GOOD, replace(GOOD, ranges=False)],
    "only says that it honours ranges": [replace(GOOD, ranges=False, headers={"Accept-Ranges": "bytes"})],
    "another part": [GOOD, OTHER_PART, OTHER_PART, GOOD],
    "longer parts": [GOOD, replace(GOOD, announced=SEGMENT + 1), GOOD],
    "a page": [GOOD, GOOD, PAGE, GOOD],
    "changed": [OLD, OLD, OLD, GOOD],
    "changed, unseen by the server": [OLD, OLD, OLD, replace(GOOD, if_range=False)],
    "changed at once, unseen by the server": [OLD, replace(GOOD, if_range=False)],
    "loses its version": [GOOD, GOOD, replace(GOOD, etag="")],
}


@pytest.mark.parametrize("expected", [KNOWN, NOTHING_KNOWN], ids=["known", "nothing known"])
@pytest.mark.parametrize("answers", RECOVERED.values(), ids=RECOVERED.keys())
def test_recovers(server: Server, tmp_path: Path, answers: list[Answer], expected: Expected) -> None:
    assert fetched(server, tmp_path, expected, *answers) == DATA


def test_wrong_bytes_in_one_segment_are_found_and_fetched_again(server: Server, tmp_path: Path) -> None:
    assert fetched(server, tmp_path, KNOWN, GOOD, GOOD, replace(OLD, etag=GOOD.etag), GOOD) == DATA
    assert len(server.seen) == 1 + len(segments_from(0)) + 1


def test_a_cut_segment_does_not_cost_the_others(server: Server, tmp_path: Path) -> None:
    assert fetched(server, tmp_path, NOTHING_KNOWN, GOOD, replace(GOOD, cut=5000), GOOD) == DATA
    again = set(asked_ranges(server)) - set(segments_from(0))
    assert len(asked_ranges(server)) == len(segments_from(0)) + 1
    assert [start % SEGMENT for start, _ in again] == [5000]


REFUSED: dict[str, tuple[list[Answer], str]] = {
    "always cut": ([GOOD, replace(GOOD, cut=10)], "cut after"),
    "gone": ([GOOD, GOOD, GONE], "no such file"),
    "wrong bytes": ([replace(OLD, etag=GOOD.etag)], "wrong bytes"),
    "drips": ([GOOD, GOOD, replace(GOOD, drip=0.01)], "too slow"),
}


@pytest.mark.parametrize(("answers", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses_and_goes_on_another_time(server: Server, tmp_path: Path, answers: list[Answer], says: str) -> None:
    with pytest.raises(SourceFailed, match=says):
        fetched(server, tmp_path, KNOWN, *answers)
    assert not (tmp_path / "weights").exists()
    assert fetched(server, tmp_path, KNOWN, GOOD) == DATA


def rest(server: Server, answer: Answer) -> Segments:
    server.script["/weights"] = [answer]
    patience = replace(HURRY, slowest=0, first_wait=0.5)
    url = f"{server.address}/weights"
    return Segments(url=url, access=OPEN, version='"v1"', start=0, end=len(DATA), patience=patience)


def test_who_has_enough_stops_the_connections(server: Server) -> None:
    segments = rest(server, GOOD)
    with closing(segments.in_order()) as in_order:
        assert next(in_order) == DATA[:SEGMENT]
    assert segments.stopped.is_set()


@pytest.mark.parametrize("answer", [replace(GOOD, drip=0.01), Answer(status=503)], ids=["reading", "waiting"])
def test_a_stopped_connection_ends_at_once(server: Server, answer: Answer) -> None:
    segments = rest(server, answer)
    segment = segments.begin(0)
    while not server.seen:
        time.sleep(0.01)
    time.sleep(0.1)
    segments.stopped.set()
    with pytest.raises(CancelledError):  # the whole segment would take ten seconds, and come
        segment.result(timeout=100)
    assert len(server.seen) == 1


def test_memory_stays_bounded(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weights_script.segments.SEGMENT", 1 << 20)
    server.script["/weights"] = [
        Answer(body=bytes(48 << 20))
    ]  # before the tracing, which sees the server's threads too
    tracemalloc.start()
    download(f"{server.address}/weights", tmp_path / "weights", NOTHING_KNOWN, patience=HURRY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * (CONNECTIONS + 1) << 20  # a buffer that grows may have an eighth in reserve, a chunk is 1 MB


# ---------------------------------------------------------------- any faults in any order

FAULTS: list[Answer] = [
    *(replace(GOOD, cut=cut) for cut in (0, 1, 1000, SEGMENT, 100_000)),
    Answer(status=429, headers={"Retry-After": "0"}),
    Answer(status=429),
    Answer(status=500),
    GONE,
    PAGE,
    OLD,
    replace(OLD, cut=50_000),
    replace(OLD, if_range=False),
    replace(GOOD, ranges=False),
    replace(GOOD, etag=""),
    OTHER_PART,
    replace(GOOD, chunked=True, cut=1000),
    replace(GOOD, drip=0.001),
    *[GOOD] * 15,
]
LIES = [
    replace(OLD, etag=GOOD.etag),
    Answer(body=OTHER[:-1]),
    replace(GOOD, announced=SEGMENT + 5),
    replace(GOOD, announced=SEGMENT - 5),
]
"""Wrong bytes or lengths under the right version: only a hash can tell."""


@pytest.mark.parametrize("expected", [KNOWN, NOTHING_KNOWN], ids=["known", "nothing known"])
@pytest.mark.parametrize("seed", range(12))
def test_any_faults(server: Server, tmp_path: Path, seed: int, expected: Expected) -> None:
    chance = random.Random(seed)
    choices = FAULTS + (LIES if expected is KNOWN else [])
    try:
        found = fetched(server, tmp_path, expected, *chance.choices(choices, k=chance.randint(5, 40)), GOOD)
    except SourceFailed:
        assert not (tmp_path / "weights").exists()
        found = fetched(server, tmp_path, expected, GOOD)
    assert found == DATA or (found == OTHER and expected is NOTHING_KNOWN)


# ---------------------------------------------------------------- processes

PROGRAM = f"""
import resource, signal, sys
from pathlib import Path
from weights_script import download, segments
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's children are born ignoring it
from weights_script.fetch import fetch_url
segments.SEGMENT, download.LARGE = {SEGMENT}, {4 * SEGMENT}
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
fetch_url(sys.argv[1], Path(sys.argv[2]))
"""


def start(server: Server, cache: Path, largest_file: int = 1 << 30) -> "subprocess.Popen[str]":
    words = [f"{server.address}/weights", str(cache), str(largest_file)]
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *words], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_stops_at_once_and_goes_on_another_time(server: Server, tmp_path: Path, how: signal.Signals) -> None:
    server.script["/weights"] = [*[GOOD] * 10, replace(GOOD, pause=300), GOOD]
    process = start(server, tmp_path)
    wait_for_part(tmp_path, 0)
    time.sleep(0.1)
    process.send_signal(how)
    process.communicate(timeout=100)  # less than the answer that it waits for
    seen = len(server.seen)
    assert list(tmp_path.rglob("weights.safetensors")) == []
    server.script["/weights"] = [GOOD]
    assert fetch_url(f"{server.address}/weights", tmp_path, patience=HURRY).read_bytes() == DATA
    first_again = next(headers for _, headers in server.seen[seen:])
    assert first_again["Range"] > "bytes=0-"


def test_a_file_that_may_not_grow_stops_at_once(server: Server, tmp_path: Path) -> None:
    server.script["/weights"] = [*[GOOD] * 10, replace(GOOD, pause=300)]
    process = start(server, tmp_path, 3 * SEGMENT + 5)
    assert "File too large" in process.communicate(timeout=100)[1]
    assert next(tmp_path.rglob("*.part")).read_bytes() == DATA[: 3 * SEGMENT + 5]

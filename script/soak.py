"""Wear a real Cog server out on the embedded model: odd requests, many predictions, or cancels at random moments.

Prints a table of figures and ends with 1 where something did not hold. docs/reliability.md tells what was found.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from script import hostile
from script.cog_server import CogServer, ServerError

FIXED: hostile.Json = {"width": 128, "height": 128, "num_inference_steps": 3, "hires_steps": 2, "seed": 5}
"""The request whose picture must stay the same to the last byte."""
INTERRUPTED: hostile.Json = FIXED | {
    "num_inference_steps": 20,
    "hires_steps": 20,
    "show_phases": True,
    "num_outputs": 2,
}
MOMENT_SECONDS = 4.0
"""Within them that one passes through its phases."""
READY_SECONDS = 5.0
"""After a cancel: a few steps, and the clean-up."""
GROWTH_MB = 50.0
"""By how much the last quarter's memory may lie above the first's. Allocators give and take back about 40 MB."""

Figures = dict[str, object]


def send_requests(server: CogServer, count: int, start: int) -> Figures:
    """Messages from valid to hostile. Raises hostile.Broken."""
    statuses: Counter[str] = Counter()
    slowest, workers = 0.0, hostile.workers(server)

    with hostile.junk_web() as web:

        def act(message: hostile.Message) -> None:
            nonlocal slowest
            answer = hostile.check(server, message, workers)
            statuses[f"{answer.status}{' failed' if answer.failed else ''}"] += 1
            slowest = max(slowest, answer.seconds)

        hostile.for_each(hostile.messages(web), count, start, act)
    told = ", ".join(f"{status}: {number}" for status, number in sorted(statuses.items()))
    return {"requests": statuses.total(), "answers": told, "slowest answer": f"{slowest:.1f} s"}


def draw_predictions(server: CogServer, count: int, start: int) -> Figures:
    """Valid predictions. Memory must not grow, files not pile up, and one picture not change. Raises hostile.Broken."""
    first, workers = picture(server), hostile.workers(server)
    memory: list[float] = []
    refused = 0

    def act(inputs: hostile.Json) -> None:
        nonlocal refused
        refused += hostile.check(server, hostile.prediction(inputs), workers).failed
        memory.append(resident(server))
        if len(memory) == count // 2:
            must(picture(server) == first, "the fixed picture is another one in the middle")

    hostile.for_each(hostile.valid_inputs(), count, start, act)
    must(picture(server) == first, "the fixed picture is another one at the end")
    warm = memory[len(memory) // 5 :]  # until then memory grows to what the largest picture needs
    quarter = len(warm) // 4
    early, late = statistics.mean(warm[:quarter]), statistics.mean(warm[-quarter:])
    slope = statistics.linear_regression(range(len(warm)), warm).slope * 100
    figures: Figures = {
        "predictions": f"{len(memory)}, of which {refused} were refused with one sentence",
        "memory, first quarter": f"{early:.0f} MB, after a fifth that is not counted",
        "memory, last quarter": f"{late:.0f} MB",
        "memory, highest": f"{max(memory):.0f} MB",
        "memory, slope": f"{slope:+.1f} MB per 100 predictions",
    }
    must(late - early < GROWTH_MB, f"memory grew by more than {GROWTH_MB:.0f} MB: {figures}")
    return figures


def cancel_predictions(server: CogServer, count: int, start: int) -> Figures:
    """Cancels by the endpoint and by hanging up, at random moments. Raises hostile.Broken."""
    chance, first, workers = random.Random(start), picture(server), hostile.workers(server)
    waits: list[float] = []
    ends: Counter[str] = Counter()
    for number in range(count):
        events: Any = server.events(f"cancel-{start}-{number}", INTERRUPTED)
        next(events)
        time.sleep(chance.uniform(0, MOMENT_SECONDS))
        asked = time.monotonic()
        if chance.random() < 0.5:
            server.cancel(f"cancel-{start}-{number}")
            *_, last = events
            ends[last.data["status"]] += 1
        else:
            events.close()
            ends["hung up"] += 1
        server.wait_until_ready(READY_SECONDS)
        waits.append(time.monotonic() - asked)
        must(waits[-1] < READY_SECONDS, f"cancel {number}: ready after {waits[-1]:.1f} s")
        must(hostile.workers(server) == workers, f"cancel {number}: the worker is another one")
    must(picture(server) == first, "the fixed picture is another one at the end")
    return {
        "cancels": ", ".join(f"{end}: {times}" for end, times in sorted(ends.items())),
        "ready again, median": f"{statistics.median(waits):.2f} s",
        "ready again, longest": f"{max(waits):.2f} s",
    }


def picture(server: CogServer) -> str:
    """The fixed request's picture, as a data URI."""
    server.wait_until_ready(hostile.ANSWER_SECONDS)
    reply = server.predict(FIXED)
    must(reply.status == 200 and reply.body["status"] == "succeeded", f"the fixed request: {reply}")
    server.wait_until_ready(hostile.ANSWER_SECONDS)
    return str(reply.body["output"])


def resident(server: CogServer) -> float:
    """MB of the server and its worker."""
    parent = psutil.Process(server.process.pid)
    return sum(process.memory_info().rss for process in (parent, *parent.children(recursive=True))) / 2**20


def must(holds: bool, else_: str) -> None:
    if not holds:
        raise hostile.Broken(else_)


@contextmanager
def fresh_server() -> Iterator[tuple[CogServer, Path]]:
    """A server with the embedded model, ready, and the folder for its files."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        environment = {"TMPDIR": folder, "PASTEL_MODEL": "", "COG_WEIGHTS": ""}
        with CogServer(environment, log=lambda line: None) as server:
            server.wait_until_ready()
            yield server, Path(folder)


KINDS = {"requests": send_requests, "predictions": draw_predictions, "cancels": cancel_predictions}


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/soak", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--count", type=int, default=100, help="how many; default: 100")
    parser.add_argument("--seed", type=int, default=1, help="the same ones for the same seed; default: 1")
    options = parser.parse_args()
    started = time.monotonic()
    with fresh_server() as (server, folder):
        try:
            figures = KINDS[options.kind](server, options.count, options.seed)
            picture(server)
            files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
            must(len(files) == 1, f"files are left: {files}")
        except (hostile.Broken, ServerError) as broken:
            print(f"script/soak: {broken}", file=sys.stderr)
            return 1
    figures |= {"at the end": "ready, and one file: the last picture", "time": f"{time.monotonic() - started:.0f} s"}
    print("\n".join(f"{name:24}{value}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""film: frames of a film compared with as many single requests, over HTTP with the real Cog server."""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from bench import report
from bench.service import answer
from script.cog_server import CogServer, Json

PROMPTS = "a yellow sun over the sea | a pink moon over the sea"
SINGLE, FILM = "single requests", "film"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", default=PROMPTS, help=f"the film's key frames; default: {PROMPTS}")
    parser.add_argument("--frames", type=int, default=24, help="frames of the film; default: 24")
    parser.add_argument("--singles", type=int, default=4, help="single requests between two films; default: 4")
    parser.add_argument("--steps", type=int, default=20, help="default: 20")
    parser.add_argument("--films", type=int, default=1, help="how many films are drawn; default: 1")
    parser.add_argument("--data", default="", help="generation data of the film, such as 'Even motion: False'")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print the tables. Return the seconds for each picture or frame, of a clock and of the processor."""
    from script.soak import fresh_server

    single: Json = {
        "prompt": arguments.prompts.partition(" | ")[0],
        "seed": 1,
        "highres_fix": "Off",
        "num_inference_steps": arguments.steps,
    }
    told = "\n".join(filter(None, (arguments.data, f"Animation frames: {arguments.frames}")))
    film = {**single, "prompt": "", "animation": arguments.prompts, "generation_data": told}
    wall: dict[str, list[float]] = {SINGLE: [], FILM: []}
    cpu: dict[str, list[float]] = {SINGLE: [], FILM: []}
    with fresh_server() as (server, _):
        answer(server, single)

        def measure(name: str, inputs: Json, pictures: int) -> None:
            seconds, spent = _taken(server, lambda: answer(server, inputs))
            wall[name].append(seconds / pictures)
            cpu[name].append(spent / pictures)

        for _ in range(arguments.films):
            for number in range(arguments.singles):
                if number == arguments.singles // 2:
                    measure(FILM, film, arguments.frames)
                measure(SINGLE, single, 1)
    print(report.table(f"A picture, and a frame of a film of {arguments.frames}", "s", wall, FILM))
    print("\n" + report.table("Processor time of the same", "s", cpu, FILM))
    return {"wall": wall, "processor": cpu}


def _taken(server: CogServer, work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of a clock, and of the processor for the server and its children."""
    start, before = time.perf_counter(), _spent(server)
    work()
    seconds, after = time.perf_counter() - start, _spent(server)
    return seconds, sum(spent - before.get(process, 0.0) for process, spent in after.items())


def _spent(server: CogServer) -> Mapping[int, float]:
    """Return the processor's seconds of each of the server's processes."""
    parent = psutil.Process(server.process.pid)
    times = {process.pid: process.cpu_times() for process in (parent, *parent.children(recursive=True))}
    return {process: each.user + each.system for process, each in times.items()}

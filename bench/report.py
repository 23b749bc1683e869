"""Take and report figures: contestants in turn, medians, ratios, and one line of JSON."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

Figures = Mapping[str, Sequence[float]]
"""Samples by contestant."""


def in_turn(contestants: Sequence[str], rounds: int) -> Iterator[str]:
    """Run each contestant once per round, in reverse order every other round.

    Other work on the machine then slows all of them equally, and none always profits from memory that another warmed.
    """
    for number in range(rounds):
        yield from contestants if number % 2 == 0 else reversed(contestants)


def seconds(work: Callable[[], object]) -> float:
    """Return the time that the work takes; on a GPU, until its last kernel ends."""
    _wait_for_gpu()
    start = time.perf_counter()
    work()
    _wait_for_gpu()
    return time.perf_counter() - start


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turns(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each round by contestant, after one round that does not count."""
    for work in contestants.values():
        work()
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for name in in_turn(list(contestants), rounds):
        figures[name].append(seconds(contestants[name]))
    return figures


def table(title: str, unit: str, figures: Figures, reference: str) -> str:
    """Return median, minimum and the ratio of medians to the reference's, one row per contestant."""
    base = statistics.median(figures[reference])
    rows = {
        name: (
            f"{statistics.median(samples):.3f} {unit}",
            f"{min(samples):.3f} {unit}",
            f"{statistics.median(samples) / base:.2f}x",
        )
        for name, samples in figures.items()
    }
    return grid(f"{title} (load {load():.2f})", ("median", "minimum", "ratio"), rows)


def grid(title: str, header: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Return text in columns, with names aligned left and cells right."""
    lines = [("", *header), *((name, *cells) for name, cells in rows.items())]
    first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(
        [title, *("  ".join([f"{name:{first}}", *map(str.rjust, cells, widths)]) for name, *cells in lines)]
    )


def load() -> float:
    """Return how many processes wanted a core over the last minute, including this one."""
    return os.getloadavg()[0]


def machine() -> dict[str, Any]:
    """Return what the figures were measured with."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    packages = ("torch", "diffusers", "transformers", "safetensors")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "device": gpu or f"CPU, {torch.get_num_threads()} of {os.cpu_count()} cores",
        "load": load(),
        "date": time.strftime("%Y-%m-%d"),
    }


def line(bench: str, figures: Mapping[str, Any]) -> str:
    """Return one line of JSON for programs that compare runs."""
    return json.dumps({"bench": bench, **machine(), "figures": figures})

"""How figures are taken and told: contestants in turn, medians, ratios, and one line of JSON."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

Figures = Mapping[str, Sequence[float]]
"""Samples by contestant."""


def in_turn(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each contestant once a round: what else runs on the machine then burdens all of them alike."""
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            samples[name].append(run())
    return samples


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def table(title: str, unit: str, figures: Figures, reference: str) -> str:
    """Median, minimum and the ratio of medians to the reference's, a row per contestant."""
    base = statistics.median(figures[reference])
    width = max(map(len, figures))
    lines = [title, f"{'':{width}}  {'median':>10}  {'minimum':>10}  {'ratio':>7}"]
    for name, samples in figures.items():
        median = statistics.median(samples)
        lines.append(f"{name:{width}}  {median:8.3f} {unit}  {min(samples):8.3f} {unit}  {median / base:6.2f}x")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures were taken with."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    packages = ("torch", "diffusers", "transformers", "safetensors")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "device": gpu or f"CPU, {torch.get_num_threads()} of {os.cpu_count()} cores",
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def line(bench: str, figures: Mapping[str, Any]) -> str:
    """One line of JSON for programs that compare runs."""
    return json.dumps({"bench": bench, **machine(), "figures": figures})

"""How figures are taken and told: contestants in turn, medians, ratios, and one line of JSON."""

import json
import os
import platform
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

Figures = Mapping[str, Sequence[float]]
"""Samples by contestant."""


def in_turn(contestants: Sequence[str], rounds: int) -> Iterator[str]:
    """Each once a round, every other round backwards.

    What else runs on the machine then burdens all alike, and none always finds the memory that another one warmed.
    """
    for number in range(rounds):
        yield from contestants if number % 2 == 0 else reversed(contestants)


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

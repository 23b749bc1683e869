"""What the phases share: the learning rate, the log, and checkpoints that survive an interruption."""

import csv
import math
import os
import time
from pathlib import Path
from typing import Any

import torch


def rate(peak: float, done: float, step: int, warm_up: int) -> float:
    """Return a learning rate: a warm-up in steps, then a cosine down to 2 % of the peak when the share `done` is 1."""
    return peak * min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


class Log:
    """Progress lines on the screen, and the same figures as a CSV file to plot."""

    def __init__(self, path: Path, every: float = 20.0) -> None:
        self.path, self.every, self.last = path, every, time.monotonic()
        self.sums: dict[str, list[float]] = {}

    def add(self, step: int, figures: dict[str, float]) -> None:
        """Add one step's figures; write their means from time to time, with the processor's seconds so far."""
        for name, value in figures.items():
            self.sums.setdefault(name, []).append(value)
        if time.monotonic() - self.last < self.every:
            return
        self.last = time.monotonic()
        means = {name: sum(values) / len(values) for name, values in self.sums.items()}
        self.sums.clear()
        self.write({"step": step, "cpu": round(time.process_time(), 1), **means})

    def write(self, row: dict[str, float]) -> None:
        """Print one line and append it to the file."""
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(row)
            writer.writerow(f"{value:.6g}" for value in row.values())
        text = "  ".join(f"{name} {value:.5g}" for name, value in row.items())
        print(f"{time.strftime('%H:%M:%S')} [{self.path.stem}] {text}", flush=True)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint to a temporary file and rename it, so that a reader never sees half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def load(path: Path) -> dict[str, Any] | None:
    """Return a checkpoint's state; None if there is none yet."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None

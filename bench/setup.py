"""setup: the time from a file to networks that can draw, compared with a plain read of the file and with diffusers.

Every figure is taken in a separate process, because imports and peak memory can only be measured once in each. A
full-size checkpoint with random weights is made for this. "fp16" is for a GPU; on a CPU, this project draws in "fp32".
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import report

PIECE, CACHED_PIECE = 16 << 20, 256 << 10
"""Bytes that a raw read copies at once. The smaller piece stays in a core's own cache, and nothing reads faster."""
PEERS = Path(__file__).resolve().parent.parent / ".venv" / "peers"
"""Folder of the packages that only script/bench uses."""


class Laps:
    """Seconds between marks, and the processor time of all threads (`load cpu` beside `load`)."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter(), time.process_time()

    def mark(self, name: str) -> None:
        now = time.perf_counter(), time.process_time()
        wall, cpu = (end - start for start, end in zip(self._last, now, strict=True))
        self.seconds |= {name: wall, f"{name} cpu": cpu}
        self._last = now


def raw(file: Path, laps: Laps, piece: int = PIECE) -> None:
    """Read the bytes into one buffer."""
    buffer = bytearray(piece)
    with file.open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass
    laps.mark("load")


def ours(file: Path, laps: Laps, half: bool) -> None:
    """Do what setup() does, and draw a picture of 64 px in one step."""
    import torch

    import predict  # noqa: F401  # what the container imports
    from pipelines.ask.identity import ModelFiles
    from pipelines.ask.plan import make_plan
    from pipelines.ask.request import GenerationRequest
    from pipelines.drawing.phases import render
    from pipelines.models.loader import load
    from pipelines.runtime.device import Device

    laps.mark("import")
    device = Device(torch.device("cpu"), torch.float16 if half else torch.float32)
    networks = load(ModelFiles(name="random", checkpoint=file, vae=None), device)  # reads all weights to find NaN
    laps.mark("load")
    if not half:
        request = GenerationRequest(prompt="a sun", width=64, height=64, seed=1, num_inference_steps=1, hires=None)
        for _ in render(networks, request, make_plan(request)):
            pass
        laps.mark("picture")


def diffusers(file: Path, laps: Laps, half: bool, accelerate: bool = True) -> None:
    """Do what a plain program does: from_single_file, with a local configuration."""
    if not accelerate:
        sys.modules["accelerate"] = None  # type: ignore[assignment]  # makes Python report it as missing
    import torch
    from diffusers import StableDiffusionPipeline

    laps.mark("import")
    pipeline = StableDiffusionPipeline.from_single_file(
        str(file),
        config=str(file.parent / "configuration"),
        torch_dtype=torch.float16 if half else torch.float32,
        local_files_only=True,
    )
    read_all(pipeline.unet, pipeline.vae, pipeline.text_encoder)
    laps.mark("load")
    if not half:
        pipeline.set_progress_bar_config(disable=True)
        pipeline("a sun", width=64, height=64, num_inference_steps=1)
        laps.mark("picture")


def read_all(*networks: Any) -> None:
    """Read every weight, because a mapped file is only read on access."""
    for network in networks:
        for weight in network.parameters():
            weight.sum()


CONTESTANTS: dict[str, Callable[[Path, Laps], None]] = {
    "raw read": raw,
    "raw read, cached buffer": lambda file, laps: raw(file, laps, CACHED_PIECE),
    "fp16, ours": lambda file, laps: ours(file, laps, True),
    "fp16, diffusers with accelerate": lambda file, laps: diffusers(file, laps, True),
    "fp16, diffusers alone": lambda file, laps: diffusers(file, laps, True, accelerate=False),
    "fp32, ours": lambda file, laps: ours(file, laps, False),
    "fp32, diffusers with accelerate": lambda file, laps: diffusers(file, laps, False),
}

OF_EVERY_FAMILY = ("raw read", "raw read, cached buffer", "fp16, ours")
"""What is compared for models of other families than Stable Diffusion 1.x, for which there is no configuration."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=4, help="runs of each (default 4)")
    parser.add_argument("--model", default="sd15", choices=("sd15", "sdxl", "sdxl-refiner"), help="default: sd15")
    parser.add_argument("--cold", action="store_true", help="drop the file from the page cache before each read")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print the tables. Return medians for the JSON line."""
    from bench.full_size import checkpoint, configuration

    file = checkpoint(arguments.model)
    configuration()
    names = list(CONTESTANTS) if arguments.model == "sd15" else list(OF_EVERY_FAMILY)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for name in report.in_turn(names, arguments.rounds):
        if arguments.cold:
            drop_from_cache(file)
        found[name].append(_measured(name, file))
    figures = {
        part: {name: [run[part] for run in runs] for name, runs in found.items() if part in runs[0]}
        for part in ("import", "load", "load cpu", "picture", "peak")
    }
    figures["both"] = {
        name: [sum(pair) for pair in zip(figures["import"][name], figures["load"][name], strict=True)]
        for name in figures["import"]
    }
    size = file.stat().st_size / 1e9
    print(f"{file.name}: {size:.2f} GB{', not in the page cache' if arguments.cold else ', in the page cache'}")
    print(report.table("\nLoad: from the file to networks", "s", figures["load"], "raw read"))
    print(report.table("\nLoad: processor time", "s", figures["load cpu"], "raw read"))
    if arguments.model != "sd15":
        print(report.table("\nPeak memory after loading", "GB", figures["peak"], "raw read"))
        return figures
    print(report.table("\nImports", "s", figures["import"], "fp16, diffusers with accelerate"))
    print(report.table("\nImports and load", "s", figures["both"], "fp16, diffusers with accelerate"))
    print(report.table("\nFirst picture, 64 px, one step", "s", figures["picture"], "fp32, diffusers with accelerate"))
    print(report.table("\nPeak memory after loading", "GB", figures["peak"], "raw read"))
    return figures


def drop_from_cache(file: Path) -> None:
    """Make the next read come from the disk."""
    with file.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _measured(name: str, file: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-m", "bench.setup", name, str(file)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip()}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def peak_memory() -> float:
    """Return the most GB that this process ever held. `ru_maxrss` is no use: a child inherits it from its parent."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "Linux tells it"
    return int(found[1]) * 1024 / 1e9


def _measure() -> None:
    """Run one contestant in the child process and print its figures as JSON in the last line."""
    laps = Laps()
    CONTESTANTS[sys.argv[1]](Path(sys.argv[2]), laps)
    print(json.dumps(laps.seconds | {"peak": peak_memory()}))


if __name__ == "__main__":
    _measure()

"""shapes: how time grows with pixels and steps, compared with the arithmetic, and whether memory stays flat.

Growth is the slope of a line through the logarithms; 1 means proportional. `--plot` draws it.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import flops, report
from bench.e2e import ours
from bench.setup import PEERS, peak_memory
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest
from pipelines.models.model import Model
from pipelines.runtime.memory import trim_heap

STEPS = 5
"""Number of steps when the size varies."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--full", action="store_true", help="a random full-size model instead of the embedded one")
    parser.add_argument("--sizes", nargs="+", type=int, default=(64, 128, 192, 256, 384, 512), help="sides in pixels")
    parser.add_argument("--steps", nargs="+", type=int, default=(5, 10, 20, 40), help="steps, at the second size")
    parser.add_argument("--rounds", type=int, default=3, help="pictures of each; default: 3")
    parser.add_argument("--predictions", type=int, default=60, help="pictures of mixed sizes, for memory; default: 60")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a plot: .svg, .png, .webp")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print the tables. Return seconds, slopes and the peaks of memory."""
    from bench.peers import both

    own, _ = both("sd15" if arguments.full else "embedded", arguments.sizes[0])
    by_size = {size**2: picture(size, STEPS) for size in arguments.sizes}
    by_steps = {steps: picture(arguments.sizes[1], steps) for steps in arguments.steps}
    on_meta = flops.on_meta(own)
    figures = {
        "pixels": grown(own, on_meta, by_size, arguments.rounds),
        "steps": grown(own, on_meta, by_steps, arguments.rounds),
    }
    for name, found in figures.items():
        slopes = {kind: slope(list(values), list(values.values())) for kind, values in found.items()}
        rows: dict[str, Sequence[str]] = {
            f"{amount}": (f"{found['seconds'][amount]:.3f} s", f"{found['TFLOP'][amount]:.3f}")
            for amount in found["seconds"]
        }
        rows["slope"] = [f"{value:.2f}" for value in slopes.values()]
        print(report.grid(f"\nBy {name} (load {report.load():.2f})", ("median", "TFLOP"), rows))
    peaks = peak_by_quarter(own, arguments.sizes, arguments.predictions)
    rows = {f"quarter {number}": (f"{peak:.3f} GB",) for number, peak in enumerate(peaks, 1)}
    print(report.grid(f"\nPeak memory over {arguments.predictions} predictions of mixed sizes", ("until then",), rows))
    if arguments.plot:
        plot(figures, arguments.plot)
    return {**figures, "peaks": peaks}


def picture(size: int, steps: int) -> GenerationRequest:
    """Return a request for a picture without highres fix, so with a single size."""
    return GenerationRequest(
        prompt="a pink sun", width=size, height=size, seed=1, num_inference_steps=steps, hires=None
    )


def grown(
    networks: Model, on_meta: dict[str, Any], requests: dict[int, GenerationRequest], rounds: int
) -> dict[str, dict[int, float]]:
    """Return median seconds, and TFLOP, by the value that varied."""
    contestants = {str(amount): ours(networks, request) for amount, request in requests.items()}
    taken = report.in_turns(contestants, rounds)
    return {
        "seconds": {amount: statistics.median(taken[str(amount)]) for amount in requests},
        "TFLOP": {
            amount: sum(flops.of_plan(on_meta, make_plan(request)).values()) / 1e12
            for amount, request in requests.items()
        },
    }


def slope(amounts: Sequence[float], values: Sequence[float]) -> float:
    """Return the exponent with which values grow with amounts, by least squares over their logarithms."""
    return statistics.linear_regression([math.log(x) for x in amounts], [math.log(y) for y in values]).slope


def peak_by_quarter(networks: Model, sizes: Sequence[int], predictions: int) -> list[float]:
    """Draw `predictions` pictures of these sizes in turn. Return the process's peak memory in GB after each quarter."""
    peaks = []
    for number in range(predictions):
        ours(networks, picture(sizes[number % len(sizes)], 1))()
        trim_heap()
        if (number + 1) % (predictions // 4) == 0:
            peaks.append(peak_memory())
    return peaks


def plot(figures: dict[str, dict[str, dict[int, float]]], file: Path) -> None:
    """Plot seconds and TFLOP over the value that varied, both axes logarithmic; TFLOP meet the last seconds."""
    sys.path.append(str(PEERS))
    from matplotlib.figure import Figure

    picture = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, (name, found) in zip(picture.subplots(1, len(figures)), figures.items(), strict=True):
        amounts, seconds, work = list(found["seconds"]), list(found["seconds"].values()), list(found["TFLOP"].values())
        axes.loglog(amounts, seconds, "o-", label="seconds")
        axes.loglog(amounts, [value * seconds[-1] / work[-1] for value in work], "--", label="its arithmetic, scaled")
        axes.set_xlabel(name)
        axes.set_ylabel("seconds a picture")
        axes.grid(True, which="both", alpha=0.3)
        axes.legend()
    picture.savefig(file)

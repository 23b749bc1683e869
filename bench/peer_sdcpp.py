"""peer_sdcpp: a sampling step compared with stable-diffusion.cpp's, for the same full-size checkpoint.

Its package is not in requirements-bench.txt, because installing compiles it, which takes minutes:
`pip install --no-deps --target FOLDER stable-diffusion-cpp-python==0.4.7`, then `--packages FOLDER`.
"""

import argparse
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from bench import report
from bench.setup import PEERS
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest
from pipelines.drawing.phases import Step, render
from pipelines.models.model import Model

PROMPT, NEGATIVE = "a pink sun over the sea", "lowres"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--packages", type=Path, default=PEERS, help="folder in which its package is installed")
    parser.add_argument("--model", default="sd15", choices=("sd15", "sdxl"), help="default: sd15")
    parser.add_argument("--size", type=int, default=256, help="side of the picture in pixels; default: 256")
    parser.add_argument("--steps", type=int, default=4, help="steps of a picture; default: 4")
    parser.add_argument("--rounds", type=int, default=2, help="pictures of each; default: 2")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print the table. Return the seconds of each step from the second on."""
    sys.path.append(str(arguments.packages))
    if find_spec("stable_diffusion_cpp") is None:
        print(f"Skipped: stable-diffusion-cpp-python is not installed in {arguments.packages}; see --help.")
        return {}
    from bench.full_size import checkpoint
    from bench.peers import networks

    contestants = {
        "ours": ours(networks(arguments.model), arguments.size, arguments.steps),
        "stable-diffusion.cpp": sdcpp(checkpoint(arguments.model), arguments.size, arguments.steps),
    }
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for name in report.in_turn(list(contestants), arguments.rounds):
        figures[name] += [end - start for start, end in pairwise(contestants[name]())]
    title = f"One guided step, {arguments.size} px, {torch.get_num_threads()} threads"
    print(report.table(title, "s", figures, "ours"))
    return figures


def ours(networks: Model, size: int, steps: int) -> Callable[[], list[float]]:
    """Return a function that draws a picture and returns the times at which its steps were done."""
    request = GenerationRequest(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        width=size,
        height=size,
        seed=1,
        num_inference_steps=steps,
        hires=None,
    )

    def draw() -> list[float]:
        events = render(networks, request, make_plan(request))
        return [time.perf_counter() for event in events if isinstance(event, Step) and event.number]

    return draw


def sdcpp(file: Path, size: int, steps: int) -> Callable[[], list[float]]:
    """Return the same for the peer, in fp16 like the file."""
    from stable_diffusion_cpp import StableDiffusion

    model = StableDiffusion(model_path=str(file), n_threads=torch.get_num_threads(), verbose=False)

    def draw() -> list[float]:
        moments: list[float] = []

        def done(step: int, total: int, seconds: float) -> None:
            if step and total == steps:
                moments.append(time.perf_counter())

        model.generate_image(
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            width=size,
            height=size,
            seed=1,
            sample_steps=steps,
            cfg_scale=7,
            sample_method="dpm++2m",
            scheduler="karras",
            progress_callback=done,
        )
        return moments

    return draw

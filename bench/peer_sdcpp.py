"""peer_sdcpp: a sampling step compared with stable-diffusion.cpp's and diffusers', for the same checkpoint.

stable-diffusion.cpp reads models of the published sizes only, and is left out for others. Its package is not in
requirements-bench.txt, because installing compiles it, which takes minutes:
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

PUBLISHED = "sd15", "sdxl"
PROMPT, NEGATIVE = "a pink sun over the sea", "lowres"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--packages", type=Path, default=PEERS, help="folder in which its package is installed")
    parser.add_argument("--model", default="sd15", choices=(*PUBLISHED, "sdxl-small", "embedded"), help="default: sd15")
    parser.add_argument("--size", type=int, default=256, help="side of the picture in pixels; default: 256")
    parser.add_argument("--steps", type=int, default=4, help="steps of a picture; default: 4")
    parser.add_argument("--rounds", type=int, default=2, help="pictures of each; default: 2")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print the table. Return the seconds of each step from the second on."""
    from bench.full_size import checkpoint
    from bench.peers import networks

    model = networks(arguments.model)
    contestants = {
        "ours": ours(model, arguments.size, arguments.steps),
        "diffusers": diffusers(model, arguments.size, arguments.steps),
    }
    sys.path.append(str(arguments.packages))
    if arguments.model in PUBLISHED and find_spec("stable_diffusion_cpp"):
        contestants["stable-diffusion.cpp"] = sdcpp(checkpoint(arguments.model), arguments.size, arguments.steps)
    elif arguments.model in PUBLISHED:
        print(f"Left out: stable-diffusion-cpp-python is not installed in {arguments.packages}; see --help.")
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


def diffusers(networks: Model, size: int, steps: int) -> Callable[[], list[float]]:
    """Return the same for diffusers' pipeline, with our networks."""
    from bench.peers import pipelines

    first, _ = pipelines(networks)

    def draw() -> list[float]:
        moments: list[float] = []

        def done(pipeline: Any, step: int, time_step: Any, given: dict[str, Any]) -> dict[str, Any]:
            moments.append(time.perf_counter())
            return given

        first(
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            width=size,
            height=size,
            num_inference_steps=steps,
            guidance_scale=7,
            generator=torch.Generator().manual_seed(1),
            output_type="latent",
            callback_on_step_end=done,
        )
        return moments

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

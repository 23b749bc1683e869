"""e2e: a picture with highres fix, compared with the three-pipeline composition and the same phases in diffusers."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bench import report
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest
from pipelines.drawing.phases import render
from pipelines.models.model import Model

MODELS = ("embedded", "sd15", "sdxl-small", "sdxl")
"""All but the embedded one have random weights."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="embedded", choices=MODELS, help="default: embedded; others are random")
    parser.add_argument("--size", type=int, default=128, help="side of the draft in pixels; default: 128")
    parser.add_argument("--steps", type=int, default=20, help="steps of either pass; default: 20")
    parser.add_argument("--rounds", type=int, default=5, help="pictures of each; default: 5")
    parser.add_argument(
        "--outputs", type=int, default=4, help="size of a batch to compare with single requests; 1: none. Default: 4"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print both tables. Return seconds per picture."""
    from bench.composition import composition
    from bench.peers import both, fused

    own, plain = both(arguments.model, arguments.size)
    request = GenerationRequest(
        prompt="a pink sun over the sea",
        negative_prompt="lowres, worst quality",
        width=arguments.size,
        height=arguments.size,
        seed=1,
        num_inference_steps=arguments.steps,
    )
    print(f"{make_plan(request).describe()} on {own.device}")
    beside: dict[str, Callable[[], object]] = {
        "ours": ours(own, request),
        "the same phases in diffusers": fused(plain, request),
    }
    if not arguments.model.startswith("sdxl"):  # the composition's upscaler is made for latents of SD 1
        beside["three-pipeline composition"] = composition(plain, request)
    figures = report.in_turns(beside, arguments.rounds)
    print(report.table("\nOne picture", "s", figures, "ours"))
    if (count := arguments.outputs) == 1:
        return {"one": figures}
    batch = replace(request, num_outputs=count)
    several = {f"num_outputs={count}": ours(own, batch), f"{count} requests": repeated(ours(own, request), count)}
    taken = report.in_turns(several, arguments.rounds)
    shared = {name: [seconds / count for seconds in samples] for name, samples in taken.items()}
    print(report.table(f"\nA picture of {count}", "s", shared, f"num_outputs={count}"))
    return {"one": figures, "several": shared}


def ours(networks: Model, request: GenerationRequest) -> Callable[[], object]:
    """Return a function that draws the request: pixels, without files."""
    return lambda: list(render(networks, request, make_plan(request)))


def repeated(work: Callable[[], object], times: int) -> Callable[[], object]:
    return lambda: [work() for _ in range(times)]

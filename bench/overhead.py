"""overhead: the sampling loop's own cost per step, with a UNet that does nothing, compared with diffusers' loop."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench import report
from pipelines.ask.catalog import SAMPLERS
from pipelines.models.loader import load
from pipelines.runtime.device import best_device
from pipelines.runtime.unet_call import Condition, UNet, UNetCall
from pipelines.sampling.denoiser import Guidance, GuidedDenoiser, Stage
from pipelines.sampling.noise import Noise
from pipelines.sampling.prompts import Part, Prompts, ScheduledPrompt
from pipelines.sampling.samplers import ALGORITHMS
from pipelines.sampling.schedules import sigmas
from weights_script.resolve import resolve

SAMPLER, SCALE, STEPS = "DPM++ 2M", 7.0, 20


class Stub(UNet):
    """A UNet that returns its input as the noise."""

    def __call__(self, call: UNetCall) -> Tensor:
        return call.images


def nothing(images: Tensor, time: Tensor, context: Tensor) -> Tensor:
    """Do the same for diffusers' loop."""
    return images


def ours(place: torch.device, size: int) -> Callable[[], object]:
    """Return one pass as `phases.py` runs it, without its events."""
    model = load(resolve(None, None).files)
    model = replace(model, unet=Stub(model.unet.network))
    row = ScheduledPrompt((Part(1.0, ((STEPS, Condition(torch.zeros(1, 77, 768, device=place))),)),))
    levels = sigmas(model.noise, "Karras", STEPS, SAMPLERS[SAMPLER])
    x = torch.randn(1, 4, size, size, device=place)
    noise = Noise([1], (4, size, size), device=place)

    def draw() -> None:
        denoiser = GuidedDenoiser([Stage(model, Prompts(row, row))], Guidance(SCALE), rows=2)
        for _ in ALGORITHMS[SAMPLER](denoiser, x * levels[0], levels, noise):
            pass

    return draw


def diffusers(place: torch.device, size: int) -> Callable[[], object]:
    """Return the loop of a plain diffusers program."""
    from bench.peers import scheduler

    solver = scheduler()
    start, context = torch.randn(1, 4, size, size, device=place), torch.zeros(2, 77, 768, device=place)

    def draw() -> None:
        solver.set_timesteps(STEPS, device=place)
        latents = start * solver.init_noise_sigma
        for t in solver.timesteps:
            images = solver.scale_model_input(torch.cat([latents] * 2), t)
            unconditional, conditional = nothing(images, t, context).chunk(2)
            guided = unconditional + SCALE * (conditional - unconditional)
            latents = solver.step(guided, t, latents, return_dict=False)[0]

    return draw


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=64, help="side of the latents; default: 64")
    parser.add_argument("--rounds", type=int, default=50, help=f"passes of {STEPS} steps each; default: 50")


@torch.inference_mode()
def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print the table. Return milliseconds per step."""
    place = best_device().place
    found = report.in_turns(
        {"ours": ours(place, arguments.size), "diffusers": diffusers(place, arguments.size)}, arguments.rounds
    )
    figures = {name: [seconds * 1000 / STEPS for seconds in samples] for name, samples in found.items()}
    title = f"One step around the UNet, latents {arguments.size}x{arguments.size}"
    print(report.table(title, "ms", figures, "ours"))
    return figures

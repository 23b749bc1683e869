"""step: one guided step of the full-size UNet, compared with diffusers' own with fused and with sliced attention."""

import argparse
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from bench import report
from pipelines.models.model import Model
from pipelines.runtime.unet_call import Condition, UNet
from pipelines.sampling.denoiser import Guidance, GuidedDenoiser, Stage
from pipelines.sampling.prompts import Part, Prompts, ScheduledPrompt

SIGMA, TIME, SCALE = 1.0, 500.0, 7.0
Step = Callable[[Tensor], Tensor]
"""Noisy latents (1, 4, h, w) -> guided ones."""


def by_blocks(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Compile the transformer blocks, of which a UNet has many alike, and leave the rest as it is."""
    unet.compile_repeated_blocks(dynamic=True)
    return unet


LEVERS: dict[str, Callable[[Any], Any]] = {
    "ours, channels last": lambda unet: unet.to(memory_format=torch.channels_last),
    "ours, bfloat16": lambda unet: unet.to(torch.bfloat16),
    "ours, compiled": lambda unet: torch.compile(unet, dynamic=True),
    "ours, blocks compiled": by_blocks,
}
"""Options that the device policy may use."""


def changed(networks: Model, change: Callable[[Any], Any]) -> UNet:
    """Return a changed copy of the UNet."""
    return UNet(change(deepcopy(networks.unet.network)))


def ours(networks: Model, rows: int = 2) -> Step:
    """Return a step as the samplers call it."""
    positive, negative = _embeddings(networks)
    prompts = Prompts(_constant(positive), _constant(negative))
    denoiser = GuidedDenoiser([Stage(networks, prompts)], Guidance(SCALE), rows)
    return lambda x: denoiser(x, SIGMA, TIME)


def diffusers(networks: Model, sliced: bool) -> Step:
    """Return a step as a plain program calls it."""
    from bench.peers import plain_unet

    unet = plain_unet(networks)
    if sliced:
        unet.set_attention_slice("auto")
    embeddings = _embeddings(networks).flip(0).to(unet.dtype)
    time = torch.tensor(TIME, device=unet.device)

    def step(x: Tensor) -> Tensor:
        images = torch.cat([x.to(unet.dtype)] * 2)
        noise = unet(images, time, encoder_hidden_states=embeddings, return_dict=False)[0]
        unconditional, conditional = noise.chunk(2)
        return unconditional + SCALE * (conditional - unconditional)

    return step


def _constant(embedding: Tensor) -> ScheduledPrompt:
    return ScheduledPrompt((Part(1.0, ((1, Condition(embedding[None])),)),))


def _embeddings(networks: Model) -> Tensor:
    """Return stand-ins for two encoded prompts (2, 77, width)."""
    shape = 2, 77, networks.unet.network.config.cross_attention_dim
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(networks.device.place)


def options(parser: argparse.ArgumentParser) -> None:
    sizes = (512, 768, 1024) if torch.cuda.is_available() else (128, 256)
    told = " ".join(map(str, sizes))
    parser.add_argument("--sizes", nargs="+", type=int, default=sizes, help=f"sides in pixels; default here: {told}")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each; default: 5")
    parser.add_argument("--embedded", action="store_true", help="the embedded model instead of a full-size one")
    parser.add_argument(
        "--levers", action="store_true", help="also measure the device policy's options (docs/performance.md)"
    )


@torch.inference_mode()
def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print a table per size. Return seconds."""
    from bench.peers import both

    own, plain = both("embedded" if arguments.embedded else "sd15", arguments.sizes[0])
    torch.compiler.set_stance("default")  # a GPU's policy would compile nothing after setup, and so not the levers
    steps = {
        "ours": ours(own),
        "ours, row by row": ours(own, rows=1),
        "diffusers": diffusers(plain, sliced=False),
        "diffusers, sliced attention": diffusers(plain, sliced=True),
    }
    if arguments.levers:
        steps |= {name: ours(replace(own, unet=changed(plain, change))) for name, change in LEVERS.items()}
    figures = {}
    if arguments.levers:
        side = arguments.sizes[0]
        x = torch.randn(1, 4, side // 8, side // 8, device=own.device.place)
        figures["first"] = {name: [report.seconds(partial(step, x))] for name, step in steps.items()}
        print(report.table(f"\nThe first step, {side} px, with compiling", "s", figures["first"], "ours"))
    for size in arguments.sizes:
        x = torch.randn(1, 4, size // 8, size // 8, device=own.device.place)
        found = report.in_turns({name: partial(step, x) for name, step in steps.items()}, arguments.rounds)
        print(report.table(f"\nOne guided step, {size} px, {own.device}", "s", found, "ours"))
        figures[str(size)] = found
    return figures

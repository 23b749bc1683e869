"""flops: the arithmetic of a picture, counted on networks without weights, and that of the composition.

TFLOP are counted as torch does: two for a multiplication and an addition. Attention means its two matrix products only.
"""

import argparse
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.clip.modeling_clip import CLIPTextModel

from bench import report
from pipelines.ask.plan import LATENT_PIXELS, HighresPlan, make_plan
from pipelines.ask.request import GenerationRequest, HiresSettings
from pipelines.models.model import Model
from pipelines.models.unet import fit_any_size

SIZES = ("64x64", "96x64", "128x128", "192x128", "256x256")
TOKENS = 77
ROWS = 2
"""Rows of a guided step: one with the prompt and one with the negative prompt."""


class Cost(NamedTuple):
    """FLOPs in all, and those of attention."""

    total: int
    attention: int


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="HxW", help=f"latents; default: {' '.join(SIZES)}")
    parser.add_argument("--model", default="sd15", choices=("sd15", "sdxl", "sdxl-refiner"), help="default: sd15")
    parser.add_argument("--width", type=int, default=512, help="width of the draft, in pixels; default: 512")
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20, help="steps of either pass; default: 20")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print both tables. Return FLOPs."""
    from bench.full_size import meta_networks

    networks = meta_networks(arguments.model)
    sizes = [latent_size(size) for size in arguments.sizes]
    costs = {
        "UNet, one forward": [of_unet(networks["unet"], *size) for size in sizes],
        "VAE decode": [of_decode(networks["vae"], *size) for size in sizes],
        "VAE encode": [of_encode(networks["vae"], *size) for size in sizes],
    }
    rows = {name: [f"{cost.total / 1e12:.3f}" for cost in found] for name, found in costs.items()}
    rows["UNet, of it attention"] = [f"{cost.attention / cost.total:.0%}" for cost in costs["UNet, one forward"]]
    print(report.grid("Full size, TFLOP, by latents", arguments.sizes, rows))
    request = GenerationRequest(
        prompt="",
        width=arguments.width,
        height=arguments.height,
        seed=1,
        num_inference_steps=arguments.steps,
        hires=HiresSettings(scale=2),
    )
    plan = make_plan(request)
    phases = {"ours": of_plan(networks, plan)}
    if arguments.model == "sd15":  # the composition's upscaler is made for its latents
        phases["composition"] = of_composition(networks, plan)
    whole = {name: sum(found.values()) for name, found in phases.items()}
    print(f"\n{plan.describe()}")
    for name, found in phases.items():
        shares = {phase: (f"{cost / 1e12:.1f}", f"{cost / whole[name]:.0%}") for phase, cost in found.items()}
        shares["together"] = (f"{whole[name] / 1e12:.1f}", f"{whole[name] / whole['ours']:.2f}x")
        print(report.grid(name, ("TFLOP", "share"), shares))
    return {"networks": costs, "plan": phases}


def on_meta(networks: Model) -> dict[str, Any]:
    """Return the same networks without weights."""
    with torch.device("meta"):
        found = {
            "unet": UNet2DConditionModel.from_config(networks.unet.network.config),
            "vae": AutoencoderKL.from_config(networks.vae.network.config),
            "text": CLIPTextModel(networks.text.towers[0].model.config),
        }
    fit_any_size(found["unet"])
    return found


def latent_size(text: str) -> tuple[int, int]:
    """Return height and width of a text such as "128x64"."""
    height, width = text.split("x")
    return int(height), int(width)


@cache  # counting takes seconds, and pictures of one size or of as many steps share it
def of_unet(unet: UNet2DConditionModel, height: int, width: int) -> Cost:
    """Return the cost of one row of a batch, latents (4, height, width)."""
    context, vector = _meta(1, TOKENS, unet.config.cross_attention_dim), None
    if unet.class_embedding is not None:
        vector = _meta(1, unet.config.projection_class_embeddings_input_dim)
    call = _meta(1, 4, height, width), _meta(1), context
    return counted(lambda: unet(*call, class_labels=vector))


@cache
def of_decode(vae: AutoencoderKL, height: int, width: int) -> Cost:
    """Return the cost of latents (4, height, width) -> pixels."""
    return counted(lambda: vae.decode(_meta(1, 4, height, width)))


@cache
def of_encode(vae: AutoencoderKL, height: int, width: int) -> Cost:
    """Return the cost of pixels -> latents (4, height, width)."""
    return counted(lambda: vae.encode(_meta(1, 3, height * LATENT_PIXELS, width * LATENT_PIXELS)))


@cache
def of_text(text: CLIPTextModel) -> Cost:
    """Return the cost of one prompt of up to 75 tokens."""
    return counted(lambda: text(torch.zeros(1, TOKENS, dtype=torch.long, device="meta")))


def of_plan(networks: dict[str, Any], plan: HighresPlan) -> dict[str, int]:
    """Return our cost by phase, with samplers that call the network once per step."""
    images = len(plan.seeds)
    texts = [network for name, network in networks.items() if name.startswith("text")]
    found = {"text": sum(of_text(text).total for text in texts) * ROWS}
    for name, part in (("base", plan.first), ("refine", plan.hires)):
        if part:
            assert part.steps is not None
            found[name] = of_unet(networks["unet"], *part.latent_shape[1:]).total * ROWS * part.steps * images
    found["decode"] = of_decode(networks["vae"], *_final(plan)).total * images
    return found


def of_composition(networks: dict[str, Any], plan: HighresPlan) -> dict[str, int]:
    """Return the cost of the same passes in three pipelines: pictures between them, the upscaler's network, and texts
    encoded for each."""
    from bench.composition import NOISE_LEVEL_WIDTH, UPSCALER_STEPS, scale_of, upscaler_unet

    unet = networks["unet"]
    text_width = unet.config.cross_attention_dim
    with torch.device("meta"):
        upscaler = upscaler_unet(text_width, scale_of(unet))
    upscaling = counted(
        lambda: upscaler(
            _meta(1, 8, *_final(plan)),
            _meta(1),
            encoder_hidden_states=_meta(1, TOKENS, text_width),
            timestep_cond=_meta(1, NOISE_LEVEL_WIDTH + text_width),
        )
    )
    images, (draft, final) = len(plan.seeds), (plan.first.latent_shape[1:], _final(plan))
    turns = [turn(networks["vae"], *size) for turn in (of_decode, of_encode) for size in (draft, final)]
    ours = of_plan(networks, plan)
    return ours | {
        "text": ours["text"] // ROWS * 5,
        "through pixels": sum(cost.total for cost in turns) * images,
        "upscaler": upscaling.total * UPSCALER_STEPS * images,
    }


def counted(work: Callable[[], object]) -> Cost:
    """Return the cost of the work. On the meta device, attention is written out as its two products."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    by_operator = counter.get_flop_counts()["Global"]
    return Cost(counter.get_total_flops(), by_operator.get(torch.ops.aten.bmm, 0))


def _final(plan: HighresPlan) -> tuple[int, int]:
    _, height, width = (plan.hires or plan.first).latent_shape
    return height, width


def _meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")

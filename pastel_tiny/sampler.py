"""DPM++ 2M with Karras' noise levels, and contact sheets that show the progress of training."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image, ImageDraw
from torch import Tensor

from pastel_tiny.dataset import SIDE
from pastel_tiny.networks import LATENT_SCALE, half_precision, here
from pastel_tiny.text import Encoder


def alphas() -> Tensor:
    """Return the cumulative signal share of SD's 1000 scaled-linear steps."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    return (1 - betas).cumprod(0).float()


def levels(steps: int) -> Tensor:
    """Return Karras' noise levels between the schedule's ends, then zero."""
    every = ((1 - alphas()) / alphas()).sqrt()
    ramp = torch.linspace(0, 1, steps)
    low, high = float(every[0]) ** (1 / 7), float(every[-1]) ** (1 / 7)
    return torch.cat([(high + ramp * (low - high)) ** 7, torch.zeros(1)])


STEPS, COLUMNS = 20, 8


@dataclass(frozen=True)
class Look:
    """How a sheet's pictures are drawn."""

    guidance: float = 5.0
    size: tuple[int, int] = (SIDE // 8, SIDE // 8)
    """Height and width in latent cells."""
    seed: int = 0
    """Seed of the first picture; the others follow."""


DEFAULT = Look()


@dataclass(frozen=True)
class Trained:
    """The trained networks."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    encoder: Encoder


@torch.inference_mode()
def sample(unet: UNet2DConditionModel, context: Tensor, blank: Tensor, look: Look) -> Tensor:
    """Return latents for contexts; every picture has its own seed."""
    every, sigmas = ((1 - alphas()) / alphas()).sqrt().log(), levels(STEPS)
    generators = [torch.Generator("cpu").manual_seed(look.seed + k) for k in range(len(context))]
    noise = [torch.randn(4, *look.size, generator=generator, device="cpu") for generator in generators]
    latents, previous = here(torch.stack(noise)) * sigmas[0], None
    contexts = torch.cat([context, blank.expand(len(context), -1, -1)])
    for step, sigma in enumerate(sigmas[:-1]):
        time = (every - sigma.log()).abs().argmin()
        scaled = (latents / (sigma**2 + 1).sqrt()).repeat(2, 1, 1, 1)
        with half_precision():
            right, empty = unet(scaled, time, contexts).sample.float().chunk(2)
        clean = latents - sigma * (empty + look.guidance * (right - empty))
        target = sigmas[step + 1]
        if target == 0:
            return clean
        guess = clean
        if previous is not None:
            ratio = (sigmas[step - 1] / sigma).log() / (sigma / target).log()
            guess = (1 + 1 / (2 * ratio)) * clean - previous / (2 * ratio)
        latents, previous = target / sigma * latents + (1 - target / sigma) * guess, clean
    return latents


@torch.inference_mode()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Return pictures as bytes, batch x height x width x 3."""
    pictures = vae.decode(latents / LATENT_SCALE).sample.float()
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)


PROMPTS = (
    "a pink sun over the sea",
    "a yellow sun over the blue sea under a pink sky",
    "a red sun over the purple sea",
    "a white moon over the hills, night",
    "stars over the snow, night, purple sky",
    "a rainbow over the green meadow",
    "a red house on the green hills under a blue sky",
    "a pink tree in the meadow",
    "a white boat on the sea under an orange sky",
    "a blue balloon over the mountains, clouds",
    "a red heart over the desert",
    "a yellow flower in the meadow under a purple sky",
    "masterpiece, best quality, orange sky, yellow sun, purple mountains",
    "a pink house in the snow",
    "a green boat on the pink sea, mint sky",
    "sunset, an orange sun over the sea, solo, absurdres",
    "a girl with black hair in a red dress in the meadow",
)


def sheet(path: Path, networks: Trained, prompts: tuple[str, ...] = PROMPTS, look: Look = DEFAULT) -> None:
    """Draw the prompts side by side, each under its caption."""
    contexts, blank = networks.encoder(list(prompts)), networks.encoder([""])
    pictures = decode(networks.vae, sample(networks.unet, contexts, blank, look)).numpy()
    height, width = pictures.shape[1] + 14, pictures.shape[2] + 2
    page = Image.new("RGB", (width * COLUMNS, height * -(-len(prompts) // COLUMNS)), "white")
    pen = ImageDraw.Draw(page)
    for index, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        x, y = index % COLUMNS * width, index // COLUMNS * height
        page.paste(Image.fromarray(np.ascontiguousarray(picture)), (x, y))
        pen.text((x + 1, y + height - 13), prompt[: width // 6], fill="black")
    page.save(path)

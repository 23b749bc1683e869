"""DPM++ 2M over Karras' noise levels, and contact sheets: what the training shows of itself."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image, ImageDraw
from torch import Tensor

from pastel_tiny.networks import LATENT_SCALE, half_precision, here
from pastel_tiny.text import Encoder


def alphas() -> Tensor:
    """The cumulative signal share of SD's 1000 scaled-linear steps."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    return (1 - betas).cumprod(0).float()


def levels(steps: int) -> Tensor:
    """Karras' noise levels between the schedule's ends, then zero."""
    every = ((1 - alphas()) / alphas()).sqrt()
    ramp = torch.linspace(0, 1, steps)
    low, high = float(every[0]) ** (1 / 7), float(every[-1]) ** (1 / 7)
    return torch.cat([(high + ramp * (low - high)) ** 7, torch.zeros(1)])


@torch.inference_mode()
def sample(
    unet: UNet2DConditionModel,
    context: Tensor,
    blank: Tensor,
    size: tuple[int, int],
    guidance: float,
    steps: int = 20,
    seed: int = 0,
) -> Tensor:
    """Latents for contexts; every picture has its own seed, `size` is in latent cells (height, width)."""
    every, sigmas = ((1 - alphas()) / alphas()).sqrt().log(), levels(steps)
    generators = [torch.Generator("cpu").manual_seed(seed + k) for k in range(len(context))]
    noise = [torch.randn(4, *size, generator=generator, device="cpu") for generator in generators]
    latents, previous = here(torch.stack(noise)) * sigmas[0], None
    contexts = torch.cat([context, blank.expand(len(context), -1, -1)])
    for step, sigma in enumerate(sigmas[:-1]):
        time = (every - sigma.log()).abs().argmin()
        scaled = (latents / (sigma**2 + 1).sqrt()).repeat(2, 1, 1, 1)
        with half_precision():
            right, empty = unet(scaled, time, contexts).sample.float().chunk(2)
        clean = latents - sigma * (empty + guidance * (right - empty))
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
    """Pictures as bytes, batch x height x width x 3."""
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
    "sunset, an orange sun over the sea, 1girl, absurdres",
)


def sheet(
    path: Path, unet: UNet2DConditionModel, vae: AutoencoderKL, encoder: Encoder, guidance: float,
    prompts: tuple[str, ...] = PROMPTS, size: tuple[int, int] = (16, 16), seed: int = 0, columns: int = 8,
) -> None:  # fmt: skip
    """Draw the prompts side by side, each under its caption."""
    contexts, blank = encoder(list(prompts)), encoder([""])
    pictures = decode(vae, sample(unet, contexts, blank, size, guidance, seed=seed)).numpy()
    height, width = pictures.shape[1] + 14, pictures.shape[2] + 2
    page = Image.new("RGB", (width * columns, height * -(-len(prompts) // columns)), "white")
    pen = ImageDraw.Draw(page)
    for index, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        x, y = index % columns * width, index // columns * height
        page.paste(Image.fromarray(np.ascontiguousarray(picture)), (x, y))
        pen.text((x + 1, y + height - 13), prompt[: width // 6], fill="black")
    page.save(path)

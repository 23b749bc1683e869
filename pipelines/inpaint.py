"""What a pass from a picture starts from, and which of its latents it keeps."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipelines.denoiser import LatentMask
from pipelines.errors import InvalidInput
from pipelines.loader import Networks
from pipelines.masks import Canvas, latent_mask
from pipelines.noise import Noise
from pipelines.plan import LATENT_PIXELS, HighresPlan, PassPlan
from pipelines.request import ImageSettings
from pipelines.vae import VAE

INPAINTING_CHANNELS = 9
"""Of a UNet trained for inpainting: latents, the mask, and the latents of the picture without what is masked."""


def start_from(
    networks: Networks,
    settings: ImageSettings,
    canvas: Canvas,
    plan: HighresPlan,
    noise: Noise,
    given: Tensor | None,
) -> tuple[Tensor, LatentMask | None]:
    """The latents (B, 4, h, w) that the first pass starts from, and its mask.

    `given` latents take the place of the encoded picture, and a fresh `noise` of the pass that of what is masked.
    """
    part = plan.first
    if given is None:
        latents = _encoded(networks.vae, canvas.picture, part, plan.seeds)
    else:
        latents = _checked(given, (len(plan.seeds), *part.latent_shape)).to(networks.device.place)
    if canvas.mask is None or settings.mask is None:
        return latents, None
    size = part.width // LATENT_PIXELS, part.height // LATENT_PIXELS
    drawn = torch.from_numpy(latent_mask(canvas.mask, size, settings.mask.soft)).to(networks.device.place)
    if settings.mask.content == "latent noise":
        latents = latents * (1 - drawn) + noise.initial() * drawn
    elif settings.mask.content == "latent nothing":
        latents = latents * (1 - drawn)
    return latents, LatentMask(drawn, latents)


def extra_channels(networks: Networks, part: PassPlan, canvas: Canvas | None = None) -> Tensor | None:
    """What an inpainting UNet sees beside the latents, (1, 5, h, w): the mask and the picture around it.

    Without a mask all is masked, and the picture grey. None for other UNets. WebUI adds the encoder's noise, unseeded;
    here it is left out.
    """
    if networks.unet.config.in_channels != INPAINTING_CHANNELS:
        return None
    masked, pixels = torch.ones(1, part.height, part.width), torch.full((3, part.height, part.width), 0.5)
    if canvas and canvas.mask:
        masked = torch.from_numpy(np.asarray(canvas.mask).astype(np.float32) / 255).round()[None]
        pixels = pixels.lerp(_pixels(canvas.picture), 1 - masked)
    kept = networks.vae.encode(pixels, torch.zeros(part.latent_shape))
    small = F.interpolate(masked[None], size=kept.shape[1:]).to(kept.device)
    return torch.cat([small, kept[None]], dim=1)


def _encoded(vae: VAE, picture: Image.Image, part: PassPlan, seeds: Sequence[int]) -> Tensor:
    """Scaled latents (B, 4, h, w); those of a picture of another size are resized.

    The posterior's noise is drawn for each image from its seed. WebUI's has none, so that this cannot be compared.
    """
    pixels, latents = _pixels(picture), []
    for seed in seeds:
        shape = 4, picture.height // LATENT_PIXELS, picture.width // LATENT_PIXELS
        latents.append(vae.encode(pixels, torch.randn(shape, generator=torch.Generator().manual_seed(seed))))
    size = part.latent_shape[1:]
    stacked = torch.stack(latents)
    return stacked if stacked.shape[2:] == size else F.interpolate(stacked, size=size, mode="bilinear")


def _pixels(picture: Image.Image) -> Tensor:
    """An RGB picture as (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255).permute(2, 0, 1)


def _checked(given: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The latents for every image of the batch, of which there may be one for all."""
    if given.shape not in (shape, (1, *shape[1:])) or not given.is_floating_point() or not given.isfinite().all():
        rule = f"must be finite latents {shape} of this request"
        raise InvalidInput("init_latent", tuple(given.shape), rule, "Keep those of a pass of the same size.")
    return given.float().expand(shape)

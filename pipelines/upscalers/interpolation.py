"""Phase 2: from the first pass's latents to the second's, either directly or through pixels.

A latent upscaler is one interpolation. A pixel upscaler decodes, enlarges and encodes again. It rounds as WebUI does
(8-bit pixels between the passes, a first resize to multiples of 8), because the second pass amplifies such differences.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipelines.ask.catalog import LATENT_NETWORK
from pipelines.ask.plan import LATENT_PIXELS, UpscalePlan
from pipelines.images.reading import Pixels
from pipelines.models.vae import VAE
from pipelines.runtime.device import Device
from pipelines.upscalers.esrgan import NetworkUpscaler, load_esrgan
from pipelines.upscalers.latent import LatentUpscaler, load_latent_upscaler

Size = tuple[int, int]

LATENT: dict[str, Callable[..., Tensor]] = {
    "Latent": partial(F.interpolate, mode="bilinear"),
    "Latent (antialiased)": partial(F.interpolate, mode="bilinear", antialias=True),
    "Latent (bicubic)": partial(F.interpolate, mode="bicubic"),
    "Latent (bicubic antialiased)": partial(F.interpolate, mode="bicubic", antialias=True),
    "Latent (nearest)": partial(F.interpolate, mode="nearest"),
    "Latent (nearest-exact)": partial(F.interpolate, mode="nearest-exact"),
    # resizes what the network has doubled to the requested size
    LATENT_NETWORK: partial(F.interpolate, mode="bilinear", antialias=True),
}

Upscaler = NetworkUpscaler | LatentUpscaler


def load_upscaler(path: Path, device: Device) -> Upscaler:
    """Load an upscaler that has its own weights. A latent one is a diffusers folder. Raises ModelError."""
    return load_latent_upscaler(path, device) if path.is_dir() else load_esrgan(path, device.place, device.dtype)


Enlarge = Callable[[Image.Image, float], Image.Image]
"""(RGB picture, wanted factor) -> a larger picture, by the upscaler's own factor if it has one."""


def _resize(resample: Image.Resampling, image: Image.Image, factor: float) -> Image.Image:
    return image.resize((int(image.width * factor), int(image.height * factor)), resample)


PIXEL: dict[str, Enlarge | None] = {
    "None": None,
    "Nearest": partial(_resize, Image.Resampling.NEAREST),
    "Lanczos": partial(_resize, Image.Resampling.LANCZOS),
}


def _through_multiples_of_8(enlarge: Enlarge, image: Image.Image, size: Size, alone: bool) -> Image.Image:
    """Enlarge up to three times, until the size rounded down to multiples of 8 is covered, and resize to that.

    The caller resizes the result to the exact size.
    """
    factor = max(size[0] / image.width, size[1] / image.height)
    if factor < 1 or (factor == 1 and not alone):
        return image
    whole = int(image.width * factor // 8 * 8), int(image.height * factor // 8 * 8)
    for _ in range(_PASSES):
        before = image.size
        image = enlarge(image, factor)
        if image.size == before or (image.width >= whole[0] and image.height >= whole[1]):
            break
    return image if image.size == whole else image.resize(whole, Image.Resampling.LANCZOS)


_PASSES = 3
"""With three passes, a 2x network reaches at most 8 times the size."""


def upscale_latents(latents: Tensor, plan: UpscalePlan) -> Tensor:
    """Enlarge latents (B, 4, h, w) to the hires pass's size, after the crop."""
    size = plan.height // LATENT_PIXELS, plan.width // LATENT_PIXELS
    return _crop(LATENT[plan.upscaler](latents, size=size), plan.crop)


def upscale_pixels(
    picture: Pixels, plan: UpscalePlan, network: Upscaler | None = None, *, alone: bool = False
) -> Pixels:
    """Enlarge uint8 pixels (H, W, 3) to the plan's size, before the crop. "None" is a plain Lanczos resize.

    `network` is the plan's upscaler if it is not in `PIXEL`. If nothing is drawn (`alone`), the upscaler also runs once
    at factor 1. WebUI does the same: its Extras tab runs it, and its highres fix does not.
    """
    size, image = (plan.width, plan.height), Image.fromarray(picture)
    enlarge = (
        (lambda image, _: network.enlarge(image)) if isinstance(network, NetworkUpscaler) else PIXEL[plan.upscaler]
    )
    image = _through_multiples_of_8(enlarge, image, size, alone) if enlarge else image
    return np.asarray(image if image.size == size else image.resize(size, Image.Resampling.LANCZOS))


FromSeeds = Callable[[Callable[[Sequence[int]], Tensor]], Tensor]
"""Gives a function the seeds of the pictures and returns the random numbers (B, ...) that it makes from them."""


def encode_pictures(pictures: Sequence[Pixels], plan: UpscalePlan, vae: VAE, from_seeds: FromSeeds) -> Tensor:
    """Encode uint8 pictures (H, W, 3) of one size to latents (B, 4, h, w) for the hires pass, after the crop.

    The posterior's noise is drawn image by image from one CPU generator, seeded with the batch's last seed.
    """
    shape = 4, *(side // LATENT_PIXELS for side in pictures[0].shape[:2])

    def draw(seeds: Sequence[int]) -> Tensor:
        generator = torch.Generator().manual_seed(seeds[-1])
        return torch.stack([torch.randn(shape, generator=generator) for _ in seeds])

    latents = []
    for picture, noise in zip(pictures, from_seeds(draw), strict=True):
        pixels = torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)
        latents.append(vae.encode(pixels, noise))
    return _crop(torch.stack(latents), plan.crop)


def _crop(latents: Tensor, crop: Size) -> Tensor:
    across, down = crop
    height, width = latents.shape[2:]
    return latents[:, :, down // 2 : height - (down + 1) // 2, across // 2 : width - (across + 1) // 2]

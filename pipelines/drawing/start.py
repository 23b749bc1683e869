"""What a pass starts from: a picture's latents, the mask, and further inputs of inpainting, depth and unCLIP models."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipelines.ask.plan import LATENT_PIXELS, PassPlan
from pipelines.ask.request import NoiseSettings
from pipelines.drawing.drawing import Drawing
from pipelines.errors import InvalidInput
from pipelines.families.family import DEPTH_CHANNELS, INPAINTING_CHANNELS, LATENT_CHANNELS
from pipelines.images.masks import Canvas, latent_mask
from pipelines.images.reading import Pixels, resize
from pipelines.models.image_prompt import ImagePrompt
from pipelines.sampling.between import PassPrompts
from pipelines.sampling.denoiser import LatentMask, Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """What a pass starts from."""

    latents: Tensor | None = None
    """(B, 4, h, w); None to start from noise alone."""
    mask: LatentMask | None = None
    """None to draw everything."""


def start_from(drawing: Drawing) -> Start:
    """Return the start of the first pass. Given latents replace the request's encoded picture.

    Raises InvalidInput for latents of another shape.
    """
    settings, canvas, given = drawing.request.image, drawing.canvas, drawing.given.latents
    if settings is None or canvas is None:
        return Start()
    part, images = drawing.plan.first, len(drawing.plan.seeds)
    if given is None:
        latents = _encoded(drawing, canvas.picture, part)
    else:
        latents = _checked("init_latent", given, (images, *part.latent_shape)).to(drawing.place)
    if canvas.mask is None or settings.mask is None:
        return Start(latents)
    size = part.width // LATENT_PIXELS, part.height // LATENT_PIXELS
    drawn = torch.from_numpy(latent_mask(canvas.mask, size, settings.mask.soft)).to(drawing.place)
    if settings.mask.content == "latent noise":
        # WebUI draws this from the seeds alone: variation and seed resize do not affect it
        source = NoiseSettings(source=drawing.request.noise.source)
        noise = drawing.noise_of(part.latent_shape, source)
        latents = latents * (1 - drawn) + noise.initial() * drawn
    elif settings.mask.content == "latent nothing":
        latents = latents * (1 - drawn)
    return Start(latents, LatentMask(drawn, latents))


def first_stage(drawing: Drawing, prompts: PassPrompts) -> Stage:
    """Return the first pass's model with its prompts and what it gets about the request's picture.

    Raises InvalidInput for a given condition of another shape.
    """
    model, part = drawing.model, drawing.plan.first
    if drawing.given.condition is None:
        return Stage(model, prompts, extra_channels(drawing, part, drawing.canvas), image_vectors(drawing))
    return _given_stage(drawing, prompts, part, drawing.given.condition)


def hires_stage(
    drawing: Drawing, prompts: PassPrompts, first: Stage, start: Tensor, enlarged: Sequence[Pixels]
) -> Stage:
    """Return the same for the hires pass. It starts from latents and, after a pixel upscaler, `enlarged` pictures.

    Raises InvalidInput for a given condition of another shape.
    """
    model, part, upscale = drawing.model, drawing.plan.hires, drawing.plan.upscale
    assert part is not None
    assert upscale is not None
    if drawing.given.hires_condition is not None:
        return _given_stage(drawing, prompts, part, drawing.given.hires_condition)
    # WebUI passes these from 0 to 1 where -1 to 1 is meant
    seen = [(torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1) + 1) / 2 for pixels in enlarged]
    vectors = first.vectors
    if model.image_prompt is not None and seen and drawing.canvas is None:
        vectors = _vectors_of(drawing, model.image_prompt, torch.stack(seen))
    if model.unet.network.config.in_channels != INPAINTING_CHANNELS:
        return Stage(model, prompts, extra_channels(drawing, part, None), vectors)
    left, top = (side // 2 * LATENT_PIXELS for side in upscale.crop)
    seen = [pixels[:, top : top + part.height, left : left + part.width] for pixels in seen]
    if drawing.request.mask_weight < 1 and not seen:
        seen = [model.vae.picture(latent).cpu() for latent in start]
    masked = torch.ones(1, part.height, part.width)
    return Stage(model, prompts, _around_mask(drawing, part, masked, seen), vectors)


def _given_stage(drawing: Drawing, prompts: PassPrompts, part: PassPlan, condition: Tensor) -> Stage:
    """Return a pass's model with what is given in place of the picture's channels or vectors."""
    model, images = drawing.model, len(drawing.plan.seeds)
    if model.image_prompt is not None:
        vectors = _checked("image_cond", condition, (images, model.image_prompt.width))
        return Stage(model, prompts, vectors=vectors.to(drawing.place))
    channels = model.unet.network.config.in_channels - LATENT_CHANNELS
    given_channels = _checked("image_cond", condition, (images, channels, *part.latent_shape[1:]))
    return Stage(model, prompts, channels=given_channels.to(drawing.place))


def extra_channels(drawing: Drawing, part: PassPlan, canvas: Canvas | None) -> Tensor | None:
    """Return the UNet's channels in addition to the latents, (B or 1, n, h, w); None if it has no such input."""
    make = EXTRA_CHANNELS.get(drawing.model.unet.network.config.in_channels)
    return make(drawing, part, canvas) if make else None


def _inpainting_channels(drawing: Drawing, part: PassPlan, canvas: Canvas | None) -> Tensor:
    """Return the mask and the picture around it, (1, 5, h, w).

    Without a mask everything counts as masked.
    """
    settings, size = drawing.request.image, (part.width, part.height)
    masked, seen = torch.ones(1, part.height, part.width), list[Tensor]()
    if canvas:
        if canvas.mask and settings and settings.mask:
            masked = torch.from_numpy(np.asarray(canvas.mask).astype(np.float32) / 255)[None]
            soft = settings.mask.soft and not drawing.model.family.rounds_mask
            masked = masked if soft else masked.round()
        picture = canvas.picture if canvas.picture.size == size else resize(canvas.picture, size, "stretch")
        seen = [_pixels(picture)]
    return _around_mask(drawing, part, masked, seen)


def _around_mask(drawing: Drawing, part: PassPlan, masked: Tensor, seen: Sequence[Tensor]) -> Tensor:
    """Return a mask (1, H, W) with each picture around it, (N, 5, h, w); grey if there are no pictures.

    The masked part becomes grey, to the degree that the conditional mask weight says. WebUI adds the encoder's noise,
    which it does not seed; it is left out unless it is given.
    """
    grey, unseeded = torch.full((3, part.height, part.width), 0.5), drawing.given.unseeded
    kept = []
    for pixels in [grey.lerp(each, 1 - masked * drawing.request.mask_weight) for each in seen] or [grey]:
        noise = torch.randn(part.latent_shape, generator=unseeded) if unseeded else torch.zeros(part.latent_shape)
        kept.append(drawing.model.vae.encode(pixels, noise))
    latents = torch.stack(kept)
    small = F.interpolate(masked[None], size=latents.shape[2:]).to(latents.device)
    return torch.cat([small.expand(len(latents), -1, -1, -1), latents], dim=1)


def _depth_channels(drawing: Drawing, part: PassPlan, _: Canvas | None) -> Tensor:
    """Return the depth map, (1, 1, h, w) from -1 to 1. Both passes use that of the first pass's canvas."""
    if drawing.canvas is None:
        return torch.zeros(1, 1, *part.latent_shape[1:], device=drawing.place)
    depth = scaled_depth(drawing.depth, part.latent_shape[1:])
    if not depth.any():
        log.warning("The depth map is flat: the picture is drawn without depth.")
    return depth.to(drawing.place)


def scaled_depth(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale a depth map (1, 1, H, W) of any range to the size (h, w) and to -1..1. A flat one becomes 0."""
    small = F.interpolate(depth, size=size, mode="bicubic", align_corners=False)
    low, high = small.aminmax()
    return torch.zeros_like(small) if high == low else 2 * (small - low) / (high - low) - 1


EXTRA_CHANNELS = {INPAINTING_CHANNELS: _inpainting_channels, DEPTH_CHANNELS: _depth_channels}
"""Functions that make a UNet's channels in addition to the latents, by the total number of its channels."""


def image_vectors(drawing: Drawing) -> Tensor | None:
    """Return an unCLIP model's vectors, (B, k): those of the request's picture, or zeros if there is none. None for
    other models."""
    prompt, canvas, seeds = drawing.model.image_prompt, drawing.canvas, drawing.plan.seeds
    if prompt is None:
        return None
    if canvas is None:
        log.info(
            "No image was sent. Stable unCLIP draws by the prompt alone, but it was made for variations of images."
        )
        return torch.zeros(len(seeds), prompt.width, device=drawing.place)
    return _vectors_of(drawing, prompt, _pixels(canvas.picture)[None])


def _vectors_of(drawing: Drawing, prompt: ImagePrompt, pictures: Tensor) -> Tensor:
    """Return an unCLIP model's vectors (B, k) for pictures (B or 1, 3, H, W)."""
    drawing.model.components.pictures.take()
    return prompt.vectors(pictures, drawing.request.image_noise_level, _noise(drawing, (prompt.width // 2,)))


def _encoded(drawing: Drawing, picture: Image.Image, part: PassPlan) -> Tensor:
    """Encode a picture to scaled latents (B, 4, h, w). Resize them if the picture's size is not that of the pass."""
    pixels = _pixels(picture)
    noise = _noise(drawing, (4, picture.height // LATENT_PIXELS, picture.width // LATENT_PIXELS))
    size = part.latent_shape[1:]
    stacked = torch.stack([drawing.model.vae.encode(pixels, each) for each in noise])
    return stacked if stacked.shape[2:] == size else F.interpolate(stacked, size=size, mode="bilinear")


def _noise(drawing: Drawing, shape: tuple[int, ...]) -> Tensor:
    """Return noise for every image of the batch (B, *shape). WebUI does not seed it.

    Here each image's noise has its own seed, so that it is the same in any batch.
    """
    if drawing.given.unseeded:
        return torch.randn((len(drawing.plan.seeds), *shape), generator=drawing.given.unseeded)
    return drawing.from_seeds(
        lambda seeds: torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    )


def _pixels(picture: Image.Image) -> Tensor:
    """Return an RGB picture as (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255).permute(2, 0, 1)


def _checked(name: str, given: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return tensors for every image of the batch; a single one is used for all."""
    if given.shape not in (shape, (1, *shape[1:])) or not given.is_floating_point() or not given.isfinite().all():
        rule = f"must be finite numbers of the shape {shape} for this request"
        raise InvalidInput(name, tuple(given.shape), rule, "Use those of a pass of the same size.")
    return given.float().expand(shape)

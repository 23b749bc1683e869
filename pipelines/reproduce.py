"""Pasted generation data -> a request that draws the same picture, and what stands in its way."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.infotext import Parameters
from pipelines.model import ModelIdentity
from pipelines.prompt import cut_networks, schedule
from pipelines.request import (
    SAME_SAMPLER,
    SAME_SCHEDULE,
    GenerationRequest,
    HiresSettings,
    NoiseSettings,
    random_seed,
)

ENGINE_DEFAULT_SIZE = (512, 512)
"""(width, height) that WebUI starts with."""
_OTHER_PICTURE = re.compile(
    r"(?i)emphasis|refiner|token merging|controlnet|adetailer|face restoration|tiling|hypernet|sgm noise multiplier"
    r"|s_churn|eta\b|ddim discretize|hires checkpoint|cfg rescale|freeu|mask|inpaint|resize mode|conditional mask|sigma"
)
"""Keys of what draws another picture if it is left out."""


@dataclass(frozen=True)
class Obstacle:
    """Something that generation data asks for and that is not done here."""

    text: str
    other_picture: bool
    """The picture would be another one."""


def request_from(data: Parameters, size: tuple[int, int] = ENGINE_DEFAULT_SIZE, count: int = 1) -> GenerationRequest:
    """The request of a block; `size` where it names none, a random seed where it names none or -1.

    Raises InvalidInput for values that cannot be drawn.
    """
    width, height = data.size or size
    named = {
        "num_inference_steps": data.steps,
        "guidance_scale": data.guidance_scale,
        "sampler": data.sampler,
    }
    return GenerationRequest(
        prompt=data.prompt,
        negative_prompt=data.negative_prompt,
        width=width,
        height=height,
        seed=random_seed() if data.seed is None or data.seed == -1 else data.seed,
        num_outputs=count,
        schedule_type=data.schedule_type,
        clip_skip=data.clip_skip,
        pad_conds=data.pad_conds,
        noise=NoiseSettings(
            source=data.rng,
            ensd=data.ensd,
            variation_seed=data.variation_seed or 0,
            variation_strength=data.variation_strength,
        ),
        hires=_hires(data) if data.hires else None,
        **{name: value for name, value in named.items() if value is not None},  # type: ignore[arg-type]
    )


def _hires(data: Parameters) -> HiresSettings:
    return HiresSettings(
        scale=data.hires_upscale or HiresSettings.scale,
        resize_to=data.hires_resize or (0, 0),
        upscaler=data.hires_upscaler or HiresSettings.upscaler,
        steps=data.hires_steps or 0,
        denoising_strength=data.denoising_strength or 0.0,
        prompt=data.hires_prompt,
        negative_prompt=data.hires_negative_prompt,
        sampler=data.hires_sampler or SAME_SAMPLER,
        schedule_type=data.hires_schedule_type or SAME_SCHEDULE,
    )


def obstacles(data: Parameters, model: ModelIdentity) -> list[Obstacle]:
    """What of a block cannot be honoured with this model."""
    return [*_of_model(data, model), *_of_networks(data), *_of_keys(data)]


def _of_model(data: Parameters, model: ModelIdentity) -> Iterator[Obstacle]:
    # A hash in a block is the start of the SHA-256; eight digits and no match is the hash of before 2023.
    if data.model_hash and not model.sha256.startswith(data.model_hash.lower()):
        yield Obstacle(
            f"made with the checkpoint {data.model or ''} ({data.model_hash}), here is {model.name} "
            f"({model.sha256[:10]})",
            other_picture=True,
        )
    if data.vae_hash and not model.vae_sha256.startswith(data.vae_hash.lower()):
        here = f"{model.vae_name} ({model.vae_sha256[:10]})" if model.vae_name else "the checkpoint's own"
        yield Obstacle(f"made with the VAE {data.vae or ''} ({data.vae_hash}), here is {here}", other_picture=True)


def _of_networks(data: Parameters) -> Iterator[Obstacle]:
    _, tags = cut_networks(data.prompt)
    for tag in tags:
        yield Obstacle(f"<{tag.kind}:{':'.join(tag.args)}>: such networks are not applied here", other_picture=True)
    for name in data.ti_hashes:
        yield Obstacle(f"the embedding {name} is not here", other_picture=True)


def _of_keys(data: Parameters) -> Iterator[Obstacle]:
    if data.denoising_strength is not None and not data.hires:
        yield Obstacle("a Denoising strength without a Hires key: it was made from another picture", True)
    edits = any(len(schedule(prompt, 1000)) > 1 for prompt in (data.prompt, data.negative_prompt))
    for warning in data.warnings:
        yield Obstacle(warning, other_picture=edits and "rules for prompt editing" in warning)
    for key, value in data.unknown.items():
        yield Obstacle(f"{key}: {value} is not understood", other_picture=bool(_OTHER_PICTURE.search(key)))

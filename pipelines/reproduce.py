"""Pasted generation data and flat inputs -> the request that draws the same picture, and what stands in its way."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.catalog import EMPHASES, SAMPLERS, SCHEDULE_TYPES, UPSCALERS
from pipelines.errors import InvalidInput
from pipelines.infotext import Parameters
from pipelines.model import ModelIdentity
from pipelines.prompt import cut_networks, schedule
from pipelines.request import (
    SAME_SAMPLER,
    SAME_SCHEDULE,
    GenerationRequest,
    HiresSettings,
    NoiseSettings,
    ScheduleSettings,
    plain,
    random_seed,
)

DEFAULT_SIZE = (512, 512)
"""(width, height) that WebUI starts with."""
_OTHER_PICTURE = re.compile(
    r"(?i)\b(refiner|token merging|controlnet|adetailer|face restoration|tiling|hypernet|noise multiplier|sigma|eta\b"
    r"|s_churn|ddim discretize|unipc|hires checkpoint|hires cfg|hires vae|hires module|cfg rescale|freeu|mask|inpaint"
    r"|resize mode|conditional mask|init image|seed resize|skip early|ngms|extra noise|vae encoder|vae decoder"
    r"|fp8 weight|beta schedule|downcast|pad conds v0|addnet|dynamic thresholding|tiled|latent couple"
    r"|regional prompter|rp active|hypertile|perturbed|self attention guidance|distilled cfg|shift|rescale)"
)
"""Keys of what draws another picture if it is left out."""


# --- inputs over a block ----------------------------------------------------------------------------------------------

_FIELD_OF = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "seed": "seed",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance_scale",
    "sampler": "sampler",
    "schedule_type": "schedule_type",
    "clip_skip": "clip_skip",
    "rng": "rng",
    "ensd": "ensd",
    "variation_seed": "variation_seed",
    "variation_strength": "variation_strength",
    "denoising_strength": "denoising_strength",
    "hires_scale": "hires_upscale",
    "hires_steps": "hires_steps",
    "hires_upscaler": "hires_upscaler",
    "hires_sampler": "hires_sampler",
    "hires_schedule_type": "hires_schedule_type",
    "hires_prompt": "hires_prompt",
    "hires_negative_prompt": "hires_negative_prompt",
}
"""Input -> the field of `Parameters` that it sets, for those that set just one."""
SET_BY_DATA = frozenset({*_FIELD_OF, "width", "height", "hires", "hires_width", "hires_height"})
"""The inputs whose values a block of generation data brings, too."""


def with_inputs(data: Parameters, inputs: Mapping[str, Any], size: tuple[int, int] = DEFAULT_SIZE) -> Parameters:
    """The data with the inputs, by their names, in place of what it says.

    An input of the hires pass turns it on unless `hires` is an input, too. `size` is that of a picture where neither
    says one. None is no input.
    """
    given = {
        name: plain(value) if isinstance(value, float) else value for name, value in inputs.items() if value is not None
    }
    changes: dict[str, Any] = {_FIELD_OF[name]: value for name, value in given.items() if name in _FIELD_OF}
    width, height = data.size or size
    changes["size"] = given.get("width", width), given.get("height", height)
    if given.keys() & {"hires_width", "hires_height"}:
        to_width, to_height = data.hires_resize or (0, 0)
        changes["hires_resize"] = given.get("hires_width", to_width), given.get("hires_height", to_height)
    elif "hires_scale" in given:
        changes["hires_resize"] = None
    of_hires = any(name.startswith("hires_") or name == "denoising_strength" for name in given)
    changes["hires"] = given.get("hires", data.hires or of_hires)
    if not changes["hires"] and (data.hires or of_hires):
        changes["denoising_strength"] = None
    return replace(data, **changes)


# --- parameters to a request ------------------------------------------------------------------------------------------


def request_from(
    data: Parameters,
    size: tuple[int, int] = DEFAULT_SIZE,
    count: int = 1,
    upscalers: Mapping[str, Path] | None = None,
) -> GenerationRequest:
    """The request of a block; `size` where it names none, a random seed where it names none or -1.

    `upscalers` are weight files by the names that blocks call them. Raises InvalidInput for what cannot be drawn.
    """
    width, height = data.size or size
    named = {"num_inference_steps": data.steps, "guidance_scale": data.guidance_scale, "sampler": data.sampler}
    return GenerationRequest(
        prompt=data.prompt,
        negative_prompt=data.negative_prompt,
        width=width,
        height=height,
        seed=random_seed() if data.seed is None or data.seed == -1 else data.seed,
        num_outputs=count,
        schedule_type=data.schedule_type,
        clip_skip=data.clip_skip,
        emphasis=data.emphasis,
        pad_conds=data.pad_conds,
        schedule=ScheduleSettings(
            sigma_min=data.sigma_min,
            sigma_max=data.sigma_max,
            rho=data.rho,
            discard_penultimate=data.discard_penultimate,
        ),
        noise=NoiseSettings(
            source=data.rng,
            ensd=data.ensd,
            variation_seed=data.variation_seed or 0,
            variation_strength=data.variation_strength,
        ),
        hires=_hires(data, upscalers or {}) if data.hires else None,
        **{name: value for name, value in named.items() if value is not None},  # type: ignore[arg-type]
    )


def _hires(data: Parameters, upscalers: Mapping[str, Path]) -> HiresSettings:
    upscaler, strength = data.hires_upscaler or HiresSettings.upscaler, data.denoising_strength
    return HiresSettings(
        scale=data.hires_upscale or HiresSettings.scale,
        resize_to=data.hires_resize or (0, 0),
        upscaler=upscaler,
        upscaler_file=upscalers.get(upscaler),
        steps=data.hires_steps or 0,
        denoising_strength=HiresSettings.denoising_strength if strength is None else strength,
        prompt=data.hires_prompt,
        negative_prompt=data.hires_negative_prompt,
        sampler=data.hires_sampler or SAME_SAMPLER,
        schedule_type=data.hires_schedule_type or SAME_SCHEDULE,
    )


# --- what stands in the way -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Obstacle:
    """Something that generation data asks for and that is not done here."""

    text: str
    other_picture: bool
    """The picture would be another one."""
    instead: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Fields of `Parameters` without which nothing could be drawn, and what takes their place."""


def honour(data: Parameters, found: list[Obstacle], strict: bool) -> Parameters:
    """The data without what cannot be done. Raises InvalidInput where that is another picture, unless not `strict`."""
    if strict and any(obstacle.other_picture for obstacle in found):
        told = "; ".join(obstacle.text for obstacle in found if obstacle.other_picture)
        fix = "Remove it from the generation data, or turn strict off to draw without it."
        raise InvalidInput("generation_data", data.prompt, f"the picture would be another one: {told}", fix)
    return replace(data, **{name: value for obstacle in found for name, value in obstacle.instead.items()})


def obstacles(data: Parameters, model: ModelIdentity, upscalers: Mapping[str, Path] | None = None) -> list[Obstacle]:
    """What of a block cannot be honoured with this model and these upscalers."""
    return [*_of_model(data, model), *_of_names(data, upscalers or {}), *_of_networks(data), *_of_keys(data)]


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


def _of_names(data: Parameters, upscalers: Mapping[str, Path]) -> Iterator[Obstacle]:
    known_upscalers = (*UPSCALERS, *upscalers)
    for name, called, choices, instead in (
        ("sampler", "sampler", tuple(SAMPLERS), GenerationRequest.sampler),
        ("schedule_type", "schedule type", SCHEDULE_TYPES, GenerationRequest.schedule_type),
        ("emphasis", "emphasis", EMPHASES, GenerationRequest.emphasis),
        ("hires_upscaler", "hires upscaler", known_upscalers, HiresSettings.upscaler),
        ("hires_sampler", "hires sampler", (SAME_SAMPLER, *SAMPLERS), SAME_SAMPLER),
        ("hires_schedule_type", "hires schedule type", (SAME_SCHEDULE, *SCHEDULE_TYPES), SAME_SCHEDULE),
    ):
        value = getattr(data, name)
        if value and value not in choices and (data.hires or not name.startswith("hires_")):
            yield Obstacle(f"the {called} {value} is not here ({instead} is)", True, {name: instead})


def _of_networks(data: Parameters) -> Iterator[Obstacle]:
    for prompt in filter(None, (data.prompt, data.hires_prompt if data.hires else "")):
        for tag in cut_networks(prompt)[1]:
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

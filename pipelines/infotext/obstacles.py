"""Finds the reasons why a picture described by generation data cannot be reproduced exactly."""

from collections.abc import Iterator
from dataclasses import replace

from pipelines.ask.identity import ModelIdentity
from pipelines.ask.models import ModelNames
from pipelines.ask.networks import NO_EXTRAS, Extras
from pipelines.ask.request import (
    SAME_SAMPLER,
    SAME_SCHEDULE,
    SEED_MAX,
    MaskSettings,
    Settings,
)
from pipelines.ask.settings import Values, rows
from pipelines.errors import InvalidInput
from pipelines.infotext.asked import NO_PICTURES, RANDOM, Asked, Pictures
from pipelines.infotext.keys import done_afterwards
from pipelines.infotext.obstacle import Obstacle, another_picture
from pipelines.infotext.other_files import of_mask_weight, of_model, of_networks, of_vae
from pipelines.infotext.other_models import of_other_models

OBSTACLES_MAX = 50
"""Limit for the obstacles that are reported: a text may contain thousands of unknown keys."""

NO_OTHER_MODELS = ModelNames(identities={})


def drop_unsupported(asked: Asked, found: list[Obstacle], strict: bool) -> Asked:
    """Replace everything that cannot be drawn.

    If `strict`, raises InvalidInput when that would change the picture.
    """
    if strict and any(obstacle.other_picture for obstacle in found):
        told = "; ".join(obstacle.text for obstacle in found if obstacle.other_picture)
        fix = "Change that in the generation data, or add Strict: False to it (--no-strict) to draw it anyway."
        raise InvalidInput(
            "generation_data", asked.data.values.get("prompt", ""), f"the picture would be different: {told}", fix
        )
    settings = asked.settings
    for obstacle in found:
        settings = obstacle.instead(settings) if obstacle.instead else settings
    return replace(asked, settings=settings)


def obstacles(
    asked: Asked,
    model: ModelIdentity,
    pictures: Pictures = NO_PICTURES,
    extras: Extras = NO_EXTRAS,
    models: ModelNames = NO_OTHER_MODELS,
) -> list[Obstacle]:
    """List what a block asks for that cannot be done with this model, these pictures and these networks.

    `models` are all models of the container, which the block may name.
    """
    found = [
        *_of_silence(asked),
        *of_model(asked.data, model, models),
        *of_mask_weight(asked.data, model),
        *of_vae(asked.data, model),
        *of_other_models(asked, models),
        *_of_names(asked.settings),
        *_of_seed(asked),
        *of_networks(asked, extras),
        *_of_controls(asked.settings, pictures, extras),
        *_of_pictures(asked, pictures),
        *_of_keys(asked, pictures),
    ]
    worst_first = sorted(found, key=lambda obstacle: not obstacle.other_picture)
    return found if len(found) <= OBSTACLES_MAX else worst_first[:OBSTACLES_MAX]


_NEEDED = {"num_inference_steps": "Steps", "sampler": "Sampler", "guidance_scale": "CFG scale", "seed": "Seed"}
"""Settings that a block must give, along with a size: without them its picture cannot be reproduced."""


def _of_silence(asked: Asked) -> Iterator[Obstacle]:
    """Report needed settings that neither the block nor the form gives."""
    told = asked.data.values.keys() | asked.chosen
    missing = [key for name, key in _NEEDED.items() if name not in told or (name == "seed" and asked.random)]
    if not told & {"width", "height"}:
        missing.append("Size")
    if len(missing) > len(_NEEDED):
        yield another_picture("it has no line of parameters (Steps: 20, Sampler: ...)")
    elif missing:
        yield another_picture(f"it does not say {', '.join(missing)}")


_INSTEAD: Values = {"sampler": Settings.sampler, "schedule_type": Settings.schedule_type, "emphasis": Settings.emphasis}
_HIRES_INSTEAD: Values = {"upscaler": "Lanczos", "sampler": SAME_SAMPLER, "schedule_type": SAME_SCHEDULE}
"""Replacements for names that are not available, by the attributes of the settings and of the hires pass."""


def _of_names(settings: Settings) -> Iterator[Obstacle]:
    """Report samplers and other choices that are not available."""
    for group, instead in ((settings, _INSTEAD), (settings.hires, _HIRES_INSTEAD)):
        for attribute, row in group.unavailable().items() if group else ():
            value, what = getattr(group, attribute), row.name.replace("_", " ")
            told = f"the {what} {value} is not available (instead: {instead[attribute]})"
            advice = "; send its weights in files (--upscaler)" if attribute == "upscaler" else ""
            yield Obstacle(told + advice, True, _with_names_of_ours)


def _with_names_of_ours(settings: Settings) -> Settings:
    hires = settings.hires
    if hires:
        hires = replace(hires, **{attribute: _HIRES_INSTEAD[attribute] for attribute in hires.unavailable()})
    return replace(settings, hires=hires, **{attribute: _INSTEAD[attribute] for attribute in settings.unavailable()})


def _of_seed(asked: Asked) -> Iterator[Obstacle]:
    """Report a seed that is too large. Some programs use larger seeds than WebUI."""
    seed = asked.data.values.get("seed", RANDOM)
    if seed > SEED_MAX and "seed" not in asked.chosen:
        yield another_picture(f"its Seed {seed} is larger than WebUI's largest, {SEED_MAX}")


def _of_controls(settings: Settings, pictures: Pictures, extras: Extras) -> Iterator[Obstacle]:
    """Report ControlNets of a block that are missing, differ, or have no picture. Those without file or picture are
    dropped."""
    missing = [control for control in settings.controls if control.model not in extras.controls]
    kept = tuple(control for control in settings.controls if control not in missing)
    for control in missing:
        told = f"the ControlNet {control.model} is missing; add it in controls or files (--controlnet-dir)"
        yield Obstacle(told, True, lambda settings: replace(settings, controls=kept))
    for control in kept:
        digits = extras.controls[control.model].short_hash
        if control.model_hash and control.model_hash != digits:
            told = f"made with a different ControlNet {control.model} ({control.model_hash}) than this one ({digits})"
            yield another_picture(told)
    if kept and pictures.image is None and not pictures.controls:
        told = "it was made with ControlNet: send its pictures (control_images, --control)"
        yield Obstacle(told, True, lambda settings: replace(settings, controls=()))


def _of_pictures(asked: Asked, pictures: Pictures) -> Iterator[Obstacle]:
    """Report pictures that the block needs but that were not sent, and a hires pass that is skipped for an image."""
    block = asked.data
    if pictures.image is None:
        if block.from_picture:
            yield another_picture("its Denoising strength shows that it was made from another picture (image, --init)")
    elif block.hires and not asked.settings.hires:
        yield Obstacle("its highres fix is skipped, as there is an image (highres_fix=On turns it on)", False)
    outpainted = any(block.values.get("outpaint", ()))
    if pictures.mask is None and not outpainted and _masked(block.values):
        yield another_picture("it was made with a mask (mask, --mask)")


def _masked(values: Values) -> bool:
    """Return whether a mask setting differs from its default. For the blur that is 0, which WebUI does not write."""
    if any(values.get(BLUR, ())):
        return True
    for row in rows(MaskSettings).values():
        if row.name != BLUR and values.get(row.name, row.default) != row.default:
            return True
    return False


BLUR = "mask_blur"


def _of_keys(asked: Asked, pictures: Pictures) -> Iterator[Obstacle]:
    """Report what was noticed while reading the block, and keys that are not settings here."""
    data = asked.data
    yield from map(another_picture, data.doubts)
    for warning in data.warnings:
        yield Obstacle(warning, other_picture=False)
    by = f" of {data.program}" if data.program else ""
    for key, value in data.unknown.items():
        if done_afterwards(key):
            yield Obstacle(f"{key}: {value} was done to the finished picture; it is not done here", False)
        else:
            sent = key.startswith("Init image") and pictures.image is not None
            yield Obstacle(f"{key}: {value}{by} is not understood", other_picture=not sent)

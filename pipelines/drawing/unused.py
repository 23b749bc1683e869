"""Settings that the models of a picture do not use. They do nothing, in WebUI, too, and the log says so."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pipelines.ask.request import GenerationRequest
from pipelines.families.family import INPAINTING_CHANNELS
from pipelines.models.model import Model


@dataclass(frozen=True)
class Use:
    """One setting that only some models use."""

    setting: str
    by: Callable[[Model], bool]
    """Whether a model uses it."""
    otherwise: str
    """Why another model does not. `{family}` is the name of its family."""
    unless: str = ""
    """A setting that makes every model use it."""


def _scored(model: Model) -> bool:
    return "score" in model.family.sizes


SCORES = "only SDXL's refiner is told about beauty, and it takes no part"


USES = (
    Use(
        "clip_skip",
        lambda model: any(tower.clip_skip is None for tower in model.family.texts),
        "{family} always uses the same layer of its text encoders",
        unless="sdxl_clip_l_skip",
    ),
    Use("sdxl_crop_top", lambda model: "top" in model.family.sizes, "only SDXL is told about crops"),
    Use("sdxl_crop_left", lambda model: "left" in model.family.sizes, "only SDXL is told about crops"),
    Use("sdxl_refiner_high_aesthetic_score", _scored, SCORES),
    Use("sdxl_refiner_low_aesthetic_score", _scored, SCORES),
    Use(
        "sdxl_clip_l_skip",
        lambda model: any(tower.embedding == "clip_l" for tower in model.family.texts),
        "only SDXL has that text encoder beside another",
    ),
    Use(
        "conditional_mask_weight",
        lambda model: model.unet.network.config.in_channels == INPAINTING_CHANNELS,
        "only inpainting checkpoints use it, and the model here is not one",
    ),
    Use(
        "image_noise_level",
        lambda model: model.image_prompt is not None,
        "only Stable unCLIP uses it, and the model here is {family}",
    ),
)
"""The settings that not every model uses. Add a row for each other such setting."""


def unused_by(
    model: Model, settings: Mapping[str, str], others: Mapping[str, Model] = MappingProxyType({})
) -> Iterator[str]:
    """Yield a line for the log about each of these settings that no model of the picture uses.

    `settings` are those that somebody gave, with what the log calls them.
    """
    for use in USES:
        if use.setting in settings and use.unless not in settings and not any(map(use.by, (model, *others.values()))):
            yield f"{settings[use.setting]} does nothing here: {use.otherwise.format(family=model.family.name)}."


def idle_refiner(request: GenerationRequest, model: Model, others: Mapping[str, Model]) -> Iterator[str]:
    """Yield a line for the log about a refiner that cannot take over in any pass.

    `others` are the models that the request names. Whether one that can does take over is known when a pass ends.
    """
    settings, hires = request.refiner, request.hires
    if not settings.name:
        return
    if not settings.acts:
        yield f"The refiner {settings.name} does nothing: Refiner switch at: 1 turns it off."
        return
    named = {"": model, **others}
    passes = {False: model, **({True: named[hires.checkpoint]} if hires else {})}
    drawn = [each for second, each in passes.items() if settings.acts_in(second, alone=hires is None)]
    if all(each is named[settings.name] for each in drawn):
        yield f"The refiner {settings.name} does nothing: it is the model that draws already."

"""Settings that a model does not use. They do nothing with it, in WebUI, too, and the log says so."""

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass

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


USES = (
    Use(
        "clip_skip",
        lambda model: any(tower.clip_skip is None for tower in model.family.texts),
        "{family} always uses the same layer of its text encoders",
        unless="sdxl_clip_l_skip",
    ),
    Use("sdxl_crop_top", lambda model: "top" in model.family.sizes, "only SDXL is told about crops"),
    Use("sdxl_crop_left", lambda model: "left" in model.family.sizes, "only SDXL is told about crops"),
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


def unused_by(model: Model, settings: Set[str]) -> Iterator[str]:
    """Yield a line for the log about each of these settings that the model does not use."""
    for use in USES:
        if use.setting in settings and use.unless not in settings and not use.by(model):
            yield f"{use.setting} does nothing here: {use.otherwise.format(family=model.family.name)}."

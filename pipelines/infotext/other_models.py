"""The models that generation data names: the picture's own, its refiner and that of its hires pass."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipelines.ask.models import ModelNames
from pipelines.ask.request import RefinerSettings, Settings
from pipelines.infotext.asked import Asked
from pipelines.infotext.obstacle import Obstacle, another_picture
from pipelines.infotext.reading import GenerationData


def model_of(data: GenerationData, models: ModelNames) -> str | None:
    """Return the model that made a picture, by the hash that its generation data gives, else by the name. None: it
    names none of these models."""
    return models.find(data.model or "", data.model_hash or "")


@dataclass(frozen=True)
class Role:
    """A part that another model can have in a picture."""

    setting: str
    key: str

    def name_in(self, settings: Settings) -> str:
        """Return the model that the settings name for it; empty if there is none, or if it would do nothing."""
        if self is REFINER:
            return settings.refiner.name if settings.refiner.acts else ""
        return settings.hires.checkpoint if settings.hires else ""

    def given_to(self, model: str, settings: Settings) -> Settings:
        """Return the settings with this model in the role."""
        if self is REFINER:
            return replace(settings, refiner=replace(settings.refiner, name=model))
        return replace(settings, hires=settings.hires and replace(settings.hires, checkpoint=model))

    def without(self, settings: Settings) -> Settings:
        """Return the settings without another model in the role."""
        return replace(settings, refiner=RefinerSettings()) if self is REFINER else self.given_to("", settings)


REFINER, HIRES_CHECKPOINT = Role("refiner", "Refiner"), Role("hires_checkpoint", "Hires checkpoint")
ROLES = (REFINER, HIRES_CHECKPOINT)


def with_models(asked: Asked, models: ModelNames) -> Asked:
    """Return the request with its other models by their names here.

    Raises InvalidInput for one that is not here or does not fit. That of a whole block is reported as an obstacle.
    """
    settings = asked.settings
    for role in ROLES:
        text = role.name_in(settings)
        if not text:
            continue
        if not asked.data.whole:
            label = models.meant("generation_data", text, shown=f"{role.key}: {text}")
        else:
            label = models.find(text) or text
        settings = role.given_to(label, settings)
    return replace(asked, settings=settings)


def others_by_key(asked: Asked) -> list[tuple[str, str]]:
    """Return the names of the models, apart from the first pass's, that take part in a picture, with their keys."""
    return [(role.key, name) for role in ROLES if (name := role.name_in(asked.settings))]


def of_other_models(asked: Asked, models: ModelNames) -> Iterator[Obstacle]:
    """Report other models of the picture that are not here, differ from these or do not fit."""
    for role in ROLES:
        text = asked.data.values.get(role.setting, "")
        if not text or (role is REFINER and not asked.settings.refiner.acts):
            continue
        label, what = models.find(text), role.key[0].lower() + role.key[1:]
        if label is None:
            here = ", ".join(models.identities) or "there are none"
            why = models.reason(text)
            told = f"it cannot be used: {why}" if why else f"it is not one of this container's models ({here})"
            yield Obstacle(f"made with the {what} {text}; {told}", True, role.without)
            continue
        if models.differs(label, text):
            yield another_picture(f"made with the {what} {text}; {models.told(label)}")
        if label in models.unfit:
            yield Obstacle(f"made with the {what} {text}; {models.unfit[label]}", True, role.without)

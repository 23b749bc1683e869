"""The models that take part in a picture: the one that a request picks, its refiner and that of its hires pass."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.ask.identity import ModelIdentity
from pipelines.errors import InvalidInput
from pipelines.families.family import LATENT_CHANNELS
from pipelines.infotext.asked import Asked
from pipelines.infotext.other_models import model_of, others_by_key
from pipelines.infotext.reading import GenerationData
from pipelines.models.model import Model
from pipelines.models.roster import Member, Roster


@dataclass(frozen=True, kw_only=True)
class Cast:
    """The models that take part in a picture."""

    model: Model
    others: Mapping[str, Model]
    """The other models that the request names, by the names that it uses."""
    checked: bool
    """Whether the safety checker looks at the pictures of any of them."""

    @property
    def identities(self) -> dict[str, ModelIdentity]:
        """The names and hashes of the other models."""
        return {name: model.identity for name, model in self.others.items()}


def picked(roster: Roster, name: str, data: GenerationData) -> Member:
    """Return the model that the input `model` names, else the one that the generation data names, else the first.

    Raises InvalidInput for an input that means no model.
    """
    return roster.pick(name if name.strip() else model_of(data, roster.names) or "")


def cast_of(roster: Roster, member: Member, asked: Asked) -> Cast:
    """Return the models of a request, resolved by `with_models`, that is drawn with this one.

    Raises InvalidInput for another model that cannot continue what the first begins.
    """
    others: dict[str, Member] = {}
    for key, name in others_by_key(asked):
        if name in roster.members:
            others[name] = roster.members[name]
            _check_latents(f"{key}: {name}", member.model, others[name].model)
    return Cast(
        model=member.model,
        others={name: other.model for name, other in others.items()},
        checked=any(each.checked for each in (member, *others.values())),
    )


def _check_latents(shown: str, model: Model, other: Model) -> None:
    """Raise InvalidInput if the other model cannot work with the model's latents."""
    if other is model:
        return
    channels = other.unet.network.config.in_channels
    if channels != LATENT_CHANNELS or other.image_prompt is not None:
        rule = f"it is a model of the kind {other.family.name} that needs more than latents"
    elif other.family.latent_scale != model.family.latent_scale:
        rule = f"{other.family.name} cannot continue latents of {model.family.name}"
    else:
        return
    raise InvalidInput("generation_data", shown, rule, "Name a text-to-image model or refiner of the same kind.")

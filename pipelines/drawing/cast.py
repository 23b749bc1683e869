"""The models that take part in a picture: the one that a request picks, its refiner and that of its hires pass."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.ask.identity import ModelIdentity
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

    Others that a whole block names but that are not here or do not fit are left out: they are obstacles.
    """
    unfit = roster.names_beside(member.model).unfit
    named = [name for _, name in others_by_key(asked) if name in roster.members and name not in unfit]
    others = {name: roster.members[name] for name in named}
    return Cast(
        model=member.model,
        others={name: other.model for name, other in others.items()},
        checked=any(each.checked for each in (member, *others.values())),
    )

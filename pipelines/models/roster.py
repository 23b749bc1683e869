"""The models of a container: which one a name means, and which ones are on the device."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pipelines.ask.identity import ModelIdentity
from pipelines.ask.models import ModelNames, refusal
from pipelines.ask.settings import Values
from pipelines.errors import ModelError, OutOfMemory
from pipelines.models.model import Model
from pipelines.runtime.memory import is_out_of_memory, release_memory

log = logging.getLogger(__name__)
Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Member:
    """One of the models, with what belongs to it."""

    model: Model
    settings: Values
    """Its defaults for requests: its family's, and over them those of the manifest."""
    checked: bool = False
    """Whether the safety checker looks at its pictures, if there is one."""


class Roster:
    """The models that are ready.

    On a CPU all of them stay in memory: their files are mapped, and a switch copies nothing. On a GPU only those that
    the present request needs are on the device; the others' weights are in the host's memory.
    """

    def __init__(self, members: Mapping[str, Member], broken: Mapping[str, str]) -> None:
        """Take the models by what requests call them, the first of them first, and why others cannot be used."""
        self.members, self.broken = dict(members), dict(broken)

    @property
    def first(self) -> Member:
        """The model that is used unless a request says otherwise."""
        return next(iter(self.members.values()))

    @property
    def names(self) -> ModelNames:
        """The models' names. A hash that is asked for is waited for."""
        return ModelNames(identities=_Identities(self.members), broken=self.broken)

    def pick(self, name: str) -> Member:
        """Return the model that the input `model` names, the first one if it is empty. Raises InvalidInput."""
        text = name.strip()
        if not text:
            return self.first
        label = text if text in self.members else self.names.find(text)
        if label is None:
            raise refusal("model", text, self.members, self.broken)
        return self.members[label]

    def use(self, models: Collection[Model]) -> None:
        """Bring exactly these models to the device. Raises OutOfMemory if it is too small for all of them."""
        for member in self.members.values():
            if not any(member.model is each for each in models):
                put_away(member.model)
        try:
            for each in models:
                each.weights.enter()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            for each in models:
                put_away(each)
            release_memory(error)
            names = " and ".join(
                label for label, member in self.members.items() if any(member.model is each for each in models)
            )
            raise OutOfMemory(f"No memory left on the device for {names}. Draw with fewer models at once.") from error


def put_away(model: Model) -> None:
    """Drop a model's LoRAs and control networks, and move its weights off the device. A CPU keeps them as they are."""
    model.adapters.apply(())
    model.controls.load_only(())
    if model.device.place.type != "cpu" and not model.weights.left:
        model.unet.forget()
        model.weights.leave()


def made(makers: Mapping[str, Callable[[], Made]]) -> tuple[dict[str, Made], dict[str, str]]:
    """Make something of each model. Return what was made, and why the other models cannot be used, both by name.

    Raises ModelError if none can be used.
    """
    found, broken = dict[str, Made](), dict[str, str]()
    for name, make in makers.items():
        try:
            found[name] = make()
        except ModelError as error:
            if len(makers) == 1:
                raise
            broken[name] = str(error)
            log.warning("The model %s cannot be used: %s", name, error)
    if not found:
        told = "; ".join(f"{name}: {reason}" for name, reason in broken.items())
        raise ModelError(f"None of the models can be used. {told}")
    return found, broken


class _Identities(Mapping[str, ModelIdentity]):
    """Identities of models, waited for only when they are looked at."""

    def __init__(self, members: Mapping[str, Member]) -> None:
        self._members = members

    def __getitem__(self, name: str) -> ModelIdentity:
        return self._members[name].model.identity

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

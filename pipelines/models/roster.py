"""The models of a container: which one a name means, and which ones are on the device."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from pipelines.ask.identity import ModelIdentity
from pipelines.ask.models import ModelNames
from pipelines.ask.plan import HighresPlan
from pipelines.ask.request import GenerationRequest
from pipelines.ask.settings import Values
from pipelines.errors import ModelError, OutOfMemory
from pipelines.families.family import LATENT_CHANNELS
from pipelines.models.model import Model
from pipelines.runtime.host import host_room
from pipelines.runtime.memory import is_out_of_memory, memory_errors_say, release_memory, room_left, what_fits
from pipelines.runtime.offloading import Components, settle_on_host
from pipelines.runtime.placement import Placement, Sizes, Work, at_once, in_turns
from pipelines.runtime.placement import place as placed

log = logging.getLogger(__name__)
Made = TypeVar("Made")
NO_MEMORY = "No memory left to load {}. Use a larger GPU, or a smaller model."


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
    the present request needs are on the device; the others' weights are in the host's memory. If even these do not fit
    together, as SDXL and its refiner on 16 GB, text encoders, each UNet, and VAEs take turns there.
    """

    def __init__(self, members: Mapping[str, Member], broken: Mapping[str, str], files: Mapping[str, str] = {}) -> None:
        """Take the models by what requests call them, the first of them first, and why others cannot be used.

        `files` are the names of the files of both, where known.
        """
        self.members, self.broken, self.files = dict(members), dict(broken), dict(files)

    @property
    def first(self) -> Member:
        """The model that is used unless a request says otherwise."""
        return next(iter(self.members.values()))

    @property
    def names(self) -> ModelNames:
        """The models' names. A hash that is asked for is waited for."""
        return ModelNames(identities=_Identities(self.members), broken=self.broken, files=self.files)

    def names_beside(self, model: Model) -> ModelNames:
        """Return the models' names, and why some cannot take part in a picture that this model draws."""
        rules = {label: rule_against(member.model, model) for label, member in self.members.items()}
        return replace(self.names, unfit={label: rule for label, rule in rules.items() if rule})

    def pick(self, name: str) -> Member:
        """Return the model that the input `model` names, the first one if it is empty. Raises InvalidInput."""
        return self.members[self.names.meant("model", name)] if name.strip() else self.first

    def use(
        self, models: Collection[Model], plan: HighresPlan | None = None, request: GenerationRequest | None = None
    ) -> None:
        """Bring exactly these models to the device, or let their networks take turns there while the plan is drawn.

        The first one draws the first pass. The control networks of the `request` are counted, too. Raises OutOfMemory
        if the device is too small even for that, or the host for what waits there.
        """
        models = list({id(each): each for each in models}.values())
        for member in self.members.values():
            if not any(member.model is each for each in models):
                put_away(member.model)
        if plan and self._placed(models, plan, request) is Placement.TURNS:
            settle_on_host(
                [each for model in models for each in model.components.all], host_room(), self._named(models)
            )
            share(models)
            return
        try:
            for each in models:
                for weights in each.components.all:
                    weights.take_turns_with(())
                    weights.enter()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            for each in models:
                put_away(each)
            release_memory(error)
            told = f"No memory left on the device for {self._named(models)}. Draw with fewer models at once."
            raise OutOfMemory(told) from error

    def _placed(self, models: Collection[Model], plan: HighresPlan, request: GenerationRequest | None) -> Placement:
        """Decide where the weights are while these models draw, and log it. Raises OutOfMemory, which tells what fits,
        before any work begins."""
        place = next(iter(models)).device.place
        room = room_left(place)
        if room is None:
            return Placement.RESIDENT
        room += sum(each.size for model in models for each in model.components.all if each.there)
        footprints = [each.footprint_with(bool(plan.controls)) for each in models]
        controls = self._controls(models, request)
        sizes, work = [sizes_of(each.components) for each in models], Work.of(plan, footprints, controls)
        found, names = placed(sizes, work, room), self._named(models)
        names += " with control networks" if plan.controls else ""
        needed = f"{at_once(sizes, work) / 1e9:.1f} GB at once, {in_turns(sizes, work) / 1e9:.1f} GB in turns"
        if found is Placement.NONE:
            left = room - controls - max(each.unet for each in sizes)
            fit = (
                what_fits(plan, max(footprints, key=lambda each: each.unet), left) if left > 0 else "Use a larger GPU."
            )
            told = f"{names} need {needed}, but the device has {room / 1e9:.1f} GB for them"
            raise OutOfMemory(f"No memory for {plan.describe()}: {told}. {fit}")
        if found is Placement.TURNS:
            log.info("%s need %s, and %.1f GB are free: %s are on the device.", names, needed, room / 1e9, found.value)
        return found

    def _controls(self, models: Collection[Model], request: GenerationRequest | None) -> int:
        """Return how many bytes the request's control networks take on the device in addition to what is there now.
        The models of both passes load them."""
        if request is None:
            return 0
        hires = self.members.get(request.hires.checkpoint) if request.hires else None
        drawing = [next(iter(models)), *([hires.model] if hires else [])]
        each = {id(model): model.controls for model in drawing}.values()
        return sum(controls.growth(request.control_files, request.extras.image_encoder) for controls in each)

    def _named(self, models: Collection[Model]) -> str:
        return " and ".join(
            label for label, member in self.members.items() if any(member.model is each for each in models)
        )


def rule_against(other: Model, model: Model) -> str:
    """Return why the other model cannot go on with the model's latents; empty if it can."""
    if other is model:
        return ""
    if other.unet.network.config.in_channels != LATENT_CHANNELS or other.image_prompt is not None:
        return "it is an inpainting or unCLIP checkpoint, which cannot take over"
    if other.family.latent_scale != model.family.latent_scale:
        return f"{other.family.name} cannot continue latents of {model.family.name}"
    return ""


def sizes_of(components: Components) -> Sizes:
    """Return the bytes of a model's weights."""
    return Sizes(components.texts.size, components.unet.size, components.pictures.size)


def share(models: Collection[Model]) -> None:
    """Let the text encoders of all these models, each of their UNets, and their VAEs take turns on the device."""
    parts = [each.components for each in models]
    texts, pictures = [each.texts for each in parts], [each.pictures for each in parts]
    kinds = [texts, pictures, *([each.unet] for each in parts)]
    for kind in kinds:
        others = [weights for other in kinds if other is not kind for weights in other]
        for weights in kind:
            weights.take_turns_with(others)


def put_away(model: Model) -> None:
    """Drop a model's LoRAs and control networks, and move its weights off the device. A CPU keeps them as they are.

    Raises OutOfMemory if the host has no room for them. They are then still on the device.
    """
    model.adapters.apply(())
    model.controls.load_only(())
    if model.device.place.type != "cpu":
        settle_on_host(model.components.all, host_room(), model.family.name)
        for weights in model.components.all:
            weights.leave()


def made(
    makers: Mapping[str, Callable[[], Made]], missing: Mapping[str, str] = {}
) -> tuple[dict[str, Made], dict[str, str]]:
    """Make something of each model. Return what was made, and why the other models cannot be used, both by name.

    `missing` says why there are models of which nothing was made before; these reasons are returned, too. A model that
    there is no memory for does not stop the others either. Raises ModelError with all reasons if none can be used.
    """
    found, broken = dict[str, Made](), dict(missing)
    for name, make in makers.items():
        try:
            with memory_errors_say(partial(NO_MEMORY.format, name)):
                found[name] = make()
        except (ModelError, OutOfMemory) as error:
            if len(makers) + len(missing) == 1:
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

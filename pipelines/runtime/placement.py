"""Decides where the weights of a request's models are while it is drawn: all on the device, or in turns. Also decides
where weights wait on the host.

This is arithmetic on sizes in bytes, done before any work begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from pipelines.ask.plan import HighresPlan
from pipelines.runtime.memory import ROOM_USED, Footprint


class Placement(Enum):
    """Where the weights are while a request is drawn."""

    RESIDENT = "all on the device"
    TURNS = "text encoders, each UNet, and VAEs in turn"
    NONE = "not enough memory"


class Waiting(Enum):
    """Where weights that are not on the device are."""

    PINNED = "copied to memory that the system never moves"
    COPIED = "copied to memory"
    MAPPED = "mapped from their file"
    NONE = "not enough memory"


@dataclass(frozen=True)
class Sizes:
    """The bytes of one model's weights."""

    texts: int
    unet: int
    pictures: int
    """The VAE, and networks that look at pictures."""


@dataclass(frozen=True)
class Work:
    """The bytes that drawing takes in addition to the weights."""

    drawing: int
    """One row of the largest pass. More rows at once are drawn if there is room."""
    decoding: int
    """The final picture in one piece."""
    controls: int = 0
    """The weights of control networks that are loaded for it. They stay on the device for the whole request."""

    @classmethod
    def of(cls, plan: HighresPlan, footprints: Sequence[Footprint], controls: int = 0) -> "Work":
        """Compute it for a plan that these models draw."""
        width, height = plan.final_size
        row = max(part.latent_shape[1] * part.latent_shape[2] for part in (plan.first, plan.hires) if part)
        unet, vae = max(each.unet for each in footprints), max(each.vae for each in footprints)
        return cls(unet * row, vae * width * height, controls)


def at_once(models: Sequence[Sizes], work: Work) -> int:
    """Return the bytes that are needed with all weights on the device."""
    weights = sum(each.texts + each.unet + each.pictures for each in models)
    return weights + work.controls + max(work.drawing, work.decoding)


def in_turns(models: Sequence[Sizes], work: Work) -> int:
    """Return the bytes that are needed if kinds of networks take turns.

    Decoding is left out, as tiles take hardly any memory.
    """
    texts, pictures = sum(each.texts for each in models), sum(each.pictures for each in models)
    return work.controls + max(texts, pictures, max(each.unet for each in models) + work.drawing)


def place(models: Sequence[Sizes], work: Work, room: int | None) -> Placement:
    """Return where the weights go on a device with this many bytes for weights and work; None: unknown.

    Weights only stay resident with some room to spare, because moving them costs less than running out of memory.
    """
    if room is None or at_once(models, work) <= ROOM_USED * room:
        return Placement.RESIDENT
    return Placement.TURNS if in_turns(models, work) <= room else Placement.NONE


def wait(size: int, unmapped: int, room: int | None) -> Waiting:
    """Return where weights wait on a host with this many free bytes; None: unknown.

    `unmapped` of their bytes are in no file, or there in another precision, so they must be copied. Pinned memory is
    copied to the device fastest, but torch rounds each piece up to a power of two, and the system cannot take it back.
    """
    if room is None:
        return Waiting.COPIED
    if size <= ROOM_USED * room:
        return Waiting.PINNED if 2 * size <= ROOM_USED * room else Waiting.COPIED
    return Waiting.MAPPED if unmapped <= ROOM_USED * room else Waiting.NONE

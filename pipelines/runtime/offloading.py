"""Moves the weights of whole networks between the device and the host's memory."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipelines.errors import OutOfMemory
from pipelines.runtime.placement import Waiting, wait

log = logging.getLogger(__name__)


def from_file(weight: Tensor, source: Tensor) -> None:
    """Note that a weight on a device has the values of this tensor, which is mapped from a file."""
    weight.source = source  # type: ignore[attr-defined]


class Weights:
    """The weights of some networks. They are on the device, or only on the host.

    What is kept on the host is made when the weights leave the device for the first time, and is kept from then on. It
    is copies in memory, or the file that the weights came from, where `on_host` says so. Later only weights that were
    changed since (by LoRAs) are copied again. So leaving costs little, and coming back costs the copy to the device.
    Parameters stay the same objects, which compiled code needs; the addresses of their values change, so recorded CUDA
    graphs are void.
    """

    def __init__(self, networks: Iterable[nn.Module], place: torch.device) -> None:
        """Take networks that are on the device `place`."""
        each = (tensor for network in networks for tensor in (*network.parameters(), *network.buffers()))
        self._tensors = list(dict.fromkeys(each))
        self._sources: list[Tensor | None] = [getattr(tensor, "source", None) for tensor in self._tensors]
        self._place = place
        self._kept: list[Tensor] = []
        self._strides: list[tuple[int, ...]] = []
        """The weights' order in the device's memory, which compiled code relies on."""
        self._versions = [tensor._version for tensor in self._tensors]
        """torch's counts of changes to each weight, when its values were those that are kept."""
        self.on_host = Waiting.COPIED
        """Where the weights are kept once they leave."""
        self._there: bool | None = True
        """Whether all of them are on the device. None: only some, because a move was interrupted."""
        self._others: tuple[Weights, ...] = ()
        self.leaving: Callable[[], None] = lambda: None
        """Called before the addresses of the weights change."""

    @property
    def there(self) -> bool:
        """Whether all of them are on the device."""
        return self._there is True

    @property
    def left(self) -> bool:
        """Whether nothing of them is on the device."""
        return self._there is False

    @property
    def size(self) -> int:
        """Their bytes."""
        return sum(tensor.nbytes for tensor in self._tensors)

    @property
    def kept(self) -> bool:
        """Whether they left the device before, so that leaving takes no new memory."""
        return bool(self._kept)

    @property
    def unmapped(self) -> int:
        """The bytes of weights that no mapped file has in their precision."""
        pairs = zip(self._tensors, self._sources, strict=True)
        return sum(tensor.nbytes for tensor, source in pairs if source is None)

    def take_turns_with(self, others: Iterable["Weights"]) -> None:
        """Let these others leave the device whenever `take` is called, as there is not enough room for all."""
        self._others = tuple(others)

    def take(self) -> None:
        """Be on the device. Call this before the networks are used."""
        for other in self._others:
            other.leave()
        self.enter()

    def leave(self) -> None:
        """Free the memory of the device, unless this was done before.

        Raises RuntimeError if the host has no memory for the copies. The weights are then still on the device.
        """
        if self.left:
            return
        self.leaving()
        with torch.inference_mode(False):
            self._copy()
            if self.there:  # and not only some of them, after a move that was interrupted
                self._strides = [tensor.stride() for tensor in self._tensors]
            self._there = None
            for tensor, kept in zip(self._tensors, self._kept, strict=True):
                tensor.data = kept
        self._there = False

    def _copy(self) -> None:
        """Make the copies, or renew those of changed weights. The weights stay as they are if there is no memory."""
        if not self._kept:
            self._kept = [self._first_copy(*pair) for pair in zip(self._tensors, self._sources, strict=True)]
        for tensor, kept, version in zip(self._tensors, self._kept, self._versions, strict=True):
            if tensor._version == version:
                continue
            # pages of a file take memory once they are written to, which is not needed if a LoRA came and went
            if self.on_host is not Waiting.MAPPED or not torch.equal(tensor.data.cpu(), kept):
                kept.copy_(tensor.data)
        self._versions = [tensor._version for tensor in self._tensors]

    def _first_copy(self, tensor: Tensor, source: Tensor | None) -> Tensor:
        if source is not None and self.on_host is Waiting.MAPPED:
            return source
        pinned = self.on_host is Waiting.PINNED and tensor.device.type == "cuda"
        return _like(tensor, tensor.stride(), "cpu", pinned)

    def enter(self) -> None:
        """Copy the weights to the device if they are not there."""
        if self._there:
            return
        self._there = None
        with torch.inference_mode(False):
            for tensor, kept, stride in zip(self._tensors, self._kept, self._strides, strict=True):
                tensor.data = _like(kept, stride, self._place)
        self._there = True


def _like(tensor: Tensor, stride: tuple[int, ...], place: torch.device | str, pinned: bool = False) -> Tensor:
    """Return a copy of the tensor in another place and order in memory."""
    empty = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=place, pin_memory=pinned)
    return empty.copy_(tensor.data)


def settle_on_host(waiting: Iterable[Weights], room: int | None, what: str) -> None:
    """Decide where weights that have not left the device before will wait, with `room` free bytes on the host.

    `what` names their model. Raises OutOfMemory if they cannot leave, before anything is copied.
    """
    new = [each for each in waiting if not each.kept]
    size, unmapped = sum(each.size for each in new), sum(each.unmapped for each in new)
    found = wait(size, unmapped, room)
    free = f"and {(room or 0) / 1e9:.1f} GB of the host's memory are free"
    if found is Waiting.NONE:
        raise OutOfMemory(
            f"No memory on the host for {what} while it waits for the device: {unmapped / 1e9:.1f} GB must be copied, "
            f"{free}. Name fewer models, or use a safetensors file of half precision, which stays mapped."
        )
    if found is Waiting.MAPPED:
        log.info("%s stays mapped from its file while it waits: it has %.1f GB, %s.", what, size / 1e9, free)
    for each in new:
        each.on_host = found


@dataclass(frozen=True)
class Components:
    """The weights of one model, by what may leave the device while the rest is used."""

    texts: Weights
    unet: Weights
    pictures: Weights
    """The VAE, and networks that look at pictures."""

    @property
    def all(self) -> tuple[Weights, ...]:
        """All of them."""
        return self.texts, self.unet, self.pictures

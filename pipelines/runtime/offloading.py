"""Moves the weights of whole networks between the device and the host's memory."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Weights:
    """The weights of some networks. They are on the device, or only in the host's memory.

    The copies on the host are made when the weights leave the device for the first time, and are kept from then on.
    Later only weights that were changed since (by LoRAs) are copied again. So leaving costs little, and coming back
    costs the copy to the device. Parameters stay the same objects, which compiled code needs; the addresses of their
    values change, so recorded CUDA graphs are void.
    """

    def __init__(self, networks: Iterable[nn.Module], place: torch.device) -> None:
        """Take networks that are on the device `place`."""
        each = (tensor for network in networks for tensor in (*network.parameters(), *network.buffers()))
        self._tensors = list(dict.fromkeys(each))
        self._place = place
        self._kept: list[Tensor] = []
        self._versions: list[int] = []
        """torch's counts of changes to each weight, when its copy was made."""
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
            self._there = None
            for tensor, kept in zip(self._tensors, self._kept, strict=True):
                tensor.data = kept
        self._there = False

    def _copy(self) -> None:
        """Make the copies, or renew those of changed weights. The weights stay as they are if there is no memory."""
        if not self._kept:
            self._kept = [tensor.data.to("cpu") for tensor in self._tensors]
            self._versions = [tensor._version for tensor in self._tensors]
        for place, tensor in enumerate(self._tensors):
            if tensor._version != self._versions[place]:
                self._kept[place].copy_(tensor.data)  # takes no new memory
                self._versions[place] = tensor._version

    def enter(self) -> None:
        """Copy the weights to the device if they are not there."""
        if self._there:
            return
        self._there = None
        with torch.inference_mode(False):
            for tensor, kept in zip(self._tensors, self._kept, strict=True):
                tensor.data = kept.to(self._place, copy=True)
        self._there = True


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

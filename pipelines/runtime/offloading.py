"""Moves the weights of whole networks between the device and the host's memory."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Weights:
    """The weights of some networks. They are on the device, or only in the host's memory.

    The copies on the host are made when the weights leave the device for the first time, and are kept from then on. So
    leaving costs nothing afterwards, and coming back costs the copy to the device. Parameters stay the same objects,
    which compiled code needs; the addresses of their values change, so recorded CUDA graphs are void.
    """

    def __init__(self, networks: Iterable[nn.Module], place: torch.device) -> None:
        """Take networks that are on the device `place`."""
        each = (tensor for network in networks for tensor in (*network.parameters(), *network.buffers()))
        self._tensors = list(dict.fromkeys(each))
        self._place = place
        self._kept: list[Tensor] = []
        self._there: bool | None = True
        """Whether all of them are on the device. None: only some, because a move was interrupted."""

    @property
    def left(self) -> bool:
        """Whether nothing of them is on the device."""
        return self._there is False

    def leave(self) -> None:
        """Free the memory of the device. Changes to the weights since they came must have been undone."""
        if not self._kept:
            self._kept = [tensor.data.to("cpu") for tensor in self._tensors]
        self._there = None
        for tensor, kept in zip(self._tensors, self._kept, strict=True):
            tensor.data = kept
        self._there = False

    def enter(self) -> None:
        """Copy the weights to the device if they are not there."""
        if self._there:
            return
        self._there = None
        for tensor, kept in zip(self._tensors, self._kept, strict=True):
            tensor.data = kept.to(self._place, copy=True)
        self._there = True

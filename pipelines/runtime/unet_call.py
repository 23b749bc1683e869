"""A call of the UNet as one value, from the denoiser down to the CUDA graphs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn


@dataclass(frozen=True)
class Condition:
    """The UNet's inputs for every row of a batch, apart from picture and time."""

    tokens: Tensor
    """(rows, n, width), for cross-attention."""
    vector: Tensor | None = None
    """(rows, k), added to the time embedding; None in families that have no such input."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.tokens)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        """Return the condition with both tensors changed. The change must treat all rows alike."""
        return Condition(change(self.tokens), None if self.vector is None else change(self.vector))

    @staticmethod
    def cat(parts: Sequence["Condition"]) -> "Condition":
        """Join the rows of conditions that have the same number of tokens."""
        vectors = [part.vector for part in parts if part.vector is not None]
        return Condition(torch.cat([part.tokens for part in parts]), torch.cat(vectors) if vectors else None)


@dataclass(frozen=True)
class PicturePrompt:
    """An IP-Adapter's input to the UNet's cross-attentions, in addition to the prompt."""

    to_k: nn.ModuleList
    """Layers that turn the tokens into keys, one for each cross-attention in order."""
    to_v: nn.ModuleList
    """Layers that turn the tokens into values."""
    tokens: Tensor
    """(rows, n, width)"""
    weight: float


@dataclass(frozen=True)
class UNetCall:
    """The arguments of one call of a UNet."""

    images: Tensor
    """(rows, channels, h, w)"""
    time: Tensor
    """(), the timestep of all rows"""
    condition: Condition
    residuals: tuple[Tensor, ...] = ()
    """Residuals of ControlNets for the blocks' outputs, (rows, C, h', w') each, the deepest last; empty without any."""
    features: tuple[Tensor, ...] = ()
    """Features of T2I adapters for the encoder, (rows, C, h', w') for each level, the deepest last; empty without any.
    """
    pictures: tuple[PicturePrompt, ...] = ()
    """Picture prompts of IP-Adapters for the cross-attentions."""

    @property
    def guided(self) -> bool:
        """Whether control networks take part in the call."""
        return bool(self.residuals or self.features or self.pictures)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors of a call that is not guided, in a fixed order."""
        vector = self.condition.vector
        return (self.images, self.time, self.condition.tokens, *(() if vector is None else (vector,)))

    def clone(self) -> "UNetCall":
        """Return a copy of a call that is not guided, with copied tensors."""
        return UNetCall(self.images.clone(), self.time.clone(), self.condition.map(torch.clone))

    def split(self, rows: int) -> Iterator["UNetCall"]:
        """Split the call into calls of at most this many rows."""
        for start in range(0, len(self.images), rows):
            part: Callable[[Tensor], Tensor] = itemgetter(slice(start, start + rows))
            yield UNetCall(
                part(self.images),
                self.time,
                self.condition.map(part),
                residuals=tuple(map(part, self.residuals)),
                features=tuple(map(part, self.features)),
                pictures=tuple(replace(each, tokens=part(each.tokens)) for each in self.pictures),
            )

    def compute(self, network: Callable[..., tuple[Tensor]]) -> Tensor:
        """Call a network with the arguments of diffusers' UNet, and return its output (rows, 4, h, w)."""
        options: dict[str, Any] = {}
        if self.condition.vector is not None:
            options["class_labels"] = self.condition.vector
        if self.residuals:
            *down, middle = self.residuals
            options |= {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}
        if self.features:
            options["down_intrablock_additional_residuals"] = list(self.features)  # the network empties the list
        tokens: Any = self.condition.tokens
        if self.pictures:
            tokens = tokens, [picture.tokens for picture in self.pictures]
        return network(self.images, self.time, encoder_hidden_states=tokens, return_dict=False, **options)[0]


class UNet:
    """A UNet of diffusers. Subclasses compute the same in other ways, with the same weights."""

    def __init__(self, network: UNet2DConditionModel) -> None:
        """Use `network`, which has the weights and settings that all ways of computing share."""
        self.network = network

    def __call__(self, call: UNetCall) -> Tensor:
        """Return the network's output (rows, 4, h, w)."""
        if not call.pictures:
            return self._compute(call)
        with _shown(self._cross_attentions, call.pictures):
            return self._compute(call)

    def plain(self) -> "UNet":
        """Return a UNet that calls the network as it is, neither compiled nor recorded."""
        return UNet(self.network)

    def _compute(self, call: UNetCall) -> Tensor:
        return call.compute(self.network)

    def forget(self) -> None:
        """Drop what depends on the addresses of the weights, which are about to change."""

    @cached_property
    def _cross_attentions(self) -> list[Attention]:
        """The cross-attentions, found once: an SD network has hundreds of modules and is called at every step."""
        return cross_attentions(self.network)


def cross_attentions(network: UNet2DConditionModel) -> list[Attention]:
    """Return the cross-attentions in the order in which diffusers and IP-Adapter files number them."""
    modules = network.named_modules()
    return [module for name, module in modules if name.endswith(".attn2") and isinstance(module, Attention)]


@contextmanager
def _shown(attentions: Sequence[Attention], pictures: Sequence[PicturePrompt]) -> Iterator[None]:
    """Make these cross-attentions take a tuple of the prompt's tokens and every picture's while the context lasts.

    Afterwards the same processor objects as before are put back, so that compiled code of the network stays valid.
    """
    before = [attention.processor for attention in attentions]
    try:
        for place, attention in enumerate(attentions):
            # only its method, because a module would be registered as a part of the network
            attention.processor = _processor(pictures, place).__call__
        yield
    finally:
        for attention, processor in zip(attentions, before, strict=True):
            attention.processor = processor


def _processor(pictures: Sequence[PicturePrompt], place: int) -> IPAdapterAttnProcessor2_0:
    processor = IPAdapterAttnProcessor2_0(0, 0, num_tokens=(), scale=[])
    processor.scale = [picture.weight for picture in pictures]
    processor.to_k_ip.extend(picture.to_k[place] for picture in pictures)
    processor.to_v_ip.extend(picture.to_v[place] for picture in pictures)
    return processor

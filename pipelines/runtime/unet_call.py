"""A call of the UNet as one value, from the denoiser down to the CUDA graphs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn


@dataclass(frozen=True)
class Condition:
    """What the UNet is told about every row of a batch beside the picture and the time."""

    tokens: Tensor
    """(rows, n, width), for cross-attention."""
    vector: Tensor | None = None
    """(rows, k), added to the embedding of the time; None in families that have no such input."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.tokens)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        """Return the condition with both tensors changed; the change must treat rows alike."""
        return Condition(change(self.tokens), None if self.vector is None else change(self.vector))

    @staticmethod
    def cat(parts: Sequence["Condition"]) -> "Condition":
        """Join the rows of conditions that have equally many tokens."""
        vectors = [part.vector for part in parts if part.vector is not None]
        return Condition(torch.cat([part.tokens for part in parts]), torch.cat(vectors) if vectors else None)


@dataclass(frozen=True)
class PicturePrompt:
    """What an IP-Adapter shows to the UNet's cross-attentions beside the prompt."""

    to_k: nn.ModuleList
    """What makes keys of the tokens, for each cross-attention in order."""
    to_v: nn.ModuleList
    """What makes values of them."""
    tokens: Tensor
    """(rows, n, width)"""
    weight: float


@dataclass(frozen=True)
class UNetCall:
    """What a UNet is called with. It returns its output (rows, 4, h, w)."""

    images: Tensor
    """(rows, channels, h, w)"""
    time: Tensor
    """(), the timestep of all rows"""
    condition: Condition
    residuals: tuple[Tensor, ...] = ()
    """What ControlNets add to the blocks' outputs, (rows, C, h', w') each, the deepest last; empty without any."""
    features: tuple[Tensor, ...] = ()
    """What T2I adapters add inside the encoding half, (rows, C, h', w') a level, the deepest last; empty without any.
    """
    pictures: tuple[PicturePrompt, ...] = ()
    """What IP-Adapters show to the cross-attentions."""

    @property
    def guided(self) -> bool:
        """Whether it takes more than a call of the UNet alone does."""
        return bool(self.residuals or self.features or self.pictures)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors of a call that is not guided, in a fixed order."""
        vector = self.condition.vector
        return (self.images, self.time, self.condition.tokens, *(() if vector is None else (vector,)))

    def clone(self) -> "UNetCall":
        """Return a call that is not guided and whose tensors are copies."""
        return UNetCall(self.images.clone(), self.time.clone(), self.condition.map(torch.clone))

    def split(self, rows: int) -> Iterator["UNetCall"]:
        """Cut a call that is not guided into calls of at most so many rows."""
        for start in range(0, len(self.images), rows):
            part = itemgetter(slice(start, start + rows))
            yield UNetCall(part(self.images), self.time, self.condition.map(part))

    def compute(self, network: Callable[..., tuple[Tensor]]) -> Tensor:
        """Call a network that takes the arguments of diffusers' UNet; return its output (rows, 4, h, w)."""
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
    """A UNet of diffusers. Subclasses compute the same in another way, over the same weights."""

    def __init__(self, network: UNet2DConditionModel) -> None:
        """`network` has the weights and settings that all ways of computing share."""
        self.network = network

    def __call__(self, call: UNetCall) -> Tensor:
        """Return the network's output (rows, 4, h, w)."""
        if not call.pictures:
            return call.compute(self.network)
        with _shown(self._cross_attentions, call.pictures):
            return call.compute(self.network)

    @cached_property
    def _cross_attentions(self) -> list[Attention]:
        """What shows pictures, looked for once: an SD network has hundreds of modules, and is called at every step."""
        return cross_attentions(self.network)


def cross_attentions(network: UNet2DConditionModel) -> list[Attention]:
    """Return the attentions to the prompt, in the order in which diffusers and IP-Adapter files count them."""
    modules = network.named_modules()
    return [module for name, module in modules if name.endswith(".attn2") and isinstance(module, Attention)]


@contextmanager
def _shown(attentions: Sequence[Attention], pictures: Sequence[PicturePrompt]) -> Iterator[None]:
    """Inside, these cross-attentions take a tuple of the prompt's tokens and of every picture's.

    What computed them before comes back, the very same objects: compiled code of the network stays valid.
    """
    before = [attention.processor for attention in attentions]
    try:
        for place, attention in enumerate(attentions):
            # its method, because a module would be registered as a part of the network
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

"""Changes to diffusers' UNet: odd sizes as in WebUI, the smallest size, narrow heads on a CPU, and FreeU.

If a level's height or width is odd, the upsampled tensor is larger than the skip connection that it is joined with.
diffusers interpolates to the skip's size and then convolves. LDM doubles and convolves, and WebUI then resizes the
result to the skip's size. For usual sizes nothing changes: diffusers gives an explicit size only if one is odd.

At 64 px the deepest level is one latent wide. If it has as many channels as groups, as in the embedded model, each
group is a single value. torch refuses to normalise this, because it would be a mistake in training.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor
from torch.nn import functional as F

from pipelines.ask.request import FreeU

CPU_HEAD = 16
"""Channels of a head that torch's attention for CPUs computes at once."""


class DoubleThenFit(Upsample2D):
    """Doubles, convolves, and then resizes to `output_size` (height, width) if given. Both use nearest-neighbour."""

    def forward(self, hidden_states: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        doubled: Tensor = super().forward(hidden_states)
        return doubled if output_size is None else F.interpolate(doubled, size=output_size, mode="nearest")


class HeadAttention(ABC):
    """Attention with heads and without masks: a UNet has none. Subclasses compute it in their own way."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
    ) -> Tensor:
        """Attend from `hidden_states` to the prompt, or to itself."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            each.unflatten(2, (attn.heads, -1))
            for each in (attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source))
        )
        output: Tensor = attn.to_out[0](self.mixed(query, key, value).flatten(2))
        return output

    @abstractmethod
    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Mix the values (B, m, heads, d) by how much each key (B, m, heads, d) suits each query (B, n, heads, d)."""


class WideHeads(HeadAttention):
    """Heads are filled up with zeros to 16 channels, which changes nothing but rounding.

    torch's attention for CPUs is made for wider heads than the embedded model's, which have 8 channels. A call of its
    UNet at 320 px takes 1.25 times as long without this (docs/performance.md).
    """

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        width = query.shape[-1]
        query, key, value = (F.pad(each, (0, CPU_HEAD - width)).transpose(1, 2) for each in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, scale=width**-0.5)[..., :width].transpose(1, 2)


class AnySizeNorm(torch.nn.GroupNorm):
    """torch's GroupNorm, but it also accepts groups of one value, whose result is just the bias."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.group_norm(hidden_states, self.num_groups, self.weight, self.bias, self.eps)


def fit_any_norm(network: torch.nn.Module) -> None:
    """Make every norm of the network accept the smallest sizes. Weights are kept."""
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.__class__ = AnySizeNorm


def fit_any_size(unet: UNet2DConditionModel) -> None:
    """Make every upsampler of the UNet work in LDM's order and every norm accept the smallest sizes. Keep weights."""
    fit_any_norm(unet)
    for block in unet.up_blocks:
        for upsampler in block.upsamplers or ():
            upsampler.__class__ = DoubleThenFit
    set_freeu(unet, None)


def widen_heads(network: torch.nn.Module, place: torch.device) -> None:
    """On a CPU, use WideHeads wherever the heads of a UNet's or ControlNet's transformer are narrower."""
    if place.type != "cpu":
        return
    for module in network.modules():
        if isinstance(module, BasicTransformerBlock):
            for attention in (module.attn1, module.attn2):
                if attention is not None and attention.inner_dim // attention.heads < CPU_HEAD:
                    attention.set_processor(WideHeads())


def set_tiling(network: torch.nn.Module, on: bool) -> None:
    """Make convolutions pad with the opposite edge, so that copies of a picture fit together, or with zeros if off."""
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.padding_mode = "circular" if on else "zeros"


def set_freeu(unet: UNet2DConditionModel, freeu: FreeU | None) -> None:
    """Turn on diffusers' FreeU. None turns it off."""
    # Not with `disable_freeu`: it leaves a state that differs from a new network's, so a compiled network would be
    # compiled again.
    unet.enable_freeu(**(asdict(freeu) if freeu else dict.fromkeys(("b1", "b2", "s1", "s2"))))

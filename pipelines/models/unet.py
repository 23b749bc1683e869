"""Changes around diffusers' UNet: sizes that are no multiple of 64 px, as in WebUI, the smallest size, and FreeU.

When a level's height or width is odd, the upsampled tensor is larger than the skip connection it meets. diffusers
interpolates to the skip's size and then convolves; LDM doubles, convolves, and WebUI resizes the result to the
skip's size. Usual sizes never pass here: diffusers asks for an explicit size only when one is odd.

At 64 px the deepest level is one latent wide. If it has as many channels as groups, as in the embedded model, each
group is a single value, which torch refuses to normalise because it takes this for training.
"""

from dataclasses import asdict

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor
from torch.nn import functional as F

from pipelines.ask.request import FreeU


class DoubleThenFit(Upsample2D):
    """Doubles, convolves, and only then resizes to `output_size` (height, width) if given, both times by nearest."""

    def forward(self, hidden_states: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        doubled: Tensor = super().forward(hidden_states)
        return doubled if output_size is None else F.interpolate(doubled, size=output_size, mode="nearest")


class AnySizeNorm(torch.nn.GroupNorm):
    """torch's GroupNorm that also takes groups of one value, of which only the bias is left."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.group_norm(hidden_states, self.num_groups, self.weight, self.bias, self.eps)


def fit_any_norm(network: torch.nn.Module) -> None:
    """Let every norm of the network take the smallest sizes; weights are kept."""
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.__class__ = AnySizeNorm


def fit_any_size(unet: UNet2DConditionModel) -> None:
    """Make every upsampler of the UNet work in LDM's order and every norm take the smallest sizes; weights are kept."""
    fit_any_norm(unet)
    for block in unet.up_blocks:
        for upsampler in block.upsamplers or ():
            upsampler.__class__ = DoubleThenFit
    set_freeu(unet, None)


def set_tiling(network: torch.nn.Module, on: bool) -> None:
    """Let convolutions see the opposite edge beyond each edge, so that copies of a picture fit together; or zeros."""
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.padding_mode = "circular" if on else "zeros"


def set_freeu(unet: UNet2DConditionModel, freeu: FreeU | None) -> None:
    """Turn diffusers' FreeU on, or off for None."""
    # off by None and not by `disable_freeu`, which leaves another state behind than a new network has: one that a
    # compiled network would take for a change
    unet.enable_freeu(**(asdict(freeu) if freeu else dict.fromkeys(("b1", "b2", "s1", "s2"))))

"""The one change around diffusers' UNet: sizes that are no multiple of 64 px, as WebUI treats them.

When a level's height or width is odd, the upsampled tensor is larger than the skip connection it meets. diffusers
interpolates to the skip's size and then convolves; LDM doubles, convolves, and WebUI resizes the result to the
skip's size. Usual sizes never pass here: diffusers asks for an explicit size only when one is odd.
"""

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor
from torch.nn import functional as F


class DoubleThenFit(Upsample2D):
    """Nearest doubling, convolution, and only then nearest resizing to `output_size` (height, width) if given."""

    def forward(self, hidden_states: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        doubled: Tensor = super().forward(hidden_states)
        return doubled if output_size is None else F.interpolate(doubled, size=output_size, mode="nearest")


def fit_odd_sizes(unet: UNet2DConditionModel) -> None:
    """Give every upsampler of the UNet LDM's order of work; weights are kept."""
    for block in unet.up_blocks:
        for upsampler in block.upsamplers or ():
            upsampler.__class__ = DoubleThenFit

"""What ControlNets add to the UNet in a pass, with the weights, shares of the steps and modes of WebUI's extension."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipelines.ask.plan import PassPlan
from pipelines.ask.request import ControlSettings
from pipelines.images.masks import Canvas
from pipelines.images.reading import flat, resize
from pipelines.runtime.device import Device
from pipelines.runtime.unet_call import UNetCall

SOFT = 0.825
"""Where prompt or ControlNet is more important, each residual has this share of the next deeper one's weight."""


@dataclass(frozen=True)
class Unit:
    """One ControlNet of a pass."""

    network: ControlNetModel
    settings: ControlSettings
    steps: range
    shown: Tensor
    """Its map (1, 3, H, W)."""


@dataclass(frozen=True)
class Controls:
    """The ControlNets of one pass."""

    units: Sequence[Unit]

    def residuals(self, call: UNetCall, step: int, conditional: int) -> tuple[Tensor, ...]:
        """Return what the UNet takes beside the call at a step: (rows, C, h, w) for each level, the deepest last.

        The first `conditional` rows are the prompt's, the others the negative prompt's. Empty if no unit acts.
        """
        total: list[Tensor] = []
        for unit in self.units:
            rows = conditional if unit.settings.mode == "control" else len(call.images)
            if step in unit.steps and rows:
                added = _added(unit, call, rows)
                total = [one + other for one, other in zip(total, added, strict=True)] if total else added
        return tuple(total)


def _added(unit: Unit, call: UNetCall, rows: int) -> list[Tensor]:
    """Return a unit's residuals for the first rows of the call, and zeros for those after them."""
    shown = unit.shown.expand(rows, -1, -1, -1)
    # an inpainting UNet sees more channels than the latents, which are all that a ControlNet was made for
    images, tokens = call.images[:rows, :4], call.condition.tokens[:rows]
    down, mid = unit.network(images, call.time, tokens, shown, return_dict=False)
    last = len(down)
    soft = SOFT if unit.settings.mode != "balanced" else 1.0
    scaled = [part * (unit.settings.weight * soft ** (last - place)) for place, part in enumerate((*down, mid))]
    without = len(call.images) - rows
    return [F.pad(part, (0, 0, 0, 0, 0, 0, 0, without)) for part in scaled] if without else scaled


def in_hires(control: ControlSettings) -> ControlSettings:
    """Return the unit for a hires pass, where WebUI's extension softens Canny in every mode: it leaves hard edges."""
    softened = control.preprocessor == "canny" and control.mode == "balanced"
    return replace(control, mode="prompt") if softened else control


def controls_of(
    part: PassPlan,
    settings: Sequence[ControlSettings],
    networks: Sequence[ControlNetModel],
    canvas: Canvas | None,
    device: Device,
) -> Controls | None:
    """Return the ControlNets that act in a pass, with maps of its size; None if none does.

    A unit without a picture of its own sees what the first pass started from, the `canvas`.
    """
    units = []
    for control, network in zip(settings, networks, strict=True):
        if steps := part.steps_under(control):
            shown = _shown(part, control, canvas).to(device.place, device.dtype)
            units.append(Unit(network, control, steps, shown))
    return Controls(units) if units else None


def _shown(part: PassPlan, control: ControlSettings, canvas: Canvas | None) -> Tensor:
    from pipelines.images.preprocess import control_map  # OpenCV: half a second that most predictions can do without

    size = part.width, part.height
    if control.picture is None:
        assert canvas is not None  # the request's check
        picture = resize(canvas.picture, size, "stretch")
    else:
        assert isinstance(control.picture, Image.Image)
        own = flat(control.picture)
        picture = resize(canvas.same_part(own) if canvas else own, size, control.resize_mode)
    mask = canvas.mask if canvas else None
    masked = np.asarray(mask.resize(size)) > 127 if mask else None
    shown = control_map(np.ascontiguousarray(picture), control, masked)
    return torch.from_numpy(shown).permute(2, 0, 1)[None]

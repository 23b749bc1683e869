"""What control networks add to the UNet in a pass, with the weights, shares of the steps and modes of WebUI's
extension."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers.models.adapter import T2IAdapter
from diffusers.models.controlnets.controlnet import ControlNetModel
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipelines.ask.plan import PassPlan
from pipelines.ask.request import ControlSettings
from pipelines.images.masks import Canvas
from pipelines.images.reading import flat, resize
from pipelines.models.controls import ControlNetwork
from pipelines.models.image_encoder import ImageEncoder
from pipelines.models.ip_adapters import IPAdapter
from pipelines.runtime.device import Device
from pipelines.runtime.unet_call import PicturePrompt, UNetCall

SOFT = 0.825
"""Where prompt or ControlNet is more important, each residual has this share of the next deeper one's weight."""
SOFT_FEATURES = (0.25, 0.62, 0.825, 1.0)
"""The same for the features of a T2I adapter, the deepest last (sd-webui-controlnet, issue 269)."""


@dataclass(frozen=True)
class Unit(ABC):
    """One control network in a pass."""

    settings: ControlSettings
    steps: range

    @abstractmethod
    def guide(self, call: UNetCall, conditional: int) -> UNetCall:
        """Return the call with what the network adds; its first `conditional` rows are the prompt's."""

    def rows(self, call: UNetCall, conditional: int) -> int:
        """Return how many rows of a call, from the first one on, the unit acts on by its mode."""
        return conditional if self.settings.mode == "control" else len(call.images)


@dataclass(frozen=True)
class ControlNetUnit(Unit):
    """A ControlNet, which computes beside the UNet."""

    network: ControlNetModel
    shown: Tensor
    """Its map (1, 3, H, W)."""

    def guide(self, call: UNetCall, conditional: int) -> UNetCall:
        """Return the call with the ControlNet's residuals added to those that it has."""
        rows = self.rows(call, conditional)
        if not rows:
            return call
        # an inpainting UNet sees more channels than the latents, which are all that a ControlNet was made for
        images, tokens = call.images[:rows, :4], call.condition.tokens[:rows]
        shown = self.shown.expand(rows, -1, -1, -1)
        down, mid = self.network(images, call.time, tokens, shown, return_dict=False)
        last = len(down)
        soft = SOFT if self.settings.mode != "balanced" else 1.0
        scaled = [part * (self.settings.weight * soft ** (last - place)) for place, part in enumerate((*down, mid))]
        return replace(call, residuals=_sum(call.residuals, [_padded(part, call) for part in scaled]))


@dataclass(frozen=True)
class AdapterUnit(Unit):
    """A T2I adapter, which was asked once for the whole pass."""

    features: Sequence[Tensor]
    """(1, C, h', w') a level, the deepest last, with the unit's weight."""

    def guide(self, call: UNetCall, conditional: int) -> UNetCall:
        """Return the call with the adapter's features added to those that it has."""
        rows = self.rows(call, conditional)
        if not rows:
            return call
        features = [_padded(part.expand(rows, -1, -1, -1), call) for part in self.features]
        return replace(call, features=_sum(call.features, features))


@dataclass(frozen=True)
class PictureUnit(Unit):
    """An IP-Adapter, which shows a picture to the UNet's cross-attentions."""

    network: IPAdapter
    tokens: Tensor
    """(2, n, width), of no picture and of its own."""

    def guide(self, call: UNetCall, conditional: int) -> UNetCall:
        """Return the call with the picture for the prompt's rows, and no picture for the negative prompt's."""
        nothing, seen = self.tokens
        tokens = torch.stack([seen] * conditional + [nothing] * (len(call.images) - conditional))
        picture = PicturePrompt(self.network.to_k, self.network.to_v, tokens, self.settings.weight)
        return replace(call, pictures=(*call.pictures, picture))


def _padded(part: Tensor, call: UNetCall) -> Tensor:
    """Return the first rows' values with zeros for the rows of the call that come after them."""
    without = len(call.images) - len(part)
    return F.pad(part, (0, 0, 0, 0, 0, 0, 0, without)) if without else part


def _sum(total: Sequence[Tensor], added: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(one + other for one, other in zip(total, added, strict=True)) if total else tuple(added)


@dataclass(frozen=True)
class Controls:
    """The control networks of one pass."""

    units: Sequence[Unit]

    def guide(self, call: UNetCall, step: int, conditional: int) -> UNetCall:
        """Return the call with what the units add at a step.

        The first `conditional` rows are the prompt's, the others the negative prompt's. Where no unit acts, the call
        comes back as it is.
        """
        for unit in self.units:
            if step in unit.steps:
                call = unit.guide(call, conditional)
        return call


def in_hires(control: ControlSettings) -> ControlSettings:
    """Return the unit for a hires pass, where WebUI's extension softens Canny in every mode: it leaves hard edges."""
    softened = control.preprocessor == "canny" and control.mode == "balanced"
    return replace(control, mode="prompt") if softened else control


def controls_of(
    part: PassPlan,
    settings: Sequence[ControlSettings],
    networks: Sequence[ControlNetwork],
    canvas: Canvas | None,
    device: Device,
    encoder: ImageEncoder | None = None,
) -> Controls | None:
    """Return the units that act in a pass, with maps of its size; None if none does.

    A unit without a picture of its own sees what the first pass started from, the `canvas`. IP-Adapters see by the
    `encoder`, and their pictures whole.
    """
    units: list[Unit] = []
    for control, network in zip(settings, networks, strict=True):
        steps = part.steps_under(control)
        if not steps:
            continue
        if isinstance(network, IPAdapter):
            assert encoder is not None  # loaded together with the adapter
            units.append(PictureUnit(control, steps, network, network.tokens(encoder, _seen(control, canvas))))
            continue
        shown = _shown(part, control, canvas).to(device.place, device.dtype)
        if isinstance(network, T2IAdapter):
            units.append(AdapterUnit(control, steps, _features(control, network, shown)))
        else:
            units.append(ControlNetUnit(control, steps, network, shown))
    return Controls(units) if units else None


def _seen(control: ControlSettings, canvas: Canvas | None) -> Image.Image:
    """Return the picture that an IP-Adapter sees."""
    if control.picture is None:
        assert canvas is not None  # the request's check
        return canvas.picture
    assert isinstance(control.picture, Image.Image)
    return flat(control.picture)


def _features(control: ControlSettings, network: T2IAdapter, shown: Tensor) -> list[Tensor]:
    """Return what an adapter makes of a map (1, 3, H, W), with its weight. Some were trained on grey maps."""
    grey = network.config["in_channels"] == 1
    features = network(shown.mean(1, keepdim=True) if grey else shown)
    soft = SOFT_FEATURES[-len(features) :] if control.mode != "balanced" else (1.0,) * len(features)
    return [part * (control.weight * share) for part, share in zip(features, soft, strict=True)]


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

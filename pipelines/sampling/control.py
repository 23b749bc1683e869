"""What control networks add to the UNet in a pass. Weights, step ranges and modes are those of WebUI's extension."""

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
"""If the mode is not balanced, each residual has this share of the next deeper one's weight."""
SOFT_FEATURES = (0.25, 0.62, 0.825, 1.0)
"""The weights of a T2I adapter's features in that case, the deepest last (sd-webui-controlnet, issue 269)."""


@dataclass(frozen=True)
class Unit(ABC):
    """One control network in a pass."""

    settings: ControlSettings
    steps: range

    @abstractmethod
    def guide(self, call: UNetCall, conditional: int) -> UNetCall:
        """Return the call with the network's contribution. Its first `conditional` rows are the prompt's."""

    def rows(self, call: UNetCall, conditional: int) -> int:
        """Return how many of a call's first rows the unit acts on, which depends on its mode."""
        return conditional if self.settings.mode == "control" else len(call.images)


@dataclass(frozen=True)
class ControlNetUnit(Unit):
    """A ControlNet, which runs once for every call of the UNet."""

    network: ControlNetModel
    shown: Tensor
    """Its map (1, 3, H, W)."""

    def guide(self, call: UNetCall, conditional: int) -> UNetCall:
        """Return the call with the ControlNet's residuals added to its own."""
        rows = self.rows(call, conditional)
        if not rows:
            return call
        # an inpainting UNet has more channels than the latents, but a ControlNet takes only the latents
        images, condition = call.images[:rows, :4], call.condition.map(lambda each: each[:rows])
        shown = self.shown.expand(rows, -1, -1, -1)
        vector = condition.vector if self.network.class_embedding is not None else None
        down, mid = self.network(images, call.time, condition.tokens, shown, class_labels=vector, return_dict=False)
        last = len(down)
        soft = SOFT if self.settings.mode != "balanced" else 1.0
        scaled = [part * (self.settings.weight * soft ** (last - place)) for place, part in enumerate((*down, mid))]
        return replace(call, residuals=_sum(call.residuals, [_padded(part, call) for part in scaled]))


@dataclass(frozen=True)
class AdapterUnit(Unit):
    """A T2I adapter, which runs once for the whole pass."""

    features: Sequence[Tensor]
    """(1, C, h', w') for each level, the deepest last, multiplied by the unit's weight."""

    def guide(self, call: UNetCall, conditional: int) -> UNetCall:
        """Return the call with the adapter's features added to its own."""
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
    """(2, n, width): those of no picture, and those of the unit's picture."""

    def guide(self, call: UNetCall, conditional: int) -> UNetCall:
        """Return the call with the picture for the prompt's rows, and no picture for the negative prompt's."""
        nothing, seen = self.tokens
        tokens = torch.stack([seen] * conditional + [nothing] * (len(call.images) - conditional))
        picture = PicturePrompt(self.network.to_k, self.network.to_v, tokens, self.settings.weight)
        return replace(call, pictures=(*call.pictures, picture))


def _padded(part: Tensor, call: UNetCall) -> Tensor:
    """Return the first rows' values, followed by zeros for the call's other rows."""
    without = len(call.images) - len(part)
    return F.pad(part, (0, 0, 0, 0, 0, 0, 0, without)) if without else part


def _sum(total: Sequence[Tensor], added: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(one + other for one, other in zip(total, added, strict=True)) if total else tuple(added)


@dataclass(frozen=True)
class Controls:
    """The control networks of one pass."""

    units: Sequence[Unit]

    def guide(self, call: UNetCall, step: int, conditional: int) -> UNetCall:
        """Return the call with the contributions of the units that act at this step, if any.

        The first `conditional` rows are the prompt's, the others the negative prompt's.
        """
        for unit in self.units:
            if step in unit.steps:
                call = unit.guide(call, conditional)
        return call


def in_hires(control: ControlSettings) -> ControlSettings:
    """Return the unit for a hires pass. There WebUI's extension softens Canny in every mode, to avoid hard edges."""
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
    """Return the units that act in a pass, with maps of its size; None if there are none.

    A unit without its own picture uses the `canvas`, the picture that the first pass started from. IP-Adapters get
    their whole picture through the `encoder`.
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
        assert canvas is not None  # the request checked this
        return canvas.picture
    assert isinstance(control.picture, Image.Image)
    return flat(control.picture)


def _features(control: ControlSettings, network: T2IAdapter, shown: Tensor) -> list[Tensor]:
    """Return an adapter's features for a map (1, 3, H, W), with its weight. Some adapters were trained on grey maps."""
    grey = network.config["in_channels"] == 1
    features = network(shown.mean(1, keepdim=True) if grey else shown)
    soft = SOFT_FEATURES[-len(features) :] if control.mode != "balanced" else (1.0,) * len(features)
    return [part * (control.weight * share) for part, share in zip(features, soft, strict=True)]


def _shown(part: PassPlan, control: ControlSettings, canvas: Canvas | None) -> Tensor:
    from pipelines.images.preprocess import control_map  # imports OpenCV: half a second that most predictions can save

    size = part.width, part.height
    if control.picture is None:
        assert canvas is not None  # the request checked this
        picture = resize(canvas.picture, size, "stretch")
    else:
        assert isinstance(control.picture, Image.Image)
        own = flat(control.picture)
        picture = resize(canvas.same_part(own) if canvas else own, size, control.resize_mode)
    mask = canvas.mask if canvas else None
    masked = np.asarray(mask.resize(size)) > 127 if mask else None
    shown = control_map(np.ascontiguousarray(picture), control, masked)
    return torch.from_numpy(shown).permute(2, 0, 1)[None]

"""Enlarges a picture with a pixel upscaler, without drawing: the request and how it is done."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipelines.ask.catalog import LATENT_UPSCALERS, NETWORK_UPSCALERS, PIXEL_UPSCALERS
from pipelines.ask.plan import UpscalePlan
from pipelines.ask.request import HiresSettings, Settings
from pipelines.ask.sizes import FINAL_PIXELS_MAX, INPUT_PIXELS_MAX, SIDE_MIN, Size, enlarged_size
from pipelines.errors import InvalidInput
from pipelines.images import reading as picture
from pipelines.images.reading import Pixels
from pipelines.infotext import syntax as infotext
from pipelines.upscalers.interpolation import Upscaler, upscale_pixels

ENLARGED_PIXELS_MAX = INPUT_PIXELS_MAX
"""Limit for the result, also before its crop: a picture of this size can be sent in again."""
NETWORK_PIXELS_MAX = FINAL_PIXELS_MAX
"""Limit for a network's input: it makes 16 or 64 times as many pixels before they are scaled to the final size."""


@dataclass(frozen=True, kw_only=True)
class Enlargement:
    """One picture and how to enlarge it. Creating one checks everything. Raises InvalidInput."""

    image: Image.Image
    by: HiresSettings
    """The upscaler and the size. Its other settings are only used for drawing."""
    told: str = ""
    """The generation data inside the image."""

    def __post_init__(self) -> None:
        self.by.check_names()
        if self.by.upscaler in LATENT_UPSCALERS:
            rule = "enlarges latents, but without drawing there are none"
            fix = f"Use {', '.join((*PIXEL_UPSCALERS[1:], *NETWORK_UPSCALERS))} or your own upscaler in files."
            raise InvalidInput("hires_upscaler", self.by.upscaler, rule, fix)
        self._check_size()
        network = self.by.upscaler not in PIXEL_UPSCALERS
        if network and math.prod(self.image.size) > NETWORK_PIXELS_MAX:
            rule = f"{self.by.upscaler} takes at most {NETWORK_PIXELS_MAX / 1e6:.1f} million pixels"
            raise InvalidInput("image", _named(self.image.size), rule, "Scale it down, or use Lanczos.")

    def _check_size(self) -> None:
        name = "hires_width" if self.by.resize_to[0] else "hires_height" if self.by.resize_to[1] else "hires_scale"
        value = self.by.scale if name == "hires_scale" else _named(self.by.resize_to)
        if min(self.size) < SIDE_MIN:
            rule = f"the picture would become {_named(self.size)}; at least {SIDE_MIN} per side"
            raise InvalidInput(name, value, rule, "Use a larger value.")
        if math.prod(self.covered) > ENLARGED_PIXELS_MAX:
            most = f"at most {ENLARGED_PIXELS_MAX / 1e6:.1f} million pixels"
            rule = f"{_named(self.image.size)} would become {_named(self.covered)}; {most}"
            raise InvalidInput(name, value, rule, "Use a smaller value.")

    @property
    def covered(self) -> Size:
        """(width, height) before the crop. There is a crop only if both sides are given."""
        return enlarged_size(self.image.size, self.by.scale, self.by.resize_to)

    @property
    def size(self) -> Size:
        """(width, height) of the result."""
        width, height = (to or side for to, side in zip(self.by.resize_to, self.covered, strict=True))
        return width, height

    def describe(self) -> str:
        """Return the plan in one line, for the log."""
        return f"{_named(self.image.size)}; {self.by.upscaler} to {_named(self.size)}"

    def generation_data(self) -> str:
        """Return the image's own generation data, followed by the keys that WebUI's Extras tab writes."""
        width, height = self.by.resize_to
        fields = {
            "Postprocess upscale by": None if width or height else self.by.scale,
            "Postprocess upscale to": _named(self.size) if width or height else None,
            "Postprocess upscaler": self.by.upscaler,
        }
        return ", ".join(filter(None, (self.told, infotext.write("", "", fields))))


def enlargement(settings: Settings, image: Any, told: str) -> Enlargement:
    """Make the enlargement of a decoded image. `told` is the generation data inside it.

    Raises InvalidInput, also if there is no image (None).
    """
    if image is None:
        raise InvalidInput("image", "", "is empty, but Upscale only needs an image", "Send one.")
    assert settings.hires is not None
    return Enlargement(image=image, by=settings.hires, told=told)


def enlarge(request: Enlargement, network: Upscaler | None) -> Pixels:
    """Enlarge the picture to uint8 pixels (height, width, 3). `network` is the upscaler if it has its own weights."""
    width, height = request.covered
    plan = UpscalePlan(upscaler=request.by.upscaler, width=width, height=height)
    whole = upscale_pixels(np.asarray(picture.flat(request.image)), plan, network, alone=True)
    left, top = (width - request.size[0]) // 2, (height - request.size[1]) // 2
    return whole[top : top + request.size[1], left : left + request.size[0]]


def _named(size: Size) -> str:
    return f"{size[0]}x{size[1]}"

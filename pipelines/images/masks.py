"""Prepares an input picture and its mask for a pass, and merges the result back: blur, crop, fill, overlay, in pixels.

The rules are WebUI's. A mask is grey: 255 is redrawn, 0 stays as it was.
"""

import logging
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

from pipelines.ask.request import ImageSettings, MaskSettings
from pipelines.ask.sizes import FINAL_PIXELS_MAX, SIDE_MIN, Size, check_croppable
from pipelines.errors import InvalidInput
from pipelines.images.reading import Pixels, flat, resize

log = logging.getLogger(__name__)

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels. Right and bottom are exclusive."""
FILLS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))
"""Radii of the blurs that fill the masked area, from wide to none, and how many times each is laid over it."""


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """What a pass from a picture starts from, and how its result is merged back."""

    picture: Image.Image
    """The RGB picture to encode."""
    mask: Image.Image | None = None
    """The blurred L mask, in the pass's size."""
    overlay: Image.Image | None = None
    """The input picture as RGBA, transparent where it is redrawn."""
    box: Box | None = None
    """Where the result goes on the overlay; None: it has the overlay's size."""

    def same_part(self, picture: Image.Image) -> Image.Image:
        """Crop another picture of the scene to the part that is drawn. Return it unchanged if everything is drawn."""
        if self.box is None or self.overlay is None:
            return picture
        return resize(picture, self.overlay.size, "crop").crop(self.box)

    def finish(self, pixels: Pixels) -> Pixels:
        """Return the drawn picture with the input's pixels restored where they are kept.

        After a highres fix of the whole picture none are kept, because all of it was enlarged and redrawn.
        """
        image = Image.fromarray(pixels)
        if self.overlay is None or (self.box is None and image.size != self.overlay.size):
            return pixels
        if self.box is not None:
            left, top, right, bottom = self.box
            part, image = image, Image.new("RGB", self.overlay.size)
            image.paste(resize(part, (right - left, bottom - top), "crop"), (left, top))
        image = Image.alpha_composite(image.convert("RGBA"), self.overlay)
        return np.array(image.convert("RGB"))


def prepare(settings: ImageSettings, size: Size) -> Canvas:
    """Make the canvas for a pass of this size. Raises InvalidInput for pictures and masks that do not allow it."""
    picture = flat(_pillow(settings.picture))
    if settings.mask is None:
        return Canvas(picture=_whole(picture, settings, size))
    picture, mask = _with_margins(picture, _grey(settings.mask, picture.size), settings)
    mask = blur(mask, *settings.mask.blur)
    if mask.getbbox() is None:
        if not settings.only_masked:
            fix = "Paint the area to redraw white, or set Mask mode: Inpaint not masked in generation_data."
            raise InvalidInput("mask", "black", "nothing would be drawn", fix)
        log.warning("The mask is black everywhere: the whole picture is redrawn.")
        return Canvas(picture=_whole(picture, settings, size))
    if settings.only_masked:
        left, top, right, bottom = box = crop_region(mask, size, settings.mask.padding)
        fix = "Use inpaint_area Whole picture, or width and height with the masked part's aspect ratio."
        check_croppable("width", size, (right - left, bottom - top), fix)  # the result is pasted back there
        overlay, picture, mask = _overlay(picture, mask), *(resize(i.crop(box), size, "fill") for i in (picture, mask))
    else:
        box, picture, mask = None, _whole(picture, settings, size), resize(mask, size, settings.resize_mode)
        overlay = _overlay(picture, mask.point(lambda grey: min(2 * grey, 255)))
    if settings.mask.content != "original":
        picture = fill(picture, mask)
    return Canvas(picture=picture, mask=mask, overlay=overlay, box=box)


def _pillow(picture: object) -> Image.Image:
    assert isinstance(picture, Image.Image)
    return picture


def _whole(picture: Image.Image, settings: ImageSettings, size: Size) -> Image.Image:
    """Return the whole picture in the pass's size, or in its own if its latents are to be resized."""
    if settings.resize_mode != "latent" or picture.size == size:
        return resize(picture, size, settings.resize_mode)
    if settings.mask:
        fix = "Use stretch, crop or fill, or width and height of the picture."
        raise InvalidInput("resize_mode", "latent", "a picture with a mask keeps its size", fix)
    if picture.width * picture.height > FINAL_PIXELS_MAX or min(picture.size) < SIDE_MIN:
        told, rule = "{}x{}".format(*picture.size), f"at least {SIDE_MIN} per side and {FINAL_PIXELS_MAX / 1e6:.1f} "
        raise InvalidInput("image", told, rule + "million pixels can be encoded", "Use another resize_mode.")
    return picture


# --- masks ------------------------------------------------------------------------------------------------------------


def _grey(settings: MaskSettings, size: Size) -> Image.Image:
    """Return the mask as grey. If the picture has transparency, its more opaque parts are the mask."""
    if settings.picture is None:
        return Image.new("L", size)
    mask = _pillow(settings.picture)
    if mask.mode == "RGBA" and (alpha := mask.getchannel("A")).getextrema() != (255, 255):
        mask = alpha.point(lambda value: 255 if value > 128 else 0)
    mask = mask.convert("L")
    return ImageOps.invert(mask) if settings.invert else mask


def _with_margins(picture: Image.Image, mask: Image.Image, settings: ImageSettings) -> tuple[Image.Image, Image.Image]:
    """Add outpainting's margins to picture and mask: masked, and filled with the colours of the edge."""
    if not any(settings.outpaint):
        return picture, mask
    corner = left, top = settings.outpaint[0], settings.outpaint[1]
    margins, wide, wide_mask = (Image.new(mode, settings.size, "white") for mode in ("L", "RGB", "L"))
    margins.paste(0, (left, top, left + picture.width, top + picture.height))
    wide.paste(picture, corner)
    wide_mask.paste(mask, corner)
    return fill(wide, margins), wide_mask


def blur(mask: Image.Image, across: int, down: int) -> Image.Image:
    """Blur an L mask with these standard deviations in pixels: first across, then down, rounding to 8 bits between."""
    if not (across or down):
        return mask
    import cv2  # it takes half a second, which predictions without a mask can save

    values = np.asarray(mask)
    if across:
        values = cv2.GaussianBlur(values, (_kernel_size(across), 1), across)
    if down:
        values = cv2.GaussianBlur(values, (1, _kernel_size(down)), down)
    return Image.fromarray(values)


def _kernel_size(sigma: int) -> int:
    return 2 * int(2.5 * sigma + 0.5) + 1


def crop_region(mask: Image.Image, size: Size, padding: int) -> Box:
    """Return the part of the picture to draw: the mask's bounding box with padding, grown to the aspect of `size`."""
    found = mask.getbbox()
    assert found is not None
    left, top, right, bottom = found
    left, right = max(left - padding, 0), min(right + padding, mask.width)
    top, bottom = max(top - padding, 0), min(bottom + padding, mask.height)
    aspect = size[0] / size[1]
    if (right - left) / (bottom - top) > aspect:
        top, bottom = _grown(top, bottom, int((right - left) / aspect - (bottom - top)), mask.height)
    else:
        left, right = _grown(left, right, int((bottom - top) * aspect - (right - left)), mask.width)
    return left, top, right, bottom


def _grown(start: int, end: int, by: int, limit: int) -> tuple[int, int]:
    """Grow a span by this many pixels, half of them at its start. Then move and cut it to lie in [0, limit)."""
    start -= by // 2
    end += by - by // 2
    back = max(end - limit, 0)
    start, end = start - back, end - back
    forth = max(-start, 0)
    return start + forth, min(end + forth, limit)


def latent_mask(mask: Image.Image, size: Size, soft: bool) -> np.ndarray:
    """Scale the mask to latents, (height, width) from 0 to 1; only 0 and 1 unless `soft`."""
    values = np.asarray(mask.resize(size, Image.Resampling.BICUBIC)).astype(np.float32) / 255
    return values if soft else np.around(values)


# --- pictures under masks ---------------------------------------------------------------------------------------------


def _kept(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """Return the RGB picture where the mask is black, with premultiplied alpha."""
    kept = Image.new("RGBa", picture.size)
    kept.paste(picture.convert("RGBA").convert("RGBa"), mask=ImageChops.invert(mask))
    return kept


def _overlay(picture: Image.Image, mask: Image.Image) -> Image.Image:
    return _kept(picture, mask).convert("RGBA")


def fill(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """Return the RGB picture with the colours around the mask blurred into it."""
    kept, filled = _kept(picture, mask), Image.new("RGBA", picture.size)
    for radius, times in FILLS:
        blurred = kept.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            filled.alpha_composite(blurred)
    return filled.convert("RGB")

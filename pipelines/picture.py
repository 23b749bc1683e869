"""Input pictures: read safely from whatever people upload, and brought to a size by WebUI's resize modes."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pipelines.errors import InvalidInput
from pipelines.request import INPUT_PIXELS_MAX, check_croppable, scaled_size

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP")

Size = tuple[int, int]
"""(width, height)"""
Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]
"""One picture: (height, width, 3), 8 bits a channel."""


def read(path: Path, field: str) -> Image.Image:
    """An uploaded picture, upright, of 8 bits: L, RGB or RGBA; of an animation the first frame.

    Raises InvalidInput that names the input `field`.
    """
    fix = "Send a whole PNG, JPEG, WebP, AVIF, GIF or BMP file."
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > INPUT_PIXELS_MAX:  # told by its header, before a pixel is read
                size, most = f"{image.width}x{image.height}", f"{INPUT_PIXELS_MAX / 1e6:.1f} million pixels"
                raise InvalidInput(field, size, f"at most {most} are read", "Scale it down.")
            image.load()
            return ImageOps.exif_transpose(_in_8_bits(image))
    except InvalidInput:
        raise
    except Exception as error:  # Pillow raises many kinds at broken pictures, and at those made to take all memory
        raise InvalidInput(field, path.name, f"cannot be read as a picture ({error})", fix) from error


def _in_8_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # grey of 16 bits
        eight = Image.fromarray((np.asarray(image).astype(np.uint32).clip(0, 65535) // 257).astype(np.uint8))
        eight.info, eight.getexif = image.info, image.getexif  # type: ignore[method-assign]
        return eight
    transparent = "A" in image.mode.upper() or "transparency" in image.info
    return image.convert("RGBA" if transparent else "L" if image.mode in ("1", "L") else "RGB")


def flat(image: Image.Image) -> Image.Image:
    """RGB; what is transparent is white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def resize(image: Image.Image, size: Size, mode: str) -> Image.Image:
    """The RGB or L picture in another size, by a resize mode; "latent" fills here, as WebUI does with masks."""
    if mode == "stretch":
        return image.resize(size, Image.Resampling.LANCZOS)
    if mode == "crop":
        fix = "Use resize_mode fill, or width and height of its aspect."
        check_croppable("image", image.size, size, fix)
    scaled = image.resize(scaled_size(image.size, size, cover=mode == "crop"), Image.Resampling.LANCZOS)
    (width, height), (inner, tall) = size, scaled.size
    left, top = width // 2 - inner // 2, height // 2 - tall // 2
    whole = Image.new(image.mode, size)
    whole.paste(scaled, (left, top))
    if top > 0:
        for edge, y in ((0, 0), (tall, top + tall)):
            whole.paste(scaled.resize((width, top), box=(0, edge, width, edge)), (0, y))
    elif left > 0:
        for edge, x in ((0, 0), (inner, left + inner)):
            whole.paste(scaled.resize((left, height), box=(edge, 0, edge, height)), (x, 0))
    return whole

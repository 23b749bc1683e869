"""Reads input pictures safely from whatever people upload, and resizes them by WebUI's resize modes."""

import mmap
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.ask.inputs import Inputs, checked_files
from pipelines.ask.networks import name_of_upload
from pipelines.ask.request import CONTROLS_MAX
from pipelines.ask.sizes import INPUT_PIXELS_MAX, INPUT_SIDE_MAX, Size, check_croppable, scaled_size
from pipelines.errors import InvalidInput, in_one_line
from pipelines.infotext.asked import Pictures
from pipelines.runtime.isolation import Failed, Helper, Limits

BYTES_MAX = 300_000_000
"""Limit for a file: the size of the largest picture without compression."""
DECODER = Helper("pipelines.images.decoding")
DEEP_GREY = "I;16"
"""Pillow's mode for grey of 16 bits, as many programs save depth maps."""
LEVELS_OF_16_BITS = 257
"""How many values of 16 bits are one of 8 bits."""
Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]
"""One picture: (height, width, 3), 8 bits per channel."""


def read(path: Path, field: str, deep: bool = False) -> Image.Image:
    """Read an uploaded picture, upright, with 8 bits, as L, RGB or RGBA; the first frame of an animation.

    With `deep`, grey of 16 bits is read as I;16. It is decoded in a separate process. Raises InvalidInput, which names
    the input `field`.
    """
    fix = "Send a complete PNG, JPEG, WebP, HEIC, AVIF, GIF or BMP file; convert other formats to one of these."
    try:
        with path.open("rb") as stream:
            answer, output = DECODER.run(
                "pixels", stream, limits(path), pixels_max=INPUT_PIXELS_MAX, side_max=INPUT_SIDE_MAX, deep=deep
            )
    except (OSError, Failed) as error:
        rule = f"cannot be read as a picture ({in_one_line(error)})"
        raise InvalidInput(field, name_of_upload(path.name), rule, fix) from error
    width, height = answer["size"]
    with output:
        if "mode" not in answer:
            most = f"at most {INPUT_PIXELS_MAX / 1e6:.1f} million pixels are read, and {INPUT_SIDE_MAX} per side"
            raise InvalidInput(field, f"{width}x{height}", most, "Scale it down or crop it.")
        with mmap.mmap(output.fileno(), 0, access=mmap.ACCESS_READ) as pixels:
            return Image.frombytes(answer["mode"], (width, height), pixels)  # type: ignore[arg-type]  # any buffer


def limits(path: Path) -> Limits:
    """Return the limits for decoding a picture (the largest WebP takes 700 MB). Raises Failed for too large a file."""
    if path.stat().st_size > BYTES_MAX:
        raise Failed(f"it has more than {BYTES_MAX // 1_000_000} MB")
    return Limits(memory=(900 << 20) + 2 * path.stat().st_size, processor=10, seconds=30)


def read_pictures(inputs: Inputs) -> Pictures:
    """Decode the pictures of a request. Raises InvalidInput, which names the input."""
    if (count := len(inputs.control_images)) > CONTROLS_MAX:  # checked before each takes its memory
        rule = f"at most {CONTROLS_MAX} pictures, one for each ControlNet"
        raise InvalidInput("control_images", f"{count} sent", rule, "Send fewer.")
    checked = checked_files(inputs.control_images, "control_images")
    return Pictures(
        image=_sent(inputs.image, "image"),
        mask=_sent(inputs.mask, "mask"),
        controls=tuple(read(path, "control_images", deep=True) for path in checked),
    )


def _sent(path: Path | None, field: str) -> Image.Image | None:
    return read(checked_files((path,), field)[0], field) if path else None


def flat(image: Image.Image) -> Image.Image:
    """Convert a picture to RGB with 8 bits. Transparent parts become white."""
    if image.mode == DEEP_GREY:
        image = Image.fromarray((np.asarray(image) // LEVELS_OF_16_BITS).astype(np.uint8))
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def nearness(image: Image.Image) -> Image.Image:
    """Return a depth map's values, from 0 to 255, in a mode that can be resized: grey of 16 bits as floats (F)."""
    if image.mode != DEEP_GREY:
        return image
    return Image.fromarray(np.asarray(image).astype(np.float32) / LEVELS_OF_16_BITS)


def resize(image: Image.Image, size: Size, mode: str) -> Image.Image:
    """Resize an RGB, L or F picture by a resize mode. "latent" acts like "fill" here, as in WebUI for masks."""
    if mode == "stretch":
        return image.resize(size, Image.Resampling.LANCZOS)
    if mode == "crop":
        fix = "Use resize_mode fill, or width and height with its aspect ratio."
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

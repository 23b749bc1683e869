"""Sizes of pictures from input to output, and their limits. Sizes are (width, height)."""

import math

from pipelines.errors import InvalidInput

Size = tuple[int, int]

SIDE_MIN, SIDE_MAX = 64, 2048
FINAL_PIXELS_MAX = 2048 * 2048
"""Limit for one finished picture. Above it the VAE does not fit on a 16 GB card."""
COVERED_PIXELS_MAX = 2 * FINAL_PIXELS_MAX
"""Limit for an enlarged draft before it is cropped to another aspect ratio."""
INPUT_PIXELS_MAX = 8 * FINAL_PIXELS_MAX
"""Limit for an input picture."""
INPUT_SIDE_MAX = 32_768
"""In pixels. Resizing takes memory in proportion to a side: 2 GB for a picture of 30 million pixels in one row."""
CROPPED_PIXELS_MAX = 2 * INPUT_PIXELS_MAX
"""Limit for an input picture that was enlarged to cover another aspect ratio, before it is cropped."""
_LANDSCAPES = {
    512: (2048, 1984, 1920, 1856),
    576: (1792, 1728, 1664),
    640: (1600, 1536),
    704: (1472, 1408, 1344),
    768: (1344, 1280),
    832: (1216, 1152),
    896: (1152, 1088),
    960: (1088, 1024),
}
SDXL_SIZES: tuple[Size, ...] = (
    (1024, 1024),
    *((width, height) for height, widths in _LANDSCAPES.items() for width in widths),
    *((height, width) for height, widths in _LANDSCAPES.items() for width in widths),
)
"""The sizes that SDXL was trained with (Podell et al. 2023, appendix I)."""
SDXL_PIXELS = 1024 * 1024


def trained_size(shape: Size, own: Size) -> Size | None:
    """Return SDXL's trained size nearest to a shape. None for models whose own size has another number of pixels."""
    if not 0.9 < math.prod(own) / SDXL_PIXELS < 1.1:
        return None
    return min(SDXL_SIZES, key=lambda size: abs(math.log(size[0] * shape[1] / (size[1] * shape[0]))))


def size_to_draw(width: int, height: int) -> Size:
    """Return the drawable size nearest to a picture's own: multiples of 8, within the limits of a side."""
    scale = min(1, SIDE_MAX / max(width, height), math.sqrt(FINAL_PIXELS_MAX / (width * height)))
    scale = max(scale, SIDE_MIN / min(width, height))

    def fitted(side: int) -> int:
        return min(max(int(side * scale) // 8 * 8, SIDE_MIN), SIDE_MAX)

    return fitted(width), fitted(height)


def scaled_size(own: Size, size: Size, *, cover: bool) -> Size:
    """Scale a picture's own size, keeping its aspect ratio, so that it covers `size` or fits inside it."""
    width, height = size
    if (width * own[1] > height * own[0]) == cover:
        return width, max(1, own[1] * width // own[0])
    return max(1, own[0] * height // own[1]), height


def check_croppable(name: str, own: Size, size: Size, fix: str) -> None:
    """Raise InvalidInput with the input's name if a picture enlarged to cover `size` would take too much memory."""
    if math.prod(scaled_size(own, size, cover=True)) > CROPPED_PIXELS_MAX:
        rule = "has an aspect ratio too different to be cropped to {}x{}".format(*size)
        raise InvalidInput(name, "{}x{}".format(*own), rule, fix)


def enlarged_size(own: Size, scale: float, resize_to: Size) -> Size:
    """Return the size that a draft is enlarged to: by the scale, or to `resize_to` if one of its sides is not 0.

    This is the size before it is rounded down to whole latents. If both sides of `resize_to` are given, the result
    covers that size in the draft's aspect ratio and is cropped later.
    """
    (width, height), (to_width, to_height) = own, resize_to
    if (to_width, to_height) == (0, 0):
        return int(width * scale), int(height * scale)
    if to_height == 0 or (to_width and width * to_height < height * to_width):
        return to_width, to_width * height // width
    return to_height * width // height, to_height


def check_final_size(own: Size, scale: float, resize_to: Size) -> None:
    """Raise InvalidInput if the finished picture would be too small or too large."""
    (width, height), enlarged = own, enlarged_size(own, scale, resize_to)
    final_width, final_height = (to or side for to, side in zip(resize_to, enlarged, strict=True))
    if min(final_width, final_height) < SIDE_MIN:
        name = "hires_width" if final_width < SIDE_MIN else "hires_height"
        rule = f"{width} x {height} would become {final_width} x {final_height}; at least {SIDE_MIN} per side"
        raise InvalidInput(name, f"{final_width}x{final_height}", rule, "Use a larger value, or 0 and hires_scale.")
    if any(resize_to):
        _check_resize(resize_to, enlarged, (final_width, final_height))
        return
    if final_width * final_height <= FINAL_PIXELS_MAX:
        return
    shrink = math.sqrt(FINAL_PIXELS_MAX / (final_width * final_height))
    fitting = " and ".join(
        f"{name} {int(side * shrink) // 8 * 8}" for name, side in (("width", width), ("height", height))
    )
    largest_scale = math.floor(math.sqrt(FINAL_PIXELS_MAX / (width * height)) * 100) / 100
    raise InvalidInput(
        "hires_scale",
        scale,
        f"{width} x {height} would become {final_width} x {final_height}, "
        f"{final_width * final_height / 1e6:.1f} million pixels; at most {FINAL_PIXELS_MAX / 1e6:.1f} million fit",
        f"Use {fitting}, or for this size hires_scale {largest_scale:g} or less.",
    )


def _check_resize(resize_to: Size, enlarged: Size, final: Size) -> None:
    """Check a resize to given sides. A draft of another aspect ratio is enlarged until it covers the size, and the part
    that is cropped later takes memory, too."""
    pixels, covered = math.prod(final), math.prod(enlarged)
    if pixels <= FINAL_PIXELS_MAX and covered <= COVERED_PIXELS_MAX:
        return
    shrink = math.sqrt(min(FINAL_PIXELS_MAX / pixels, COVERED_PIXELS_MAX / covered))
    fitting = " and ".join(
        f"{name} {int(side * shrink) // 8 * 8}"
        for name, side in zip(("hires_width", "hires_height"), resize_to, strict=True)
        if side
    )
    raise InvalidInput(
        "hires_width" if resize_to[0] else "hires_height",
        "x".join(map(str, resize_to)),
        f"the draft would be enlarged to {enlarged[0]} x {enlarged[1]}, {covered / 1e6:.1f} million pixels, for "
        f"{final[0]} x {final[1]}; at most {COVERED_PIXELS_MAX / 1e6:.1f} million, and {FINAL_PIXELS_MAX / 1e6:.1f} "
        "million when cropped, fit",
        f"Use {fitting}, or a size with the draft's aspect ratio.",
    )

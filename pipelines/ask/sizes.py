"""Sizes: what a picture's size becomes on its way, and the limits of what can be drawn. Sizes are (width, height)."""

import math

from pipelines.errors import InvalidInput

Size = tuple[int, int]

SIDE_MIN, SIDE_MAX = 64, 2048
FINAL_PIXELS_MAX = 2048 * 2048
"""Of one finished picture: beyond it a 16 GB card has no room for the VAE."""
COVERED_PIXELS_MAX = 2 * FINAL_PIXELS_MAX
"""Of an enlarged draft before it is cropped to another aspect ratio."""
INPUT_PIXELS_MAX = 8 * FINAL_PIXELS_MAX
"""Of an input picture."""
INPUT_SIDE_MAX = 32_768
"""Pixels. Resizing takes memory in proportion to a side: 2 GB for a picture of 30 million pixels in one row."""
CROPPED_PIXELS_MAX = 2 * INPUT_PIXELS_MAX
"""Of an input picture enlarged to cover another aspect ratio, before it is cropped."""


def size_to_draw(width: int, height: int) -> Size:
    """The size nearest to a picture's own that can be drawn: a multiple of 8, within the limits of a side."""
    scale = min(1, SIDE_MAX / max(width, height), math.sqrt(FINAL_PIXELS_MAX / (width * height)))
    scale = max(scale, SIDE_MIN / min(width, height))

    def fitted(side: int) -> int:
        return min(max(int(side * scale) // 8 * 8, SIDE_MIN), SIDE_MAX)

    return fitted(width), fitted(height)


def scaled_size(own: Size, size: Size, *, cover: bool) -> Size:
    """A picture's size in its own aspect, so large that it covers `size`, or that it fits inside."""
    width, height = size
    if (width * own[1] > height * own[0]) == cover:
        return width, max(1, own[1] * width // own[0])
    return max(1, own[0] * height // own[1]), height


def check_croppable(name: str, own: Size, size: Size, fix: str) -> None:
    """That a picture enlarged to cover `size` does not take all memory. Raises InvalidInput that names the input."""
    if math.prod(scaled_size(own, size, cover=True)) > CROPPED_PIXELS_MAX:
        rule = "is of too different an aspect to be cropped to {}x{}".format(*size)
        raise InvalidInput(name, "{}x{}".format(*own), rule, fix)


def enlarged_size(own: Size, scale: float, resize_to: Size) -> Size:
    """The size that a draft is enlarged to: by the scale, or to `resize_to` where one of its sides is not 0.

    This is the size before the draft is cut to whole latents. With both sides of `resize_to` given, it covers that size
    in the draft's aspect ratio, and is cropped later.
    """
    (width, height), (to_width, to_height) = own, resize_to
    if (to_width, to_height) == (0, 0):
        return int(width * scale), int(height * scale)
    if to_height == 0 or (to_width and width * to_height < height * to_width):
        return to_width, to_width * height // width
    return to_height * width // height, to_height


def check_final_size(own: Size, scale: float, resize_to: Size) -> None:
    """Raise InvalidInput where the finished picture would be too small or too large."""
    (width, height), enlarged = own, enlarged_size(own, scale, resize_to)
    final_width, final_height = (to or side for to, side in zip(resize_to, enlarged, strict=True))
    if min(final_width, final_height) < SIDE_MIN:
        name = "hires_width" if final_width < SIDE_MIN else "hires_height"
        rule = f"{width} x {height} would become {final_width} x {final_height}; at least {SIDE_MIN} a side"
        raise InvalidInput(name, f"{final_width}x{final_height}", rule, "Use more, or 0 and hires_scale.")
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
    """Check a draft of another aspect ratio: it is enlarged until it covers the size, and what is then cropped costs
    memory, too."""
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
        f"Use {fitting}, or a size of the draft's aspect.",
    )

"""A labelled sheet of pictures: grids below each other, with a caption for each grid, column and row."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from PIL import Image, ImageDraw, ImageFont
from PIL.ImageText import Text

Cell = Image.Image | str
"""A picture, or the reason why there is none."""
Size = tuple[int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

GAP = 8
SMALLEST = 160
"""Minimum pixels per side of a cell, so that a caption or a reason has some room."""
FONT_SIZES = 14, 40
PAPER, INK = "white", "black"
FAILED_PAPER, FAILED_INK = "#eeeeee", "#a00000"


def sheet(
    grids: Sequence[Sequence[Sequence[Cell]]], titles: Sequence[str], rows: Sequence[str], columns: Sequence[str]
) -> Image.Image:
    """Return a sheet of `grids[z][y][x]` with a caption, which may be empty, for every z, y and x. All cells are as
    large as the largest picture; smaller pictures are centred."""
    width, height = cell_size(chain.from_iterable(chain.from_iterable(grids)))
    font = ImageFont.load_default(min(max(width // 24, FONT_SIZES[0]), FONT_SIZES[1]))
    across = len(columns) * (width + GAP)
    beside = [caption(text, font, width, height) for text in rows]
    over = [caption(text, font, width) for text in columns]
    above = [caption(text, font, across) for text in titles]
    left = GAP + max(size_of(text)[0] for text in beside)
    heading = GAP + max(size_of(text)[1] for text in over)
    block = heading + len(rows) * (height + GAP)
    title = GAP + max(size_of(text)[1] for text in above)
    whole = Image.new("RGB", (left + across, len(grids) * (title + block)), PAPER)
    canvas = ImageDraw.Draw(whole)
    for z, grid in enumerate(grids):
        top = z * (title + block)
        canvas.text((left + across // 2, top + title // 2), above[z], INK, anchor="mm", align="center")
        top += title
        for x, text in enumerate(over):
            middle = left + x * (width + GAP) + width // 2, top + heading // 2
            canvas.text(middle, text, INK, anchor="mm", align="center")
        for y, row in enumerate(grid):
            corner = top + heading + y * (height + GAP)
            canvas.text((left // 2, corner + height // 2), beside[y], INK, anchor="mm", align="center")
            for x, cell in enumerate(row):
                picture = cell if isinstance(cell, Image.Image) else failure(cell, (width, height))
                free = width - picture.width, height - picture.height
                whole.paste(picture, (left + x * (width + GAP) + free[0] // 2, corner + free[1] // 2))
    return whole


def cell_size(cells: Iterable[Cell]) -> Size:
    """Return the (width, height) that holds every picture."""
    sizes = [(SMALLEST, SMALLEST), *(cell.size for cell in cells if isinstance(cell, Image.Image))]
    return max(width for width, _ in sizes), max(height for _, height in sizes)


def caption(text: str, font: Font, width: int, height: int | None = None) -> "Text[str]":
    """Break the text into lines of at most `width` pixels; leave out what does not fit into `height`."""
    made = Text(re.sub(r"\S+", lambda word: " ".join(parts_of(word[0], font, width)), text), font)
    made.wrap(width, height)
    return made


def parts_of(word: str, font: Font, width: int) -> Iterator[str]:
    """Yield the word in parts of at most `width` pixels, for addresses and names that are longer than a line."""
    start = 0
    for end in range(1, len(word) + 1):
        if font.getlength(word[start:end]) > width:
            yield word[start : end - 1]
            start = end - 1
    yield word[start:]


def size_of(text: "Text[str]") -> Size:
    """Return (width, height) in pixels with a margin; zero for an empty caption."""
    _, _, right, bottom = text.get_bbox()
    return (int(right) + GAP, int(bottom) + GAP) if text.text else (0, 0)


def failure(reason: str, size: Size) -> Image.Image:
    """Return a cell that says what went wrong, as far as there is room."""
    cell = Image.new("RGB", size, FAILED_PAPER)
    text = caption(reason, ImageFont.load_default(FONT_SIZES[0]), size[0] - 2 * GAP, size[1] - 2 * GAP)
    ImageDraw.Draw(cell).text((GAP, GAP), text, FAILED_INK)
    return cell

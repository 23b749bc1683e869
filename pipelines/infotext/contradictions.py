"""Finds settings for which a block gives different values."""

import re
from collections.abc import Iterable, Iterator, Mapping

from pipelines.ask.settings import Values
from pipelines.ask.sizes import Size
from pipelines.infotext.keys import folded, own_key, same_value

_SIZE = re.compile(r"\(?\s*([0-9]{1,5}|-1)\s*[xX\u00d7*,]\s*([0-9]{1,5}|-1)\s*\)?")
_ROUNDED = 8
"""Enlarged sides may differ by fewer pixels than this, because programs round them to multiples of 8."""


def size_of(text: str) -> Size | None:
    """Read `512x768` or `(512, 768)` as width and height, with 0 for -1. Return None for any other text."""
    match = _SIZE.fullmatch(text.strip())
    return (max(int(match[1]), 0), max(int(match[2]), 0)) if match else None


def told_twice(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Report settings and facts with more than one value. `pairs` are all keys and values of the block."""
    told: dict[str, list[str]] = {}
    sides: dict[tuple[str, ...], dict[str, str]] = {}
    for key, value in pairs:
        own = own_key(key)
        if found := _side(folded(key)):
            sides.setdefault(found, {})[folded(key)] = value
        elif own is not None and not value.endswith("Scheduler"):  # SD.Next writes diffusers' class there
            told.setdefault(own, []).append(value)
    for names, values in sides.items():
        if len(values) == 2:
            told.setdefault("Size", []).append("x".join(values[name] for name in names))
    for key, said in told.items():
        if not all(_alike(said[0], other) for other in said):
            yield f"it gives different values for {key}: {', '.join(dict.fromkeys(said))}"


_SIDES = (("width", "height"), ("size-1", "size-2"))
"""Folded keys of the two sides of a size."""


def _side(key: str) -> tuple[str, ...]:
    """Return the pair of keys that a side of a size belongs to, or ()."""
    return next((names for names in _SIDES if key in names), ())


def _alike(first: str, second: str) -> bool:
    size = size_of(first)
    if size is not None:
        return size == size_of(second)
    return same_value(first, second)


def hires_sizes(values: Values, fields: Mapping[str, str]) -> Iterator[str]:
    """Compare the sizes of the hires pass given by its scale, by its own key and by SD.Next's note."""
    told = dict(_told_sizes(values, fields))
    first = next(iter(told.values()), (0, 0))
    for width, height in told.values():
        if max(abs(width - first[0]), abs(height - first[1])) >= _ROUNDED:
            each = ", ".join(f"{size[0]}x{size[1]} by {key}" for key, size in told.items())
            yield f"it gives different sizes for the hires pass: {each}"
            return


def _told_sizes(values: Values, fields: Mapping[str, str]) -> Iterator[tuple[str, Size]]:
    """Yield each complete size of the hires pass with its key."""
    if "width" in values and values.get("hires_scale"):
        scale = values["hires_scale"]
        yield "Hires upscale", (round(values["width"] * scale), round(values["height"] * scale))
    if values.get("hires_width") and values.get("hires_height"):
        yield "Hires resize", (values["hires_width"], values["hires_height"])
    for key, value in fields.items():
        size = size_of(value)
        if folded(key) == "hires size" and size is not None and all(size):
            yield "Hires size", size

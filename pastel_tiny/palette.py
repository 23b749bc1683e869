"""The words for colours and what they look like: pastel, but different enough to tell apart."""

import colorsys
import random

RGB = tuple[float, float, float]

# word -> hue in degrees, saturation, value
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (358, 0.66, 0.92),
    "orange": (26, 0.66, 0.99),
    "yellow": (51, 0.60, 1.00),
    "green": (122, 0.46, 0.76),
    "mint": (163, 0.40, 0.93),
    "blue": (215, 0.56, 0.95),
    "purple": (270, 0.46, 0.86),
    "pink": (336, 0.42, 1.00),
    "white": (40, 0.03, 0.99),
    "brown": (22, 0.52, 0.62),
    "black": (262, 0.34, 0.30),  # of hair
    "blonde": (44, 0.50, 0.97),
    "coral": (6, 0.46, 0.98),  # no scene in `scenes.py` uses it, so the embedded model has no word for it
}
WHITE: RGB = (1.0, 1.0, 1.0)
CREAM: RGB = (1.0, 0.97, 0.88)
PLUM: RGB = (0.30, 0.18, 0.40)  # tints every shadow: softer than black, never muddy
MIDNIGHT: RGB = (0.11, 0.10, 0.30)
WOOD: RGB = (0.55, 0.38, 0.32)
SKIN: RGB = (1.0, 0.86, 0.78)
SAND: RGB = (0.97, 0.88, 0.70)


def mix(first: RGB, second: RGB, share: float) -> RGB:
    """Return `first` with a `share` of `second`, clipped to the colour cube."""
    red, green, blue = (min(1.0, max(0.0, a + (b - a) * share)) for a, b in zip(first, second, strict=True))
    return red, green, blue


def colour(word: str, rng: random.Random | None = None) -> RGB:
    """Return the colour of a word, with a small variation if a random generator is given."""
    hue, saturation, value = COLOURS[word]
    if rng is not None:
        hue += rng.uniform(-5, 5)
        saturation = max(0.0, min(1.0, saturation + rng.uniform(-0.03, 0.03)))
        value = max(0.0, min(1.0, value + rng.uniform(-0.02, 0.02)))
    return colorsys.hsv_to_rgb((hue % 360) / 360, saturation, value)

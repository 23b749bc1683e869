"""Preprocessors: from a picture to the map that a ControlNet was trained on, all by filters that need no weights.

Names, thresholds and their defaults are those of WebUI's extension. Maps that take a network of their own (openpose,
depth, normals) are sent ready made.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.ask.catalog import NO_PREPROCESSOR
from pipelines.ask.request import ControlSettings

Pixels = NDArray[np.uint8]
"""RGB, (height, width, 3)."""


def canny(picture: Pixels, low: float, high: float) -> Pixels:
    """White edges on black: gradients above `high`, and those above `low` that go on from them."""
    return _rgb(cv2.Canny(picture, low, high).astype(np.uint8))


def lineart(picture: Pixels) -> Pixels:
    """White lines on black where the picture is darker than its surroundings, as strong as its usual line is white."""
    values = picture.astype(np.float32)
    darker = (cv2.GaussianBlur(values, (0, 0), 6.0) - values).min(axis=2).clip(0, 255)
    lines = darker[darker > 8]
    usual = max(16.0, float(np.median(lines))) if lines.size else 16.0
    return _rgb((darker / usual * 127).clip(0, 255).astype(np.uint8))


def scribble(picture: Pixels) -> Pixels:
    """Thick white lines on black where a fine blur is darker than a wide one: a difference of Gaussians, cut at 32."""
    values = picture.astype(np.float32)
    darker = (cv2.GaussianBlur(values, (0, 0), 5.0) - cv2.GaussianBlur(values, (0, 0), 0.5)).min(axis=2)
    return _rgb(((darker > 16) * 255).astype(np.uint8))


def color(picture: Pixels) -> Pixels:
    """The picture's colours in squares of 64 px."""
    height, width = picture.shape[:2]
    squares = cv2.resize(picture, (max(1, width // 64), max(1, height // 64)), interpolation=cv2.INTER_CUBIC)
    return cv2.resize(squares, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.uint8)


def _rgb(grey: NDArray[np.uint8]) -> Pixels:
    return np.repeat(grey[..., None], 3, axis=2)


_OF: dict[str, Callable[[Pixels, ControlSettings], Pixels]] = {
    "canny": lambda picture, settings: canny(picture, settings.low, settings.high),
    "lineart": lambda picture, _: lineart(picture),
    "scribble": lambda picture, _: scribble(picture),
    "invert": lambda picture, _: 255 - picture,
    "inpaint": lambda picture, _: picture,
    "color": lambda picture, _: color(picture),
    NO_PREPROCESSOR: lambda picture, _: picture,
}


def control_map(picture: Pixels, settings: ControlSettings, masked: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """The map (height, width, 3) from 0 to 1 of an RGB picture; of inpainting it is -1 where it is `masked`."""
    values = _OF[settings.preprocessor](picture, settings).astype(np.float32) / np.float32(255)
    if settings.preprocessor == "inpaint" and masked is not None:
        values[masked] = -1
    return values

"""Preprocessors: filters without weights that turn a picture into the map that a control network was trained on.

Names, thresholds and defaults are those of WebUI's extension. Maps that need a network of their own (openpose, depth,
normals) must be sent ready-made.
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
    """Return white edges on black: gradients above `high`, and those above `low` that continue them."""
    return _rgb(cv2.Canny(picture, low, high).astype(np.uint8))


def lineart(picture: Pixels) -> Pixels:
    """Return white lines on black where the picture is darker than its surroundings. A typical line is grey (127)."""
    values = picture.astype(np.float32)
    darker = (cv2.GaussianBlur(values, (0, 0), 6.0) - values).min(axis=2).clip(0, 255)
    lines = darker[darker > 8]
    usual = max(16.0, float(np.median(lines))) if lines.size else 16.0
    return _rgb((darker / usual * 127).clip(0, 255).astype(np.uint8))


def scribble(picture: Pixels) -> Pixels:
    """Return thick white lines on black where a fine blur is darker than a wide one by more than 16."""
    values = picture.astype(np.float32)
    darker = (cv2.GaussianBlur(values, (0, 0), 5.0) - cv2.GaussianBlur(values, (0, 0), 0.5)).min(axis=2)
    return _rgb(((darker > 16) * 255).astype(np.uint8))


def color(picture: Pixels) -> Pixels:
    """Return the picture's colours in squares of 64 px, which T2I color adapters follow."""
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
    """Return the map (height, width, 3) of an RGB picture, from 0 to 1. For inpainting it is -1 where `masked`."""
    values = _OF[settings.preprocessor](picture, settings).astype(np.float32) / np.float32(255)
    if settings.preprocessor == "inpaint" and masked is not None:
        values[masked] = -1
    return values

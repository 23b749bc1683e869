"""Maps of pictures, on pictures whose lines are known."""

import numpy as np
import pytest

from pipelines.ask.catalog import PREPROCESSORS
from pipelines.ask.request import ControlSettings
from pipelines.images.preprocess import canny, control_map, lineart, scribble

WHITE = np.full((64, 64, 3), 255, np.uint8)


def square() -> np.ndarray:
    picture = WHITE.copy()
    picture[16:48, 16:48] = 0
    return picture


def drawing() -> np.ndarray:
    """A black line across white paper."""
    picture = WHITE.copy()
    picture[31:33] = 0
    return picture


def test_canny_finds_the_outline_and_nothing_else() -> None:
    found = np.argwhere(canny(square(), 100, 200)[..., 0])
    assert len(found) > 100
    inside = np.maximum(np.abs(found[:, 0] - 31.5), np.abs(found[:, 1] - 31.5))
    assert np.abs(inside - 16).max() <= 1


def test_thresholds_decide_what_is_an_edge() -> None:
    faint = WHITE.copy()
    faint[:, 32:] = 225
    assert canny(faint, 100, 200).max() == 0
    assert canny(faint, 50, 100).max() == 255


@pytest.mark.parametrize("preprocessor", [lineart, scribble])
def test_lines_are_white_where_they_were_black(preprocessor) -> None:  # type: ignore[no-untyped-def]
    made = preprocessor(drawing())
    assert made[31:33].min() > 100
    assert made[:16].max() == made[48:].max() == 0
    assert preprocessor(WHITE).max() == 0
    assert (made == made[..., :1]).all(), "grey"


@pytest.mark.parametrize("name", PREPROCESSORS)
def test_maps_are_from_0_to_1_in_the_pictures_size(name: str) -> None:
    made = control_map(square(), ControlSettings(model="x", preprocessor=name), None)
    assert made.shape == (64, 64, 3)
    assert made.dtype == np.float32
    assert (made.min(), made.max()) == (0, 1)


def test_pictures_themselves() -> None:
    plain, inverted, inpaint = (ControlSettings(model="x", preprocessor=name) for name in ("none", "invert", "inpaint"))
    masked = np.zeros((64, 64), bool)
    masked[:8] = True
    picture = square()
    assert np.array_equal(control_map(picture, plain, masked) * 255, picture)
    assert np.array_equal(control_map(picture, inverted, masked) * 255, 255 - picture)
    made = control_map(picture, inpaint, masked)
    assert (made[:8] == -1).all()
    assert np.array_equal(made[8:] * 255, picture[8:])

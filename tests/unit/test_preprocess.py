"""Maps of pictures whose lines are known."""

import numpy as np
import pytest

from pipelines.ask.catalog import IMAGE_PROMPT, PREPROCESSORS
from pipelines.ask.request import ControlSettings
from pipelines.images.preprocess import canny, color, control_map, lineart, scribble

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


def test_colours_are_squares_of_64_pixels() -> None:
    picture = np.zeros((128, 200, 3), np.uint8)
    picture[:64, :100] = (200, 100, 50)
    made = color(picture)
    assert made.shape == picture.shape
    columns = np.flatnonzero((made[:, 1:] != made[:, :-1]).any(axis=(0, 2))) + 1
    rows = np.flatnonzero((made[1:] != made[:-1]).any(axis=(1, 2))) + 1
    assert list(rows) == [64]
    assert all(abs(column - wanted) <= 1 for column, wanted in zip(columns, (67, 134), strict=False))
    assert np.abs(made[10, 10].astype(int) - (200, 100, 50)).max() < 60
    assert color(WHITE[:8, :8]).shape == (8, 8, 3)


@pytest.mark.parametrize("name", [name for name in PREPROCESSORS if name not in ("color", IMAGE_PROMPT)])
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

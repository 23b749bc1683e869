"""Enlarging without drawing: sizes, limits, the crop, and the generation data of the result."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.ask.request import HiresSettings
from pipelines.errors import InvalidInput
from pipelines.upscalers.enlarging import Enlargement, enlarge


def asked(size: tuple[int, int], told: str = "", **how: Any) -> Enlargement:
    by = HiresSettings(**{"upscaler": "Lanczos", **how})
    return Enlargement(image=Image.effect_noise(size, 60).convert("RGB"), by=by, told=told)


@pytest.mark.parametrize(
    ("how", "size"),
    [
        ({"scale": 2}, (274, 146)),
        ({"scale": 1}, (137, 73)),
        ({"width": 400, "height": 0}, (400, 213)),
        ({"width": 0, "height": 100}, (187, 100)),
        ({"width": 300, "height": 300}, (300, 300)),
    ],
)
@pytest.mark.parametrize("upscaler", ["Nearest", "Lanczos", "None"])
def test_the_result_has_the_size_that_is_asked(how: dict[str, Any], size: tuple[int, int], upscaler: str) -> None:
    request = asked((137, 73), upscaler=upscaler, **how)
    assert request.size == size
    assert enlarge(request, None).shape == (size[1], size[0], 3)


def test_both_sides_keep_the_aspect_and_crop_in_the_middle() -> None:
    image = Image.new("RGB", (120, 64), "red")
    image.paste("blue", (28, 0, 92, 64))
    request = Enlargement(image=image, by=HiresSettings(upscaler="Nearest", width=128, height=128))
    assert request.covered == (240, 128)
    assert np.array_equal(enlarge(request, None), np.asarray(Image.new("RGB", (128, 128), "blue")))


def test_nearest_is_every_pixel_twice() -> None:
    request = asked((64, 64), upscaler="Nearest", scale=2)
    assert np.array_equal(enlarge(request, None), np.asarray(request.image).repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize(
    ("size", "how", "field", "words"),
    [
        ((64, 64), {"upscaler": "Latent"}, "hires_upscaler", ["without drawing there are none", "Lanczos"]),
        ((3000, 3000), {"scale": 2}, "hires_scale", ["3000x3000 would become 6000x6000", "at most 33.6 million"]),
        ((2000, 64), {"width": 64, "height": 4096}, "hires_width", ["would become 128000x4096"]),
        ((16, 300), {"scale": 2}, "hires_scale", ["would become 32x600", "at least 64"]),
        ((2056, 2048), {"upscaler": "R-ESRGAN 4x+", "scale": 1}, "image", ["at most 4.2 million", "2056x2048"]),
    ],
)
def test_limits_are_known_before_the_work(
    size: tuple[int, int], how: dict[str, Any], field: str, words: list[str]
) -> None:
    with pytest.raises(InvalidInput) as error:
        Enlargement(image=Image.new("RGB", size), by=HiresSettings(**{"upscaler": "Lanczos", **how}))
    assert error.value.field == field
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    ("told", "how", "text"),
    [
        ("", {"scale": 2}, "Postprocess upscale by: 2, Postprocess upscaler: Lanczos"),
        ("a\nSteps: 2", {"scale": 1.5}, "a\nSteps: 2, Postprocess upscale by: 1.5, Postprocess upscaler: Lanczos"),
        ("", {"width": 128, "height": 0}, "Postprocess upscale to: 128x128, Postprocess upscaler: Lanczos"),
    ],
)
def test_generation_data_is_kept_and_what_was_done_added(told: str, how: dict[str, Any], text: str) -> None:
    assert asked((64, 64), told, **how).generation_data() == text

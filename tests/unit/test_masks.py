"""Masks, crops and overlays: WebUI's integers, and unmasked pixels that stay the same."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.ask.request import ImageSettings, MaskSettings
from pipelines.errors import InvalidInput
from pipelines.images.masks import blur, crop_region, fill, latent_mask, prepare


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def box_mask(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def kernel(sigma: int) -> list[int]:
    """Gaussian weights that sum to 256: from the ends, what rounding leaves goes to the next."""
    weights = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(int(2.5 * sigma + 0.5), -1, -1)]
    scale, left, half = 256 / (2 * sum(weights) - weights[-1]), 0.0, list[int]()
    for weight in weights[:-1]:
        exact = weight * scale + left
        half.append(round(exact))
        left = exact - half[-1]
    return [*half, 256 - 2 * sum(half), *reversed(half)]


def blurred(values: np.ndarray, axis: int, sigma: int) -> np.ndarray:
    """The rule in whole numbers: mirrored without the edge, as often as the kernel reaches beyond, then rounded."""
    weights, margins = kernel(sigma), [(0, 0), (0, 0)]
    margins[axis] = (len(weights) // 2,) * 2
    padded = np.moveaxis(np.pad(values, margins, mode="reflect"), axis, 0).astype(np.uint32)
    total = sum(weight * padded[k : k + values.shape[axis]] for k, weight in enumerate(weights))
    return np.moveaxis((total + 128 >> 8).astype(np.uint8), 0, axis)


SIDE = st.integers(1, 48)
BLUR = st.integers(0, 64)


@given(SIDE, SIDE, BLUR, BLUR, st.integers(0, 2**32 - 1), st.sampled_from([1, 128, 255]))
@settings(max_examples=400)
def test_blur_follows_the_rule_for_kernels_of_any_size(
    width: int, height: int, across: int, down: int, seed: int, step: int
) -> None:
    """Kernels reach up to 321 pixels, over pictures of at most 48."""
    values = (np.random.default_rng(seed).integers(0, 256 // step + 1, (height, width)) * step).clip(0, 255)
    expected = values.astype(np.uint8)
    for axis, sigma in ((1, across), (0, down)):
        expected = blurred(expected, axis, sigma) if sigma else expected
    assert np.array_equal(np.asarray(blur(grey(values), across, down)), expected)


def test_blur_is_rounded_and_mirrors_without_the_edge() -> None:
    values = np.zeros((1, 5))
    values[0, 1] = 255
    # the kernel of 1 (102, then 62, 14, 1 to either side) around the pixel and its mirror images at -1 and 7
    weights = np.array([62 + 62, 102 + 14, 62 + 1, 14, 1 + 1])
    assert np.asarray(blur(grey(values), 1, 0)).tolist() == [((weights * 255 + 128) >> 8).tolist()]


def test_blur_across_and_down_are_apart() -> None:
    mask = box_mask((32, 32), (15, 15, 17, 17))
    across, down = np.asarray(blur(mask, 4, 0)), np.asarray(blur(mask, 0, 4))
    assert np.array_equal(across, down.T)
    assert not across[:15].any()
    assert across[15:17, :10].any()
    assert np.array_equal(np.asarray(blur(mask, 0, 0)), np.asarray(mask))


def test_a_kernel_wider_than_the_mask() -> None:
    assert np.asarray(blur(grey(np.full((3, 5), 200)), 64, 64)).tolist() == [[200] * 5] * 3


@pytest.mark.parametrize(
    ("box", "size", "padding", "expected"),
    [
        ((40, 40, 60, 60), (64, 64), 0, (40, 40, 60, 60)),
        ((40, 40, 60, 60), (64, 64), 8, (32, 32, 68, 68)),
        ((40, 40, 60, 60), (128, 64), 0, (30, 40, 70, 60)),
        ((40, 40, 60, 60), (64, 128), 0, (40, 30, 60, 70)),
        ((0, 40, 20, 60), (128, 64), 0, (0, 40, 40, 60)),  # moved inside
        ((80, 40, 100, 60), (128, 64), 0, (60, 40, 100, 60)),
        ((0, 40, 100, 60), (64, 128), 0, (0, 0, 100, 100)),  # cut
    ],
)
def test_the_region_grows_to_the_aspect_inside_the_picture(
    box: tuple[int, int, int, int], size: tuple[int, int], padding: int, expected: tuple[int, int, int, int]
) -> None:
    assert crop_region(box_mask((100, 100), box), size, padding) == expected


@given(
    corner=st.tuples(st.integers(0, 90), st.integers(0, 50)),
    extent=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(8, 64), st.integers(8, 64)),
    padding=st.integers(0, 64),
)
def test_the_region_holds_the_mask_and_lies_in_the_picture(
    corner: tuple[int, int], extent: tuple[int, int], size: tuple[int, int], padding: int
) -> None:
    mask = box_mask((100, 60), (*corner, corner[0] + extent[0], corner[1] + extent[1]))
    left, top, right, bottom = crop_region(mask, size, padding)
    inside = mask.getbbox()
    assert inside is not None
    assert 0 <= left <= inside[0] < inside[2] <= right <= 100
    assert 0 <= top <= inside[1] < inside[3] <= bottom <= 60


def test_latent_masks_are_rounded_unless_soft() -> None:
    mask = grey(np.repeat([[0, 100, 150, 255]], 4, 0).repeat(8, 0).repeat(8, 1))
    soft = latent_mask(mask, (4, 4), soft=True)
    assert soft.shape == (4, 4)
    assert 0.3 < soft[1, 1] < 0.45
    assert np.unique(latent_mask(mask, (4, 4), soft=False)).tolist() == [0, 1]


def test_filling_keeps_what_is_not_masked() -> None:
    picture, mask = noise(64, 48), box_mask((64, 48), (20, 10, 40, 30))
    before, after = np.asarray(picture), np.asarray(fill(picture, mask))
    kept = np.asarray(mask) == 0
    assert np.array_equal(after[kept], before[kept])
    assert after[~kept].std() < before[~kept].std() / 2


def canvas_of(picture: Image.Image, size: tuple[int, int], **settings: object):
    return prepare(ImageSettings(picture=picture, **settings), size)  # type: ignore[arg-type]


def test_what_is_not_masked_comes_back_exactly() -> None:
    picture, mask = noise(64, 48), box_mask((64, 48), (20, 10, 40, 30))
    canvas = canvas_of(picture, (64, 48), mask=MaskSettings(picture=mask, blur=(2, 2)))
    drawn = np.zeros((48, 64, 3), np.uint8)
    result = canvas.finish(drawn)
    kept = np.asarray(blur(mask, 2, 2)) == 0
    assert np.array_equal(result[kept], np.asarray(picture)[kept])
    assert not result[15:25, 25:35].any()


def test_a_part_that_could_not_be_pasted_back_is_refused_before_it_is_drawn() -> None:
    picture = Image.new("RGB", (16_384, 64))
    mask = MaskSettings(picture=Image.new("L", picture.size, 255), area="Only masked")
    with pytest.raises(InvalidInput, match=r"^width='512x512': has an aspect .* cropped to 16384x64"):
        canvas_of(picture, (512, 512), mask=mask)


def test_only_masked_is_pasted_back_at_the_pictures_size() -> None:
    picture, mask = noise(200, 150), box_mask((200, 150), (20, 10, 40, 30))
    settings = MaskSettings(picture=mask, blur=(0, 0), area="Only masked", padding=10)
    canvas = canvas_of(picture, (64, 64), mask=settings)
    assert (canvas.picture.size, canvas.box) == ((64, 64), (10, 0, 50, 40))
    for side in (64, 128):  # as drawn, and after the highres fix
        result = canvas.finish(np.full((side, side, 3), 9, np.uint8))
        assert result.shape == (150, 200, 3)
        assert (result[10:30, 20:40] == 9).all()
        assert np.array_equal(result[np.asarray(mask) == 0], np.asarray(picture)[np.asarray(mask) == 0])


def test_after_the_highres_fix_the_whole_picture_is_drawn_again() -> None:
    mask = MaskSettings(picture=box_mask((64, 64), (0, 0, 32, 32)))
    drawn = np.full((128, 128, 3), 9, np.uint8)
    assert np.array_equal(canvas_of(noise(64, 64), (64, 64), mask=mask).finish(drawn), drawn)


def test_masks_may_be_inverted_or_be_what_is_opaque() -> None:
    picture, mask = noise(64, 64), box_mask((64, 64), (0, 0, 32, 64))
    stencil = picture.convert("RGBA")
    stencil.putalpha(mask.point(lambda value: 129 if value else 128))
    for masked in (
        MaskSettings(picture=Image.eval(mask, lambda value: 255 - value), invert=True, blur=(0, 0)),
        MaskSettings(picture=stencil, blur=(0, 0)),
    ):
        canvas = canvas_of(picture, (64, 64), mask=masked)
        assert canvas.mask is not None
        assert np.array_equal(np.asarray(canvas.mask), np.asarray(mask))


def test_outpainting_masks_the_margins_and_fills_them() -> None:
    picture = Image.new("RGB", (64, 48), (200, 10, 10))
    canvas = canvas_of(picture, (104, 80), outpaint=(8, 16, 32, 16), mask=MaskSettings(blur=(0, 0)))
    mask = np.full((80, 104), 255)
    mask[16:64, 8:72] = 0
    assert canvas.mask is not None
    assert np.array_equal(np.asarray(canvas.mask), mask)
    assert np.abs(np.asarray(canvas.picture).astype(int) - (200, 10, 10)).max() <= 20


def test_an_empty_mask() -> None:
    black = Image.new("L", (64, 64))
    with pytest.raises(InvalidInput, match=r"mask='black': nothing would be drawn"):
        canvas_of(noise(64, 64), (64, 64), mask=MaskSettings(picture=black))
    canvas = canvas_of(noise(64, 64), (64, 64), mask=MaskSettings(picture=black, area="Only masked"))
    assert (canvas.mask, canvas.overlay) == (None, None)


def test_latents_of_a_masked_picture_are_not_resized() -> None:
    assert canvas_of(noise(100, 80), (64, 64), resize_mode="latent").picture.size == (100, 80)
    mask = MaskSettings(picture=Image.new("L", (100, 80), 255))
    with pytest.raises(InvalidInput, match="resize_mode='latent'"):
        canvas_of(noise(100, 80), (64, 64), resize_mode="latent", mask=mask)
    with pytest.raises(InvalidInput, match="image='32x80'"):
        canvas_of(noise(32, 80), (64, 64), resize_mode="latent")

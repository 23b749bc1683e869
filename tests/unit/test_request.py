"""Bad input gives one error that names the field, the value, the rule and the fix."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ask.request import (
    FreeU,
    FreeUFactors,
    GenerationRequest,
    HiresSettings,
    ImageSettings,
    MaskSettings,
    NoiseSettings,
    random_seed,
)
from pipelines.ask.sizes import size_to_draw
from pipelines.errors import InvalidInput
from tests.unit.sized import Sized


def request(**fields: object) -> GenerationRequest:
    return GenerationRequest(**{"prompt": "a", "width": 128, "height": 128, "seed": 1, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 63),
        ("width", 2049),
        ("height", 64.5),
        ("width", True),
        ("seed", -1),
        ("seed", 2**32),
        ("num_outputs", 5),
        ("num_inference_steps", 0),
        ("guidance_scale", math.nan),
        ("guidance_scale", math.inf),
        ("guidance_scale", "7"),
        ("guidance_rescale", 1.5),
        ("clip_skip", 13),
        ("sampler", "DPM++ 2M Karras"),
        ("schedule_type", "karras"),
        ("prompt", 3),
        ("prompt", "a\0b"),
        ("prompt", "\ud800"),
        ("negative_prompt", "x" * 10_001),
        ("prompt", "a AND " * 100),
    ],
)
def test_a_bad_field_is_named_with_its_value_rule_and_fix(field: str, value: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        request(**{field: value})
    error = caught.value
    assert (error.field, error.value) == (field, value)
    assert str(error).startswith(f"{field}=")
    assert error.rule in str(error)
    assert error.fix in str(error)
    assert len(str(error)) < 700


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("hires_denoising_strength", {"denoising_strength": 0}),
        ("hires_denoising_strength", {"denoising_strength": 1e-300}),
        ("hires_denoising_strength", {"denoising_strength": 1.1}),
        ("hires_scale", {"scale": 0.9}),
        ("hires_scale", {"scale": math.nan}),
        ("hires_steps", {"steps": 151}),
        ("hires_upscaler", {"upscaler": "ESRGAN"}),
        ("hires_sampler", {"sampler": "?"}),
        ("hires_prompt", {"prompt": "\0"}),
    ],
)
def test_bad_hires_settings_are_named_as_inputs(field: str, settings: dict[str, object]) -> None:
    with pytest.raises(InvalidInput) as caught:
        request(hires=HiresSettings(**settings))  # type: ignore[arg-type]
    assert caught.value.field == field


def test_too_many_pixels_say_which_scale_fits() -> None:
    with pytest.raises(
        InvalidInput, match=r"width 680 and height 680, or for this size hires_scale 2 or less"
    ) as caught:
        request(width=1024, height=1024, hires=HiresSettings(scale=3))
    assert "3072 x 3072" in str(caught.value)
    request(width=1024, height=1024, hires=HiresSettings(scale=2.0))


def test_the_last_seed_of_a_batch_is_a_seed() -> None:
    request(seed=2**32 - 2, num_outputs=2)
    with pytest.raises(InvalidInput, match=r"seed=4294967295: .* Use 4294967294 or less"):
        request(seed=2**32 - 1, num_outputs=2)


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("denoising_strength", {"denoising_strength": 1.1}),
        ("resize_mode", {"resize_mode": "cover"}),
        ("outpaint", {"outpaint": (0, 0, 513, 0)}),
        ("outpaint", {"outpaint": (0, -1, 0, 0)}),
    ],
)
def test_a_bad_field_of_a_picture_is_named(field: str, settings: dict[str, object]) -> None:
    with pytest.raises(InvalidInput) as caught:
        ImageSettings(picture=Sized((64, 64)), **settings)  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("mask_blur", {"blur": (4, 65)}),
        ("inpaint_padding", {"padding": -1}),
        ("masked_content", {"content": "black"}),
        ("inpaint_area", {"area": "Masked"}),
    ],
)
def test_a_bad_field_of_a_mask_is_named(field: str, settings: dict[str, object]) -> None:
    with pytest.raises(InvalidInput) as caught:
        MaskSettings(**settings)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_a_mask_has_the_pictures_size() -> None:
    with pytest.raises(InvalidInput, match=r"mask='64x65': must have the size of image, 64 x 64"):
        ImageSettings(picture=Sized((64, 64)), mask=MaskSettings(picture=Sized((64, 65))))


def test_outpainting_masks_by_itself() -> None:
    settings = ImageSettings(picture=Sized((64, 64)), outpaint=(8, 0, 16, 0))
    assert settings.size == (88, 64)
    assert settings.mask == MaskSettings()


@pytest.mark.parametrize(
    "text", ["1.5 1.6 0.9", "1.5 1.6 0.9 0.2 1", "1.5 1.6 0.9 -1", "a b c d", "nan 1 1 1", "5 1 1 1"]
)
def test_freeu_is_four_numbers(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        FreeUFactors().read(text)


def test_freeu_is_read_with_commas_or_spaces() -> None:
    assert FreeUFactors().read("1.5, 1.6,0.9 0.2") == FreeU(1.5, 1.6, 0.9, 0.2)
    assert str(FreeU(1.5, 1.6, 0.9, 0.2)) == "1.5 1.6 0.9 0.2"
    assert FreeUFactors().read(" ") is None


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((512, 768), (512, 768)), ((517, 771), (512, 768)), ((4000, 3000), (2048, 1536)), ((32, 48), (64, 96))],
)
def test_the_size_to_draw_is_near_the_pictures(size: tuple[int, int], drawn: tuple[int, int]) -> None:
    assert size_to_draw(*size) == drawn


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_any_picture_has_a_size_that_can_be_drawn(width: int, height: int) -> None:
    drawn = size_to_draw(width, height)
    made = GenerationRequest(prompt="", width=drawn[0], height=drawn[1], seed=0, hires=None)
    assert made.width % 8 == made.height % 8 == 0


def test_whole_floats_become_whole_numbers() -> None:
    made = request(width=128.0, num_inference_steps=20.0)
    assert (made.width, type(made.width), type(made.num_inference_steps)) == (128, int, int)


def test_unusual_but_right_input_is_taken() -> None:
    request(prompt="")
    request(prompt="絵 🌸 é", negative_prompt="x" * 10_000)
    request(noise=NoiseSettings(source="CPU", variation_strength=1))


def test_random_seeds_differ_and_are_valid() -> None:
    seeds = {random_seed() for _ in range(20)}
    assert len(seeds) > 15
    for seed in seeds:
        request(seed=seed)


@pytest.mark.parametrize(
    ("size", "resize_to", "words"),
    [
        ((512, 768), (3000, 3000), ["hires_width='3000x3000'", "Use hires_width "]),
        ((2048, 64), (2048, 2048), ["enlarged to 65536 x 2048", "aspect"]),
        ((64, 64), (4, 4), ["at least 64 per side"]),
        ((64, 64), (7, 0), ["at least 64 per side"]),
        ((64, 2048), (64, 64), ["enlarged"]),
    ],
)
def test_sizes_to_enlarge_to(size: tuple[int, int], resize_to: tuple[int, int], words: list[str]) -> None:
    def request(resize_to: tuple[int, int]) -> GenerationRequest:
        hires = HiresSettings(width=resize_to[0], height=resize_to[1])
        return GenerationRequest(prompt="", width=size[0], height=size[1], seed=0, hires=hires)

    if words == ["enlarged"]:
        assert request(resize_to).hires is not None
        return
    with pytest.raises(InvalidInput) as refused:
        request(resize_to)
    assert [word for word in words if word not in str(refused.value)] == []
    if "Use hires_width" in str(refused.value):
        fix = re.findall(r"hires_\w+ (\d+)", refused.value.fix)
        request((int(fix[0]), int(fix[1])))

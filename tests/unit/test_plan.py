"""Sizes, steps and seeds of both passes: WebUI's arithmetic."""

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ask.networks import ExtraFile, Extras
from pipelines.ask.plan import make_plan
from pipelines.ask.request import (
    ControlSettings,
    GenerationRequest,
    HiresSettings,
    ImageSettings,
    MaskSettings,
    NoiseSettings,
)
from pipelines.errors import InvalidInput
from tests.unit.sized import Sized


def plan_of(width: int = 128, height: int = 128, *, hires: HiresSettings | None = None, **fields: object):
    return make_plan(
        GenerationRequest(prompt="", width=width, height=height, seed=1, hires=hires, **fields)  # type: ignore[arg-type]
    )


def test_ten_steps_at_strength_0_6_are_the_last_ten_of_sixteen() -> None:
    hires = plan_of(hires=HiresSettings(steps=10, denoising_strength=0.6)).hires
    assert hires is not None
    assert (hires.schedule_steps, hires.first_step, hires.steps) == (16, 6, 10)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [((128, 128), 2.0, (256, 256)), ((128, 192), 1.8, (224, 344)), ((448, 640), 1.5, (672, 960))],
)
def test_hires_size_is_the_latent_grid_times_eight(
    size: tuple[int, int], scale: float, expected: tuple[int, int]
) -> None:
    assert plan_of(*size, hires=HiresSettings(scale=scale)).final_size == expected


@pytest.mark.parametrize(
    ("steps", "strength", "sampler", "first_step", "run"),
    [
        (12, 0.75, "DPM++ 2M", 2, 10),
        (12, 0, "DPM++ 2M", 11, 1),
        (12, 1, "DPM++ 2M", 0, 12),
        (20, 0.5, "DDIM", 9, 9),
        (20, 0.5, "UniPC", 9, 10),
    ],
)
def test_from_a_picture_one_step_more_than_the_strengths_share_is_run(
    steps: int, strength: float, sampler: str, first_step: int, run: int
) -> None:
    image = ImageSettings(picture=Sized((128, 128)), denoising_strength=strength)
    first = plan_of(image=image, num_inference_steps=steps, sampler=sampler).first
    assert (first.schedule_steps, first.first_step, first.steps) == (steps, first_step, run)
    assert first.refines


@pytest.mark.parametrize(
    ("fields", "settings", "size"),
    [
        ({"hires": HiresSettings()}, {}, "128x128"),
        ({"width": 128}, {}, "128x64"),
        ({"hires": HiresSettings()}, {"weight": 0}, None),
        ({"hires": HiresSettings()}, {"resize_mode": "stretch"}, None),
        ({"image": ImageSettings(picture=Sized((640, 480)), mask=MaskSettings(area="Only masked"))}, {}, "640x480"),
        ({}, {}, None),
    ],
)
def test_a_control_image_too_thin_to_cover_a_pass_is_refused_before_anything_is_drawn(
    fields: dict[str, object], settings: dict[str, object], size: str | None
) -> None:
    control = ControlSettings(model="x", picture=Sized((2, 30_000)), **settings)  # type: ignore[arg-type]
    here = Extras(controls={"x": ExtraFile(Path("x"), 0, 0)})
    asked = {"width": 64, "height": 64, "controls": (control,), "extras": here} | fields
    if size is None:
        assert plan_of(**asked)  # type: ignore[arg-type]
        return
    with pytest.raises(InvalidInput, match=f"control_images='2x30000': has an aspect .* to {size}. Use resize=s"):
        plan_of(**asked)  # type: ignore[arg-type]


def test_a_strength_at_which_nothing_is_drawn_is_refused() -> None:
    image = ImageSettings(picture=Sized((128, 128)), denoising_strength=0.05)
    with pytest.raises(InvalidInput, match=r"denoising_strength=0.05: DDIM would run no step with so little"):
        plan_of(image=image, sampler="DDIM")


def test_resize_to_covers_and_crops_latents() -> None:
    plan = plan_of(128, 192, hires=HiresSettings(width=256, height=256))
    assert plan.upscale is not None
    assert (plan.upscale.width, plan.upscale.height, plan.upscale.crop) == (256, 384, (0, 16))
    assert plan.final_size == (256, 256)


def test_resize_to_with_one_side_keeps_the_aspect() -> None:
    assert plan_of(128, 192, hires=HiresSettings(width=256, height=0)).final_size == (256, 384)
    assert plan_of(128, 192, hires=HiresSettings(width=0, height=288)).final_size == (192, 288)


def test_every_image_has_the_next_seed() -> None:
    assert plan_of(num_outputs=3).seeds == (1, 2, 3)


def test_variations_keep_the_seed_and_count_the_variation_seed() -> None:
    plan = plan_of(num_outputs=2, noise=NoiseSettings(variation_seed=50, variation_strength=0.5))
    assert (plan.seeds, plan.variation_seeds) == ((1, 1), (50, 51))


def test_sizes_off_the_grid_are_floored_and_said() -> None:
    plan = plan_of(130, 128)
    assert plan.first.width == 128
    assert plan.notes == ("width=130 is not a multiple of 8: the first pass draws 128, as WebUI does.",)
    assert plan_of(128, 128).notes == ()


def test_networks_that_are_not_applied_are_said() -> None:
    request = GenerationRequest(prompt="a <gligen:x:0.5>", width=64, height=64, seed=1)
    (note,) = make_plan(request).notes
    assert note == "<gligen:x:0.5> is removed from the prompt: only LoRAs and hypernetworks are applied."


@given(steps=st.integers(1, 150), hires_steps=st.integers(0, 150), strength=st.floats(0.01, 1))
def test_exactly_the_steps_asked_for_are_run(steps: int, hires_steps: int, strength: float) -> None:
    settings = HiresSettings(steps=hires_steps, denoising_strength=strength)
    plan = plan_of(hires=settings, num_inference_steps=steps)
    assert plan.first.steps == steps
    assert plan.hires is not None
    assert plan.hires.steps == (hires_steps or steps)
    assert plan.hires.first_step >= 0


@given(
    width=st.integers(64, 512),
    height=st.integers(64, 512),
    resize=st.tuples(st.integers(64, 1024), st.integers(64, 1024)),
)
def test_resize_to_ends_within_one_latent_of_the_target(width: int, height: int, resize: tuple[int, int]) -> None:
    plan = plan_of(width, height, hires=HiresSettings(width=resize[0], height=resize[1]))
    for got, wanted in zip(plan.final_size, resize, strict=True):
        assert got % 8 == 0
        assert math.isclose(got, wanted, abs_tol=8)


@pytest.mark.parametrize(
    ("sampler", "first", "hires"),
    [
        ("DPM++ 2M", 20, 20),
        ("DDIM", 19, 18),
        ("UniPC", 20, 19),
        ("DPM fast", 7, 7),
        ("DPM adaptive", None, None),
    ],
)
def test_steps_really_run(sampler: str, first: int | None, hires: int | None) -> None:
    plan = plan_of(sampler=sampler, hires=HiresSettings())
    assert plan.hires is not None
    assert (plan.first.steps, plan.hires.steps) == (first, hires)


@pytest.mark.parametrize(("steps", "strength", "run"), [(20, 0.05, 120), (20, 0.3, 21), (20, 1.0, 20)])
def test_ddim_spacing_has_levels_of_its_own(steps: int, strength: float, run: int) -> None:
    settings = HiresSettings(steps=steps, denoising_strength=strength)
    plan = plan_of(sampler="Euler", schedule_type="DDIM", hires=settings)
    assert plan.hires is not None
    assert plan.hires.steps == run


@pytest.mark.parametrize("sampler", ["DDIM", "DDIM CFG++", "PLMS", "DPM fast", "DPM adaptive"])
def test_a_pass_without_a_step_is_refused(sampler: str) -> None:
    with pytest.raises(InvalidInput, match=f"num_inference_steps=1: {re.escape(sampler)} would run no step"):
        plan_of(sampler=sampler, num_inference_steps=1)


@pytest.mark.parametrize("sampler", ["DDIM", "UniPC", "DPM adaptive"])
def test_a_hires_pass_without_a_step_is_refused(sampler: str) -> None:
    with pytest.raises(InvalidInput, match="hires_steps=1"):
        plan_of(hires=HiresSettings(steps=1, sampler=sampler))


def test_a_strength_below_the_schedules_levels_is_refused() -> None:
    with pytest.raises(InvalidInput, match="a schedule_type other than DDIM"):
        plan_of(sampler="LCM", schedule_type="DDIM", hires=HiresSettings(steps=100))

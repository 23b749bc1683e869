"""Properties of noise levels. `tests/proof` compares their values."""

import math
from itertools import pairwise

import pytest

from pipelines.ask.catalog import SAMPLERS, SCHEDULE_TYPES
from pipelines.ask.request import ScheduleSettings
from pipelines.families.sd1 import SD1
from pipelines.sampling.schedules import SCHEDULES, karras, lcm_timestep, sigmas, timesteps

EULER = SAMPLERS["Euler"]
NOISE = SD1.noise
EIGHT_ROUNDINGS = 1e-6
"""Of a level: float32 rounds by 6e-8 to 1.2e-7 of the value. Levels that stand beside each other differ by more than a
thousand times as much."""


def test_every_schedule_type_has_a_schedule() -> None:
    assert {*SCHEDULES, "Automatic"} == set(SCHEDULE_TYPES)


@pytest.mark.parametrize("sampler", ["Euler", "DPM2", "LCM"])
@pytest.mark.parametrize("schedule_type", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 11, 30, 150, 999, 1000, 1500])
def test_any_number_of_steps_descends_to_the_end(schedule_type: str, steps: int, sampler: str) -> None:
    levels = sigmas(NOISE, schedule_type, steps, SAMPLERS[sampler])
    assert all(math.isfinite(level) for level in levels)
    assert all(level >= after >= 0 for level, after in pairwise(levels))
    assert schedule_type == "DDIM" or len(levels) == steps + 1
    assert (levels[-1] == 0) is (schedule_type != "KL Optimal")


def test_automatic_is_the_samplers_own() -> None:
    assert sigmas(NOISE, "Automatic", 12, SAMPLERS["DPM++ 2M"]) == sigmas(NOISE, "Karras", 12, EULER)
    assert sigmas(NOISE, "Automatic", 12, SAMPLERS["DPM++ 2M SDE"]) == sigmas(NOISE, "Exponential", 12, EULER)
    assert sigmas(NOISE, "Automatic", 12, EULER) == sigmas(NOISE, "Uniform", 12, EULER)


def test_the_last_but_one_level_is_dropped_from_one_step_more() -> None:
    longer = sigmas(NOISE, "Karras", 13, EULER)
    assert sigmas(NOISE, "Karras", 12, SAMPLERS["DPM2"]) == longer[:-2] + longer[-1:]


def test_a_range_replaces_the_models_own() -> None:
    levels = sigmas(NOISE, "Karras", 5, EULER, ScheduleSettings(sigma_min=0.1, sigma_max=10))
    assert levels == karras(5, 0.1, 10)
    assert (levels[0], levels[4]) == pytest.approx((10, 0.1), rel=EIGHT_ROUNDINGS)


def test_ddim_levels_are_as_many_as_its_spacing_gives() -> None:
    assert [len(sigmas(NOISE, "DDIM", steps, EULER)) for steps in (1, 20, 30, 600, 1500)] == [2, 21, 32, 1000, 1000]


def test_lcm_walks_its_distilled_levels() -> None:
    levels = sigmas(NOISE, "Automatic", 50, SAMPLERS["LCM"])
    assert levels[:-1] == pytest.approx(list(reversed(NOISE.sigmas[19::20])), rel=EIGHT_ROUNDINGS)
    assert [lcm_timestep(NOISE, level) for level in levels[:-1]] == list(range(999, 0, -20))
    assert lcm_timestep(NOISE, 1000) == 999
    assert lcm_timestep(NOISE, 1e-3) == 19


def test_timesteps_as_in_webui() -> None:
    assert timesteps(20) == list(range(1, 1000, 50))
    assert timesteps(30)[-1] == 991  # 31 of them: 33 does not divide 1000
    assert timesteps(1000)[-2:] == timesteps(1500)[-2:] == [999, 999]


def test_timesteps_are_linear_in_log_sigma_and_end_at_the_table() -> None:
    # Timesteps stand 0.01 apart in log sigma there: a rounding of log sigma, 1e-7 to 2.4e-7, is up to 2.4e-5 of a step.
    assert NOISE.t_of(math.sqrt(NOISE.sigmas[7] * NOISE.sigmas[8])) == pytest.approx(7.5, abs=1e-4)
    assert (NOISE.t_of(1e-6), NOISE.t_of(1e6)) == (0, 999)


def test_simple_rounds_its_stride_before_it_multiplies() -> None:
    """38 x 26.3157...: entry 19 is at 499.99... of the table and not at 500."""
    assert sigmas(NOISE, "Simple", 38, SAMPLERS["Euler"])[19] == pytest.approx(
        NOISE.sigmas[-1 - 499], rel=EIGHT_ROUNDINGS
    )
    assert NOISE.sigmas[-1 - 500] != pytest.approx(NOISE.sigmas[-1 - 499], rel=1000 * EIGHT_ROUNDINGS)


def test_discarding_the_penultimate_level_keeps_the_count() -> None:
    whole = sigmas(NOISE, "Karras", 11, SAMPLERS["DPM++ 2M"])
    shorter = sigmas(NOISE, "Karras", 10, SAMPLERS["DPM++ 2M"], ScheduleSettings(discard_penultimate=True))
    assert shorter == [*whole[:-2], 0.0]
    always = SAMPLERS["DPM2"]
    assert sigmas(NOISE, "Karras", 10, always, ScheduleSettings(discard_penultimate=True)) == sigmas(
        NOISE, "Karras", 10, always
    )


@pytest.mark.parametrize(
    "schedule_type", ["Exponential", "Polyexponential", "KL Optimal", "Beta", "Normal", "SGM Uniform"]
)
def test_a_range_bounds_every_type_that_takes_one(schedule_type: str) -> None:
    levels = sigmas(NOISE, schedule_type, 9, EULER, ScheduleSettings(sigma_min=0.1, sigma_max=10))
    assert levels[0] == pytest.approx(10, rel=EIGHT_ROUNDINGS)
    assert min(level for level in levels if level) >= 0.1 * (1 - EIGHT_ROUNDINGS)


@pytest.mark.parametrize("schedule_type", ["Uniform", "Simple", "DDIM", "Align Your Steps"])
def test_the_others_walk_the_models_levels(schedule_type: str) -> None:
    narrow = ScheduleSettings(sigma_min=0.1, sigma_max=10)
    assert sigmas(NOISE, schedule_type, 9, EULER, narrow) == sigmas(NOISE, schedule_type, 9, EULER)


def test_rho_bends_karras_and_polyexponential() -> None:
    bent = ScheduleSettings(rho=3)
    assert sigmas(NOISE, "Karras", 9, EULER, bent)[:-1] == pytest.approx(
        karras(9, NOISE.sigmas[0], NOISE.sigmas[-1], 3)[:-1], rel=EIGHT_ROUNDINGS
    )
    middle = math.sqrt(NOISE.sigmas[0] * NOISE.sigmas[-1])
    assert sigmas(NOISE, "Polyexponential", 9, EULER)[4] == pytest.approx(middle, rel=EIGHT_ROUNDINGS)
    eighth = NOISE.sigmas[0] * (NOISE.sigmas[-1] / NOISE.sigmas[0]) ** (1 / 8)
    assert sigmas(NOISE, "Polyexponential", 9, EULER, bent)[4] == pytest.approx(eighth, rel=EIGHT_ROUNDINGS)
    assert sigmas(NOISE, "Exponential", 9, EULER, bent) == sigmas(NOISE, "Exponential", 9, EULER)

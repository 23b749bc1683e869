"""Noise levels against WebUI's own tables."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pipelines.catalog import SAMPLERS, SCHEDULE_TYPES
from pipelines.request import ScheduleSettings
from pipelines.schedules import SCHEDULES, beta_quantiles, karras, lcm_timestep, sigmas, timesteps
from pipelines.sd1 import SD1

TABLES = Path(__file__).parents[3] / "shared" / "webui_reference" / "sigma_tables.json"
EULER = SAMPLERS["Euler"]
NOISE = SD1.noise

WEBUI_AT_TEN = {  # schedule type: second, fifth and last positive level of ten steps, as WebUI computed them
    "Uniform": (7.839882850646973, 1.9501614570617676, 0.0291675366461277),
    "Karras": (9.102933883666992, 1.7494233846664429, 0.02916753850877285),
    "Exponential": (7.324881553649902, 0.9222267866134644, 0.0291675366461277),
    "Polyexponential": (7.324883460998535, 0.9222270250320435, 0.0291675366461277),
    "SGM Uniform": (8.307170867919922, 2.2797305583953857, 0.34370484948158264),
    "KL Optimal": (4.565038204193115, 1.2947678565979004, 0.17834684252738953),
    "Align Your Steps": (6.113513469696045, 1.6499555110931396, 0.028999999165534973),
    "Simple": (8.302803039550781, 2.276463031768799, 0.341673880815506),
    "Normal": (7.839882850646973, 1.9501614570617676, 0.0291675366461277),
    "DDIM": (5.134430885314941, 1.6236921548843384, 0.04131447896361351),
    "Beta": (13.927785873413086, 8.442437171936035, 0.029167532920837402),
}


def test_every_schedule_type_has_a_schedule() -> None:
    assert {*SCHEDULES, "Automatic"} == set(SCHEDULE_TYPES)


SAME_LEVEL = 1e-6
"""The promise for sigmas, relative: about eight ulps of float32 (1.2e-7). Processors differ by two in exp and log."""


@pytest.mark.parametrize("schedule_type", WEBUI_AT_TEN)
def test_ten_steps_are_webuis(schedule_type: str) -> None:
    levels = sigmas(NOISE, schedule_type, 10, EULER)
    assert len(levels) == 11
    assert (levels[1], levels[4], levels[9]) == pytest.approx(WEBUI_AT_TEN[schedule_type], rel=SAME_LEVEL)
    for steps in (9, 11):
        other = sigmas(NOISE, schedule_type, steps, EULER)
        assert levels[1] != pytest.approx(other[1], rel=SAME_LEVEL)
        assert levels[4] != pytest.approx(other[4], rel=SAME_LEVEL)


@pytest.mark.skipif(not TABLES.exists(), reason="reference data not present")
def test_all_of_webuis_tables() -> None:
    for name, expected in json.loads(TABLES.read_text()).items():
        schedule_type, steps = name.split("|")
        assert sigmas(NOISE, schedule_type, int(steps), EULER) == pytest.approx(expected, rel=SAME_LEVEL), name


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
    assert (levels[0], levels[4]) == pytest.approx((10, 0.1))


def test_ddim_levels_are_as_many_as_its_spacing_gives() -> None:
    assert [len(sigmas(NOISE, "DDIM", steps, EULER)) for steps in (1, 20, 30, 600, 1500)] == [2, 21, 32, 1000, 1000]


def test_lcm_walks_its_distilled_levels() -> None:
    levels = sigmas(NOISE, "Automatic", 50, SAMPLERS["LCM"])
    assert levels[:-1] == pytest.approx(list(reversed(NOISE.sigmas[19::20])), rel=1e-6)
    assert [lcm_timestep(NOISE, level) for level in levels[:-1]] == list(range(999, 0, -20))
    assert lcm_timestep(NOISE, 1000) == 999
    assert lcm_timestep(NOISE, 1e-3) == 19


def test_timesteps_as_in_webui() -> None:
    assert timesteps(20) == list(range(1, 1000, 50))
    assert timesteps(30)[-1] == 991  # 31 of them: 33 does not divide 1000
    assert timesteps(1000)[-2:] == timesteps(1500)[-2:] == [999, 999]


def test_beta_quantiles() -> None:
    """Values of scipy.stats.beta.ppf(p, 0.6, 0.6)."""
    probabilities = torch.tensor([0, 1e-3, 0.1, 0.5, 0.75, 1], dtype=torch.float64)
    expected = [0.0, 1.855873851745199e-05, 0.03958440558878085, 0.5, 0.824319621347305, 1.0]
    assert beta_quantiles(probabilities, 0.6).tolist() == pytest.approx(expected, rel=1e-9)


def test_simple_rounds_its_stride_before_it_multiplies() -> None:
    """38 x 26.3157...: entry 19 is at 499.99... of the table and not at 500."""
    assert sigmas(NOISE, "Simple", 38, SAMPLERS["Euler"])[19] == pytest.approx(NOISE.sigmas[-1 - 499])


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
    assert levels[0] == pytest.approx(10, rel=1e-5)
    assert min(level for level in levels if level) >= 0.1 * (1 - 1e-5)


@pytest.mark.parametrize("schedule_type", ["Uniform", "Simple", "DDIM", "Align Your Steps"])
def test_the_others_walk_the_models_levels(schedule_type: str) -> None:
    narrow = ScheduleSettings(sigma_min=0.1, sigma_max=10)
    assert sigmas(NOISE, schedule_type, 9, EULER, narrow) == sigmas(NOISE, schedule_type, 9, EULER)


def test_rho_bends_karras_and_polyexponential() -> None:
    bent = ScheduleSettings(rho=3)
    assert sigmas(NOISE, "Karras", 9, EULER, bent)[:-1] == pytest.approx(
        karras(9, NOISE.sigmas[0], NOISE.sigmas[-1], 3)[:-1]
    )
    middle = math.sqrt(NOISE.sigmas[0] * NOISE.sigmas[-1])
    assert sigmas(NOISE, "Polyexponential", 9, EULER)[4] == pytest.approx(middle, rel=1e-5)
    eighth = NOISE.sigmas[0] * (NOISE.sigmas[-1] / NOISE.sigmas[0]) ** (1 / 8)
    assert sigmas(NOISE, "Polyexponential", 9, EULER, bent)[4] == pytest.approx(eighth, rel=1e-5)
    assert sigmas(NOISE, "Exponential", 9, EULER, bent) == sigmas(NOISE, "Exponential", 9, EULER)

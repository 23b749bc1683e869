"""A model's noise levels, and how they are found by timestep and by level."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ask.catalog import SAMPLERS, ZERO_TERMINAL_SNR
from pipelines.ask.request import ScheduleSettings
from pipelines.families.noise_schedule import NoiseSchedule
from pipelines.families.sd1 import SD1
from pipelines.sampling.schedules import as_set, sigmas

NOISE = SD1.noise


def test_the_levels_of_stable_diffusion_1() -> None:
    assert len(NOISE.sigmas) == len(NOISE.alphas) == 1000
    assert (NOISE.sigmas[0], NOISE.sigmas[-1]) == pytest.approx((0.02916753, 14.614642), rel=1e-6)
    assert ((1 - NOISE.alphas[500]) / NOISE.alphas[500]) ** 0.5 == pytest.approx(NOISE.sigmas[500], rel=1e-6)


def test_zero_terminal_snr_has_webuis_levels() -> None:
    rescaled = NOISE.zero_terminal_snr()
    expected = {0: 0.02916753478348255, 500: 1.77455735206604, 998: 2254.2353515625, 999: 4518.763671875}
    assert {t: rescaled.sigmas[t] for t in expected} == pytest.approx(expected, rel=1e-6)
    assert rescaled.alphas[-1] == pytest.approx(4.8973451890853435e-08, rel=1e-6)
    assert rescaled.aligned == NOISE.aligned, "Align Your Steps keeps its levels"


@given(st.integers(0, 998), st.floats(0, 1))
def test_timesteps_are_linear_in_log_sigma(t: int, share: float) -> None:
    between = math.exp((1 - share) * math.log(NOISE.sigmas[t]) + share * math.log(NOISE.sigmas[t + 1]))
    assert NOISE.t_of(between) == pytest.approx(t + share, abs=1e-3)


def test_levels_beyond_the_table_have_its_ends() -> None:
    assert (NOISE.t_of(1e-6), NOISE.t_of(1e6)) == (0, 999)


def test_the_level_of_a_timestep_is_the_nearest_entry() -> None:
    assert [NOISE.sigma_of(t) for t in (0, 499.6, 999)] == [NOISE.sigmas[t] for t in (0, 500, 999)]


@given(st.floats(1e-3, 30))
def test_the_nearest_timestep(sigma: float) -> None:
    assert NOISE.nearest(sigma) == min(range(1000), key=lambda t: abs(NOISE.sigmas[t] - sigma))


def test_of_two_timesteps_that_are_equally_near_the_lower_one_counts() -> None:
    even = replace(NOISE, alphas=(0.5, 0.1))  # sigmas 1 and 3
    assert [even.nearest(sigma) for sigma in (0.1, 1.9, 2.0, 2.1, 9.0)] == [0, 0, 0, 1, 1]


def test_another_table_makes_another_schedule() -> None:
    noise = NoiseSchedule((0.9, 0.5, 0.1))
    assert noise.sigmas == pytest.approx((1 / 3, 1, 3), rel=1e-6)
    assert noise.t_of(math.sqrt(3)) == pytest.approx(1.5, abs=1e-6)
    assert sigmas(noise, "Uniform", 3, SAMPLERS["Euler"]) == pytest.approx([3, 1, 1 / 3, 0], rel=1e-6)


def test_downcast_computes_in_half_precision_as_numpy_does() -> None:
    """Every operation rounds to half precision, also the logarithm of the levels."""
    half = NOISE.downcast()
    alphas = np.array(NOISE.alphas, np.float32).astype(np.float16)
    levels = np.sqrt((np.float16(1) - alphas) / alphas)
    assert half.alphas == tuple(alphas.tolist())
    assert half.sigmas == tuple(levels.tolist())
    assert half.log_sigmas == pytest.approx(np.log(levels).tolist(), abs=2e-3)  # log may be an ulp of half apart
    assert half.sigmas[0] == 0.03125
    assert (half.sigmas[-1], NOISE.sigmas[-1]) == pytest.approx((14.61, 14.6146), abs=1e-2)
    assert max(abs(a - b) / b for a, b in zip(half.sigmas, NOISE.sigmas, strict=True)) > 0.05
    assert half.noise_share(500) == np.sqrt(np.float16(1) - alphas[500])
    assert half.picture_share(500) == np.sqrt(alphas[500])
    assert half.noise_share(500) == pytest.approx(NOISE.noise_share(500), rel=1e-3)


def test_every_level_of_half_precision_has_its_timestep() -> None:
    half = NOISE.downcast()
    assert all(math.isfinite(half.t_of(sigma)) for sigma in half.sigmas)
    assert all(0 <= half.t_of(sigma) <= 999 for sigma in (1e-3, 0.03, 1.0, 14.6, 20.0))
    levels = sigmas(half, "Karras", 20, SAMPLERS["DPM++ 2M"])
    assert (levels[0], levels[-2], levels[-1]) == pytest.approx((half.sigmas[-1], half.sigmas[0], 0), rel=1e-5)


def test_settings_round_first_and_then_rescale() -> None:
    both = as_set(NOISE, ScheduleSettings(kind=ZERO_TERMINAL_SNR, downcast=True))
    assert both == NOISE.downcast().zero_terminal_snr()
    assert both.sigmas[-1] == pytest.approx(4518.76, rel=1e-4)
    assert not both.half
    assert as_set(NOISE, ScheduleSettings()) is NOISE
    assert NOISE.zero_terminal_snr().zero_terminal_snr() == NOISE.zero_terminal_snr()

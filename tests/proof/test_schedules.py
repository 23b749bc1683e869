"""Noise levels of every schedule type compared with k-diffusion, diffusers and scipy, or with the formula in float64.

They get the two ends of the model's table, or the table.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from diffusers.schedulers import AysSchedules
from scipy.interpolate import interp1d
from scipy.stats import beta

from pipelines.ask.catalog import SAMPLERS, SCHEDULE_TYPES
from pipelines.families.sd1 import SD1
from pipelines.sampling.schedules import beta_quantiles, sigmas
from tests.proof.k_diffusion import sampling

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers makes arrays of tensors

NOISE = SD1.noise
ALPHAS, SIGMAS = NOISE.alphas, NOISE.sigmas
LOW, HIGH = SIGMAS[0], SIGMAS[-1]
TRAINED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TOLERANCE = 2e-6
"""Relative. Levels are float32, of which an ulp is up to 1.2e-7; powers and logarithms make some ulps of one."""


def uniform(steps: int) -> np.ndarray:
    """diffusers' Euler with "linspace" spacing and interpolation in log sigma. It spaces in float32."""
    spaced = EulerDiscreteScheduler(**TRAINED, timestep_spacing="linspace", interpolation_type="log_linear")
    spaced.set_timesteps(steps)
    t = spaced.timesteps.numpy().astype(np.float64)
    return np.exp(np.interp(t, np.arange(1000), np.log(SIGMAS)))


def align_your_steps(steps: int) -> np.ndarray:
    """diffusers has the levels of ten steps and then 0 for 0.029. Other numbers are interpolated in log sigma."""
    levels = [*AysSchedules["StableDiffusionSigmas"][:10], 0.029]
    return np.exp(interp1d(np.linspace(0, 1, 11), np.log(levels))(np.linspace(0, 1, steps)))


def ddim(steps: int) -> np.ndarray:
    scheduler = DDIMScheduler(**TRAINED, timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(steps)
    alphas = np.array(ALPHAS)[scheduler.timesteps.numpy()]
    return np.sqrt((1 - alphas) / alphas)


def kl_optimal(steps: int) -> np.ndarray:
    """Sabour et al. 2024, theorem 3.1. WebUI's ends at the lowest level, to which no 0 is added."""
    share = np.arange(steps + 1) / steps
    return np.tan(share * math.atan(LOW) + (1 - share) * math.atan(HIGH))


OTHERS: dict[str, Callable[[int], np.ndarray]] = {
    "Karras": lambda steps: sampling.get_sigmas_karras(steps, LOW, HIGH).numpy(),
    "Exponential": lambda steps: sampling.get_sigmas_exponential(steps, LOW, HIGH).numpy(),
    "Polyexponential": lambda steps: sampling.get_sigmas_polyexponential(steps, LOW, HIGH).numpy(),
    "Uniform": uniform,
    "Normal": uniform,
    "SGM Uniform": lambda steps: uniform(steps + 1)[:-1],
    "Simple": lambda steps: np.array(SIGMAS)[[999 - int(step * (1000 / steps)) for step in range(steps)]],
    "DDIM": ddim,
    "Beta": lambda steps: LOW + beta.ppf(1 - np.linspace(0, 1, steps), 0.6, 0.6) * (HIGH - LOW),
    "Align Your Steps": align_your_steps,
    "KL Optimal": kl_optimal,
}


def test_every_schedule_type_is_compared() -> None:
    assert {*OTHERS, "Automatic"} == set(SCHEDULE_TYPES)


@pytest.mark.parametrize("steps", [2, 10, 20, 37])
@pytest.mark.parametrize("schedule_type", OTHERS)
def test_levels_are_those_of_others(schedule_type: str, steps: int) -> None:
    levels = sigmas(NOISE, schedule_type, steps, SAMPLERS["Euler"])
    expected = OTHERS[schedule_type](steps)
    if schedule_type != "KL Optimal":
        assert levels[-1] == 0
        levels, expected = levels[:-1], expected[expected > 0]
    assert levels == pytest.approx(expected.tolist(), rel=TOLERANCE)


def test_schedule_types_differ_by_more_than_the_tolerance() -> None:
    kinds = set(OTHERS) - {"Normal", "Polyexponential"}  # the same as "Uniform" and "Exponential"
    fourth = sorted(sigmas(NOISE, kind, 10, SAMPLERS["Euler"])[3] for kind in kinds)
    assert min(np.diff(fourth) / fourth[1:]) > 100 * TOLERANCE


def test_the_models_table_is_diffusers() -> None:
    """diffusers multiplies a thousand factors in float32, which is off by up to a thousand half ulps."""
    scheduler = DDIMScheduler(**TRAINED)
    assert list(ALPHAS) == pytest.approx(scheduler.alphas_cumprod.tolist(), rel=1000 * 2**-24)


@pytest.mark.parametrize("t", [0.0, 0.5, 123.25, 998.9, 999.0])
def test_fractional_timesteps_are_diffusers(t: float) -> None:
    scheduler = EulerDiscreteScheduler(**TRAINED)
    sigma = math.exp(np.interp(t, np.arange(1000), np.log(SIGMAS)))
    found = scheduler._sigma_to_t(np.array(sigma), np.log(SIGMAS))
    assert NOISE.t_of(sigma) == pytest.approx(found.item(), abs=1e-4)
    assert found.item() == pytest.approx(t, abs=1e-4)


@pytest.mark.parametrize("shape", [0.3, 0.6, 1.0])
def test_beta_quantiles_are_scipys(shape: float) -> None:
    probabilities = [0, 1e-6, 1e-3, 0.1, 0.5, 0.75, 0.999, 1]
    found = beta_quantiles(torch.tensor(probabilities, dtype=torch.float64), shape)
    assert found.tolist() == pytest.approx(beta.ppf(probabilities, shape, shape).tolist(), rel=1e-9, abs=1e-15)

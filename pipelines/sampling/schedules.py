"""Sigma schedules of k-diffusion and WebUI 1.10.1: how the noise levels of a pass are spaced.

Arithmetic is float32 where WebUI's is, because SDE noise depends on the exact sigma. Results are Python floats, so that
a sampling loop never waits for a tensor.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipelines.ask.catalog import ZERO_TERMINAL_SNR, SamplerInfo
from pipelines.ask.request import ScheduleSettings
from pipelines.families.noise_schedule import NoiseSchedule

DEFAULTS = ScheduleSettings()


LCM_STRIDE = 20
"""Latent consistency models were distilled on the timesteps 19, 39 ... 999."""


def interpolate(table: tuple[float, ...], position: float) -> float:
    """Return the entry of a table at a fractional position, linear between entries."""
    low = min(int(position), len(table) - 2)
    return table[low] + (position - low) * (table[low + 1] - table[low])


def lcm_timestep(noise: NoiseSchedule, sigma: float) -> int:
    """Return the distilled timestep of a latent consistency model nearest to a noise level > 0 in log sigma."""
    log_sigma = math.log(sigma)
    distilled = range(LCM_STRIDE - 1, len(noise.log_sigmas), LCM_STRIDE)
    return min(distilled, key=lambda t: abs(noise.log_sigmas[t] - log_sigma))


def as_set(noise: NoiseSchedule, settings: ScheduleSettings) -> NoiseSchedule:
    """Return a model's noise levels as changed by the settings. Like WebUI, round first and then rescale."""
    noise = noise.downcast() if settings.downcast else noise
    return noise.zero_terminal_snr() if settings.kind == ZERO_TERMINAL_SNR else noise


def timesteps(steps: int) -> list[int]:
    """Return ascending integer timesteps for timestep samplers (DDIM family, UniPC).

    As in WebUI, there are more than `steps` of them if `steps` does not divide 1000.
    """
    return [min(t + 1, 999) for t in range(0, 1000, max(1000 // steps, 1))]


def sigmas(
    noise: NoiseSchedule,
    schedule_type: str,
    steps: int,
    sampler: SamplerInfo,
    settings: ScheduleSettings = DEFAULTS,
) -> list[float]:
    """Return the descending noise levels of a whole pass: `steps` + 1 values that end in 0.

    There are two exceptions, as in WebUI: "KL Optimal" ends at the lowest level instead of 0, and "DDIM" has more
    levels if `steps` does not divide 1000. Some types use the model's own levels and ignore a range in the settings.
    WebUI's old range for Karras is 0.1 to 10.
    """
    discard = settings.discard_penultimate or sampler.drops_penultimate
    known = noise.every(LCM_STRIDE) if sampler.name == "LCM" else noise
    low, high = settings.sigma_min or known.sigmas[0], settings.sigma_max or known.sigmas[-1]
    name = sampler.automatic if schedule_type == "Automatic" else schedule_type
    schedule = SCHEDULES[name]
    if settings.rho and name in WITH_RHO:
        schedule = partial(schedule, rho=settings.rho)
    values: list[float] = schedule(steps + discard, known, low, high).tolist()
    return values[:-2] + values[-1:] if discard else values


def _to_zero(values: Tensor) -> Tensor:
    return torch.cat([values, values.new_zeros(1)])


def _at(noise: NoiseSchedule, positions: Tensor) -> Tensor:
    """Return the noise levels at fractional timesteps, linear in log sigma."""
    logs, low, high = torch.tensor(noise.log_sigmas), positions.floor().long(), positions.ceil().long()
    weight = positions.frac()
    return ((1 - weight) * logs[low] + weight * logs[high]).exp()


def _uniform(n: int, noise: NoiseSchedule, low: float, high: float) -> Tensor:
    """Space timesteps evenly, both ends included."""
    return _to_zero(_at(noise, torch.linspace(len(noise.sigmas) - 1, 0, n)))


def _sgm_uniform(n: int, noise: NoiseSchedule, low: float, high: float) -> Tensor:
    """Space timesteps evenly without the last one, as Stability AI's generative-models does."""
    return _to_zero(_at(noise, _between(noise, low, high, n + 1)[:-1]))


def _between(noise: NoiseSchedule, low: float, high: float, n: int) -> Tensor:
    """Return n evenly spaced fractional timesteps, from the level `high` down to `low`."""
    return torch.linspace(noise.t_of(high), noise.t_of(low), n)


def _normal(n: int, noise: NoiseSchedule, low: float, high: float) -> Tensor:
    """Space timesteps evenly, both ends included, between the given levels."""
    return _to_zero(_at(noise, _between(noise, low, high, n)))


def _simple(n: int, noise: NoiseSchedule, low: float, high: float) -> Tensor:
    """Take table entries from the top, evenly spaced and rounded down. They repeat if n exceeds the table."""
    table = noise.sigmas
    stride = len(table) / n  # divide first, as in WebUI: at 38 steps i * 1000 / n would round to a different entry
    return _to_zero(torch.tensor([table[-1 - int(i * stride)] for i in range(n)]))


def _ddim(n: int, noise: NoiseSchedule, low: float, high: float) -> Tensor:
    """Take table entries 1, 1 + k, 1 + 2k ..., which is DDIM's own spacing (Song et al. 2020)."""
    table = noise.sigmas
    return _to_zero(torch.tensor(table[1 :: max(len(table) // n, 1)][::-1]))


def karras(n: int, low: float, high: float, rho: float = 7.0) -> list[float]:
    """Return n levels from `high` to `low`, then 0 (Karras et al. 2022, equation 5)."""
    first, last = high ** (1 / rho), low ** (1 / rho)
    levels: list[float] = _to_zero((first + torch.linspace(0, 1, n) * (last - first)) ** rho).tolist()
    return levels


def _karras(n: int, noise: NoiseSchedule, low: float, high: float, rho: float = 7.0) -> Tensor:
    return torch.tensor(karras(n, low, high, rho))


def _exponential(n: int, noise: NoiseSchedule, low: float, high: float) -> Tensor:
    """Space levels evenly in log sigma."""
    return _to_zero(torch.linspace(math.log(high), math.log(low), n).exp())


def _polyexponential(n: int, noise: NoiseSchedule, low: float, high: float, rho: float = 1.0) -> Tensor:
    """Space levels by a polynomial in log sigma. With the default degree 1 it is "Exponential" except for rounding."""
    ramp = torch.linspace(1, 0, n) ** rho
    return _to_zero((ramp * (math.log(high) - math.log(low)) + math.log(low)).exp())


def _kl_optimal(n: int, noise: NoiseSchedule, low: float, high: float) -> Tensor:
    """Space levels evenly in arctan sigma (Sabour et al. 2024, "Align Your Steps", theorem 3.1). Does not end in 0."""
    ramp = torch.arange(n + 1) / n
    return (ramp * torch.tensor(low).atan() + (1 - ramp) * torch.tensor(high).atan()).tan()


def _align_your_steps(n: int, noise: NoiseSchedule, low: float, high: float) -> Tensor:
    """Interpolate the levels that Sabour et al. 2024 optimised for the family to n levels, in log sigma."""
    knots = np.linspace(0, 1, len(noise.aligned))
    levels = np.exp(np.interp(np.linspace(0, 1, n), knots, np.log(noise.aligned[::-1])))
    return _to_zero(torch.from_numpy(levels[::-1].astype(np.float32)))


def _beta(n: int, noise: NoiseSchedule, low: float, high: float) -> Tensor:
    """Use quantiles of the beta distribution with both parameters 0.6 (Lee et al. 2024), stretched over the range."""
    levels = low + beta_quantiles(1 - torch.linspace(0, 1, n, dtype=torch.float64), 0.6) * (high - low)
    return _to_zero(levels.float())


def beta_quantiles(probabilities: Tensor, shape: float) -> Tensor:
    """Return quantiles (n,) float64 of the symmetric beta distribution with both parameters `shape` in (0, 1]."""
    lower = torch.minimum(probabilities, 1 - probabilities)
    total = math.exp(2 * math.lgamma(shape) - math.lgamma(2 * shape))
    x = (lower * shape * total) ** (1 / shape)
    for _ in range(8):  # Newton's method; it starts within 20 %, so it converges to double precision
        density = x ** (shape - 1) * (1 - x) ** (shape - 1) / total
        x = x - (_lower_beta(x, shape) / total - lower) / density
    return torch.where(probabilities > 0.5, 1 - x, x)


def _lower_beta(x: Tensor, shape: float) -> Tensor:
    """Compute the incomplete beta function B(x; shape, shape) for x <= 1/2 by its power series."""
    series, coefficient = torch.zeros_like(x), 1.0
    for k in range(60):
        series = series + coefficient / (shape + k) * x**k
        coefficient *= (k + 1 - shape) / (k + 1)
    return x**shape * series


Schedule = Callable[..., Tensor]
"""(steps, the model's noise schedule, lowest sigma, highest sigma) -> the sigmas of the steps, descending."""

WITH_RHO = ("Karras", "Polyexponential")
"""The schedule types that also take the exponent `rho`."""

SCHEDULES: dict[str, Schedule] = {
    "Karras": _karras,
    "Exponential": _exponential,
    "Polyexponential": _polyexponential,
    "Uniform": _uniform,
    "SGM Uniform": _sgm_uniform,
    "KL Optimal": _kl_optimal,
    "Align Your Steps": _align_your_steps,
    "Simple": _simple,
    "Normal": _normal,
    "DDIM": _ddim,
    "Beta": _beta,
}

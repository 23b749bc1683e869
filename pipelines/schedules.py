"""Sigma schedules of k-diffusion and WebUI 1.10.1: how the noise levels of a pass are spaced.

Arithmetic is float32 where WebUI's is, because SDE noise is looked up by the exact sigma; results are Python floats, so
that a sampling loop never waits for a tensor.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipelines.catalog import SamplerInfo
from pipelines.request import ScheduleSettings


def _cumulative_alphas() -> Tensor:
    """The 1000 cumulative alphas of SD 1.5's scaled-linear betas, float32 from a float64 product."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


_ALPHAS = _cumulative_alphas()
_TABLE = ((1 - _ALPHAS) / _ALPHAS) ** 0.5
_LCM_STRIDE = 20
_LCM_TABLE = _TABLE[_LCM_STRIDE - 1 :: _LCM_STRIDE]
"""The 50 levels that latent consistency models were distilled on: timesteps 19, 39 ... 999."""

ALPHAS: tuple[float, ...] = tuple(_ALPHAS.tolist())
"""Cumulative alpha of timesteps 0 to 999."""
SIGMAS: tuple[float, ...] = tuple(_TABLE.tolist())
"""Noise level of timesteps 0 to 999 in the variance-exploding form: 0.0292 to 14.61."""
_LOG_SIGMAS: tuple[float, ...] = tuple(_TABLE.log().tolist())


def sigma_to_t(sigma: float) -> float:
    """Fractional timestep in [0, 999] of a noise level > 0, linear in log sigma between table entries."""
    return _position(_LOG_SIGMAS, sigma)


def _position(logs: Sequence[float], sigma: float) -> float:
    """Fractional position of a noise level > 0 in an ascending table of log sigmas, at most its ends."""
    log_sigma = math.log(sigma)
    low = min(max(bisect_right(logs, log_sigma) - 1, 0), len(logs) - 2)
    weight = (log_sigma - logs[low]) / (logs[low + 1] - logs[low])
    return low + min(max(weight, 0.0), 1.0)


def t_to_sigma(t: float) -> float:
    """Noise level of a fractional timestep in [0, 999]; the inverse of `sigma_to_t`."""
    return math.exp(interpolate(_LOG_SIGMAS, t))


def interpolate(table: tuple[float, ...], position: float) -> float:
    """Entry of a table at a fractional position, linear between entries."""
    low = min(int(position), len(table) - 2)
    return table[low] + (position - low) * (table[low + 1] - table[low])


def lcm_timestep(sigma: float) -> int:
    """The distilled timestep of a latent consistency model that is nearest to a noise level > 0 in log sigma."""
    log_sigma = math.log(sigma)
    distilled = range(_LCM_STRIDE - 1, len(_LOG_SIGMAS), _LCM_STRIDE)
    return min(distilled, key=lambda t: abs(_LOG_SIGMAS[t] - log_sigma))


def timesteps(steps: int) -> list[int]:
    """Integer timesteps, ascending, for the samplers that walk them (DDIM family, UniPC).

    As in WebUI, more than `steps` of them where `steps` does not divide 1000.
    """
    return [min(t + 1, 999) for t in range(0, 1000, max(1000 // steps, 1))]


def sigmas(
    schedule_type: str,
    steps: int,
    sampler: SamplerInfo,
    settings: ScheduleSettings | None = None,
) -> list[float]:
    """Descending noise levels of a whole pass: `steps` + 1 values ending in 0, with two exceptions of WebUI.

    "KL Optimal" ends at the lowest level instead of 0, and "DDIM" is longer where `steps` does not divide 1000.
    Some types walk levels of the model and take no others from the settings; WebUI's old Karras range is 0.1 to 10.
    """
    settings = settings or ScheduleSettings()
    discard = settings.discard_penultimate or sampler.drops_penultimate
    table = _LCM_TABLE if sampler.name == "LCM" else _TABLE
    low, high = settings.sigma_min or table[0].item(), settings.sigma_max or table[-1].item()
    name = sampler.automatic if schedule_type == "Automatic" else schedule_type
    schedule = partial(SCHEDULES[name], rho=settings.rho) if settings.rho and name in WITH_RHO else SCHEDULES[name]
    values: list[float] = schedule(steps + discard, table, low, high).tolist()
    return values[:-2] + values[-1:] if discard else values


def _to_zero(values: Tensor) -> Tensor:
    return torch.cat([values, values.new_zeros(1)])


def _at(table: Tensor, positions: Tensor) -> Tensor:
    """Noise levels at fractional positions of a table, linear in log sigma."""
    logs, low, high = table.log(), positions.floor().long(), positions.ceil().long()
    weight = positions.frac()
    return ((1 - weight) * logs[low] + weight * logs[high]).exp()


def _uniform(n: int, table: Tensor, low: float, high: float) -> Tensor:
    """Evenly spaced timesteps, both ends included."""
    return _to_zero(_at(table, torch.linspace(len(table) - 1, 0, n)))


def _sgm_uniform(n: int, table: Tensor, low: float, high: float) -> Tensor:
    """Evenly spaced timesteps without the last one, as in Stability AI's generative-models."""
    return _to_zero(_at(table, _between(table, low, high, n + 1)[:-1]))


def _between(table: Tensor, low: float, high: float, n: int) -> Tensor:
    """Fractional positions in the table, evenly spaced from the level `high` down to `low`."""
    logs = table.log().tolist()
    return torch.linspace(_position(logs, high), _position(logs, low), n)


def _normal(n: int, table: Tensor, low: float, high: float) -> Tensor:
    """Evenly spaced timesteps, both ends included, between the levels that are asked for."""
    return _to_zero(_at(table, _between(table, low, high, n)))


def _simple(n: int, table: Tensor, low: float, high: float) -> Tensor:
    """Table entries from the top, evenly spaced and rounded down; entries repeat where n exceeds the table."""
    stride = len(table) / n  # rounded before it is multiplied, as in WebUI: i * 1000 / n is another entry at 38 steps
    return _to_zero(table[[-1 - int(i * stride) for i in range(n)]])


def _ddim(n: int, table: Tensor, low: float, high: float) -> Tensor:
    """Table entries 1, 1 + k, 1 + 2k ... of DDIM's own spacing (Song et al. 2020)."""
    return _to_zero(table[1 :: max(len(table) // n, 1)].flip(0))


def karras(n: int, low: float, high: float, rho: float = 7.0) -> list[float]:
    """Karras et al. 2022, equation 5: n levels from `high` to `low`, then 0."""
    first, last = high ** (1 / rho), low ** (1 / rho)
    levels: list[float] = _to_zero((first + torch.linspace(0, 1, n) * (last - first)) ** rho).tolist()
    return levels


def _karras(n: int, table: Tensor, low: float, high: float, rho: float = 7.0) -> Tensor:
    return torch.tensor(karras(n, low, high, rho))


def _exponential(n: int, table: Tensor, low: float, high: float) -> Tensor:
    """Evenly spaced in log sigma."""
    return _to_zero(torch.linspace(math.log(high), math.log(low), n).exp())


def _polyexponential(n: int, table: Tensor, low: float, high: float, rho: float = 1.0) -> Tensor:
    """Polynomial in log sigma; of degree 1 unless told otherwise, so "Exponential" but for rounding."""
    ramp = torch.linspace(1, 0, n) ** rho
    return _to_zero((ramp * (math.log(high) - math.log(low)) + math.log(low)).exp())


def _kl_optimal(n: int, table: Tensor, low: float, high: float) -> Tensor:
    """Sabour et al. 2024 ("Align Your Steps"), theorem 3.1: evenly spaced in arctan sigma; does not end in 0."""
    ramp = torch.arange(n + 1) / n
    return (ramp * torch.tensor(low).atan() + (1 - ramp) * torch.tensor(high).atan()).tan()


_ALIGNED = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
"""Sabour et al. 2024: the levels that they optimised for SD 1.5 at ten steps."""


def _align_your_steps(n: int, table: Tensor, low: float, high: float) -> Tensor:
    """The optimised levels, interpolated in log sigma to n of them."""
    knots = np.linspace(0, 1, len(_ALIGNED))
    levels = np.exp(np.interp(np.linspace(0, 1, n), knots, np.log(_ALIGNED[::-1])))
    return _to_zero(torch.from_numpy(levels[::-1].astype(np.float32)))


def _beta(n: int, table: Tensor, low: float, high: float) -> Tensor:
    """Quantiles of the beta distribution with both parameters 0.6 (Lee et al. 2024), stretched over the range."""
    levels = low + beta_quantiles(1 - torch.linspace(0, 1, n, dtype=torch.float64), 0.6) * (high - low)
    return _to_zero(levels.float())


def beta_quantiles(probabilities: Tensor, shape: float) -> Tensor:
    """Quantiles (n,) float64 of the symmetric beta distribution with both parameters `shape` in (0, 1]."""
    lower = torch.minimum(probabilities, 1 - probabilities)
    total = math.exp(2 * math.lgamma(shape) - math.lgamma(2 * shape))
    x = (lower * shape * total) ** (1 / shape)
    for _ in range(8):  # Newton's method; the start is within 20 %, so it converges to double precision
        density = x ** (shape - 1) * (1 - x) ** (shape - 1) / total
        x = x - (_lower_beta(x, shape) / total - lower) / density
    return torch.where(probabilities > 0.5, 1 - x, x)


def _lower_beta(x: Tensor, shape: float) -> Tensor:
    """Incomplete beta function B(x; shape, shape) for x <= 1/2, by its power series."""
    series, coefficient = torch.zeros_like(x), 1.0
    for k in range(60):
        series = series + coefficient / (shape + k) * x**k
        coefficient *= (k + 1 - shape) / (k + 1)
    return x**shape * series


Schedule = Callable[..., Tensor]
"""(steps, the model's table of sigmas ascending, lowest, highest sigma) -> sigmas as they are run."""

WITH_RHO = ("Karras", "Polyexponential")
"""Those that take the exponent `rho`, too."""

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

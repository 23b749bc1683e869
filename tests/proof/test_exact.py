"""Every sampler compared with exact solutions, without another program's numbers.

Samplers without noise solve the probability-flow equation, whose solution for a mixture of normal distributions is
known (`mixture`). Samplers with noise must end with the variance of the data; for normally distributed data it follows
from what each draw of noise does to the result. Either way, the error must fall with the number of steps as fast as the
order of the method says, towards the exact value.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.ask.catalog import SAMPLERS
from pipelines.ask.request import AddedNoise, NoiseSettings
from pipelines.sampling.noise import Noise
from pipelines.sampling.samplers import ALGORITHMS
from pipelines.sampling.schedules import karras
from tests.proof.mixture import Mixture, Scaled, sigma_of

CPU = torch.device("cpu")
POINTS = np.linspace(-2.5, 2.5, 64)
"""Start values, in deviations of the noise."""
VARIANCE = 0.64
"""Of the normally distributed data."""
WITHOUT_NOISE = {  # sampler: order of the method
    "Euler": 1,
    "Heun": 2,
    "DPM2": 2,
    "DPM++ 2M": 2,
    "LMS": 3.5,  # 4, but for its first steps, which are of lower orders
    "DDIM": 1,
    "DDIM CFG++": 1,
    "PLMS": 2,  # the formulas of order 4 follow a first step of order 2
    "UniPC": 1.3,  # 3, but its times are evenly spaced down to 0, where the noise level goes as their root
}
WITH_NOISE = {  # sampler: order by which the variance converges
    "Euler a": 1,
    "DPM2 a": 2,
    "DPM++ 2S a": 2,
    "DPM++ SDE": 2,
    "DPM++ 2M SDE": 2,
    "DPM++ 2M SDE Heun": 2,
    "DPM++ 3M SDE": 2,  # of the data's variance; its order 3 is that of the mean
    "Restart": 2,
}
BY_THEMSELVES = {"DPM fast", "DPM adaptive", "LCM"}


def test_every_sampler_is_compared() -> None:
    assert WITHOUT_NOISE.keys() | WITH_NOISE.keys() | BY_THEMSELVES == set(SAMPLERS)


# --- without noise


def errors(name: str, steps: int, factor: float = 1.0) -> np.ndarray:
    """Differences (64,) between where a sampler ends and where the equation leads."""
    model = Mixture((0.4, 0.6), (-4, 3), (2.5, 1.5)) if name == "UniPC" else Mixture()
    levels, start, end = _schedule(name, steps)
    x = POINTS * start
    scales = [math.sqrt(1 + sigma**2) if SAMPLERS[name].timesteps else 1.0 for sigma in (start, end)]
    noise = Noise([0], (1, 1, 1), device=CPU)
    *_, last = ALGORITHMS[name](Scaled(model, factor), torch.tensor(x / scales[0])[None, None, None], levels, noise)
    return last.flatten().numpy() * scales[1] - model.carried(x, start, end)


def _schedule(name: str, steps: int) -> tuple[Sequence[float], float, float]:
    """Levels or timesteps of a pass, and the noise levels at its ends."""
    if name == "UniPC":
        return range(1, 1000, 1000 // steps), sigma_of(999), sigma_of(0)
    if SAMPLERS[name].timesteps:
        times = range(200, 801, 600 // steps)
        return times, sigma_of(times[-1]), sigma_of(times[0])
    levels = karras(steps + 1, 0.05, 14.6)[:-1]
    return levels, levels[0], levels[-1]


@pytest.mark.parametrize("name", WITHOUT_NOISE)
def test_a_sampler_without_noise_converges_to_the_exact_solution(name: str) -> None:
    steps, order = 50, WITHOUT_NOISE[name]
    coarse, fine = errors(name, steps), errors(name, 2 * steps)
    assert np.log2(np.abs(coarse).mean() / np.abs(fine).mean()) == pytest.approx(order, abs=0.2)
    assert np.abs(extrapolated(coarse, fine, order)).mean() < 5e-4
    wrong = extrapolated(errors(name, steps, 1.01), errors(name, 2 * steps, 1.01), order)
    assert np.abs(wrong).mean() > 5e-3, "a coefficient that is wrong by a hundredth must be noticed"


def extrapolated(coarse: np.ndarray, fine: np.ndarray, order: float) -> np.ndarray:
    """What is left of the error without its leading term (Richardson)."""
    return (2**order * fine - coarse) / (2**order - 1)


# --- with noise


class Impulses:
    """Noise in which every draw is one of its own row of the batch, and the others' rows are 0.

    Samplers are linear in their noise where the denoiser is, so the result's rows are what each draw contributes. For
    Brownian motion a draw is its increment between two of the `times` at which it is asked for.
    """

    added = AddedNoise()

    def __init__(self, rows: int, times: Sequence[float] = (), factor: float = 1.0) -> None:
        self.times, self.factor = times, factor
        self.asked: set[float] = set()
        self._unit = torch.eye(rows, dtype=torch.float64)[:, :, None, None, None]
        self._draws: Iterator[Tensor] = (self._unit[:, row] for row in range(1, rows))

    def draw(self) -> Tensor:
        return next(self._draws) * self.factor

    def brownian(self, sigma: float, sigma_next: float) -> Tensor:
        self.asked |= {sigma, sigma_next}
        increment = torch.zeros_like(self._unit[:, 0])
        for row, (low, high) in enumerate(pairwise(self.times), 1):
            if sigma_next <= low and high <= sigma:
                increment = increment - self._unit[:, row] * math.sqrt(high - low)
        return increment * self.factor / math.sqrt(sigma - sigma_next)


def variance(name: str, steps: int, factor: float = 1.0) -> float:
    """Variance of a sampler's result on normally distributed data, over that of the data."""
    levels, rows = karras(steps, 0.01, 14.6), 2 * steps + 2
    model = Mixture((1.0,), (0.0,), (math.sqrt(VARIANCE),))
    x = torch.zeros(rows, 1, 1, 1, dtype=torch.float64)
    x[0] = math.sqrt(VARIANCE + levels[0] ** 2)
    recorded = Impulses(rows)
    list(ALGORITHMS[name](model, x, levels, recorded))  # type: ignore[arg-type]
    noise = Impulses(rows, sorted(recorded.asked), factor)
    *_, last = ALGORITHMS[name](model, x, levels, noise)  # type: ignore[arg-type]
    return last.square().sum().item() / VARIANCE


@pytest.mark.parametrize("name", WITH_NOISE)
def test_a_sampler_with_noise_converges_to_the_variance_of_the_data(name: str) -> None:
    order = WITH_NOISE[name]
    steps = 80 // order
    coarse, fine = variance(name, steps) - 1, variance(name, 2 * steps) - 1
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.3)
    assert abs((2**order * fine - coarse) / (2**order - 1)) < 4e-3
    louder = [variance(name, count, 1.01) - 1 for count in (steps, 2 * steps)]
    wrong = (2**order * louder[1] - louder[0]) / (2**order - 1)
    assert wrong > 1e-2, "noise that is too loud by a hundredth must be noticed"


def test_dpm_fast_ends_with_the_variance_of_the_data() -> None:
    """Its last step, of a lower order, keeps its error from falling regularly."""
    assert abs(variance("DPM fast", 80) - 1) < 1e-3
    assert variance("DPM fast", 80, 1.01) - 1 > 1e-2


def test_dpm_adaptive_ends_with_the_variance_of_the_data() -> None:
    """It sets its steps by the whole batch, so this batch is a sample, of which 1 % is two standard errors."""

    def sampled(factor: float) -> float:
        class Louder(Noise):
            def draw(self) -> Tensor:
                return super().draw() * factor

        noise = Louder([5], (4, 128, 128), device=CPU, settings=NoiseSettings(source="CPU"))
        model, levels = Mixture((1.0,), (0.0,), (math.sqrt(VARIANCE),)), karras(20, 0.01, 14.6)
        *_, last = ALGORITHMS["DPM adaptive"](model, noise.initial() * levels[0], levels, noise)
        return last.var().item() / VARIANCE

    assert sampled(1.0) == pytest.approx(1, abs=0.02)
    assert abs(sampled(1.02) - 1) > 0.02


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_lcm_has_the_variance_of_a_chain_of_predictions(steps: int) -> None:
    """Every step replaces x by the prediction c²/(c² + s²) x and adds noise of the next level: a recursion."""
    levels = karras(steps, 0.01, 14.6)
    expected = VARIANCE + levels[0] ** 2
    for sigma, sigma_next in pairwise(levels):
        expected = expected * (VARIANCE / (VARIANCE + sigma**2)) ** 2 + sigma_next**2
    assert variance("LCM", steps) == pytest.approx(expected / VARIANCE, rel=1e-6)

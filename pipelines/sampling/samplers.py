"""Samplers as generators over the steps of a pass, all with the same signature, after k-diffusion and WebUI 1.10.1.

    for x in ALGORITHMS[name](model, x, levels, noise): ...

`x` is (B, 4, h, w) float32, already scaled to the first level. A new x is yielded after every step, and the last one is
the result. If there is no step to run, nothing is yielded and the result is the initial x. `levels` are descending
sigmas, or ascending timesteps for the samplers that `catalog` marks. `noise.added` says how much noise a sampler adds.

Coefficients are Python floats, so that no step waits for the device, except in "DPM adaptive". A solver's step towards
the denoised image is a linear interpolation in one kernel: the papers' x * s'/s + (1 - s'/s) * denoised is
lerp(x, denoised, 1 - s'/s).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipelines.errors import NonFiniteError
from pipelines.families.noise_schedule import NoiseSchedule
from pipelines.sampling.noise import Noise
from pipelines.sampling.schedules import interpolate, karras, lcm_timestep


class Denoiser(Protocol):
    """The guided network, in the two parametrisations that samplers use."""

    noise: NoiseSchedule
    """The model's."""

    def __call__(self, x: Tensor, sigma: float, t: float | None = None) -> Tensor:
        """Return the denoised image at a noise level > 0 (variance exploding). `t` overrides that level's timestep."""
        ...

    def eps(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """Return the guided and the unconditional noise of a variance-preserving x at a timestep in [0, 999]."""
        ...


Sampler = Callable[[Denoiser, Tensor, Sequence[float], Noise], Iterator[Tensor]]


def _steps(sigmas: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Return pairs of neighbouring levels. Equal ones ("Simple" above 1000 steps) are skipped, as they would divide by
    zero."""
    return ((sigma, sigma_next) for sigma, sigma_next in pairwise(sigmas) if sigma != sigma_next)


def _ancestral(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """Return the level to step down to and the level of the noise to add, which together give sigma_next."""
    if not eta:
        return sigma_next, 0.0
    start, end = np.float32(sigma), np.float32(sigma_next)  # k-diffusion's precision, in which long steps cancel
    up = min(end, np.float32(eta) * np.sqrt(end**2 * (start**2 - end**2) / start**2))
    return float(np.sqrt(end**2 - up**2)), float(up)


CHURN_MAX = math.sqrt(2) - 1
"""The largest share by which a step's level is raised (Karras et al. 2022, table 5)."""


def _churned_steps(sigmas: Sequence[float], noise: Noise) -> Iterator[tuple[float, float, float, Tensor | None]]:
    """Yield neighbouring levels, the level to which churn raises the first one, and the noise for that (None: none).

    As in k-diffusion, churn draws noise at every step, also outside its range of levels, and does not skip steps
    between equal levels.
    """
    added, count = noise.added, len(sigmas) - 1
    for sigma, sigma_next in pairwise(sigmas) if added.churn else _steps(sigmas):
        fresh = noise.draw() if added.churn else None
        churned = added.tmin <= sigma <= (added.tmax or math.inf)
        raised = sigma * (1 + min(added.churn / count, CHURN_MAX)) if churned else sigma
        yield sigma, sigma_next, raised, fresh if raised > sigma else None


def _raised(x: Tensor, sigma: float, raised: float, fresh: Tensor | None, noise: Noise) -> Tensor:
    """Add noise to x from the level sigma up to the raised one (Karras et al. 2022, algorithm 2, line 6)."""
    return x if fresh is None else x.add(fresh, alpha=noise.added.scale * math.sqrt(raised**2 - sigma**2))


def euler(model: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Run Karras et al. 2022, algorithm 2, without the second-order correction."""
    for sigma, sigma_next, raised, fresh in _churned_steps(sigmas, noise):
        x = _raised(x, sigma, raised, fresh, noise)
        x = x.lerp(model(x, raised), 1 - sigma_next / raised)
        yield x


def euler_ancestral(model: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Take Euler steps to below the next level, then add noise up to it."""
    for sigma, sigma_next in _steps(sigmas):
        down, up = _ancestral(sigma, sigma_next, noise.added.eta)
        x = x.lerp(model(x, sigma), 1 - down / sigma)
        if up:
            x = x.add(noise.draw(), alpha=up * noise.added.scale)
        yield x


def heun(model: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Run Karras et al. 2022, algorithm 2."""
    for sigma, sigma_next, raised, fresh in _churned_steps(sigmas, noise):
        x = _heun_step(model, _raised(x, sigma, raised, fresh, noise), raised, sigma_next)
        yield x


def _heun_step(model: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    denoised = model(x, sigma)
    predicted = x.lerp(denoised, 1 - sigma_next / sigma)
    if sigma_next == 0:
        return predicted
    slope, slope_next = (x - denoised) / sigma, (predicted - model(predicted, sigma_next)) / sigma_next
    return x.add(slope + slope_next, alpha=(sigma_next - sigma) / 2)


def lms(model: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Run a linear multistep method (Adams-Bashforth over uneven levels) of order 4."""
    levels: list[float] = []
    slopes: list[Tensor] = []
    for sigma, sigma_next in _steps(sigmas):
        levels, slopes = [sigma, *levels[:3]], [(x - model(x, sigma)) / sigma, *slopes[:3]]
        weights = [_integral(levels, j, sigma, sigma_next) for j in range(len(levels))]
        x = x + _combine(weights, slopes)
        yield x


def _integral(levels: Sequence[float], j: int, start: float, end: float) -> float:
    """Integrate the Lagrange polynomial of level j. Its degree is <= 3, so two-point Gauss quadrature is exact."""
    middle, half = (start + end) / 2, (end - start) / 2
    points = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    others = [level for i, level in enumerate(levels) if i != j]
    return half * sum(math.prod((point - o) / (levels[j] - o) for o in others) for point in points)


def _combine(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0] * weights[0]
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        total = total.add(tensor, alpha=weight)
    return total


def dpm_2(model: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Run DPM-Solver-2 (Lu et al. 2022) as a midpoint method in sigma."""
    for sigma, sigma_next, raised, fresh in _churned_steps(sigmas, noise):
        x = _midpoint_step(model, _raised(x, sigma, raised, fresh, noise), raised, sigma_next)
        yield x


def dpm_2_ancestral(model: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Run DPM-Solver-2 to below the next level, then add noise up to it."""
    for sigma, sigma_next in _steps(sigmas):
        down, up = _ancestral(sigma, sigma_next, noise.added.eta)
        x = _midpoint_step(model, x, sigma, down)
        if up:
            x = x.add(noise.draw(), alpha=up * noise.added.scale)
        yield x


def _midpoint_step(model: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    denoised = model(x, sigma)
    if sigma_next == 0:
        return denoised
    middle = math.sqrt(sigma * sigma_next)
    half = x.lerp(denoised, 1 - middle / sigma)
    return x.add(half - model(half, middle), alpha=(sigma_next - sigma) / middle)


def dpm_fast(model: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Run DPM-Solver-fast (Lu et al. 2022, appendix D.3), ancestral, with as many calls as there are steps.

    It spaces its own levels in log sigma: of `sigmas` it uses only the first, the second-to-last and their number.
    """
    calls = len(sigmas) - 1
    last = -math.log(sigmas[-2])
    times = np.linspace(-math.log(sigmas[0]), last, calls // 3 + 2).tolist()
    orders = [3] * (calls // 3 - 1) + [2, 1] if calls % 3 == 0 else [3] * (calls // 3) + [calls % 3]
    for order, (time, time_next) in zip(orders, pairwise(times), strict=True):
        down, up = _ancestral_times(time, time_next, last, noise.added.eta)
        x = _DPM_STEPS[order](model, x, time, down)[-1].add(noise.draw(), alpha=up * noise.added.scale)
        yield x


def dpm_adaptive(model: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Run DPM-Solver-23 (Lu et al. 2022, appendix C), ancestral. The error of order 2 against 3 sets the step size.

    With noise the error is treated as of order 1.5, as in k-diffusion. Of `sigmas` only the first and the
    second-to-last are used. The error is computed over the batch, as in WebUI, so an image's steps depend on its
    neighbours. Raises NonFiniteError if the error is not finite.
    """
    time, last, h, previous = -math.log(sigmas[0]), -math.log(sigmas[-2]), 0.05, x
    order = 1.5 if noise.added.eta else 3
    while time < last - 1e-5:
        time_next = min(last, time + h)
        down, up = _ancestral_times(time, time_next, last, noise.added.eta)
        low, high = _dpm_step_3(model, x, time, down)
        tolerance = (torch.maximum(low.abs(), previous.abs()) * 0.05).clamp(min=0.0078)
        error = ((low - high) / tolerance).square().mean().sqrt().item()
        if not math.isfinite(error):
            raise NonFiniteError("The network returned NaN. Lower guidance_scale or the weights in the prompt.")
        factor = 1 + math.atan((error + 1e-8) ** (-1 / order) - 1)
        h *= factor
        if factor >= 0.81:
            time, previous, x = time_next, low, high.add(noise.draw(), alpha=up * noise.added.scale)
            yield x


def _ancestral_times(time: float, time_next: float, last: float, eta: float) -> tuple[float, float]:
    """Return the same as `_ancestral` in times = -log sigma, going down no further than the last time."""
    if not eta:
        return time_next, 0.0
    sigma_next = math.exp(-time_next)
    below = time_next - time if eta == 1 else -math.log1p(eta**2 * math.expm1(2 * (time - time_next))) / 2
    down = min(last, time_next + below)
    return down, math.sqrt(max(sigma_next**2 - math.exp(-2 * down), 0.0))


def _slope(model: Denoiser, x: Tensor, time: float) -> Tensor:
    """Return the noise in x at a time = -log sigma."""
    sigma = math.exp(-time)
    return (x - model(x, sigma)) / sigma


def _dpm_step_1(model: Denoiser, x: Tensor, time: float, time_next: float) -> tuple[Tensor]:
    """Take a step of Lu et al. 2022, equation 3.7."""
    return (x.add(_slope(model, x, time), alpha=-math.exp(-time_next) * math.expm1(time_next - time)),)


def _dpm_step_2(model: Denoiser, x: Tensor, time: float, time_next: float) -> tuple[Tensor]:
    """Take a step of Lu et al. 2022, algorithm 1."""
    h, sigma_next = time_next - time, math.exp(-time_next)
    slope = _slope(model, x, time)
    half = x.add(slope, alpha=-math.exp(-time - h / 2) * math.expm1(h / 2))
    return (x.add(_slope(model, half, time + h / 2), alpha=-sigma_next * math.expm1(h)),)


def _dpm_step_3(model: Denoiser, x: Tensor, time: float, time_next: float) -> tuple[Tensor, Tensor]:
    """Return the solutions of order 2 (with r1 = 1/3) and of order 3 of Lu et al. 2022, algorithm 2."""
    h, sigma_next = time_next - time, math.exp(-time_next)
    third, two_thirds = time + h / 3, time + h * 2 / 3
    slope = _slope(model, x, time)
    x_1 = x.add(slope, alpha=-math.exp(-third) * math.expm1(h / 3))
    change_1 = _slope(model, x_1, third) - slope
    x_2 = x.add(slope, alpha=-math.exp(-two_thirds) * math.expm1(h * 2 / 3))
    x_2 = x_2.add(change_1, alpha=-2 * math.exp(-two_thirds) * (math.expm1(h * 2 / 3) / (h * 2 / 3) - 1))
    change_2 = _slope(model, x_2, two_thirds) - slope
    first = x.add(slope, alpha=-sigma_next * math.expm1(h))
    low = first.add(change_1, alpha=-1.5 * sigma_next * math.expm1(h))
    return low, first.add(change_2, alpha=-1.5 * sigma_next * (math.expm1(h) / h - 1))


_DPM_STEPS: dict[int, Callable[[Denoiser, Tensor, float, float], tuple[Tensor, ...]]] = {
    1: _dpm_step_1,
    2: _dpm_step_2,
    3: _dpm_step_3,
}


def dpmpp_2s_ancestral(model: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Run DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1) to below the next level, then add noise up to it."""
    for sigma, sigma_next in _steps(sigmas):
        down, up = _ancestral(sigma, sigma_next, noise.added.eta)
        denoised = model(x, sigma)
        if down:
            middle = math.sqrt(sigma * down)
            denoised = model(x.lerp(denoised, 1 - middle / sigma), middle)
        x = x.lerp(denoised, 1 - down / sigma)
        if up:
            x = x.add(noise.draw(), alpha=up * noise.added.scale)
        yield x


def dpmpp_sde(model: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Run the stochastic DPM-Solver++ of k-diffusion, with r = 1/2."""
    # Brownian motion is looked up at 1e-6: the levels go through float32 logarithms exactly as in k-diffusion.
    logs = torch.tensor(sigmas, dtype=torch.float32).log()
    middles = (logs[:-1] + (logs[1:] - logs[:-1]) * 0.5).exp().tolist()
    levels = logs.exp().tolist()
    for sigma, middle, sigma_next in zip(levels[:-1], middles, levels[1:], strict=True):
        denoised = model(x, sigma)
        if sigma_next == 0:
            x = denoised
        elif sigma_next != sigma:
            down, up = _ancestral(sigma, middle, noise.added.eta)
            half = _diffused(x.lerp(denoised, 1 - down / sigma), sigma, middle, up, noise)
            down, up = _ancestral(sigma, sigma_next, noise.added.eta)
            x = _diffused(x.lerp(model(half, middle), 1 - down / sigma), sigma, sigma_next, up, noise)
        yield x


def _diffused(x: Tensor, sigma: float, sigma_next: float, up: float, noise: Noise) -> Tensor:
    """Add the Brownian motion's noise of a step to x, at the level `up`."""
    return x.add(noise.brownian(sigma, sigma_next), alpha=up * noise.added.scale) if up else x


def dpmpp_2m(model: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Run DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2)."""
    previous: tuple[Tensor, float] | None = None
    for sigma, sigma_next in _steps(sigmas):
        target = denoised = model(x, sigma)
        if sigma_next > 0:
            h = math.log(sigma / sigma_next)
            if previous is not None:
                target = previous[0].lerp(denoised, 1 + h / (2 * previous[1]))
            previous = denoised, h
        x = x.lerp(target, 1 - sigma_next / sigma)
        yield x


def dpmpp_2m_sde(model: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Run DPM-Solver++(2M) SDE of k-diffusion, midpoint form."""
    return _dpmpp_multistep_sde(model, x, sigmas, noise, _midpoint_correction)


def dpmpp_2m_sde_heun(model: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Run DPM-Solver++(2M) SDE of k-diffusion, Heun form."""
    return _dpmpp_multistep_sde(model, x, sigmas, noise, _heun_correction)


def dpmpp_3m_sde(model: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Run DPM-Solver++(3M) SDE of k-diffusion."""
    return _dpmpp_multistep_sde(model, x, sigmas, noise, _third_order_correction)


_Past = Sequence[tuple[Tensor, float]]
"""Denoised image and step size in log sigma for the steps done so far, latest first."""
_Correction = Callable[[Tensor, float, float, _Past], Tensor | None]
"""(denoised, step size h in log sigma, (1 + eta) h, past) -> the multistep term to add to the first-order step."""


def _dpmpp_multistep_sde(
    model: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise, correction: _Correction
) -> Iterator[Tensor]:
    """Take the SDE's first-order steps, each with a correction from earlier steps, and then add noise."""
    eta = noise.added.eta
    past: _Past = ()
    for sigma, sigma_next in _steps(sigmas):
        denoised = model(x, sigma)
        if sigma_next == 0:
            x = denoised
        else:
            h = math.log(sigma / sigma_next)
            down, up = _sde_levels(sigma, sigma_next, eta)
            term = correction(denoised, h, (1 + eta) * h, past)
            x = _diffused(x.lerp(denoised, 1 - down / sigma), sigma, sigma_next, up, noise)
            x = x if term is None else x + term
            past = ((denoised, h), *past[:1])
        yield x


def _sde_levels(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """Return the same as `_ancestral` for the SDE: a step of h in log sigma multiplies sigma by exp(-(1 + eta) h)."""
    if eta == 1:
        return _ancestral(sigma, sigma_next, eta)
    ratio = sigma_next / sigma
    return sigma_next * ratio**eta, sigma_next * math.sqrt(1 - ratio ** (2 * eta))


def _midpoint_correction(denoised: Tensor, h: float, diffused: float, past: _Past) -> Tensor | None:
    return (denoised - past[0][0]) * (-0.5 * math.expm1(-diffused) * h / past[0][1]) if past else None


def _phi_2(diffused: float) -> float:
    """Return the second exponential-integrator function, with k-diffusion's sign."""
    return math.expm1(-diffused) / diffused + 1


def _heun_correction(denoised: Tensor, h: float, diffused: float, past: _Past) -> Tensor | None:
    return (denoised - past[0][0]) * (_phi_2(diffused) * h / past[0][1]) if past else None


def _third_order_correction(denoised: Tensor, h: float, diffused: float, past: _Past) -> Tensor | None:
    if len(past) < 2:
        return _heun_correction(denoised, h, diffused, past)
    (denoised_1, h_1), (denoised_2, h_2) = past
    r_0, r_1 = h_1 / h, h_2 / h
    slope_0, slope_1 = (denoised - denoised_1) / r_0, (denoised_1 - denoised_2) / r_1
    curvature = (slope_0 - slope_1) / (r_0 + r_1)
    phi_2 = _phi_2(diffused)
    phi_3 = phi_2 / diffused - 0.5
    return slope_0 * phi_2 + curvature * (phi_2 * r_0 - phi_3)


def restart(model: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Run Restart sampling (Xu et al. 2023) with Heun steps, in WebUI's form (see `restart_levels`)."""
    level = sigmas[0]
    for sigma, sigma_next in restart_levels(sigmas):
        if sigma > level:
            x = x.add(noise.draw(), alpha=math.sqrt(sigma**2 - level**2))
        x = _heun_step(model, x, sigma, sigma_next)
        level = sigma_next
        yield x


def restart_levels(sigmas: Sequence[float]) -> list[tuple[float, float]]:
    """Return the steps of WebUI's Restart sampler, as many as requested.

    From 20 steps on, the main pass is a Karras schedule with 9 steps fewer (from 36 on, two quarters fewer). Those
    steps are spent on repeating the range from sigma 2 to 0.1.
    """
    steps = len(sigmas) - 1
    if steps < 20:
        return list(_steps(sigmas))
    length, times = (steps // 4, 2) if steps >= 36 else (9, 1)
    main = karras(steps - length * times, sigmas[-2], sigmas[0])
    low, high = (min(range(len(main)), key=lambda i: abs(main[i] - level)) for level in (0.1, 2.0))
    again = list(pairwise(karras(length + 1, main[low], main[high])[:-1])) if high < low else []
    return list(pairwise(main[: low + 1])) + again * times + list(pairwise(main[low:]))


def lcm(model: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Run multistep consistency sampling (Luo et al. 2023, algorithm 1) at the timesteps that were distilled.

    The paper's boundary scalings are left out: at those timesteps they differ from 0 and 1 by less than 1e-5.
    """
    for sigma, sigma_next in _steps(sigmas):
        x = model(x, sigma, lcm_timestep(model.noise, sigma))
        if sigma_next:
            x = x.add(noise.draw(), alpha=sigma_next)
        yield x


def ddim(model: Denoiser, x: Tensor, timesteps: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Run Song et al. 2020, equation 12. It ends at the first timestep, without calling the model there."""
    for t, t_next in _timestep_pairs(timesteps):
        eps, _ = model.eps(x, t)
        x = _ddim_noisy_step(model.noise, x, (eps, eps), (t, t_next), noise)
        yield x


def ddim_cfgpp(model: Denoiser, x: Tensor, timesteps: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Run CFG++ (Chung et al. 2024). Guidance is divided by 12.5, as in WebUI; the noise put back is unconditional."""
    for t, t_next in _timestep_pairs(timesteps):
        eps, unconditional = model.eps(x, t)
        x = _ddim_noisy_step(model.noise, x, (unconditional.lerp(eps, 1 / 12.5), unconditional), (t, t_next), noise)
        yield x


def plms(model: Denoiser, x: Tensor, timesteps: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Run pseudo linear multistep (Liu et al. 2022, equations 9 and 12), started by one pseudo improved Euler step."""
    past: list[Tensor] = []
    for t, t_next in _timestep_pairs(timesteps):
        past = [model.eps(x, t)[0], *past[:3]]
        if len(past) == 1:
            predicted = _ddim_step(model.noise, x, (past[0], past[0]), (t, t_next))
            eps = past[0].lerp(model.eps(predicted, t_next)[0], 0.5)
        else:
            eps = _combine(_ADAMS_BASHFORTH[len(past)], past)
        x = _ddim_step(model.noise, x, (eps, eps), (t, t_next))
        yield x


_ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def _timestep_pairs(timesteps: Sequence[float]) -> Iterator[tuple[int, int]]:
    return pairwise(int(t) for t in reversed(timesteps))


def _ddim_step(
    schedule: NoiseSchedule, x: Tensor, eps: tuple[Tensor, Tensor], times: tuple[int, int], deviation: float = 0.0
) -> Tensor:
    """Remove the first noise from x at timestep t, and add the second one for the next timestep.

    It leaves room for fresh noise of the given standard deviation.
    """
    (removed, direction), (t, t_next) = eps, times
    alpha, alpha_next = schedule.alphas[t], schedule.alphas[t_next]
    clean = x.sub(removed, alpha=schedule.noise_share(t)) * math.sqrt(alpha_next / alpha)
    return clean.add(direction, alpha=math.sqrt(1 - alpha_next - deviation**2))


def _ddim_noisy_step(
    schedule: NoiseSchedule, x: Tensor, eps: tuple[Tensor, Tensor], times: tuple[int, int], noise: Noise
) -> Tensor:
    """Take a `_ddim_step`, then add fresh noise (Song et al. 2020, equation 16). Its eta is 0 unless set."""
    eta = noise.added.eta_ddim
    if not eta:
        return _ddim_step(schedule, x, eps, times)
    alpha, alpha_next = (schedule.alphas[t] for t in times)
    deviation = eta * math.sqrt((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next))
    return _ddim_step(schedule, x, eps, times, deviation).add(noise.draw(), alpha=deviation)


def unipc(model: Denoiser, x: Tensor, timesteps: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Run UniPC (Zhao et al. 2023, algorithms 5 to 8): data prediction, B1(h), order 3, lower orders at both ends.

    It spaces its own times evenly down from the last training timestep. Of the timesteps it uses only their number and,
    in the hires pass, their start. WebUI refuses fewer than 3 steps; here the order is lowered.
    """
    times: list[float] = []
    if timesteps:
        times = np.linspace(_unipc_start(timesteps, len(model.noise.alphas)), 0, len(timesteps) + 1).tolist()
    past: list[_UniPCPoint] = []
    for left, (t, t_next) in zip(range(len(timesteps), 0, -1), pairwise(times), strict=True):
        if not past:
            past = [_unipc_point(model, x, t)]
        used = past[: min(3, left)]
        predicted = _unipc_update(x, used, _marginal(model.noise, t_next), used[1:])
        if left > 1:
            newest = _unipc_point(model, predicted, t_next)
            x = _unipc_update(x, used, newest[:2], [*used[1:], newest])
            past = [newest, *past[:2]]
        else:
            x = predicted
        yield x


_UniPCPoint = tuple[float, float, Tensor]
"""Signal level, noise level and denoised image at a time."""


def _unipc_start(timesteps: Sequence[float], trained: int) -> float:
    """Return where to start: at the last training timestep for a whole schedule, else at the last of `timesteps`."""
    spacing = timesteps[1] - timesteps[0] if len(timesteps) > 1 else trained
    return trained - 1 if timesteps[-1] + spacing > trained else timesteps[-1]


def _marginal(noise: NoiseSchedule, t: float) -> tuple[float, float]:
    """Return signal and noise level of a fractional timestep, linear in log alpha as in UniPC's own code."""
    alpha = math.exp(interpolate(noise.log_alphas, t))
    return math.sqrt(alpha), math.sqrt(1 - alpha)


def _unipc_point(model: Denoiser, x: Tensor, t: float) -> _UniPCPoint:
    signal, level = _marginal(model.noise, t)
    return signal, level, x.sub(model.eps(x, t)[0], alpha=level) / signal


def _unipc_update(
    x: Tensor, past: Sequence[_UniPCPoint], target: tuple[float, float], others: Sequence[_UniPCPoint]
) -> Tensor:
    """Move x from the latest past point to the target's levels. This is the predictor, or the corrector if `others`
    ends with the target's own point."""
    signal, level = target
    _, level_0, denoised = past[0]
    start = _log_snr(past[0])
    h = math.log(signal / level) - start
    ratios = [(_log_snr(point) - start) / h for point in others]
    weights = [h * rho / ratio for rho, ratio in zip(_unipc_rhos(ratios, h), ratios, strict=True)]
    weights = [-math.expm1(-h) - sum(weights), *weights]
    images = [denoised, *(point[2] for point in others)]
    return (x * (level / level_0)).add(_combine(weights, images), alpha=signal)


def _log_snr(point: _UniPCPoint) -> float:
    return math.log(point[0] / point[1])


def _unipc_rhos(ratios: Sequence[float], h: float) -> list[float]:
    """Solve Zhao et al. 2023, equation 5 (data prediction, B1) for a weight per ratio. A single weight is 1/2."""
    if len(ratios) < 2:
        return [0.5] * len(ratios)
    phi, factorial, right = -math.expm1(-h) / h - 1, 1, []
    for k in range(len(ratios)):
        right.append(-phi * factorial / h)
        factorial *= k + 2
        phi = -phi / h - 1 / factorial
    rhos: list[float] = np.linalg.solve(np.vander(ratios, increasing=True).T, right).tolist()
    return rhos


ALGORITHMS: dict[str, Sampler] = {
    "DPM++ 2M": dpmpp_2m,
    "DPM++ SDE": dpmpp_sde,
    "DPM++ 2M SDE": dpmpp_2m_sde,
    "DPM++ 2M SDE Heun": dpmpp_2m_sde_heun,
    "DPM++ 2S a": dpmpp_2s_ancestral,
    "DPM++ 3M SDE": dpmpp_3m_sde,
    "Euler a": euler_ancestral,
    "Euler": euler,
    "LMS": lms,
    "Heun": heun,
    "DPM2": dpm_2,
    "DPM2 a": dpm_2_ancestral,
    "DPM fast": dpm_fast,
    "DPM adaptive": dpm_adaptive,
    "Restart": restart,
    "DDIM": ddim,
    "DDIM CFG++": ddim_cfgpp,
    "PLMS": plms,
    "UniPC": unipc,
    "LCM": lcm,
}

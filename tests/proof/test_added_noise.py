"""Eta, churn and the noise factor, compared with k-diffusion, which WebUI runs, and with diffusers' DDIM."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from unittest import mock

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from pipelines.ask.catalog import SAMPLERS
from pipelines.ask.request import AddedNoise, NoiseSettings
from pipelines.sampling.noise import Noise
from pipelines.sampling.samplers import ALGORITHMS
from tests.proof import test_samplers
from tests.proof.k_diffusion import sampling
from tests.proof.test_samplers import CPU, MODEL, SEEDS, SHAPE, TOLERANCE, Case, scheduler_of

pytestmark = test_samplers.pytestmark

Theirs = Callable[[Case, AddedNoise], Tensor]


def of_k_diffusion(sample: Callable[..., Tensor], case: Case, added: AddedNoise, **options: object) -> Tensor:
    """Euler, Heun and DPM2 draw by torch's own function, and the others by what they are given."""
    levels = torch.tensor(case.levels)
    with mock.patch.object(torch, "randn_like", case.draw):
        return sample(_model, case.start, levels, disable=True, s_noise=added.scale, **options)


def churned(sample: Callable[..., Tensor], case: Case, added: AddedNoise) -> Tensor:
    limits = {"s_tmin": added.tmin, "s_tmax": added.tmax or math.inf}
    return of_k_diffusion(sample, case, added, s_churn=added.churn, **limits)


def ancestral(sample: Callable[..., Tensor], case: Case, added: AddedNoise) -> Tensor:
    return of_k_diffusion(sample, case, added, eta=added.eta, noise_sampler=case.draw)


def diffused(sample: Callable[..., Tensor], case: Case, added: AddedNoise) -> Tensor:
    brownian = sampling.BrownianTreeNoiseSampler(case.start, *map(torch.tensor, case.span), seed=list(SEEDS))
    return of_k_diffusion(sample, case, added, eta=added.eta, noise_sampler=brownian)


def by_own_levels(sample: Callable[..., Tensor], case: Case, added: AddedNoise, *count: int) -> Tensor:
    ends, options = (case.levels[-2], case.levels[0]), {"eta": added.eta, "s_noise": added.scale}
    return sample(_model, case.start, *ends, *count, disable=True, noise_sampler=case.draw, **options)


def ddim(case: Case, added: AddedNoise) -> Tensor:
    scheduler, x = scheduler_of(DDIMScheduler, case.steps, clip_sample=False), case.start
    for t in reversed(case.levels[1:]):
        noise, eta = case.draw(), added.eta_ddim
        x = scheduler.step(MODEL.eps(x, t)[0], int(t), x, eta=eta, variance_noise=noise).prev_sample
    return x


def ddim_cfgpp(case: Case, added: AddedNoise) -> Tensor:
    """CFG++ with the variance of diffusers' DDIM."""
    scheduler, x = scheduler_of(DDIMScheduler, case.steps, clip_sample=False), case.start
    for t, t_next in pairwise(reversed(case.levels)):
        guided, unconditional = MODEL.eps(x, t)
        mixed = unconditional + (guided - unconditional) / 12.5
        clean = scheduler.step(mixed, int(t), x).pred_original_sample
        alpha = scheduler.alphas_cumprod[int(t_next)]
        variance = added.eta_ddim**2 * scheduler._get_variance(int(t), int(t_next))
        x = alpha.sqrt() * clean + (1 - alpha - variance).sqrt() * unconditional + variance.sqrt() * case.draw()
    return x


def _model(x: Tensor, sigma: Tensor) -> Tensor:
    return MODEL(x, sigma[0].item())


THEIRS: dict[str, Theirs] = {
    "Euler": partial(churned, sampling.sample_euler),
    "Heun": partial(churned, sampling.sample_heun),
    "DPM2": partial(churned, sampling.sample_dpm_2),
    "Euler a": partial(ancestral, sampling.sample_euler_ancestral),
    "DPM2 a": partial(ancestral, sampling.sample_dpm_2_ancestral),
    "DPM++ 2S a": partial(ancestral, sampling.sample_dpmpp_2s_ancestral),
    "DPM++ SDE": partial(diffused, sampling.sample_dpmpp_sde),
    "DPM++ 2M SDE": partial(diffused, sampling.sample_dpmpp_2m_sde),
    "DPM++ 2M SDE Heun": partial(diffused, partial(sampling.sample_dpmpp_2m_sde, solver_type="heun")),
    "DPM++ 3M SDE": partial(diffused, sampling.sample_dpmpp_3m_sde),
    "DPM fast": lambda case, added: by_own_levels(sampling.sample_dpm_fast, case, added, len(case.levels) - 1),
    "DPM adaptive": partial(by_own_levels, sampling.sample_dpm_adaptive),
    "DDIM": ddim,
    "DDIM CFG++": ddim_cfgpp,
}
CHURNS = (
    AddedNoise(churn=2, scale=1.05),
    AddedNoise(churn=30, tmin=0.3, tmax=5),
    AddedNoise(churn=100, tmin=1),
)
ETAS = (AddedNoise(eta=0), AddedNoise(eta=0.4, scale=0.9), AddedNoise(eta=0.9, scale=1.1))
ETAS_OF_DDIM = (AddedNoise(eta_ddim=0.3), AddedNoise(eta_ddim=1))
ASKED = {"churn": CHURNS, "eta": ETAS, "eta_ddim": ETAS_OF_DDIM}
"""Settings to try, by the first one that a sampler takes."""


def taken(name: str, added: AddedNoise) -> AddedNoise:
    """The settings that WebUI hands to the sampler."""
    return AddedNoise(**{each: getattr(added, each) for each in SAMPLERS[name].takes})


def ours(name: str, case: Case, added: AddedNoise) -> Tensor:
    noise = Noise(SEEDS, SHAPE, device=CPU, span=case.span, settings=NoiseSettings(source="CPU"))
    noise.added = added
    noise.initial()
    *_, last = ALGORITHMS[name](MODEL, case.start, case.levels, noise)
    return last


def test_every_sampler_that_takes_a_setting_is_compared() -> None:
    assert {name for name, info in SAMPLERS.items() if info.takes} == THEIRS.keys()


@pytest.mark.parametrize(("steps", "cut"), [(7, 0), (20, 11)], ids=["7", "last 9 of 20"])
@pytest.mark.parametrize(
    ("name", "added"), [(name, added) for name in THEIRS for added in ASKED[SAMPLERS[name].takes[0]]]
)
def test_added_noise_is_what_others_add(name: str, added: AddedNoise, steps: int, cut: int) -> None:
    added = taken(name, added)
    expected = THEIRS[name](Case(name, steps, cut), added)
    assert (ours(name, Case(name, steps, cut), added) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", THEIRS)
def test_a_setting_that_is_wrong_by_a_hundredth_is_noticed(name: str) -> None:
    added = taken(name, replace(ASKED[SAMPLERS[name].takes[0]][0], eta=0.8))
    for attribute in {*SAMPLERS[name].takes} - {"tmin", "tmax"}:
        wrong = replace(added, **{attribute: getattr(added, attribute) * 0.99})
        assert (ours(name, Case(name, 7, 0), wrong) - THEIRS[name](Case(name, 7, 0), added)).abs().max() > TOLERANCE

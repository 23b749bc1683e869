"""Every sampler compared with other people's code on the same denoiser: k-diffusion, torchsde and diffusers.

They get our noise levels or timesteps and draw their own noise: with torch's generators for ancestral noise, with
torchsde's Brownian tree for the SDE samplers. If no library has a sampler, it is assembled from their parts.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, PNDMScheduler, UniPCMultistepScheduler
from torch import Tensor

from pipelines.ask.catalog import SAMPLERS
from pipelines.ask.request import NoiseSettings
from pipelines.families.sd1 import SD1
from pipelines.sampling.noise import Noise
from pipelines.sampling.samplers import ALGORITHMS, Denoiser, Sampler
from pipelines.sampling.schedules import sigmas, timesteps
from tests.proof.k_diffusion import sampling
from tests.proof.mixture import Mixture, Scaled, sigma_of

SEEDS, SHAPE, CPU = (11, 2**32 + 12), (4, 8, 8), torch.device("cpu")
MODEL = Mixture(unconditional=Mixture(means=(-0.5, 1.2)))

pytestmark = [
    pytest.mark.filterwarnings("ignore:Should have t[ab]"),  # torchsde rounds the times of its tree, to 1e-6
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers makes arrays of tensors
]

TOLERANCE = 5e-5
"""The first latents are up to 60, of which an ulp in float32 is 4e-6, and the solvers that compute in logarithms of
sigma multiply that by up to 5. Most samplers agree to 2e-6."""


class Case:
    """What a pass runs: levels or timesteps, the span of the whole schedule, and noise from torch's generators."""

    def __init__(self, name: str, steps: int, cut: int) -> None:
        self.steps, self.info = steps, SAMPLERS[name]
        # diffusers' LCM knows the distilled levels only, and "Simple" takes just those
        whole = sigmas(SD1.noise, "Simple" if name == "LCM" else "Automatic", steps, self.info)
        self.span = (whole[-2], whole[0])
        self.levels: list[float] = [*timesteps(steps)][: -cut or None] if self.info.timesteps else whole[cut:]
        self.generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        noise = self.draw()
        self.start = noise if self.info.timesteps else noise * self.levels[0]

    def draw(self, *_: object) -> Tensor:
        return torch.stack([torch.randn(SHAPE, generator=generator) for generator in self.generators])


# --- what others make of it


def k_diffusion(sample: Callable[..., Tensor], case: Case) -> Tensor:
    return sample(_model, case.start, torch.tensor(case.levels), disable=True)


def k_diffusion_ancestral(sample: Callable[..., Tensor], case: Case) -> Tensor:
    return sample(_model, case.start, torch.tensor(case.levels), disable=True, noise_sampler=case.draw)


def k_diffusion_sde(sample: Callable[..., Tensor], case: Case) -> Tensor:
    brownian = sampling.BrownianTreeNoiseSampler(case.start, *map(torch.tensor, case.span), seed=list(SEEDS))
    return sample(_model, case.start, torch.tensor(case.levels), disable=True, noise_sampler=brownian)


def k_diffusion_between(sample: Callable[..., Tensor], case: Case, *count: int) -> Tensor:
    """Solvers that space their own levels between the lowest positive one and the highest."""
    ends = case.levels[-2], case.levels[0]
    return sample(_model, case.start, *ends, *count, disable=True, eta=1.0, noise_sampler=case.draw)


def _model(x: Tensor, sigma: Tensor) -> Tensor:
    return MODEL(x, sigma[0].item())


def restart(case: Case) -> Tensor:
    """Xu et al. 2023, with k-diffusion's Heun steps and its Karras levels; how many go back is WebUI's rule.

    From 20 steps on, 9 of them, and from 36 on twice a quarter, are spent on going from 2 to 0.1 again.
    """
    steps, x = len(case.levels) - 1, case.start
    length, times = (0, 0) if steps < 20 else (9, 1) if steps < 36 else (steps // 4, 2)
    if not times:
        return sampling.sample_heun(_model, x, torch.tensor(case.levels), disable=True)
    main = sampling.get_sigmas_karras(steps - length * times, case.levels[-2], case.levels[0])
    low, high = ((main - level).abs().argmin().item() for level in (0.1, 2.0))
    again = sampling.get_sigmas_karras(length + 1, main[low].item(), main[high].item())[:-1]
    x = sampling.sample_heun(_model, x, main[: low + 1], disable=True)
    for _ in range(times):
        x = x + case.draw() * (again[0] ** 2 - again[-1] ** 2).sqrt()
        x = sampling.sample_heun(_model, x, again, disable=True)
    return sampling.sample_heun(_model, x, main[low:], disable=True)


def lcm(case: Case) -> Tensor:
    scheduler = scheduler_of(LCMScheduler, len(case.levels) - 1, clip_sample=False)
    asked = [min(range(19, 1000, 20), key=lambda t: abs(math.log(sigma_of(t) / level))) for level in case.levels[:-1]]
    scheduler.set_timesteps(timesteps=asked)
    x = case.start / math.sqrt(1 + case.levels[0] ** 2)
    for t in asked:
        x = scheduler.step(MODEL.eps(x, t)[0], t, x, generator=case.generators).prev_sample
    return x


def ddim(case: Case) -> Tensor:
    scheduler, x = scheduler_of(DDIMScheduler, case.steps, clip_sample=False), case.start
    for t in reversed(case.levels[1:]):
        x = scheduler.step(MODEL.eps(x, t)[0], int(t), x).prev_sample
    return x


def ddim_cfgpp(case: Case) -> Tensor:
    """Chung et al. 2024, algorithm 2: what is removed is guided (by a 12.5th, as in WebUI), what is added is not."""
    scheduler, x = scheduler_of(DDIMScheduler, case.steps, clip_sample=False), case.start
    for t, t_next in pairwise(reversed(case.levels)):
        guided, unconditional = MODEL.eps(x, t)
        mixed = unconditional + (guided - unconditional) / 12.5
        clean = scheduler.step(mixed, int(t), x).pred_original_sample
        x = scheduler.add_noise(clean, unconditional, torch.tensor([int(t_next)]))
    return x


def plms(case: Case) -> Tensor:
    """diffusers asks twice at the second timestep, and takes one step more than WebUI does."""
    scheduler, x = scheduler_of(PNDMScheduler, case.steps, skip_prk_steps=True), case.start
    first, second, *others = reversed(case.levels)
    for t in (first, second, second, *others[:-1]):
        x = scheduler.step(MODEL.eps(x, t)[0], int(t), x).prev_sample
    return x


def unipc(case: Case) -> Tensor:
    """UniPC's own times, from the end of training or from where a part of the schedule starts, evenly down to 0."""
    count = len(case.levels)
    scheduler = scheduler_of(UniPCMultistepScheduler, count, solver_order=3, solver_type="bh1")
    times = np.linspace(999 if count == len(timesteps(case.steps)) else case.levels[-1], 0, count + 1)
    scheduler.sigmas = torch.tensor([sigma_of(t) for t in times], dtype=torch.float32)
    scheduler.set_begin_index(0)
    x = case.start
    for t in times[:-1]:
        x = scheduler.step(MODEL.eps(x, t)[0], scheduler.timesteps[scheduler.step_index or 0], x).prev_sample
    return x


def scheduler_of(kind: Callable[..., Any], steps: int, **config: object) -> Any:
    """A scheduler of diffusers, with our cumulative alphas."""
    scheduler = kind(**config)
    scheduler.alphas_cumprod = torch.tensor(SD1.noise.alphas)
    scheduler.set_timesteps(steps)
    return scheduler


OTHERS: dict[str, Callable[[Case], Tensor]] = {
    "Euler": partial(k_diffusion, sampling.sample_euler),
    "Heun": partial(k_diffusion, sampling.sample_heun),
    "LMS": partial(k_diffusion, sampling.sample_lms),
    "DPM2": partial(k_diffusion, sampling.sample_dpm_2),
    "DPM++ 2M": partial(k_diffusion, sampling.sample_dpmpp_2m),
    "Euler a": partial(k_diffusion_ancestral, sampling.sample_euler_ancestral),
    "DPM2 a": partial(k_diffusion_ancestral, sampling.sample_dpm_2_ancestral),
    "DPM++ 2S a": partial(k_diffusion_ancestral, sampling.sample_dpmpp_2s_ancestral),
    "DPM++ SDE": partial(k_diffusion_sde, sampling.sample_dpmpp_sde),
    "DPM++ 2M SDE": partial(k_diffusion_sde, sampling.sample_dpmpp_2m_sde),
    "DPM++ 2M SDE Heun": partial(k_diffusion_sde, partial(sampling.sample_dpmpp_2m_sde, solver_type="heun")),
    "DPM++ 3M SDE": partial(k_diffusion_sde, sampling.sample_dpmpp_3m_sde),
    "DPM fast": lambda case: k_diffusion_between(sampling.sample_dpm_fast, case, len(case.levels) - 1),
    "DPM adaptive": partial(k_diffusion_between, sampling.sample_dpm_adaptive),
    "Restart": restart,
    "LCM": lcm,
    "DDIM": ddim,
    "DDIM CFG++": ddim_cfgpp,
    "PLMS": plms,
    "UniPC": unipc,
}


# --- the comparison


def ours(algorithm: Sampler, case: Case) -> Tensor:
    noise = Noise(SEEDS, SHAPE, device=CPU, span=case.span, settings=NoiseSettings(source="CPU"))
    noise.initial()
    *_, last = algorithm(MODEL, case.start, case.levels, noise)
    return last


def apart(name: str, algorithm: Sampler, steps: int = 20, cut: int = 0) -> float:
    case = Case(name, steps, cut)
    return (ours(algorithm, case) - OTHERS[name](Case(name, steps, cut))).abs().max().item()


def test_every_sampler_is_compared() -> None:
    assert set(OTHERS) == set(SAMPLERS)


@pytest.mark.parametrize(("steps", "cut"), [(7, 0), (20, 11)], ids=["7", "last 9 of 20"])
@pytest.mark.parametrize("name", OTHERS)
def test_a_sampler_does_what_others_wrote(name: str, steps: int, cut: int) -> None:
    assert apart(name, ALGORITHMS[name], steps, cut) < TOLERANCE


@pytest.mark.parametrize("steps", [20, 40])
def test_restart_goes_back_as_others_would(steps: int) -> None:
    assert apart("Restart", ALGORITHMS["Restart"], steps) < TOLERANCE


@pytest.mark.parametrize("name", OTHERS)
def test_a_coefficient_that_is_wrong_by_a_thousandth_is_noticed(name: str) -> None:
    def wrong(model: Denoiser, x: Tensor, levels: Sequence[float], noise: Noise) -> Iterator[Tensor]:
        return ALGORITHMS[name](Scaled(model, 1.001), x, levels, noise)

    assert apart(name, wrong, 7) > 5 * TOLERANCE

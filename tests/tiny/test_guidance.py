"""Guidance rescale and FreeU, which change a prediction, on the embedded model."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from pastel_tiny.dataset import SIDE
from pipelines.ask.plan import make_plan
from pipelines.ask.request import FreeU, GenerationRequest
from pipelines.drawing.phases import Picture, render
from pipelines.families.sd1 import SD1
from pipelines.models.model import Model
from pipelines.sampling.denoiser import Guidance, GuidedDenoiser, Stage
from pipelines.sampling.prompts import PromptEncoder, Prompts

FREEU = FreeU(1.5, 1.6, 0.9, 0.2)


def picture(networks: Model, **fields: object) -> np.ndarray:
    small = {"prompt": "a pink sun over the sea", "width": 64, "height": 64, "seed": 7, "num_inference_steps": 4}
    asked = GenerationRequest(**{**small, "hires": None, **fields})  # type: ignore[arg-type]
    return next(e.pixels for e in render(networks, asked, make_plan(asked)) if isinstance(e, Picture))


@pytest.fixture
def noisy() -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def prompts(networks: Model) -> Iterator[Prompts]:
    with torch.inference_mode():
        yield PromptEncoder(networks.text, 1, "Original", False).encode("a red boat AND stars :0.5", "a cow", 20)


def predicted(networks: Model, prompts: Prompts, x: torch.Tensor, scale: float, rescale: float) -> torch.Tensor:
    with torch.inference_mode():
        return GuidedDenoiser([Stage(networks, prompts)], Guidance(scale, rescale), rows=6).eps(x, 500)[0]


def denoised(x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """The latents that are left when the noise is taken away at timestep 500."""
    alpha = SD1.noise.alphas[500]
    return (x - (1 - alpha) ** 0.5 * eps) / alpha**0.5


def test_rescaling_is_diffusers_on_the_denoised_latents(networks: Model, prompts: Prompts, noisy: torch.Tensor) -> None:
    """The tolerance is ten ulps of latents of about 10, of 1e-6 each. The control is what was not rescaled."""
    eps, unguided, rescaled = (predicted(networks, prompts, noisy, *by) for by in ((9, 0), (1, 0), (9, 0.7)))
    expected = rescale_noise_cfg(denoised(noisy, eps), denoised(noisy, unguided), 0.7)
    assert torch.allclose(denoised(noisy, rescaled), expected, atol=1e-5)
    assert not torch.allclose(denoised(noisy, eps), expected, atol=1e-2)


@pytest.mark.parametrize("form", ["sigmas", "timesteps"])
def test_the_next_stage_takes_over_in_the_middle_of_a_pass(
    networks: Model, prompts: Prompts, noisy: torch.Tensor, form: str
) -> None:
    """At the share of the model's timesteps that it names, and never back; the calls count on."""

    def denoise(denoiser: GuidedDenoiser, t: int) -> torch.Tensor:
        with torch.inference_mode():
            return denoiser(noisy, networks.noise.sigmas[t]) if form == "sigmas" else denoiser.eps(noisy, t)[0]

    with torch.inference_mode():
        others = PromptEncoder(networks.text, 1).encode("[a house:a cow:1]", "night", 20)
    stages = [Stage(networks, prompts), Stage(networks, others, starts_at=0.7)]
    both, first, second = (GuidedDenoiser(some, Guidance(7), rows=6) for some in (stages, stages[:1], stages[1:]))
    for t in (900, 300):
        assert torch.equal(denoise(both, t), denoise(first, t))
    second.calls = both.calls
    for t in (299, 900):
        found = denoise(both, t)
        assert torch.equal(found, denoise(second, t))
        assert not torch.equal(found, denoise(first, t))
    assert both.calls == 4


def test_rescaling_takes_the_contrast_of_much_guidance_back(networks: Model) -> None:
    """To about that of usual guidance, in pictures of the model's own size: smaller ones are no pictures of anything.
    Colours at an end of the range do not tell: pure ones lie there."""
    own: dict[str, object] = {"width": SIDE, "height": SIDE, "num_inference_steps": 6}
    usual, much, rescaled = (
        np.stack(
            [picture(networks, seed=seed, guidance_scale=scale, guidance_rescale=by, **own) for seed in (1, 2)]
        ).std()
        for scale, by in ((7, 0), (20, 0), (20, 0.7))
    )
    assert much > 1.1 * usual
    assert abs(rescaled - usual) < abs(much - usual) / 2


def test_freeu_is_diffusers_and_off_again_after_it(networks: Model, prompts: Prompts, noisy: torch.Tensor) -> None:
    before = picture(networks)
    changed = picture(networks, freeu=FREEU)
    assert (changed != before).mean() > 0.2  # without it every value is the same
    plain = predicted(networks, prompts, noisy, 7, 0)  # a prediction leaves FreeU off
    with networks.using([], [], FREEU):
        with_freeu = predicted(networks, prompts, noisy, 7, 0)
    networks.unet.network.enable_freeu(b1=1.5, b2=1.6, s1=0.9, s2=0.2)
    expected = predicted(networks, prompts, noisy, 7, 0)
    assert torch.allclose(with_freeu, expected, atol=1e-5)  # two runs of WebUI differ by 2e-5
    assert not torch.allclose(plain, expected, atol=1e-2)
    assert (picture(networks) == before).all()

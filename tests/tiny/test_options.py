"""WebUI's rarer options on the embedded model: how a pass starts, when guidance is skipped, tiling pictures."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.ask.catalog import SAMPLERS, ZERO_TERMINAL_SNR
from pipelines.ask.plan import make_plan
from pipelines.ask.request import (
    AddedNoise,
    GenerationRequest,
    HiresSettings,
    ImageSettings,
    NoiseSettings,
    ScheduleSettings,
    SkippedGuidance,
)
from pipelines.drawing.phases import PassResult, Picture, render
from pipelines.families.sd1 import SD1
from pipelines.models.model import Model
from pipelines.runtime.unet_call import Condition, UNet, UNetCall
from pipelines.sampling.noise import Noise
from pipelines.sampling.prompts import PromptEncoder
from pipelines.sampling.samplers import ALGORITHMS, Denoiser
from pipelines.sampling.schedules import sigmas, timesteps
from tests.alike import alike
from tests.passes import latents
from tests.tiny.test_highres import steps_alone
from tests.tiny.test_img2img import PICTURE

Options = dict[str, Any]


def asked(**options: Any) -> GenerationRequest:
    small = {"width": 64, "height": 64, "seed": 7, "num_inference_steps": 6, "hires": None, "sampler": "Euler"}
    return GenerationRequest(**{"prompt": "a pink sun", "negative_prompt": "blue", **small, **options})


def picture(networks: Model, **options: Any) -> np.ndarray:
    request = asked(**options)
    return next(e.pixels for e in render(networks, request, make_plan(request)) if isinstance(e, Picture))


# --- where a pass starts

Begun = tuple[Tensor, Sequence[float]]


@pytest.fixture
def beginnings(networks: Model, monkeypatch: pytest.MonkeyPatch) -> Callable[[GenerationRequest], list[Begun]]:
    """What each pass's sampler gets: x and its levels. The samplers themselves do nothing."""
    begun: list[Begun] = []

    def sampler(model: Denoiser, x: Tensor, levels: Sequence[float], noise: Noise) -> Iterator[Tensor]:
        begun.append((x, levels))
        yield x

    def begin(request: GenerationRequest) -> list[Begun]:
        begun.clear()
        latents(networks, request)
        return list(begun)

    for name in ("Euler", "DDIM"):
        monkeypatch.setitem(ALGORITHMS, name, sampler)
    return begin


Beginnings = Callable[[GenerationRequest], list[Begun]]
NOISE_OF_64 = Noise([7], (4, 8, 8), device=torch.device("cpu")).initial()


def test_sgm_noise_is_a_little_louder(beginnings: Beginnings) -> None:
    (x, levels), (louder, _) = *beginnings(asked()), *beginnings(asked(sgm_noise=True))
    assert torch.equal(x, NOISE_OF_64 * levels[0])
    assert torch.equal(louder, NOISE_OF_64 * math.sqrt(1 + levels[0] ** 2))
    from_picture = {"image": ImageSettings(picture=PICTURE)}
    for without_effect in (from_picture, {"sampler": "DDIM"}):
        (same, _), (other, _) = (beginnings(asked(sgm_noise=on, **without_effect))[0] for on in (True, False))
        assert torch.equal(same, other)


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_noise_over_a_picture_is_multiplied(beginnings: Beginnings, sampler: str) -> None:
    def start(**options: Any) -> Tensor:
        image = ImageSettings(picture=PICTURE, denoising_strength=0.5, **options)
        ((x, _),) = beginnings(asked(sampler=sampler, image=image))
        return x

    one, none, louder = start(), start(noise_multiplier=0), start(noise_multiplier=1.2)
    assert (one - none).abs().max() > 0.1
    torch.testing.assert_close(louder, none + (one - none) * 1.2, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_extra_noise_lies_over_a_picture_and_a_draft(beginnings: Beginnings, sampler: str) -> None:
    """In the units of the noise-free picture, whatever form the sampler's latents have."""

    def starts(extra: float) -> list[Begun]:
        image = ImageSettings(picture=PICTURE, denoising_strength=0.5)
        hires = HiresSettings(scale=1, upscaler="Latent", denoising_strength=0.5)
        return [
            *beginnings(asked(sampler=sampler, extra_noise=extra, image=image)),
            beginnings(asked(sampler=sampler, extra_noise=extra, hires=hires))[1],
        ]

    first_times = timesteps(6)[3], timesteps(12)[5]
    for (plain, _), (noisy, _), t in zip(starts(0), starts(0.25), first_times, strict=True):
        share = 1.0 if sampler == "Euler" else SD1.noise.alphas[t] ** 0.5
        torch.testing.assert_close(noisy, plain + 0.25 * share * NOISE_OF_64, atol=1e-5, rtol=0)
    (first, _), (again, _) = (beginnings(asked(sampler=sampler, extra_noise=extra))[0] for extra in (0, 0.25))
    assert torch.equal(first, again), "a pass from noise alone has no extra noise"


def test_all_steps_are_run_over_a_picture(beginnings: Beginnings) -> None:
    image = ImageSettings(picture=PICTURE, denoising_strength=0.4)
    ((_, few),) = beginnings(asked(image=image))
    ((_, all_of_them),) = beginnings(asked(image=replace(image, exact_steps=True)))
    assert (len(few) - 1, len(all_of_them) - 1) == (3, 6)
    assert all_of_them == sigmas(SD1.noise, "Uniform", int(6 / 0.4), SAMPLERS["Euler"])[-7:]


def test_prompt_editing_counts_the_steps_asked_for_over_a_picture(networks: Model) -> None:
    image = ImageSettings(picture=PICTURE, denoising_strength=0.4, exact_steps=True)
    request = asked(prompt="[a:b:0.5]", image=image)
    with steps_alone(networks):
        result = next(e for e in render(networks, request, make_plan(request)) if isinstance(e, PassResult))
    assert [end for end, _ in result.prompts.positive.parts[0].entries] == [3, 6]


def test_noise_schedules_reach_the_sampler(beginnings: Beginnings) -> None:
    ((_, levels),) = beginnings(asked(schedule=ScheduleSettings(kind=ZERO_TERMINAL_SNR)))
    assert levels[0] == pytest.approx(4518.76, rel=1e-5)
    ((_, levels),) = beginnings(asked(schedule=ScheduleSettings(downcast=True)))
    assert levels[-2] == pytest.approx(0.03125, rel=2e-3)  # through its logarithm in half precision


# --- guidance that is skipped


def euler(networks: Model, skipped: Callable[[int, float], bool], prompt: str) -> Tensor:
    """Euler's method with guidance 7, by UNet calls of one row each. A skipped call has the first part's output."""
    request = asked(prompt=prompt)
    levels = sigmas(SD1.noise, "Uniform", 6, SAMPLERS["Euler"])
    prompts = PromptEncoder(networks.text, 1).encode(request.prompt, request.negative_prompt, 6)
    (positive, negative), weights = prompts.at(0), prompts.positive.weights

    def noise_in(x: Tensor, sigma: float, tokens: Tensor) -> Tensor:
        time = torch.tensor(SD1.noise.t_of(sigma))
        return networks.unet(UNetCall(x / math.sqrt(sigma**2 + 1), time, Condition(tokens)))

    x = NOISE_OF_64 * levels[0]
    for call, (sigma, sigma_next) in enumerate(pairwise(levels)):
        parts = [noise_in(x, sigma, row[None]) for row in positive.tokens]
        skip = skipped(call, sigma)
        base = parts[0] if skip else noise_in(x, sigma, negative.tokens)
        scale = 1 if skip else 7
        eps = base + sum(
            ((part - base) * weight * scale for part, weight in zip(parts, weights, strict=True)), base * 0
        )
        x = x + eps * (sigma_next - sigma)
    return x


BOTH = SkippedGuidance(early=0.1, minimum_sigma=1, all_steps=True)


@pytest.mark.parametrize(
    ("settings", "skipped", "prompt"),
    [
        (SkippedGuidance(early=0.34), lambda call, sigma: call in (0, 1, 2), "a pink sun"),
        (SkippedGuidance(minimum_sigma=4), lambda call, sigma: sigma < 4 and call % 2 == 1, "a sun AND a boat:0.5"),
        (SkippedGuidance(minimum_sigma=4, all_steps=True), lambda call, sigma: sigma < 4, "a sun AND a boat:0.5"),
        (BOTH, lambda call, sigma: call == 0 or sigma < 1, "sun, " * 80),
    ],
    ids=["early", "every other", "all", "both, of prompts of two lengths"],
)
@torch.inference_mode()
def test_guidance_is_skipped_where_webui_skips_it(
    networks: Model, settings: SkippedGuidance, skipped: Callable[[int, float], bool], prompt: str
) -> None:
    (found,) = latents(networks, asked(prompt=prompt, skipped_guidance=settings))
    expected = euler(networks, skipped, prompt)
    torch.testing.assert_close(found, expected, atol=3e-4, rtol=0)
    assert (expected - euler(networks, lambda call, sigma: False, prompt)).abs().max() > 1e-2


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of the UNet has so far."""
    seen: list[int] = []
    called = UNet.__call__
    monkeypatch.setattr(UNet, "__call__", lambda unet, call: (seen.append(len(call.images)), called(unet, call))[1])
    return seen


def test_skipped_calls_compute_fewer_rows(networks: Model, rows: list[int]) -> None:
    with steps_alone(networks):
        latents(networks, asked(skipped_guidance=SkippedGuidance(early=0.2, minimum_sigma=0.5, all_steps=True)))
    assert rows == [1, 1, 2, 2, 2, 1]


def test_early_steps_are_a_share_of_the_calls_of_a_second_order_sampler(networks: Model, rows: list[int]) -> None:
    with steps_alone(networks):
        latents(networks, asked(sampler="Heun", skipped_guidance=SkippedGuidance(early=0.25)))
    assert rows == [1] * 4 + [2] * 7  # calls 0 to 3 of 12


# --- pictures that tile


def rolled(x: Tensor) -> Tensor:
    return x.roll((8, 8), (2, 3))


@torch.inference_mode()
def test_tiled_networks_know_no_edge(networks: Model) -> None:
    """A rolled input has the rolled output, which a network with edges has not."""
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    tokens = PromptEncoder(networks.text, 1).encode("a sun", "", 6).at(0)[0].tokens

    def unet(x: Tensor) -> Tensor:
        return networks.unet(UNetCall(x, torch.tensor(300.0), Condition(tokens)))

    def decoded(x: Tensor) -> Tensor:
        return networks.vae.network.decode(x).sample

    def encoded(x: Tensor) -> Tensor:
        return networks.vae.network.encode(x).latent_dist.mean

    pixels = F.interpolate(noisy[:, :3], scale_factor=8, mode="bicubic")
    for network, x, shift in ((unet, noisy, 8), (decoded, noisy, 8), (encoded, pixels, 64)):
        before, moved = network(x), x.roll((shift, shift), (2, 3))
        after = (shift * before.shape[3] // x.shape[3],) * 2
        edges = network(moved) - before.roll(after, (2, 3))
        with networks.tiling(True):
            tiled = network(x)
            found = network(moved) - tiled.roll(after, (2, 3))
        changed = tiled - before
        if network is not encoded:  # whose convolutions of stride 2 keep a row of zeros beyond one edge, as in WebUI
            assert found.abs().max() < 1e-4 < 1e-2 < edges.abs().max()
        assert changed.abs().max() > 1e-3
        assert torch.equal(network(x), before), "what was drawn before tiling is drawn after it"


def test_tiling_joins_the_edges_of_a_picture(networks: Model) -> None:
    few = {"num_inference_steps": 3}
    before, tiled = picture(networks, **few), picture(networks, **few, tiling=True)

    def seam(pixels: np.ndarray) -> float:
        return float(np.abs(pixels[0].astype(int) - pixels[-1].astype(int)).mean())

    assert seam(tiled) < 0.6 * seam(before)
    assert (picture(networks, **few) == before).all()


def test_a_prediction_that_is_cancelled_leaves_no_tiling(networks: Model) -> None:
    request = asked(tiling=True)
    events = render(networks, request, make_plan(request))
    next(events)
    assert networks.unet.network.conv_in.padding_mode == "circular"
    events.close()
    assert networks.unet.network.conv_in.padding_mode == networks.vae.network.decoder.conv_in.padding_mode == "zeros"


# --- everything at once


def test_options_at_their_defaults_change_nothing(networks: Model) -> None:
    """Told or not, and also those that the sampler does not take."""
    few = {"num_inference_steps": 3}
    before = picture(networks, **few)
    untaken = AddedNoise(eta=0.5, eta_ddim=0.5, tmin=1)
    assert (picture(networks, **few, added_noise=untaken, sgm_noise=False, noise=NoiseSettings()) == before).all()
    assert not alike(picture(networks, **few, added_noise=AddedNoise(churn=5)), before)

"""Samplers against k-diffusion, UniPC's and latent diffusion's own code on a nonlinear toy denoiser.

Recorded values come from those programs, not from this one, in float32 with the same noise.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pipelines.catalog import SAMPLERS
from pipelines.errors import NonFiniteError
from pipelines.noise import Noise
from pipelines.request import NoiseSettings
from pipelines.samplers import ALGORITHMS, restart_levels
from pipelines.schedules import karras, sigmas, timesteps
from pipelines.sd1 import SD1

SEEDS, SHAPE, CPU = (11, 12), (4, 8, 8), torch.device("cpu")
Levels = Sequence[float]


class Toy:
    """A smooth denoiser that mixes neighbours, treats images apart and notes what it was asked."""

    noise = SD1.noise

    def __init__(self) -> None:
        self.asked: list[tuple[float, float | None]] = []

    def __call__(self, x: Tensor, sigma: float, t: float | None = None) -> Tensor:
        self.asked.append((sigma, t))
        mixed = torch.tanh(x.roll(1, -1) / (0.3 + sigma) + 0.2 * x.mean((1, 2, 3), keepdim=True))
        return x / (1 + sigma**2) + 0.7 * sigma / (1 + sigma) * mixed + 0.1 * math.sin(sigma)

    def eps(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        self.asked.append((math.nan, t))
        unconditional = torch.tanh(x * (0.5 + t / 1500) + 0.1 * x.roll(1, -2))
        return unconditional + torch.sin(x + t / 300) * 0.3, unconditional


def levels_of(name: str, steps: int, cut: int = 0) -> tuple[Levels, tuple[float, float]]:
    """The levels that a pass runs and the span of its whole schedule."""
    if SAMPLERS[name].timesteps:
        return timesteps(steps)[: cut or None], (1.0, 2.0)
    whole = sigmas(SD1.noise, "Automatic", steps, SAMPLERS[name])
    return whole[cut:], (whole[-2], whole[0])


def run(name: str, levels: Levels, span: tuple[float, float], seeds: Sequence[int] = SEEDS) -> list[Tensor]:
    """What a sampler yields on the toy, in float32 with the CPU's noise."""
    noise = Noise(seeds, SHAPE, device=CPU, span=span, settings=NoiseSettings(source="CPU"))
    x = noise.initial() * (1 if SAMPLERS[name].timesteps else levels[0])
    return list(ALGORITHMS[name](Toy(), x, levels, noise))


RECORDED = {  # (mean, deviation, two elements) after 7 steps, and after the last 5 of 10
    "Euler": ((0.0078, 0.9517, -0.6576, 0.6807), (0.0394, 0.7975, -0.4713, 0.6724)),
    "Euler a": ((0.0533, 0.8116, -0.1081, -0.1707), (0.0654, 0.8415, 0.1601, 0.4802)),
    "Heun": ((0.0239, 1.2489, -0.926, 0.9941), (0.0418, 0.9095, -0.5858, 0.7976)),
    "LMS": ((0.0117, 1.1113, -0.7838, 0.8215), (0.0406, 0.8777, -0.5407, 0.7499)),
    "DPM2": ((-0.0056, 1.2261, -0.925, 0.9041), (0.0383, 0.8915, -0.566, 0.7699)),
    "DPM2 a": ((0.1717, 1.4374, 0.4875, 0.4851), (0.073, 1.0978, -0.3415, 0.5428)),
    "DPM++ 2S a": ((0.1065, 0.9975, 0.6588, 0.2563), (0.0531, 0.8154, -0.3773, 0.448)),
    "DPM++ SDE": ((0.0988, 1.0599, -2.0998, 2.0989), (0.0701, 0.8971, -1.4858, 0.4327)),
    "DPM++ 2M": ((0.0365, 1.2519, -0.8638, 1.0106), (0.0269, 0.7434, -0.4553, 0.6339)),
    "DPM++ 2M SDE": ((0.1666, 1.1776, -1.9748, 2.6766), (0.0468, 0.5707, -0.3391, 0.362)),
    "DPM++ 2M SDE Heun": ((0.2198, 1.4182, -2.3849, 3.196), (0.0509, 0.6012, -0.3643, 0.3769)),
    "DPM++ 3M SDE": ((0.2022, 1.4715, -2.3929, 3.3818), (0.021, 0.7709, -0.8865, 0.8275)),
    "DPM fast": ((0.4368, 1.3997, -0.5443, 0.7231), (0.0553, 0.9188, -0.8743, 0.6467)),
    "DPM adaptive": ((0.1691, 1.1818, -0.5691, 0.964), (0.0411, 1.0425, -0.2513, 0.6355)),
    "UniPC": ((-0.444, 6.9853, -1.9636, 1.5728), (-0.1308, 0.9053, -0.5398, 0.3299)),
    "PLMS": ((-0.4458, 6.589, -2.0344, 1.12), (-0.1293, 0.9141, -0.5432, 0.3469)),
    "DDIM": ((-0.4488, 7.2758, -2.0473, 2.2901), (-0.1523, 0.9111, -0.5752, 0.3037)),
    "DDIM CFG++": ((-0.4569, 6.3861, -1.4793, -0.0398), (-0.09, 1.0008, -0.5534, 0.5018)),
}


def test_every_sampler_has_an_algorithm() -> None:
    assert set(ALGORITHMS) == set(SAMPLERS)


@pytest.mark.parametrize("name", RECORDED)
def test_results_are_those_of_the_original_code(name: str) -> None:
    for (steps, cut), expected in zip(((7, 0), (10, 5)), RECORDED[name], strict=True):
        x = run(name, *levels_of(name, steps, cut))[-1]
        actual = x.mean().item(), x.std().item(), x[0, 0, 0, 0].item(), x[1, 3, 4, 5].item()
        assert actual == pytest.approx(expected, abs=2e-4)  # they are recorded to four digits


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "DPM adaptive"])
def test_an_image_is_the_same_alone_and_in_a_batch(name: str) -> None:
    levels, span = levels_of(name, 21)
    batch = run(name, levels, span)[-1]
    for k, seed in enumerate(SEEDS):
        # sums of a batch may be grouped in another way; two runs of WebUI differ by 2e-5 as well
        torch.testing.assert_close(run(name, levels, span, [seed])[-1][0], batch[k], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_was_yielded_is_never_changed(name: str) -> None:
    levels, span = levels_of(name, 21)
    noise = Noise(SEEDS, SHAPE, device=CPU, span=span)
    kept: list[tuple[Tensor, Tensor]] = []
    for x in ALGORITHMS[name](Toy(), noise.initial(), levels, noise):
        kept.append((x, x.clone()))
    assert kept
    assert all(torch.equal(x, copy) for x, copy in kept)


@pytest.mark.parametrize(
    ("name", "steps", "calls"),
    [
        ("Euler", 20, 20),
        ("DPM++ 2M", 20, 20),
        ("DPM++ SDE", 20, 10 + 9),
        ("Heun", 20, 10 + 9),
        ("DPM fast", 7, 20),
        ("DDIM", 19, 19),
        ("PLMS", 19, 20),
        ("UniPC", 20, 20),
        ("Restart", 20, 20),
    ],
)
def test_steps_and_calls(name: str, steps: int, calls: int) -> None:
    levels, span = levels_of(name, 20)
    noise, toy = Noise(SEEDS, SHAPE, device=CPU, span=span), Toy()
    assert len(list(ALGORITHMS[name](toy, noise.initial(), levels, noise))) == steps
    expected = 2 * steps - 1 if SAMPLERS[name].second_order else calls
    assert len(toy.asked) == expected


@pytest.mark.parametrize("steps", [1, 2, 3, 1500])
@pytest.mark.parametrize("name", SAMPLERS)
def test_any_number_of_steps_is_finite(name: str, steps: int) -> None:
    levels, span = levels_of(name, steps)
    ran = run(name, levels[-41:], span)
    assert all(x.isfinite().all() for x in ran)
    none_to_run = (name.startswith(("DDIM", "PLMS")) or name == "DPM adaptive") and steps == 1
    assert bool(ran) is not none_to_run


@pytest.mark.parametrize("name", [name for name, info in SAMPLERS.items() if not info.timesteps])
def test_repeated_levels_and_schedules_without_an_end_are_finite(name: str) -> None:
    levels = [5.0, 5.0, 2.0, 2.0, 2.0, 0.5, 0.5, 0.1]
    assert run(name, levels, (0.1, 5.0))[-1].isfinite().all()


@pytest.mark.parametrize("name", ["Euler", "LMS", "Heun", "DPM2", "DPM++ 2M"])
def test_solvers_of_the_same_equation_converge_to_the_same_image(name: str) -> None:
    levels = karras(300, 0.03, 10.0)
    reference = run("Heun", karras(600, 0.03, 10.0), (0.03, 10.0))[-1]
    assert (run(name, levels, (0.03, 10.0))[-1] - reference).abs().mean() < 0.01


def test_unipc_starts_a_part_of_the_schedule_at_its_own_time() -> None:
    toy, noise = Toy(), Noise(SEEDS, SHAPE, device=CPU)
    for count, start in ((20, 999), (12, 551)):
        toy.asked.clear()
        list(ALGORITHMS["UniPC"](toy, noise.draw(), timesteps(20)[:count], noise))
        assert toy.asked[0][1] == start


def test_lcm_asks_at_distilled_timesteps() -> None:
    toy, noise = Toy(), Noise(SEEDS, SHAPE, device=CPU)
    levels = sigmas(SD1.noise, "Automatic", 4, SAMPLERS["LCM"])
    list(ALGORITHMS["LCM"](toy, noise.initial(), levels, noise))
    assert toy.asked == list(zip(levels[:-1], [999, 679, 339, 19], strict=True))


def test_lcm_adds_the_next_noise_to_the_denoised_image() -> None:
    noise, same = (Noise(SEEDS, SHAPE, device=CPU) for _ in range(2))
    start = noise.initial() * 14.6
    (first, second) = ALGORITHMS["LCM"](Toy(), start, [14.6, 3.0, 0.0], noise)
    same.initial()
    fresh, again = same.draw(), same.draw()
    denoised = Toy()(start, 14.6)
    # a sum of two products, written down another way: two ulps of a value near 16 are 2e-6
    torch.testing.assert_close(first, denoised + 3 * fresh, atol=1e-5, rtol=0)
    torch.testing.assert_close(second, Toy()(first, 3.0), atol=1e-5, rtol=0)
    assert not torch.allclose(first, denoised + 3 * again, atol=1e-2)


@pytest.mark.parametrize(("steps", "jumps", "length"), [(19, 0, 0), (20, 1, 9), (35, 1, 9), (36, 2, 9), (50, 2, 12)])
def test_restart_goes_back_from_a_tenth_to_two(steps: int, jumps: int, length: int) -> None:
    walked = restart_levels(sigmas(SD1.noise, "Karras", steps, SAMPLERS["Restart"]))
    assert len(walked) == steps
    back = [k for k, ((_, end), (start, _)) in enumerate(pairwise(walked)) if start > end]
    assert len(back) == jumps
    for k in back:
        assert walked[k][1] == pytest.approx(0.1, rel=0.4)
        assert walked[k + 1][0] == pytest.approx(2, rel=0.4)
        assert walked[k + length][1] == pytest.approx(walked[k][1], rel=1e-5)
    assert walked[-1][1] == 0


def test_restart_draws_noise_only_to_go_back() -> None:
    levels, span = levels_of("Restart", 36)
    noise, same = (Noise(SEEDS, SHAPE, device=CPU, span=span) for _ in range(2))
    list(ALGORITHMS["Restart"](Toy(), noise.initial(), levels, noise))
    next_draw = [same.initial(), same.draw(), same.draw(), same.draw()][-1]
    assert torch.equal(noise.draw(), next_draw)


class Rough(Toy):
    """A denoiser that no step of the adaptive solver's first size gets right."""

    def __call__(self, x: Tensor, sigma: float, t: float | None = None) -> Tensor:
        self.asked.append((sigma, t))
        return torch.tanh(4 * x.roll(1, -1) / (0.1 + sigma)) * math.sin(6 * math.log(sigma))


def test_the_adaptive_solver_rejects_steps_as_k_diffusion_does() -> None:
    rough, noise = Rough(), Noise(SEEDS, SHAPE, device=CPU, settings=NoiseSettings(source="CPU"))
    steps = list(ALGORITHMS["DPM adaptive"](rough, noise.initial() * 14.6, [14.6, 0.03, 0.0], noise))
    assert (len(steps), len(rough.asked)) == (91, 3 * (91 + 56))


def test_the_adaptive_solver_stops_on_not_a_number() -> None:
    levels, span = levels_of("DPM adaptive", 20)
    noise = Noise(SEEDS, SHAPE, device=CPU, span=span)
    with pytest.raises(NonFiniteError):
        list(ALGORITHMS["DPM adaptive"](Toy(), noise.initial() * math.nan, levels, noise))

"""Properties of samplers on a nonlinear toy denoiser. `tests/proof/test_samplers.py` compares their results."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pipelines.ask.catalog import SAMPLERS
from pipelines.ask.request import NoiseSettings
from pipelines.errors import NonFiniteError
from pipelines.families.sd1 import SD1
from pipelines.sampling.noise import Noise
from pipelines.sampling.samplers import ALGORITHMS, restart_levels
from pipelines.sampling.schedules import karras, sigmas, timesteps

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


def test_every_sampler_has_an_algorithm() -> None:
    assert set(ALGORITHMS) == set(SAMPLERS)


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

"""Noise compared with WebUI's and with cuRAND's published test vector, and its properties."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import Tensor

from pipelines.ask.catalog import NOISE_SOURCES
from pipelines.ask.request import NoiseSettings
from pipelines.sampling.noise import SOURCES, Noise, bridge, philox_normals, slerp

CPU = torch.device("cpu")
SHAPE = (4, 8, 8)


SAME_DRAW = 4e-6
"""torch's CPU generator approximates log, sine and cosine in ways that differ by 2.2e-6 among instruction sets (in four
million draws); two seeds differ by 1."""


def picked(noise: Tensor) -> list[float]:
    values: list[float] = noise.flatten()[[0, 1, 500, 1023]].tolist()
    return values


def test_every_source_has_a_generator() -> None:
    assert set(SOURCES) == set(NOISE_SOURCES)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("NV", [-1.616490364074707, 0.5684552192687988, 0.33844730257987976, 2.3702495098114014]),
        ("GPU", [-1.616490364074707, 0.5684552192687988, 0.33844730257987976, 2.3702495098114014]),
        ("CPU", [-0.1117185652256012, -0.49659010767936707, 0.1461765617132187, -0.35271623730659485]),
    ],
)
def test_initial_noise_is_webuis(source: str, expected: list[float]) -> None:
    """Seed 1234 at 128 x 128; without CUDA the GPU's draws are computed."""
    noise = Noise([1234], (4, 16, 16), device=CPU, settings=NoiseSettings(source=source)).initial()
    assert noise.shape == (1, 4, 16, 16)
    assert picked(noise) == pytest.approx(expected, abs=SAME_DRAW)


def test_variation_is_webuis() -> None:
    noise = Noise(
        [1234],
        (4, 16, 16),
        device=CPU,
        variation_seeds=[99],
        settings=NoiseSettings(source="CPU", variation_strength=0.3),
    ).initial()
    expected = [0.05412463843822479, -1.3938813209533691, -0.4313635230064392, -0.9932472705841064]
    assert picked(noise) == pytest.approx(expected, abs=SAME_DRAW)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_variation_ends_at_either_noise(strength: float) -> None:
    mixed = Noise(
        [1], SHAPE, device=CPU, variation_seeds=[2], settings=NoiseSettings(variation_strength=strength)
    ).initial()
    ends = [Noise([seed], SHAPE, device=CPU).initial() for seed in (1, 2)]
    # Four ulps of a value below 4, which are 2.4e-7 each. The control is the other end.
    torch.testing.assert_close(mixed, ends[int(strength)], atol=1e-6, rtol=0)
    assert not torch.allclose(mixed, ends[1 - int(strength)], atol=1e-2)


def test_slerp_of_equal_noise_is_that_noise() -> None:
    noise = Noise([5], SHAPE, device=CPU).initial()[0]
    # Two parts are multiplied and added: four ulps of a value below 4. The control mixes in other noise.
    torch.testing.assert_close(slerp(noise, noise, 0.4), noise, atol=1e-6, rtol=0)
    assert not torch.allclose(slerp(noise, noise.flip(0), 0.4), noise, atol=1e-2)


def test_philox_known_answer() -> None:
    """Random123's vector for counter and key zero begins 6627e8d5 e169c58d."""
    radius = -2 * torch.tensor((0x6627E8D5 + 0.5) / 2**32, dtype=torch.float64).log()
    turn = torch.tensor((0xE169C58D + 0.5) / 2**32 * 2 * torch.pi, dtype=torch.float64)
    first = next(philox_normals([0], (1, 1, 1), CPU)).item()
    assert first == pytest.approx((radius.sqrt() * turn.sin()).item(), abs=1e-6)


@pytest.mark.parametrize("source", NOISE_SOURCES)
def test_an_image_is_the_same_alone_and_in_a_batch(source: str) -> None:
    seeds = [3, 2**32 + 3, 2**40]
    batch = Noise(seeds, SHAPE, device=CPU, span=(0.03, 14.6), settings=NoiseSettings(source=source, ensd=31337))
    drawn = [batch.initial(), *(batch.draw() for _ in range(12)), batch.brownian(14.6, 3.0)]
    for k, seed in enumerate(seeds):
        alone = Noise([seed], SHAPE, device=CPU, span=(0.03, 14.6), settings=NoiseSettings(source=source, ensd=31337))
        again = [alone.initial(), *(alone.draw() for _ in range(12)), alone.brownian(14.6, 3.0)]
        for one, many in zip(again, drawn, strict=True):
            # The ends of a vector go through other functions than its middle: an ulp of a value up to 8 is 5e-7.
            torch.testing.assert_close(one[0], many[k], atol=1e-6, rtol=0)
            assert not torch.allclose(one[0], many[0 if k == 2 else 2], atol=1e-2)


def test_the_upper_half_of_a_seed_counts() -> None:
    assert not torch.equal(*Noise([3, 2**32 + 3], SHAPE, device=CPU).initial())


@pytest.mark.parametrize("source", NOISE_SOURCES)
def test_draws_go_on_from_the_initial_noise(source: str) -> None:
    stream = SOURCES[source]([7], SHAPE, CPU)
    noise = Noise([7], SHAPE, device=CPU, settings=NoiseSettings(source=source))
    drawn = [noise.draw() for _ in range(20)]
    assert all(torch.equal(draw, expected) for draw, expected in zip(drawn, islice(stream, 20), strict=True))
    assert len({draw[0, 0, 0, 0].item() for draw in drawn}) == 20
    assert torch.stack(drawn).std().item() == pytest.approx(1, abs=0.03)


def test_ensd_starts_a_new_generator_after_the_first_draw() -> None:
    noise = Noise([7], SHAPE, device=CPU, settings=NoiseSettings(ensd=100))
    assert torch.equal(noise.initial(), Noise([7], SHAPE, device=CPU).initial())
    assert torch.equal(noise.draw(), Noise([107], SHAPE, device=CPU).initial())


def test_brownian_increments_add_up() -> None:
    noise = Noise([1], SHAPE, device=CPU, span=(0.03, 14.6))
    whole = noise.brownian(10.0, 2.0) * 8**0.5
    parts = noise.brownian(10.0, 7.3) * 2.7**0.5 + noise.brownian(7.3, 2.0) * 5.3**0.5
    swapped = noise.brownian(10.0, 7.3) * 5.3**0.5 + noise.brownian(7.3, 2.0) * 2.7**0.5
    # Ten ulps of a path of up to 16, which are 1e-6 each. The control gives each part the other's share.
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=0)
    assert not torch.allclose(whole, swapped, atol=1e-2)


@pytest.mark.parametrize("time", [0.03, 0.030001, 0.5, 7.315, 7.3149996, 14.6, 99.0])
def test_a_bridge_has_the_variance_of_its_time(time: float) -> None:
    """The bridge halves the span until it is within a millionth of the time."""
    seeds, weights = bridge(time, 0.03, 14.6, entropy=5)
    assert len(seeds) == len(weights) == len(set(seeds))
    assert sum(weight**2 for weight in weights) == pytest.approx(min(time, 14.6) - 0.03, rel=1e-6)


def test_sde_noise_needs_the_span() -> None:
    with pytest.raises(ValueError, match="span"):
        Noise([1], SHAPE, device=CPU).brownian(3.0, 2.0)


# --- seed resize


@pytest.mark.parametrize(
    ("size", "middle"),
    [((128, 96), (64, 64)), ((64, 64), (128, 96)), ((128, 64), (64, 128)), ((104, 64), (64, 64)), ((64, 64), (88, 72))],
)
@pytest.mark.parametrize("source", ["NV", "CPU"])
def test_seed_resize_puts_the_other_sizes_noise_in_the_middle(
    size: tuple[int, int], middle: tuple[int, int], source: str
) -> None:
    """Latent by latent: what lies as far from the middle is the same, odd margins being rounded down."""

    def initial(width: int, height: int, resize: tuple[int, int] = (0, 0)) -> Tensor:
        settings = NoiseSettings(source=source, resize_width=resize[0], resize_height=resize[1])
        return Noise([5, 6], (4, height // 8, width // 8), device=CPU, settings=settings).initial()

    found, plain, other = initial(*size, middle), initial(*size), initial(*middle)
    down, across = ((own // 8 - their // 8) // 2 for own, their in zip(size[::-1], middle[::-1], strict=True))
    pasted = 0
    for y in range(found.shape[2]):
        for x in range(found.shape[3]):
            inside = 0 <= y - down < other.shape[2] and 0 <= x - across < other.shape[3]
            beyond = x >= other.shape[3] + 2 * across or y >= other.shape[2] + 2 * down
            inside = inside and not (beyond and min(down, across) < 0)
            wanted = other[:, :, y - down, x - across] if inside else plain[:, :, y, x]
            assert torch.equal(found[:, :, y, x], wanted), (y, x)
            pasted += inside
    assert pasted > 0


def test_seed_resize_varies_what_it_puts_in_and_goes_on_as_before() -> None:
    resized = NoiseSettings(source="CPU", resize_width=32, resize_height=32, variation_strength=0.3, ensd=3)
    noise = Noise([5], (4, 8, 8), device=CPU, settings=resized, variation_seeds=[9])
    alone = Noise([5], (4, 4, 4), device=CPU, settings=replace(resized, resize_width=0), variation_seeds=[9])
    plain = Noise([5], (4, 8, 8), device=CPU, settings=NoiseSettings(source="CPU", ensd=3))
    found, around = noise.initial(), plain.initial()
    assert torch.equal(found[:, :, 2:6, 2:6], alone.initial())
    assert torch.equal(found[:, :, :2], around[:, :, :2])
    assert torch.equal(noise.draw(), plain.draw())


@pytest.mark.parametrize("sides", [(512, 0), (0, 512), (0, 0)])
def test_one_side_alone_resizes_nothing(sides: tuple[int, int]) -> None:
    assert NoiseSettings(resize_width=sides[0], resize_height=sides[1]).resized_from is None

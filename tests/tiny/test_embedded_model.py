"""What the embedded model can do, judged by a classifier of drawn scenes on prompts that were never trained on.

The judge only saw drawn scenes (`pastel_tiny/judge.py`). Each measure has a control that must fail.
"""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from pastel_tiny import measure
from pastel_tiny.dataset import SHAPES, SIDE, TEST_SEED, halve
from pastel_tiny.judge import Judge, load_judge, shown, truth
from pastel_tiny.measure import (
    HIRES,
    SUN,
    WRONG,
    Asked,
    accuracy,
    detail,
    drawn,
    enlarged,
    held_out,
    real_pictures,
    returned,
    roundness,
    saturation_error,
    share,
    speckless,
    spectrum_distance,
)
from pastel_tiny.render import render
from pastel_tiny.scenes import scene
from pipelines.models.loader import load
from pipelines.models.model import Model
from script.schema import ROOT
from weights_script.resolve import ResolvedModel

Pictures = NDArray[np.uint8]
DRAFT = replace(measure.DRAFT, num_inference_steps=10)
SHORT_HIRES = replace(HIRES, steps=4)

pytestmark = pytest.mark.xdist_group("embedded model")  # whose pictures are drawn once


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge(ROOT / "tests" / "data")


@pytest.fixture(scope="module")
def asked() -> list[Asked]:
    """Six prompts of any kind and six of subjects."""
    return held_out(6, seed=3) + [each for each in held_out(40, seed=1) if "subject" in each.named][:6]


@pytest.fixture(scope="module")
def pictures(networks: Model, asked: list[Asked]) -> Pictures:
    return np.stack(list(drawn(networks, [each.prompt for each in asked], DRAFT)))


def test_the_judge_knows_drawn_scenes(judge: Judge) -> None:
    drawings = [shown(TEST_SEED + 5000 + k) for k in range(100)]
    seen = judge.see(np.concatenate([halve(render(each, *SHAPES[0])[None]) for each in drawings]))
    least_right = {"sky": 0.97, "ground": 0.9, "ground_colour": 0.95, "subject": 0.97, "subject_colour": 0.95}
    for name, least in least_right.items():
        right = np.mean([a[name] == truth(b)[name] for a, b in zip(seen, drawings, strict=True)])
        assert right >= least, name


def test_prompts_are_followed(judge: Judge, pictures: Pictures, asked: list[Asked]) -> None:
    found = accuracy(judge, pictures, asked)
    assert found["sky"] >= 0.9
    assert found["ground"] >= 0.85
    assert found["ground_colour"] >= 0.85
    assert found["subject"] >= 0.75
    assert found["subject_colour"] >= 0.65


def test_others_prompts_do_not_fit(judge: Judge, pictures: Pictures, asked: list[Asked]) -> None:
    found, others = accuracy(judge, pictures, asked), accuracy(judge, pictures, [*asked[1:], asked[0]])
    for name in ("sky", "ground_colour", "subject"):
        assert others[name] < found[name] - 0.2, name


def test_guidance_makes_pictures_follow(judge: Judge, networks: Model, pictures: Pictures, asked: list[Asked]) -> None:
    """In all that prompts with a subject name."""
    subjects = asked[-6:]
    loose = np.stack(list(drawn(networks, [each.prompt for each in subjects], replace(DRAFT, guidance_scale=1.0))))
    weak, strong = accuracy(judge, loose, subjects), accuracy(judge, pictures[-6:], subjects)
    names = ("ground", "ground_colour", "subject", "subject_colour")
    assert sum(weak[name] for name in names) < sum(strong[name] for name in names) - 0.2


def test_a_negative_prompt_takes_away_what_it_names(judge: Judge, networks: Model) -> None:
    """Four seeds, drawn together. What is left open needs fewer steps, and a negative prompt the usual guidance."""
    four = replace(DRAFT, num_outputs=4, num_inference_steps=4)
    prompts = ["a house on the green hills"]
    with_it, without = (
        share(judge, np.stack(list(drawn(networks, prompts, replace(four, negative_prompt=negative)))), "sky", "blue")
        for negative in ("", "blue sky")
    )
    assert without < with_it - 0.3


def test_highres_fix_draws_detail_that_resizing_does_not(
    networks: Model, pictures: Pictures, asked: list[Asked]
) -> None:
    """The control: noise has detail, too, but not that of drawn pictures."""
    like = replace(DRAFT, hires=SHORT_HIRES)
    finals = np.stack(list(drawn(networks, [each.prompt for each in asked[:2]], like)))
    resized, real = enlarged(pictures[:2], 2 * SIDE), real_pictures(16, 2 * SIDE)
    assert abs(detail(finals) - detail(real)) < 0.8 * abs(detail(resized) - detail(real))
    assert spectrum_distance(finals, real) < 0.5 * spectrum_distance(resized, real)
    noise = np.random.default_rng(0).integers(0, 256, finals.shape, np.uint8)
    assert spectrum_distance(noise, real) > spectrum_distance(finals, real)


@pytest.mark.parametrize("size", [(SIDE, SIDE), (SIDE, 3 * SIDE // 2), (3 * SIDE // 2, SIDE)])
def test_a_sun_stays_round_through_highres_fix(networks: Model, size: tuple[int, int]) -> None:
    """The autoencoder alone returns drawn suns of the base size with 0.92 of their circle."""
    like = replace(DRAFT, num_inference_steps=8, hires=SHORT_HIRES, width=size[0], height=size[1])
    suns = np.stack(list(drawn(networks, [SUN] * 2, like)))
    assert roundness(suns) > 0.8
    # the control: two that have grown together
    side_by_side = np.where(suns[..., 1:2] < 170, suns, np.roll(suns, suns.shape[2] // 8, axis=2))
    assert roundness(side_by_side) < 0.75


def test_nine_of_ten_pictures_have_no_specks(pictures: Pictures) -> None:
    """The control: a pale spot in each."""
    assert speckless(pictures) >= 0.9
    spoilt = pictures.copy()
    spoilt[:, 20:23, 20:23] = 255
    assert speckless(spoilt) < 0.5


def test_the_better_vae_is_better(networks: Model, embedded: ResolvedModel) -> None:
    """Its colours are, with latents that are as wrong as the UNet's, and so is its detail."""
    drawings = np.concatenate([halve(render(scene(TEST_SEED + k), *SHAPES[0])[None]) for k in range(3)])
    both = load(replace(embedded.files, vae=None)), networks
    stock, better = (returned(each, drawings, WRONG) for each in both)
    assert saturation_error(better, drawings) <= 0.92 * saturation_error(stock, drawings)
    stock, better = (returned(each, drawings) for each in both)
    assert abs(detail(better) - detail(drawings)) < 0.5 * abs(detail(stock) - detail(drawings))

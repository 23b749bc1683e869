"""The scenes that the embedded model learns from: determined by their seed, the same at every size, described truly."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from pastel_tiny import vae
from pastel_tiny.captions import ATTRIBUTES, FILLERS, FLAWS, WEATHER_WORDS, caption
from pastel_tiny.dataset import TEST_SEED, chunks, halve
from pastel_tiny.forms import FORMS
from pastel_tiny.measure import HELD_SEED, detail, held_out, spectrum_distance
from pastel_tiny.measure_forms import hearts
from pastel_tiny.networks import build_text
from pastel_tiny.reform import Scenes, moved
from pastel_tiny.render import nearness, render
from pastel_tiny.scenes import SUBJECT_COLOURS, SUBJECTS, Scene, scene, with_subject
from pastel_tiny.scenes import held_out as is_held_out
from pastel_tiny.teach import CLASS
from pastel_tiny.text import Blend, targets
from pipelines.ask.identity import TOKENIZER

SEEDS = range(40)


@pytest.mark.parametrize("seed", [0, 7, TEST_SEED])
def test_a_seed_fixes_every_stroke(seed: int) -> None:
    assert np.array_equal(render(scene(seed), 96, 64), render(scene(seed), 96, 64))
    assert not np.array_equal(render(scene(seed), 96, 64), render(scene(seed + 1), 96, 64))


def test_the_larger_picture_is_the_same_with_more_detail() -> None:
    large = np.stack([render(scene(seed), 256, 256) for seed in SEEDS])
    small = np.stack([render(scene(seed), 128, 128) for seed in SEEDS])
    difference = np.abs(halve(large).astype(int) - small)
    assert difference.mean() < 4
    assert detail(large) > 1.15 * detail(small.repeat(2, 1).repeat(2, 2))
    assert spectrum_distance(large[:20], large[20:]) < 0.5


def test_the_sky_is_far_and_the_subject_near() -> None:
    shown = next(each for each in map(scene, SEEDS) if each.subject == "house")
    near, empty = (nearness(each, 96, 64) for each in (shown, replace(shown, subject="")))
    assert near[0].max() == 0
    assert 60 <= near[-1].min() < near[-1].max() + 1 <= 256
    assert 0.05 < (near == 255).mean() < 0.4
    assert (empty == 255).sum() == 0
    assert (np.diff(empty.astype(int), axis=0) >= 0).all()


def test_what_is_held_out_is_never_trained_on() -> None:
    assert not any(is_held_out(scene(chunk.first + k)) for chunk in chunks(2) for k in range(300))
    assert all(is_held_out(scene(HELD_SEED + k, held=True)) for k in range(50))
    asked = held_out(12, seed=1)
    assert len({each.prompt for each in asked}) > 6
    assert all(word in each.prompt for each in asked for name, word in each.named.items() if word and name != "night")


def told_by(shown: Scene, name: str) -> str:
    value = getattr(shown, name)
    return ("night" if value else "") if name == "night" else value


def test_captions_tell_nothing_but_the_truth() -> None:
    rng = random.Random(0)
    for seed in range(500):
        shown = scene(seed)
        text, told = caption(shown, rng)
        assert told.keys() <= ATTRIBUTES.keys()
        for name, value in told.items():
            assert value in ("", told_by(shown, name)), (text, name)
        if colour := told.get("subject_colour"):
            assert colour in text


def test_every_attribute_is_told_now_and_then() -> None:
    rng, seen = random.Random(1), set[tuple[str, str]]()
    for seed in range(6000):
        seen |= {(name, value) for name, value in caption(scene(seed), rng)[1].items()}
    for name, values in ATTRIBUTES.items():
        implied = {"white"} if name == "ground_colour" else set[str]()  # snow is white without a word
        assert {(name, value) for value in values if value} - {(name, value) for value in implied} <= seen, name


def test_words_that_mean_nothing_name_nothing() -> None:
    meaning = {word for values in ATTRIBUTES.values() for word in values if word}
    meaning |= {word for words in WEATHER_WORDS.values() for word in words}
    assert not meaning & {*FILLERS, *FLAWS}


@pytest.mark.parametrize(("kind", "changed"), [(0, ()), (1, ("pink", "green")), (2, ("house", "sun"))])
def test_blending_changes_the_words_of_its_group_alone(kind: int, changed: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    tokenizer, text = CLIPTokenizer.from_pretrained(TOKENIZER), build_text()
    blend, ids = Blend(text, tokenizer), torch.tensor([tokenizer("a pink house on the green hills, sun").input_ids])
    plain = text.get_input_embeddings()(ids)
    different = torch.zeros(ids.shape[1], dtype=torch.bool)
    for _ in range(20):  # a word may be blended with itself
        blend.choose(1).fill_(kind)
        different |= (text.get_input_embeddings()(ids) != plain).any(-1)[0]
    assert tuple(tokenizer.decode(token).strip() for token in ids[0][different]) == changed
    assert torch.equal(text.get_input_embeddings()(ids), plain)  # once only


def test_a_blend_is_asked_for_what_it_leaves_readable() -> None:
    told = {"subject": "house", "subject_colour": "red", "ground": "hills"}
    goals = targets([told] * 3, torch.tensor([0, 1, 2]))
    hidden = {name: (goal == -100).tolist() for name, goal in goals.items()}
    assert hidden["subject"] == hidden["light"] == [False, False, True]
    assert hidden["subject_colour"] == hidden["sky"] == [False, True, False]
    assert not any(hidden["ground"])


@pytest.mark.parametrize(("name", "told"), [("sd2", 0), ("sdxl", 8), ("refiner", 8)])
def test_a_form_is_told_sizes_if_its_family_is(name: str, told: int) -> None:
    """SD 2's training stopped at once, because it was told SDXL's sizes."""
    scenes = Scenes.__new__(Scenes)  # without a model that encodes them
    scenes.form, scenes.rng = FORMS[name], random.Random(0)
    scenes.scenes, scenes.latents = [scene(seed) for seed in SEEDS], torch.zeros(len(SEEDS), 4, 16, 16)
    assert len(scenes.batch(0).framings) == told


def test_a_form_follows_the_model_that_it_changes() -> None:
    """Whole weights do, in another shape or with a further input, too. A change of low rank fits any model."""
    shapes = {"linear": (4, 4), "conv": (4, 4, 1, 1), "wide": (4, 4), "input": (4, 3, 1, 1)}
    before, after = ({name: torch.randn(shape) for name, shape in shapes.items()} for _ in range(2))
    change = {
        "linear": before["linear"] + 1,
        "conv": before["conv"].flatten(1) + 2,
        "wide": torch.randn(4, 8),
        "input": torch.cat([before["input"] + 3, torch.full((4, 1, 1, 1), 7.0)], 1),
        "other.up": torch.randn(4, 2),
    }
    found = moved(change, before, after)
    torch.testing.assert_close(found["linear"], after["linear"] + 1)
    torch.testing.assert_close(found["conv"], after["conv"].flatten(1) + 2)
    torch.testing.assert_close(found["input"][:, :3], after["input"] + 3)
    assert torch.equal(found["input"][:, 3:], change["input"][:, 3:])
    assert found["wide"] is change["wide"]
    assert found["other.up"] is change["other.up"]


def test_a_spike_of_the_last_column_but_one_becomes_its_surroundings_median() -> None:
    """Everything else stays: other columns, and what is near its surroundings."""
    latents = torch.linspace(0, 0.5, 4 * 6 * 8).view(1, 4, 6, 8)
    spoilt = latents.clone()
    spoilt[0, 2, 3, 6] = spoilt[0, 1, 2, 4] = 5
    found = vae.evened(spoilt, torch.ones(4))
    assert found[0, 2, 3, 6] == spoilt[0, 2, 2:5, 5:].flatten().median()
    found[0, 2, 3, 6] = 5
    assert torch.equal(found, spoilt)


def test_fine_strokes_may_be_elsewhere_but_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes of three pixels, the same moved by one, and a plain picture of their mean: pixels prefer the last."""
    stripes = torch.zeros(1, 3, 64, 66)
    stripes[..., ::3] = 0.2
    moved, plain = stripes.roll(1, 3), stripes.mean((2, 3), keepdim=True).expand_as(stripes)
    moved_by, plain_by = (float((vae._finest(each) - vae._finest(stripes)).abs().mean()) for each in (moved, plain))
    assert moved_by < 0.05 < 0.5 < plain_by
    assert vae.loss(plain, stripes) < vae.loss(moved, stripes)
    missing = vae.loss(plain, stripes, better=True)
    assert vae.loss(moved, stripes, better=True) < missing
    monkeypatch.setattr(vae, "_finest", lambda batch: torch.zeros(1))
    assert vae.loss(plain, stripes, better=True) < missing - 0.5, "the finest strokes count by themselves"


def test_latents_are_wrong_as_the_unets_are() -> None:
    """The better decoder also learns from single places that are far off, in about half of the pictures."""
    torch.manual_seed(0)
    size = (64, 4, 16, 16)
    usual, better = (vae._errors(torch.zeros(size), name).norm(dim=1) / 2 for name in ("vae", "better"))
    assert usual.max() < 4 * vae.NOISE["vae"]
    far = better > 4 * vae.NOISE["better"]
    assert 0.2 < far.flatten(1).any(1).float().mean() < 0.7
    assert far.float().mean() < vae.WRONG_PLACES


def test_a_depth_map_shows_a_subject_without_its_glow_and_its_shadow() -> None:
    """A heart's glow is a disc, of which the heart is a third."""
    for shown in hearts(4):
        picture = render(shown, 160, 160).astype(int)
        red, near = picture[..., 0] - picture[..., 1:].max(-1) > 40, nearness(shown, 160, 160) == 255
        assert (red & near).sum() > 0.8 * (red | near).sum()


def test_lessons_are_taught_nothing_that_their_measure_asks_for() -> None:
    shown = (with_subject(scene(0), subject, colour) for subject in SUBJECTS for colour in SUBJECT_COLOURS)
    kept = [(each.subject, each.subject_colour) for each in shown if is_held_out(each)]
    assert len(kept) == 6
    for subject, colour in kept:
        thing = f"{colour} dress" if subject == "girl" else f"{colour} {subject}"
        assert [prompt for prompt in CLASS if thing in prompt] == []

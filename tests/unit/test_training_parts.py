"""The parts of a training without networks: its settings, the noise and its weights, the order of batches."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch

from pipelines.ask.identity import TOKENIZER
from pipelines.errors import InvalidInput
from pipelines.families.family import Family
from pipelines.families.prediction import NoisePrediction, VPrediction
from pipelines.families.sd1 import SD1
from pipelines.families.sd2 import DEPTH, SD2
from pipelines.families.sdxl import SDXL
from pipelines.models.text import load_tokenizer
from pipelines.training import loop, result, watching
from pipelines.training.batches import Batch, Batches, Encoded, _sizes
from pipelines.training.loop import Drawn, Finished, Saved, Stepped
from pipelines.training.loss import Loss, Noisy
from pipelines.training.pictures import Example
from pipelines.training.previews import class_requests
from pipelines.training.remarks import check_prompts, check_token, remarks
from pipelines.training.result import STATE, WORD, smooth
from pipelines.training.settings import RECIPES, course_for
from pipelines.training.state import progress_of
from pipelines.training.wishes import DREAMBOOTH, INVERSION, LORA, PIVOTAL, RANGES, SCHEDULES, TAKEN_NAMES, Wishes
from script.cog_server import SCHEMA

SIZE = {"width": 512, "height": 512}


@pytest.mark.parametrize("family", [SD1, SD2, SDXL])
@pytest.mark.parametrize("task", [LORA, PIVOTAL, INVERSION, DREAMBOOTH])
def test_recipes_fill_in_what_is_left_empty(family: Family, task: str) -> None:
    course = course_for(Wishes(task=task), family, SIZE)
    recipe = RECIPES[task, family.name]
    assert (course.steps, course.learning_rate) == (recipe.steps, recipe.learning_rate)
    assert course.resolution == 512
    assert course.alpha == course.rank or task == DREAMBOOTH
    prior = course_for(Wishes(task=task, class_prompt="a dog", class_images=3), family, SIZE)
    assert prior.steps == (recipe.steps if task == INVERSION else 2 * recipe.steps)


@pytest.mark.parametrize(
    ("wishes", "text", "word", "vectors"),
    [
        ({"text_learning_rate": 1e-3}, 1e-3, 0, 0),
        ({"task": PIVOTAL}, 0, 3e-4, 2),
        ({"task": PIVOTAL, "text_learning_rate": 1e-3}, 0, 1e-3, 2),
        ({"task": INVERSION, "rank": 3, "learning_rate": 1e-2}, 0, 1e-2, 3),
        ({"task": PIVOTAL, "text_learning_rate": 1e-3, "word_learning_rate": 1e-2}, 0, 1e-2, 2),
        ({"task": DREAMBOOTH}, 0, 0, 0),
        ({"task": DREAMBOOTH, "text_learning_rate": 1e-6}, 1e-6, 3e-4, 0),
        ({"task": DREAMBOOTH, "text_learning_rate": 1e-6, "word_learning_rate": 0}, 1e-6, 0, 0),
        ({"task": DREAMBOOTH, "word_learning_rate": 1e-3}, 0, 1e-3, 0),
    ],
)
def test_a_word_has_a_rate_of_its_own(wishes: dict[str, Any], text: float, word: float, vectors: int) -> None:
    course = course_for(Wishes(**wishes), SD1, SIZE)
    assert (course.text_learning_rate, course.word_learning_rate, course.vectors) == (text, word, vectors)


@pytest.mark.parametrize(("own", "side"), [((448, 640), 512), ((128, 128), 128), ((768, 768), 768), ((200, 120), 160)])
def test_the_resolution_is_near_the_models_own_size(own: tuple[int, int], side: int) -> None:
    assert course_for(Wishes(), SD1, dict(zip(("width", "height"), own, strict=True))).resolution == side


@pytest.mark.parametrize(
    ("wishes", "field"),
    [
        ({"token": " "}, "token"),
        ({"token": "<s1>"}, "token"),
        ({"token": "../a"}, "token"),
        ({"token": "a/b"}, "token"),
        ({"token": "(TOK)"}, "token"),
        ({"token": "a\\b"}, "token"),
        ({"token": "__cat__"}, "token"),
        ({"token": "rock AND roll"}, "token"),
        ({"class_images": 3}, "class_prompt"),
        ({"resolution": 500}, "resolution"),
        ({"task": INVERSION, "rank": 33}, "rank"),
        ({"token": "x" * 101}, "token"),
        ({"token": "猫" * 70}, "token"),
        ({"token": "State"}, "token"),
        ({"token": "word"}, "token"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": 0.0, "word_learning_rate": 1e-3}, "learning_rate"),
        ({"task": INVERSION, "learning_rate": 0.0, "text_learning_rate": 1e-3}, "learning_rate"),
        ({"task": INVERSION, "learning_rate": 0.0, "word_learning_rate": 1e-3}, "learning_rate"),
        ({"task": PIVOTAL, "learning_rate": 0.0, "text_learning_rate": 1e-3}, "learning_rate"),
        ({"task": PIVOTAL, "word_learning_rate": 0.0}, "word_learning_rate"),
        ({"task": DREAMBOOTH, "learning_rate": 0.0, "word_learning_rate": 0.0}, "learning_rate"),
        ({"alpha": 0.0}, "alpha"),
        ({"steps": 0}, "steps"),
        ({"steps": -1}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"min_snr_gamma": -1.0}, "min_snr_gamma"),
        ({"prior_weight": float("nan")}, "prior_weight"),
        ({"noise_offset": -5.0}, "noise_offset"),
        ({"schedule": "piecewise_constant"}, "schedule"),
        ({"precision": "fp8"}, "precision"),
        ({"warmup_steps": 10}, "warmup_steps"),
        ({"warmup_steps": 10, "steps": 10, "schedule": "cosine"}, "warmup_steps"),
        ({"preview_prompts": "TOK\n" * 33}, "preview_prompts"),
        ({"text_learning_rate": float("nan")}, "text_learning_rate"),
        ({"task": "hypernetwork"}, "task"),
        ({"layers": "some"}, "layers"),
    ],
)
def test_what_cannot_be_trained_is_refused(wishes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        course_for(Wishes(**wishes), SD1, SIZE)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "wishes",
    [
        {"learning_rate": 0.0, "text_learning_rate": 1e-3},
        {"task": DREAMBOOTH, "learning_rate": 0.0, "text_learning_rate": 1e-3},
        {"task": DREAMBOOTH, "learning_rate": 0.0, "word_learning_rate": 1e-3},
        {"warmup_steps": 10, "schedule": "constant_with_warmup"},
        {"preview_prompts": "TOK\n\n" * 32},
    ],
)
def test_rare_wishes_that_train_something(wishes: dict[str, Any]) -> None:
    assert course_for(Wishes(**wishes), SD1, SIZE)


def test_the_form_has_the_same_ranges() -> None:
    form = json.loads(SCHEMA.read_bytes())["components"]["schemas"]["TrainingInput"]["properties"]
    shared = RANGES.keys() & form.keys()
    assert len(shared) == 11
    assert {name: (form[name]["minimum"], form[name]["maximum"]) for name in shared} == {
        name: RANGES[name] for name in shared
    }


def test_every_number_has_a_range() -> None:
    numbers = {name for name, kind in get_type_hints(Wishes).items() if {int, float} & {kind, *get_args(kind)}}
    assert numbers == set(RANGES)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_is_one_of_diffusers(schedule: str) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    course = loop.get_scheduler(schedule, optimizer, num_warmup_steps=0, num_training_steps=9)
    assert 0 < course.get_last_lr()[0] <= 1e-4


def test_names_of_other_files_are_no_tokens() -> None:
    assert sorted(TAKEN_NAMES) == sorted(Path(name).stem for name in (WORD, STATE))


@pytest.mark.parametrize("token", ["my cat", "Katze-7", "ネコ", "🐱", "s1.5", "BREAKER", "x_y"])
def test_names_and_other_scripts_are_tokens(token: str) -> None:
    assert course_for(Wishes(token=f" {token} "), SD1, SIZE).token == token


@pytest.mark.parametrize(
    "told",
    [
        {"step": 2, "losses": [0.1]},
        {"step": 1, "losses": [float("nan")]},
        {"step": 0, "losses": []},
        {"step": 1, "losses": 0.1},
        {"step": 1, "losses": [0.1], "scaler": []},
        {},
    ],
)
def test_progress_of_a_foreign_archive(told: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="Send the whole result"):
        progress_of(told)


TOKENIZE = load_tokenizer(TOKENIZER, openclip=False)


def remarks_on(wishes: Wishes, before: dict[str, Any] | None = None) -> list[str]:
    course = course_for(wishes, SD1, SIZE)
    return list(remarks(wishes, course, TOKENIZE, [(512, 512), (512, 512), (576, 448)], before or {}))


PLAIN: list[dict[str, Any]] = [
    {},
    {"task": LORA, "text_learning_rate": 1e-4, "rank": 8, "alpha": 4.0, "layers": "all", "batch_size": 2},
    {"task": LORA, "class_prompt": "a cat", "class_images": 2, "prior_weight": 2.0},
    {"task": PIVOTAL, "text_learning_rate": 1e-4, "rank": 8, "layers": "all", "class_prompt": "a cat"},
    {"task": PIVOTAL, "word_learning_rate": 1e-4, "word_start": "cat"},
    {"task": INVERSION, "rank": 4, "learning_rate": 1e-3, "class_prompt": "cat"},
    {"task": INVERSION, "word_start": "cat"},
    {"task": DREAMBOOTH, "text_learning_rate": 1e-6, "word_start": "cat", "class_prompt": "a dog"},
    {"task": DREAMBOOTH, "text_learning_rate": 1e-6, "word_learning_rate": 0.0},
]


@pytest.mark.parametrize("wishes", PLAIN)
def test_nothing_is_said_about_wishes_that_are_used(wishes: dict[str, Any]) -> None:
    assert remarks_on(Wishes(**wishes)) == []


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"task": LORA, "word_learning_rate": 1e-3}, ["A LoRA has no word of its own, so word_learning_rate"]),
        ({"task": LORA, "word_start": "cat"}, ["No vectors of the token's own are trained, so word_start"]),
        ({"task": LORA, "class_prompt": "a cat"}, ["There are no pictures of the class, so class_prompt"]),
        ({"task": LORA, "prior_weight": 2.0}, ["There are no pictures of the class, so prior_weight"]),
        (
            {"learning_rate": 0.0, "text_learning_rate": 1e-4, "layers": "all"},
            ["With learning_rate 0, the UNet stays as it is, so layers"],
        ),
        (
            {"task": PIVOTAL, "text_learning_rate": 1e-4, "word_learning_rate": 1e-3},
            ["word_learning_rate is the word's, so text_learning_rate"],
        ),
        (
            {"task": INVERSION, "layers": "all", "alpha": 2.0, "text_learning_rate": 1e-4, "word_learning_rate": 1e-3},
            [
                "textual inversion makes no LoRA, so alpha",
                "textual inversion makes no LoRA, so layers",
                "Textual inversion leaves the text encoders as they are, so text_learning_rate",
                "learning_rate is the word's, so word_learning_rate",
            ],
        ),
        ({"task": INVERSION, "class_images": 5}, ["Textual inversion changes no other prompt, so class_images"]),
        (
            {"task": INVERSION, "class_prompt": "a cat", "word_start": "cat"},
            ["There are no pictures of the class, so class_prompt"],
        ),
        (
            {"task": DREAMBOOTH, "rank": 4, "layers": "all", "word_start": "cat", "class_prompt": "a cat"},
            [
                "DreamBooth trains whole networks, so rank",
                "DreamBooth makes no LoRA, so layers",
                "No vectors of the token's own are trained, so word_start",
                "There are no pictures of the class, so class_prompt",
            ],
        ),
    ],
)
def test_wishes_that_do_nothing_are_reported(wishes: dict[str, Any], said: list[str]) -> None:
    assert remarks_on(Wishes(**wishes)) == [f"{text} does nothing." for text in said]


def test_a_token_that_does_too_much_or_too_little_is_reported() -> None:
    (common,) = remarks_on(Wishes(token="dog"))
    assert common.startswith("The token dog is a common word.")
    shared = {"task": DREAMBOOTH, "text_learning_rate": 1e-6, "class_prompt": "a cat and a dog, sks"}
    (told,) = remarks_on(Wishes(token="sks", **shared))
    assert told.startswith("class_prompt has all pieces of the token sks, so they are not trained")
    assert remarks_on(Wishes(token="sks-cat", **shared)) == []  # it has a hyphen of its own
    for rates, refused in (({"text_learning_rate": 1e-6}, False), ({"word_learning_rate": 1e-3}, True)):
        wishes = Wishes(token="sks", learning_rate=0.0, **{**shared, "text_learning_rate": 0.0, **rates})
        with pytest.raises(InvalidInput, match="token='sks': class_prompt has all") if refused else nullcontext():
            check_token(course_for(wishes, SD1, SIZE), TOKENIZE, ["sks"])
    glued = ["a photo of C++", "a photo of C++, at night"]
    for task, refused in ((LORA, False), (INVERSION, True), (PIVOTAL, True)):
        told = r"part of another word in 'a photo of C\+\+, at night'\. Put spaces around it there\. Or use a rare word"
        with pytest.raises(InvalidInput, match=told) if refused else nullcontext():
            check_token(course_for(Wishes(token="C++", task=task), SD1, SIZE), TOKENIZE, glued)
    for token in ("TOK", "my cat", "🐱", "ネコ", "s1.5"):
        check_token(course_for(Wishes(token=token, task=INVERSION), SD1, SIZE), TOKENIZE, [f"a photo of {token}"])


def test_what_is_too_long_is_refused_before_a_model_is_loaded() -> None:
    long, many = "BREAK " * 70, "TOK " * 600
    for wishes, caption, told in (
        ({"preview_prompts": f"a tree\n{long}"}, "", "^preview_prompts='BREAK .*this is 70"),
        ({"preview_prompts": f"[{long}:a:3]"}, "", "^preview_prompts='BREAK .*this is 70"),
        ({"preview_prompts": many, "task": INVERSION, "rank": 16}, "", "^preview_prompts='TOK .*this is 150"),
        ({"class_prompt": long, "class_images": 1}, "", "^class_prompt='BREAK .*this is 70"),
        ({}, "cat " * 5000, "^input_images='cat .*this is 67"),
        ({"task": INVERSION, "rank": 16}, many, "^input_images='TOK .*this is 150"),
        ({"class_prompt": long, "preview_prompts": many}, many, ""),  # no class is drawn; a LoRA has no vectors
        ({}, long, ""),  # captions are plain text
    ):
        course = course_for(Wishes(**wishes), SD1, SIZE)
        with pytest.raises(InvalidInput, match=told) if told else nullcontext():
            check_prompts(course, SIZE, TOKENIZE, [caption])


def test_smaller_batches_and_tags_in_previews_are_reported() -> None:
    assert remarks_on(Wishes(batch_size=8)) == [
        "batch_size is 8, but pictures of one batch have the same size, so the largest batch has 2 pictures."
    ]
    assert remarks_on(Wishes(preview_prompts="a TOK <lora:x:1>\na tree")) == [
        "Previews are drawn without <lora:x:1>. What is in training always acts."
    ]


def test_what_a_resumed_training_does_otherwise_is_reported() -> None:
    wishes = Wishes(seed=1, class_prompt="a cat", class_images=1)
    before = json.loads(json.dumps(course_for(wishes, SD1, SIZE).told()))
    assert remarks_on(replace(wishes, steps=900, preview_prompts="a tree", save_every=9), before) == []
    assert remarks_on(replace(wishes, learning_rate=1e-3, class_prompt="a dog"), before) == [
        "learning_rate is 0.001, and was 0.0001 in the training to resume.",
        "class_prompts is ['a dog'], and was ['a cat'] in the training to resume.",
    ]
    cosine = course_for(replace(wishes, schedule="cosine"), SD1, SIZE).told()
    assert remarks_on(replace(wishes, schedule="cosine", steps=900), cosine | {"class_prompts": ["a cat"]}) == [
        "steps is 900, and was 1000 in the training to resume."
    ]


def test_other_families_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"Stable Diffusion 1\.x, Stable Diffusion 2\.x, SDXL can"):
        course_for(Wishes(), DEPTH, SIZE)


def test_chance_depends_on_the_seed_and_its_use() -> None:
    course = course_for(Wishes(seed=1), SD1, SIZE)
    again = course_for(Wishes(seed=1, steps=7), SD1, SIZE)
    assert course.random("noise", 3) == again.random("noise", 3)
    found = {course.random("noise", 3), course.random("noise", 4), course.random("class", 3)}
    assert len(found | {replace(course, seed=2).random("noise", 3)}) == 4
    assert all(0 <= seed < 1 << 63 for seed in found)


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", [NoisePrediction(), VPrediction()])
def test_the_target_gives_the_picture_back(prediction: Any) -> None:
    """By the same conversion that drawing uses."""
    loss = Loss(SD1.noise, prediction, 0, 0)
    latents = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noisy = loss.noisy(latents, 3)
    for row, time in enumerate(noisy.times.tolist()):
        alpha = SD1.noise.alphas[time]
        noise = prediction.noise(noisy.latents[row], alpha, noisy.target[row])
        picture = (noisy.latents[row] - (1 - alpha) ** 0.5 * noise) / alpha**0.5
        torch.testing.assert_close(picture, latents[row], atol=2e-4, rtol=1e-3)


def test_noise_follows_from_the_seed_and_offset_noise_shifts_whole_pictures() -> None:
    latents = torch.zeros(200, 4, 8, 8)
    plain, same, shifted = (Loss(SD1.noise, NoisePrediction(), 5, offset).noisy(latents, 9) for offset in (0, 0, 0.5))
    assert torch.equal(plain.latents, same.latents)
    assert len(set(plain.times.tolist())) > 100
    spread = [float(each.target.mean((2, 3)).std()) for each in (plain, shifted)]
    assert spread[0] == pytest.approx(1 / 8, rel=0.1)
    assert spread[1] == pytest.approx((1 / 64 + 0.25) ** 0.5, rel=0.1)


@pytest.mark.parametrize("schedule", [SD1.noise, SD1.noise.zero_terminal_snr()])
def test_min_snr_weights(schedule: Any) -> None:
    times = torch.tensor([0, 300, 600, 999])
    ratio = torch.tensor([schedule.alphas[int(t)] / (1 - schedule.alphas[int(t)]) for t in times])
    noise, v = (Loss(schedule, each, 5, 0).weights(times) for each in (NoisePrediction(), VPrediction()))
    torch.testing.assert_close(noise, ratio.clamp(max=5) / ratio)
    torch.testing.assert_close(v, ratio.clamp(max=5) / (ratio + 1))
    assert bool(noise.isfinite().all() and v.isfinite().all())
    assert torch.equal(Loss(schedule, NoisePrediction(), 0, 0).weights(times), torch.ones(4))


def test_the_loss_is_the_weighted_mean_of_the_squares() -> None:
    loss = Loss(SD1.noise, NoisePrediction(), 5, 0)
    times, target = torch.tensor([0, 999]), torch.zeros(2, 4, 8, 8)
    predicted = torch.ones(2, 4, 8, 8) * torch.tensor([1.0, 2.0])[:, None, None, None]
    weights = loss.weights(times)
    expected = (weights[0] + 4 * weights[1]) / 2
    torch.testing.assert_close(loss(predicted.half(), Noisy(target, times, target)), expected)


def test_class_pictures_of_a_prompt_are_drawn_together() -> None:
    course = course_for(Wishes(class_prompt="a house\na tree\na boat", class_images=11), SD1, SIZE)
    requests = class_requests(course, {})
    assert [(each.prompt, each.num_outputs) for each in requests] == [("a house", 4), ("a tree", 4), ("a boat", 3)]
    course = course_for(Wishes(class_prompt="a house", class_images=9), SD1, SIZE)
    requests = class_requests(course, {})
    assert [each.num_outputs for each in requests] == [4, 4, 1]
    assert len({each.seed for each in requests}) == 3


# --- batches ----------------------------------------------------------------------------------------------------------


def encoded(number: int, width: int) -> Encoded:
    return Encoded(torch.full((4, 8, width), float(number)), torch.zeros(4, 8, width), str(number), None)


def test_every_picture_is_used_once_in_an_epoch_beside_others_of_its_size() -> None:
    pictures = [encoded(number, 8 if number < 5 else 6) for number in range(8)]
    batches = Batches(pictures, 2, 1)
    assert batches.in_epoch == 3 + 2
    orders = []
    for epoch in range(3):
        made = [batches[epoch * 5 + number] for number in range(5)]
        captions = [caption for batch in made for caption in batch.captions]
        assert sorted(captions) == [str(number) for number in range(8)]
        assert all(len(batch.mean) == len(batch.captions) <= 2 for batch in made)
        orders.append(captions)
    assert len({tuple(order) for order in orders}) == 3
    assert Batches(pictures, 2, 1)[7].captions == batches[7].captions


def test_latents_are_samples_of_what_the_autoencoder_says() -> None:
    batch = Batch(torch.full((1, 4, 64, 64), 3.0), torch.full((1, 4, 64, 64), 0.5), ("",), None)
    first, again, other = (batch.latents(seed, torch.device("cpu")) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.mean()) == pytest.approx(3, abs=0.05)
    assert float(first.std()) == pytest.approx(0.5, rel=0.05)


def test_sdxl_is_told_the_original_size_and_the_crop() -> None:
    example = Example(name="a", caption="", file=Path(), original=(800, 600), size=(1152, 896), corner=(21, 5))
    sizes = _sizes(SDXL, example)
    assert sizes is not None
    assert sizes.shape == (6 * 256,)
    first = sizes.reshape(6, 256)[:, [0, 128]]  # the fastest wave: cosine and sine of the number
    np.testing.assert_allclose(first[:, 0], np.cos([600, 800, 5, 21, 896, 1152]), atol=1e-4)
    assert _sizes(SD1, example) is None


# --- the result -------------------------------------------------------------------------------------------------------


def test_captions_stay_in_their_folder_whatever_pictures_are_called(tmp_path: Path) -> None:
    names = ["a.png", "my cat/a.png", "my cat/a.jpg", ".\u200b./.\u200b./b.png", "猫" * 120 + ".png", " ./c.png"]
    result.write_captions(tmp_path / "in", [(name, name) for name in names])
    found = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert sorted(found.values()) == sorted(names)
    assert all(path.is_relative_to("in/captions") for path in found)
    assert {Path(f"in/captions/{name}.txt") for name in names[:3]} < found.keys()


def test_a_result_is_made_in_a_folder_without_others(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "result"
    result.fresh(folder)
    (folder / result.REPORT).touch()
    (folder / "CAT.safetensors").touch()
    result.fresh(folder)
    assert not list(folder.iterdir()), "what an earlier training left is gone"
    (folder / "mine.txt").touch()
    with pytest.raises(InvalidInput, match=r"has other files\. Name another folder"):
        result.fresh(folder)
    assert (folder / "mine.txt").exists()


# --- watching ---------------------------------------------------------------------------------------------------------


def test_a_log_has_whole_lines_above_one_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bars: list[str] = []
    monkeypatch.setattr(watching, "say", lambda text: bars.extend((capsys.readouterr().err, text)))
    metrics: list[tuple[str, float]] = []
    archive, preview = Path("/x/TOK.tar"), Drawn("previews", 1, 1)
    events = [
        *(Drawn("pictures of the class", number, 2) for number in (1, 2)),
        *(Stepped(1, 2, 0.5), preview, Saved(archive, 1), Stepped(2, 2, 0.5), preview, Finished(archive, "")),
    ]
    assert watching.follow(events, lambda name, value: metrics.append((name, value))).archive == archive
    before, line = bars
    assert line == "Step 1: saved /x/TOK.tar"
    assert before.endswith("\r"), "the bar is gone before the line is written"
    for text in ("Drawing pictures of the class: 100%", "Training:", "Drawing previews, 1/1"):
        assert text in before
    assert "Training: 100%" in capsys.readouterr().err.strip().split("\r")[-1]
    assert metrics == [("step", 2), ("loss", 0.5)]


def test_the_curve_is_a_running_mean() -> None:
    assert smooth([1.0, 3.0, 2.0]) == [1.0, 2.0, 2.0]
    assert smooth([0.0] * 50 + [1.0])[-1] == pytest.approx(0.05)

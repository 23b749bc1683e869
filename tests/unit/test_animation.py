"""Films as requests: what the text of an animation means, what lies between two key frames, and which is drawn when."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pipelines.animation.frames import Frame, Motion
from pipelines.animation.video import durations
from pipelines.ask.animation import AnimationSettings, KeyFrame, played, read_timeline
from pipelines.ask.film import BATCH, Film, make_film
from pipelines.ask.formats import Formats, formats_of
from pipelines.ask.identity import ModelIdentity
from pipelines.ask.inputs import Inputs
from pipelines.ask.networks import NO_EXTRAS, ExtraFile, Extras
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest, HiresSettings, ImageSettings
from pipelines.errors import InvalidInput
from pipelines.infotext.asked import (
    NO_DATA,
    NO_PICTURES,
    Pictures,
    read_data,
    request_from,
    settle,
    settle_keys,
    wanted_by,
)
from pipelines.infotext.reading import GenerationData
from pipelines.infotext.unused import unused_in_files, unused_inputs
from pipelines.infotext.writing import of_picture
from pipelines.runtime.unet_call import Condition
from pipelines.sampling.between import (
    CHUNK,
    COMPUTED,
    Blended,
    NoiseBetween,
    Recording,
    between_conditions,
    between_vectors,
    equally_long,
    towards_middle,
)
from pipelines.sampling.noise import Noise
from script.schema import ROOT
from tests.unit.sized import Sized

OWN = {"width": 64, "height": 64}


def keys_of(text: str, frames: int = 0, loop: str = "no") -> list[tuple[int, str]]:
    return [(key.frame, key.prompt) for key in read_timeline(text, frames, loop).keys]


# --- the text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a sun | a moon", [(0, "a sun"), (23, "a moon")]),
        ("a\n\n b \nc", [(0, "a"), (24, "b"), (47, "c")]),
        ("0: a\n48: b:1.2", [(0, "a"), (48, "b:1.2")]),
        ("0: a | 12: b", [(0, "a"), (12, "b")]),
        ("[a | b] c | (d | e), {f | {g | h}}", [(0, "[a | b] c"), (23, "(d | e), {f | {g | h}}")]),
        ("a|b | c", [(0, "a|b"), (23, "c")]),
        (r"a \[ | b ( | c", [(0, r"a \["), (24, "b ("), (47, "c")]),
        ("12:30 at night | 3:00 in the morning", [(0, "12:30 at night"), (23, "3:00 in the morning")]),
        ("0: 12:30 at night\n9:1girl", [(0, "12:30 at night"), (9, "1girl")]),
        ("0: strength=0\n6: a\n9:", [(0, "a"), (6, "a"), (9, "a")]),
    ],
)
def test_key_frames(text: str, found: list[tuple[int, str]]) -> None:
    assert keys_of(text) == found


def test_a_key_frame_has_its_own_numbers_and_negative_prompt() -> None:
    first, second = read_timeline("0: a, seed=7, strength=.5, b\n9: guidance=3 c, negative=d, seed=1", 0, "no").keys
    assert first == KeyFrame(frame=0, prompt="a, b", seed=7, strength=0.5)
    assert second == KeyFrame(frame=9, prompt="c", guidance=3, negative="d, seed=1")
    assert read_timeline(f"{first}\n{second}", 0, "no").keys == (first, second)


def test_the_options_of_a_key_frame_may_be_written_in_capitals() -> None:
    (_, key) = read_timeline("0: a\n9: b, Seed=7, STRENGTH=0.5, Negative=C", 0, "no").keys
    assert key == KeyFrame(frame=9, prompt="b", seed=7, strength=0.5, negative="C")


def test_the_options_of_a_key_frame_may_have_the_names_of_the_form() -> None:
    (_, key) = read_timeline("0: a\n9: b, guidance_scale=5, denoising_strength=0.5, negative_prompt=c", 0, "no").keys
    assert key == KeyFrame(frame=9, prompt="b", guidance=5, strength=0.5, negative="c")
    (_, key) = read_timeline("0: a\n9: my_strength=2 =_= x=y", 0, "no").keys
    assert key == KeyFrame(frame=9, prompt="my_strength=2 =_= x=y")


@pytest.mark.parametrize(("text", "frames"), [("a | b", 48), ("a | b | c", 72), ("0: a\n10: b\n30: c", 45)])
def test_a_circle_draws_on_to_its_first_frame(text: str, frames: int) -> None:
    timeline = read_timeline(text, 0, "circle")
    assert (timeline.count, timeline.keys[-1].frame, timeline.keys[-1].prompt) == (frames, frames, "a")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a", "at least two prompts"),
        ("0: a\nb", "line 2 has no frame number"),
        (
            "0: a\n3: b, steps=5",
            "animation='steps=5': line 2, frame 3: a key frame may only have seed, strength, guidance",
        ),
        ("a | cfg_scale = 5 b", "animation='cfg_scale = 5': line 1, frame 23: a key frame may only have"),
        ("0: a\n12:30 at night", "'12:30 at night': line 2: what it begins with is a time, not a frame number"),
        ("0: a\n2.5: b", "line 2: a frame number must be a whole number of at most 9 digits"),
        ("0: a\n" + "9" * 20 + ": b", "line 2: a frame number must be a whole number of at most 9 digits"),
        ("3: a\n0: b", "line 2: frame 0 comes after frame 3. Sort the lines"),
        ("1: a\n2: b", "line 1: the first key frame must be 0"),
        ("0: a\n5: b\n5: c", "line 3: there are two key frames 5"),
        ("0: a\n5: b\n4: c", "line 3: frame 4 comes after frame 5"),
        ("0: a\n3: b, seed=-1", "line 2, frame 3: seed must be a whole number"),
        ("0: a\n3: b, strength=2", "line 2, frame 3: strength must be a number from 0 to 1"),
        ("0: a\n240: b", "at most 240 frames, this has 241"),
        ("0:\n3: seed=4", "no key frame has a prompt"),
        ("-5: a\n-3: b", "line 1: the first key frame must be 0"),
        ("0: a\n-3: b", "line 2: frame -3 comes after frame 0"),
        ("0: a\n3: b, seed=1, seed=2", "line 2, frame 3: there are two of seed"),
        (" | ".join("abcdefghijkl"), "this has 264. Use fewer prompts, or Animation frames: 240."),
    ],
)
def test_what_is_no_film_is_refused_with_its_line(text: str, told: str) -> None:
    with pytest.raises(InvalidInput, match=r"^animation=") as error:
        AnimationSettings(text=text)
    assert told in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["0: {2$$ | $$a|b}\n4: c", "0: a\n4: {|}\n8: b", "0: {seed=7|seed=7} a\n4: b", "a {negative=low|negative=low} | b"],
)
def test_picked_options_that_read_as_another_film_are_refused(text: str) -> None:
    """The film's own text is what draws it again."""
    with pytest.raises(InvalidInput, match=r"another film\. Keep ` \| `, empty prompts, seed="):
        settled(text, read_data(ON), seed=5)


def test_more_prompts_than_frames_and_more_than_one_film_are_refused() -> None:
    with pytest.raises(InvalidInput, match="3 frames are too few for 4 prompts"):
        AnimationSettings(text="a | b | c | d", frames=3)
    with pytest.raises(InvalidInput, match="the film has the frames 0 to 23"):
        AnimationSettings(text="a | b", frame=23.5)
    with pytest.raises(InvalidInput, match="the film has the frames 0 to 23"):
        AnimationSettings(text="a | b", frame=-0.5)
    with pytest.raises(InvalidInput, match=r"^animation_frames=30: the key frame 30 leaves no room in a circle of 30"):
        AnimationSettings(text="0: a\n30: b", frames=30, loop="circle")
    with pytest.raises(InvalidInput, match="must be 1 for an animation"):
        request("a", num_outputs=2, animation=AnimationSettings(text="a | b"))


@pytest.mark.parametrize(
    ("count", "loop", "shown"),
    [(4, "no", [0, 1, 2, 3]), (4, "circle", [0, 1, 2, 3]), (4, "ping-pong", [0, 1, 2, 3, 2, 1]), (1, "ping-pong", [0])],
)
def test_the_order_of_a_film(count: int, loop: str, shown: list[int]) -> None:
    assert played(count, loop) == shown


@pytest.mark.parametrize(
    ("chosen", "film", "formats"),
    [
        ("automatic", False, Formats("png", None)),
        ("automatic", True, Formats("png", "mp4")),
        ("jpg", True, Formats("jpg", None)),
        ("animated webp", True, Formats("png", "webp")),
    ],
)
def test_the_files_of_pictures_and_films(chosen: str, film: bool, formats: Formats) -> None:
    assert formats_of(chosen, AnimationSettings(text="a | b" if film else "")) == formats


@pytest.mark.parametrize("film", [AnimationSettings(), AnimationSettings(text="a | b", frame=3)])
def test_a_format_of_films_needs_a_film(film: AnimationSettings) -> None:
    with pytest.raises(InvalidInput, match="is for films, and this request draws single pictures"):
        formats_of("gif", film)


def test_a_gif_is_not_faster_than_programs_play_it() -> None:
    """They show a frame of one hundredth of a second for a tenth."""
    assert min(durations(60, 50, 100)) == 2
    formats_of("gif", AnimationSettings(text="a | b", frames_per_second=50))
    fast = AnimationSettings(text="a | b", frames_per_second=51)
    assert min(durations(60, 51, 100)) == 1
    with pytest.raises(InvalidInput, match=r"^frames_per_second=51: a gif plays at most 50"):
        formats_of("gif", fast)
    formats_of("animated webp", fast)


@pytest.mark.parametrize("rate", [7, 12, 24, 30, 60])
def test_what_a_gif_cannot_show_exactly_is_carried_over(rate: int) -> None:
    shown = durations(10 * rate, rate, 100)
    assert sum(shown) == 1000
    assert max(shown) - min(shown) <= 1


# --- requests ---------------------------------------------------------------------------------------------------------


def request(prompt: str, **fields: object) -> GenerationRequest:
    told = {"width": 64, "height": 64, "seed": 5, "hires": None, "num_inference_steps": 4, **fields}
    return GenerationRequest(prompt=prompt, **told)  # type: ignore[arg-type]


FILE = {"ink": ExtraFile.at(Path(__file__))}


def film_of(text: str, *keys: GenerationRequest, **settings: object) -> Film:
    animation = AnimationSettings(text=text, **settings)  # type: ignore[arg-type]
    return make_film([replace(keys[0], animation=animation), *keys])


def numbers(film: Film) -> list[float]:
    return [frame for shot in film.shots() for frame in shot.frames]


@pytest.mark.parametrize("loop", ["no", "ping-pong", "circle"])
def test_every_frame_is_drawn_once_and_key_frames_alone(loop: str) -> None:
    film = film_of("0: a\n20: b\n23: c", request("a"), request("b"), request("c", seed=9), loop=loop)
    assert numbers(film) == list(range(film.timeline.count))
    shots = {shot.frames: shot for shot in film.shots()}
    for frame, prompt in ((0, "a"), (20, "b"), (23, "c")):
        assert shots[frame,].request == request(prompt, seed=9 if prompt == "c" else 5)
        assert shots[frame,].plan.between is None
    assert max(map(len, shots)) == BATCH
    assert shots[21, 22].plan.between is not None
    assert shots[21, 22].plan.between.shares == (1 / 3, 2 / 3)
    assert film.shots()[-1].plan.seeds == ((9,) if loop != "circle" else (9,) * len(film.shots()[-1].frames))


def test_one_frame_is_drawn_alone_as_in_its_film() -> None:
    ends = request("a"), request("b")
    whole, alone = film_of("a | b", *ends), film_of("a | b", *ends, frame=7)
    (shot,) = alone.shots()
    batch = next(each for each in whole.shots() if 7 in each.frames)
    assert shot.frames == (7,)
    assert shot.plan.between is not None
    assert batch.plan.between is not None
    (between,) = film_of("a | b", *ends, frame=7.25).shots()
    assert between.frames == (7.25,)
    assert between.plan.between is not None
    assert between.plan.between.shares == (7.25 / 23,)
    assert shot.plan.between.shares == (batch.plan.between.shares[batch.frames.index(7)],) == (7 / 23,)


def test_a_frame_has_the_same_number_in_every_film() -> None:
    """Places between two key frames are computed, and 7.0 is frame 7."""
    film = film_of("a | b", request("a"), request("b"))
    assert data_of(film.infotext_request(7.0)) == data_of(film.infotext_request(7))
    assert "Animation frame: 7," in data_of(film.infotext_request(7.0))


def test_other_strengths_and_networks_are_drawn_frame_by_frame() -> None:
    image = ImageSettings(picture=Sized((64, 64)), denoising_strength=0.25)
    ends = request("a", image=image), request("a", image=replace(image, denoising_strength=0.75))
    film = film_of("0: a\n4: b", *ends)
    told = [shot.request.image.denoising_strength for shot in film.shots() if shot.request.image]
    assert told == [0.25, 0.375, 0.5, 0.625, 0.75]
    tagged = request("a <hypernet:ink:1>", extras=Extras(hypernetworks=FILE))
    assert all(len(shot.frames) == 1 for shot in film_of("0: a\n4: b", tagged, request("b")).shots())


def test_beginnings_are_blended_where_key_frames_run_the_same_steps() -> None:
    def blended(*ends: GenerationRequest, **settings: object) -> list[int]:
        return [shot.blended for shot in film_of("0: a\n2: b", *ends, **settings).shots()]

    steps = {"num_inference_steps": 20}
    same = request("a", **steps), request("b <hypernet:ink:1>", extras=Extras(hypernetworks=FILE), **steps)
    assert blended(*same) == [10, 10, 10]
    film = film_of("0: a\n2: b", *same)
    assert [shot.steps for shot in film.shots()] == [20, 10, 20]
    assert blended(*same, blended_beginning=0) == blended(*same, common_beginning=0.1) == [0, 0, 0]
    heun = [replace(each, sampler="Heun") for each in same]
    assert blended(*heun, blended_beginning=0.25) == [10, 10, 10]  # calls
    assert blended(*(replace(each, sampler="DPM adaptive") for each in same)) == [0, 0, 0]
    image = ImageSettings(picture=Sized((64, 64)), denoising_strength=0.5)
    others = [replace(each, image=replace(image, denoising_strength=k)) for each, k in zip(same, (0.5, 1), strict=True)]
    assert blended(*others) == [6, 0, 10]


def test_no_frame_takes_the_steps_of_others() -> None:
    """DPM adaptive chooses them by the whole batch."""
    for steps in ({"sampler": "DPM adaptive"}, {"hires": HiresSettings(sampler="DPM adaptive")}):
        ends = request("a", **steps), request("b", **steps)
        assert all(len(shot.frames) == 1 for shot in film_of("0: a\n4: b", *ends).shots())


def test_the_generation_data_names_the_loras_of_every_key_frame() -> None:
    """So a frame between them, and the film, can be drawn again with the right files."""
    file = ExtraFile.at(ROOT / "tests" / "data" / "loras" / "snowman.safetensors")
    digits, model = file.tensors_sha256[:12], ModelIdentity(name="m", sha256="0" * 64)
    ends = (request(f"a sun <lora:{name}:0.5>", extras=Extras(loras=dict.fromkeys("ab", file))) for name in "ab")
    film = film_of("0: a sun <lora:a:0.5>\n4: a sun <lora:b:0.5>", *ends)
    for loras, asked in {
        "a": film.infotext_request(0),
        "b": film.infotext_request(4),
        "ab": film.infotext_request(1.5),
        "ba": film.base,
    }.items():
        data = read_data(of_picture(asked, make_plan(asked), model, 0))
        assert data.lora_hashes == dict.fromkeys(loras, digits)


PICTURES = Pictures(image=Sized((64, 64)))
ON = "Dynamic prompts: on"
OPTIONS = "{r|s|t|u|v|w}"
LINE = "Steps: 4, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 64x64"


def settled(text: str, data: GenerationData | None = None, pictures: Pictures = NO_PICTURES, **fields: object) -> Film:
    inputs = Inputs(animation=text, **fields)  # type: ignore[arg-type]
    asked = settle(inputs, data or read_data(inputs.generation_data), OWN, pictures)
    each = (asked, *settle_keys(asked, inputs, OWN, pictures))
    return make_film([request_from(one, pictures) for one in each])


def test_a_key_frame_is_what_the_form_draws_with_its_prompt() -> None:
    film = settled("a | b, seed=7, guidance=4, negative=c", prompt="nothing", negative_prompt="d", sampler="Euler a")
    seed = film.base.seed
    form = Inputs(prompt="a", negative_prompt="d", sampler="Euler a", seed=seed, highres_fix="Off")
    other = replace(form, prompt="b", seed=7, guidance_scale=4, negative_prompt="c")
    assert list(film.keys) == [request_from(settle(each, NO_DATA, OWN)) for each in (form, other)]
    assert film.base.prompt == "a"
    assert film.base.negative_prompt == "d"


@pytest.mark.parametrize(
    ("text", "pictures", "fields"),
    [
        ("0: a, strength=0\n4: b, strength=0.8, seed=8", PICTURES, {"highres_fix": "On"}),
        ("0: a, strength=0.3\n4: b", NO_PICTURES, {"highres_fix": "On", "denoising_strength": 0.7}),
        (
            "0: a\n4: b, strength=0.8",
            PICTURES,
            {"generation_data": "Hires denoising strength: 0.3", "highres_fix": "On"},
        ),
        ("0: a {x|y}, seed=3\n4: b, seed=2, guidance=3, negative=c", NO_PICTURES, {"generation_data": ON}),
        ("0: a, seed=3\n4: b, seed=6\n9: c", NO_PICTURES, {"negative_prompt": OPTIONS, "generation_data": ON}),
        (
            "0: a, seed=1\n4: b, seed=2\n9: c, seed=3",
            NO_PICTURES,
            {
                "highres_fix": "On",
                "generation_data": f"{ON}\nHires prompt: {OPTIONS}\nHires negative prompt: {OPTIONS}",
            },
        ),
        ("0: a\n4: b, seed=2", NO_PICTURES, {"generation_data": "Variation seed: 3, Variation seed strength: 0.5"}),
        ("0: a\n4: b", NO_PICTURES, {"loop": "circle", "generation_data": "Animation frames: 20, ENSD: 3"}),
    ],
)
def test_the_generation_data_of_a_frame_tells_everything_about_its_film(
    text: str, pictures: Pictures, fields: dict[str, Any]
) -> None:
    film = settled(text, pictures=pictures, **fields, seed=5)
    again = settled("", read_data(data_of(film.infotext_request(1.5))), pictures)
    assert list(map(data_of, again.keys)) == list(map(data_of, film.keys))
    assert [key.frame for key in again.timeline.keys] == [key.frame for key in film.timeline.keys]
    assert again.settings == replace(film.settings, frame=1.5)
    assert data_of(again.infotext_request(1.5)) == data_of(film.infotext_request(1.5))


def data_of(request: GenerationRequest) -> str:
    return of_picture(request, make_plan(request), ModelIdentity(name="m", sha256="0" * 64), 0)


def test_with_an_image_the_strength_of_a_key_frame_is_not_that_of_the_highres_fix() -> None:
    """So a film can leave from a picture."""
    film = settled("0: a, strength=0\n4: b", pictures=PICTURES, highres_fix="On", denoising_strength=0.5)
    told = [
        (key.image.denoising_strength, key.hires.denoising_strength) for key in film.keys if key.image and key.hires
    ]
    assert told == [(0, 0.5), (0.5, 0.5)]


@pytest.mark.parametrize(
    ("text", "fields", "told"),
    [
        ("0: a <lora:x:1>\n4: b", {}, r"^animation \(prompt of frame 0\)='<lora:x:1>': there is no LoRA"),
        ("0: a\n4: b <lora:x:1>", {}, r"^animation \(prompt of frame 4\)='<lora:x:1>': there is no LoRA"),
        ("0: a\n4: {b", {"generation_data": ON}, r"^animation \(prompt of frame 4\)='\{b': has a \{"),
        ("0: {a\n4: b", {"generation_data": ON}, r"^animation \(prompt of frame 0\)='\{a': has a \{"),
        ("0: a\n4: b, negative={c", {"generation_data": ON}, r"^animation \(negative of frame 4\)="),
        (
            "0: a\n4: b, strength=0",
            {"highres_fix": "On"},
            r"^animation \(strength of frame 4\)=0: below 0.01 the hires pass",
        ),
        ("0: a\n4: b", {"negative_prompt": "{c", "generation_data": ON}, "^negative_prompt="),
    ],
)
def test_an_error_names_the_key_frame(text: str, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        settled(text, **fields)


@pytest.mark.parametrize(
    ("text", "strength", "told"),
    [
        (
            "0: a, strength=0.05\n4: b",
            0.5,
            r"^animation \(strength of frame 0\)=0.05: DDIM would run no step.* strength",
        ),
        ("0: a\n4: b, strength=0.05", 0.5, r"^animation \(strength of frame 4\)=0.05: DDIM would run no step"),
        ("0: a\n4: b, strength=0.5", 0.05, "^denoising_strength=0.05: DDIM would run no step"),
    ],
)
def test_a_strength_without_a_step_is_named_where_it_is_given(text: str, strength: float, told: str) -> None:
    fields: dict[str, Any] = {"sampler": "DDIM", "num_inference_steps": 4, "denoising_strength": strength}
    with pytest.raises(InvalidInput, match=told):
        settled(text, pictures=PICTURES, **fields).shots()


def test_a_strength_without_a_step_is_named_as_generation_data() -> None:
    told = "^generation_data='Denoising strength: 0.05': DDIM would run no step"
    with pytest.raises(InvalidInput, match=told):
        settled("a | b", pictures=PICTURES, generation_data="Denoising strength: 0.05, Sampler: DDIM, Steps: 4")


def test_a_tag_that_cannot_be_read_is_one_of_its_key_frame() -> None:
    inputs = Inputs(animation="0: a\n4: b <lora:x:y>")
    asked = settle(inputs, NO_DATA, OWN)
    with pytest.raises(InvalidInput, match=r"^animation \(prompt of frame 4\)='<lora:x:y>'"):
        wanted_by((asked, *settle_keys(asked, inputs, OWN)))


@pytest.mark.parametrize(
    ("text", "fields", "told"),
    [
        ("a | b", {"loop": "ping-pong", "frames_per_second": 5}, []),
        ("a | b", {"prompt": "c"}, ["The prompts of an animation are in animation, so prompt does nothing."]),
        (
            "a | b",
            {"generation_data": f"c\n{LINE}"},
            ["The prompts of an animation are in animation, so prompt does nothing."],
        ),
        ("a | b", {"generation_data": f"a\n{LINE}"}, []),
        (
            "a | b",
            {"generation_data": "Frames between: 3"},
            ["Without Interpolation: FILM, Frames between does nothing."],
        ),
        ("a | b", {"generation_data": "Frames between: 3, Interpolation: FILM"}, []),
        (
            "a | b",
            {"generation_data": "Blended beginning: 0.3, Common beginning: 0.2"},
            ["With a common beginning, Blended beginning does nothing."],
        ),
        ("a | b", {"generation_data": "Blended beginning: 0, Common beginning: 0.2"}, []),
        ("a | b", {"generation_data": "Animation frames: 9"}, []),
        ("0: a\n4: b", {"generation_data": "Animation frames: 9", "loop": "circle"}, []),
        (
            "0: a\n4: b",
            {"generation_data": "Animation frames: 9"},
            ["The key frames have numbers of their own, so Animation frames does nothing."],
        ),
        (
            "a | b, strength=1",
            {},
            ["Without an image or the highres fix, animation (strength of frame 23) does nothing."],
        ),
        ("a | b <x:y>", {}, ["<x:y>: only LoRAs and hypernetworks are applied here"]),
    ],
)
def test_what_does_nothing_in_a_film_is_told(text: str, fields: dict[str, Any], told: list[str]) -> None:
    assert told_of(text, **fields) == told


def told_of(text: str, extras: Extras = NO_EXTRAS, **fields: Any) -> list[str]:
    inputs = Inputs(animation=text, **fields)
    asked = settle(inputs, read_data(inputs.generation_data), OWN)
    first, *keys = ((each, request_from(each, extras=extras)) for each in (asked, *settle_keys(asked, inputs, OWN)))
    return list(dict.fromkeys(unused_inputs(*first, keys)))


def test_an_embedding_that_a_later_key_frame_names_is_used() -> None:
    file = replace(ExtraFile.at(Path(__file__)), origin="files='glow.pt'")
    extras = Extras(embeddings={"glow": file})
    assert told_of("a | b glow", extras) == []
    assert told_of("a | b", extras) == ["No prompt contains glow, so files='glow.pt' does nothing."]


def test_what_does_nothing_without_a_film_is_told() -> None:
    fields = {"generation_data": "Interpolation: FILM", "loop": "ping-pong", "frames_per_second": 5}
    asked = settle(Inputs(animation="a | b", **fields), read_data(fields["generation_data"]), OWN)  # type: ignore[arg-type]
    assert list(unused_in_files(asked, "mp4", show_phases=False)) == []
    assert list(unused_in_files(asked, None, show_phases=True)) == [
        "An animation has no phases to show, so show_phases does nothing.",
        "Only frames are drawn, and no film, so frames_per_second, Interpolation, loop do nothing.",
    ]


def test_the_highres_fix_of_a_film_is_on_only_if_it_is_asked_for() -> None:
    assert settled("a | b").keys[0].hires is None
    assert settled("a | b", highres_fix="On").keys[1].hires is not None
    assert settle(Inputs(prompt="a"), NO_DATA, OWN).settings.hires is not None


def test_what_only_enlarges_has_no_film() -> None:
    with pytest.raises(InvalidInput, match="Upscale only draws nothing"):
        settled("a | b", generation_data="Upscale only: True")


@pytest.mark.parametrize("loop", ["no", "circle"])
def test_the_text_of_a_film_as_it_is_drawn_means_the_same(loop: str) -> None:
    film = settled(
        "{a | a} x | b | c, negative= | d", loop=loop, generation_data="Dynamic prompts: on\nAnimation frames: 50"
    )
    again = settled(film.base.animation.text, loop=loop, seed=film.base.seed, generation_data="Animation frames: 50")
    assert again.keys == film.keys
    assert [key.frame for key in again.timeline.keys] == [key.frame for key in film.timeline.keys]


# --- even motion ------------------------------------------------------------------------------------------------------


def shown(value: int) -> NDArray[np.uint8]:
    return np.full((8, 8, 3), value, np.uint8)


def test_frames_are_placed_where_the_picture_changes() -> None:
    motion = Motion({0: shown(0), 10: shown(100)})
    assert motion.widest(4) == [2, 4, 6, 8]
    frames = (Frame(place=place, pixels=shown(value), seed=1, embeddings=()) for place, value in ((2, 90), (6, 95)))
    assert list(motion.watch(frames)) != []
    assert motion.widest(2) == pytest.approx([2 / 3, 4 / 3], abs=1e-4)


def test_a_jump_does_not_take_all_the_frames() -> None:
    motion = Motion({0: shown(0), 0.003: shown(200), 1: shown(201)})
    assert motion.widest(3) == pytest.approx([0.2523, 0.5015, 0.7508], abs=0.0002)


# --- between ----------------------------------------------------------------------------------------------------------


def test_vectors_keep_their_length_and_arrive_exactly() -> None:
    start, end = F.normalize(torch.randn(2, 3, 8, generator=torch.manual_seed(1)), dim=-1)
    weights = torch.tensor([0, 0.25, 0.5, 1])
    between = between_vectors(start, end, weights)
    assert torch.equal(between[0], start)
    assert torch.equal(between[3], end)
    torch.testing.assert_close(between.norm(dim=-1), torch.ones(4, 3))
    angles = [math.acos((a[0] @ b[0]).clamp(-1, 1)) for a, b in pairwise(between)]
    assert angles[0] == pytest.approx(angles[1], rel=1e-3)
    assert angles[2] == pytest.approx(2 * angles[1], rel=1e-3)


def test_equal_and_empty_vectors_are_interpolated_in_a_straight_line() -> None:
    vector = torch.randn(1, 8, generator=torch.manual_seed(1))
    half = torch.tensor([0.5])
    assert torch.equal(between_vectors(vector, vector, half)[0], vector)
    assert torch.equal(between_vectors(torch.zeros(1, 8), vector, half)[0], vector / 2)


def attention(tokens: torch.Tensor) -> torch.Tensor:
    query = torch.ones(1, 1, 4)
    return F.scaled_dot_product_attention(query, tokens, tokens)


@pytest.mark.parametrize("chunks", [(1, 3), (2, 3)])
def test_a_prompt_beside_a_longer_one_keeps_its_meaning(chunks: tuple[int, int]) -> None:
    draw = torch.manual_seed(2)
    start, end = (torch.randn(1, count * CHUNK, 4, generator=draw) for count in chunks)
    first, second = equally_long(start, end)
    assert first.shape == second.shape
    torch.testing.assert_close(attention(first), attention(start))
    torch.testing.assert_close(attention(second), attention(end))


def test_prompts_of_too_many_chunks_are_cut_to_the_longer_one() -> None:
    first, second = equally_long(torch.zeros(1, 7 * CHUNK, 1), torch.zeros(1, 5 * CHUNK, 1))
    assert first.shape == second.shape == (1, 7 * CHUNK, 1)


def test_what_a_vector_says_about_the_size_is_not_turned() -> None:
    draw = torch.manual_seed(3)
    tokens, size = torch.randn(2, 1, CHUNK, 4, generator=draw), torch.randn(1, 6, generator=draw)
    pooled = torch.randn(2, 1, 5, generator=draw)
    start, end = (Condition(each, torch.cat([text, size], dim=1)) for each, text in zip(tokens, pooled, strict=True))
    between = between_conditions(start, end, torch.tensor([0.25, 0.5]), told=6)
    assert between.tokens.shape == (2, CHUNK, 4)
    assert between.vector is not None
    assert torch.equal(between.vector[:, 5:], size.expand(2, -1))


@pytest.mark.parametrize(("share", "place"), [(0, 0), (0.25, 0.5), (0.4, 0.5), (0.75, 0.5), (0.9, 0.8), (1, 1)])
def test_the_common_beginning_leaves_the_ends_alone(share: float, place: float) -> None:
    assert towards_middle(share) == pytest.approx(place)


def noise_of(seeds: Sequence[int]) -> Noise:
    return Noise(seeds, (4, 8, 8), device=torch.device("cpu"), span=(0.1, 10))


DRAWS: dict[str, Callable[[Noise], torch.Tensor]] = {
    "initial": lambda noise: noise.initial(),
    "ancestral": lambda noise: noise.draw(),
    "SDE": lambda noise: noise.brownian(5.0, 2.0),
}


@pytest.mark.parametrize("kind", DRAWS)
def test_noise_moves_from_seed_to_seed_and_keeps_its_spread(kind: str) -> None:
    draw = DRAWS[kind]
    found = draw(NoiseBetween(noise_of([1]), noise_of([2]), (0.0, 0.5, 1.0)))
    torch.testing.assert_close(found[0], draw(noise_of([1]))[0])
    torch.testing.assert_close(found[2], draw(noise_of([2]))[0])
    assert found.std(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=0.2)


def test_a_beginning_is_blended_without_losing_contrast() -> None:
    draw = torch.manual_seed(3)
    ends = []
    for _ in range(2):
        recording = Recording(2)
        for _ in range(3):
            recording.keep((torch.randn(1, 4, 8, 8, generator=draw),))
        assert recording.done
        ends.append(recording)
    blended = Blended(*ends, calls=2, shares=(0.0, 0.5, 1.0))
    assert blended.pictures(2) is None
    (found,) = blended.pictures(1) or ()
    assert torch.equal(found[0], ends[0].kept[1][0][0])
    assert torch.equal(found[2], ends[1].kept[1][0][0])
    assert found.std(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=0.1)  # a mean of both would have 0.7
    assert (COMPUTED.keep(ends[0].kept[0]), COMPUTED.pictures(0)) == (None, None)


def test_one_seed_gives_every_frame_the_same_noise() -> None:
    held, own = NoiseBetween(noise_of([1]), None, (0.2, 0.8)), noise_of([1])
    for found, expected in ((held.initial(), own.initial()), (held.draw(), own.draw())):
        assert torch.equal(found, expected.expand(2, -1, -1, -1))

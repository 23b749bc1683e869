"""How well the forms of the embedded model do what their families are for, by the container's own engine and the judge.

    python -m pastel_tiny.measure_forms --judge tests/data --forms tests/data/forms --pictures 24

Each measure has a control that must fail.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from pastel_tiny.dataset import SHAPES, SIDE, TEST_SEED, halve
from pastel_tiny.forms import FORMS, compose, files_of
from pastel_tiny.judge import Judge, load_judge, truth
from pastel_tiny.measure import DRAFT, Asked, Pictures, accuracy, detail, drawn, held_out, share
from pastel_tiny.render import nearness
from pastel_tiny.render import render as painted
from pastel_tiny.scenes import SIDES, Scene, scene, with_subject
from pipelines.ask.plan import make_plan
from pipelines.ask.request import ImageSettings, RefinerSettings
from pipelines.drawing import pictures
from pipelines.drawing.phases import FINAL, Beside, Picture, render
from pipelines.infotext import asked
from pipelines.models.loader import load
from pipelines.models.model import Model

SHORT = replace(DRAFT, num_inference_steps=6)
VARIATION: dict[str, Any] = {"num_inference_steps": 8}
"""With a guidance scale of 7 skies change their colour."""
BEGUN = replace(DRAFT, num_inference_steps=8)
"""As few steps as leave three to a refiner."""
RELAY = RefinerSettings(name="refiner", switch_at=0.8)
GREY = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
HEART = "a red heart"
ON_MEADOW = f"{HEART} over the green meadow under a blue sky"
KEPT = ("sky", "ground", "ground_colour", "subject", "subject_colour")
"""What a variation is to keep."""


def loaded(name: str, forms: Path, folder: Path) -> Model:
    """A form, composed in a folder and loaded."""
    file = f"{name}.safetensors"
    return load(files_of(compose(load_file(forms / file), folder / file, FORMS[name]), FORMS[name]))


def one(model: Model, **fields: Any) -> NDArray[np.uint8]:
    """The picture (H, W, 3) of a short request."""
    request = replace(SHORT, **fields)
    events = render(model, request, make_plan(request))
    return next(event.pixels for event in events if isinstance(event, Picture) and event.kind == FINAL)


def with_subjects(count: int) -> list[Asked]:
    """Prompts of subjects in colours that they were never trained in."""
    return [each for each in held_out(4 * count, seed=1) if "subject" in each.named][:count]


def relayed(base: Model, refiner: Model | None, of: Sequence[Asked]) -> Pictures:
    """The pictures of prompts that a base begins, and a refiner ends if there is one."""
    prompts = [each.prompt for each in of]
    if refiner is None:
        return np.stack(list(drawn(base, prompts, BEGUN)))
    return np.stack(list(drawn(base, prompts, replace(BEGUN, refiner=RELAY), Beside(others={RELAY.name: refiner}))))


def more_detailed(first: Pictures, second: Pictures) -> float:
    """The share of second pictures that have more detail than the first with the same numbers."""
    return float(np.mean([detail(b[None]) > detail(a[None]) for a, b in zip(first, second, strict=True)]))


def hearts(count: int) -> list[Scene]:
    """Red hearts over a green meadow under a blue sky: left, in the middle, right, and so on."""
    plain: dict[str, Any] = {"night": False, "light": "", "weather": ""}
    fields = {**plain, "sky": "blue", "ground": "meadow", "ground_colour": "green"}
    scenes = [with_subject(scene(TEST_SEED + k), "heart", "red") for k in range(count)]
    return [replace(each, subject_side=SIDES[k % 3], **fields) for k, each in enumerate(scenes)]


def under_map(model: Model, near: NDArray[np.uint8], prompt: str, seed: int) -> NDArray[np.uint8]:
    """The picture (H, W, 3) that a depth model draws under a map of one's own; nothing else of an image is kept."""
    shown = asked.Pictures(image=GREY, controls=(Image.fromarray(near),))
    depth = pictures.with_depth(model, shown, controlled=False).depth
    image = ImageSettings(picture=GREY, denoising_strength=1, depth=depth)
    return one(model, prompt=prompt, seed=seed, image=image)


def overlaps(model: Model, count: int) -> tuple[float, float]:
    """Mean shared part of what is red in pictures under a depth map and of the map's heart; and of the next map's."""
    maps = [nearness(each, SIDE, SIDE) for each in hearts(count)]
    right, wrong = [], []
    for seed, near in enumerate(maps):
        values = under_map(model, near, ON_MEADOW, seed).astype(int)
        red = values[..., 0] - values[..., 1:].max(-1) > 40
        right.append(_overlap(red, near == 255))
        wrong.append(_overlap(red, maps[(seed + 1) % count] == 255))
    return float(np.mean(right)), float(np.mean(wrong))


def _overlap(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float((first & second).sum() / (first | second).sum())


def sources(count: int) -> list[Scene]:
    """Scenes by day with a subject other than a heart, which no training saw."""
    found = map(scene, range(TEST_SEED, TEST_SEED + 10 * count))
    return [each for each in found if each.subject not in ("", "heart") and not each.night][:count]


def shown(of: Scene) -> NDArray[np.uint8]:
    """The picture (160, 160, 3) of a scene."""
    return halve(painted(of, *SHAPES[0])[None])[0]


def variations(model: Model, of: Sequence[Scene], prompt: str = "") -> Pictures:
    """A variation of every scene, led by a prompt if there is one."""
    made = []
    for seed, each in enumerate(of):
        image = ImageSettings(picture=Image.fromarray(shown(each)), denoising_strength=1)
        made.append(one(model, prompt=prompt, seed=seed, image=image, **VARIATION))
    return np.stack(made)


def kept(judge: Judge, made: Pictures, of: Sequence[Scene]) -> dict[str, float]:
    """Share of pictures that show what these scenes show, by attribute."""
    seen = judge.see(made)
    return {name: float(np.mean([a[name] == truth(b)[name] for a, b in zip(seen, of, strict=True)])) for name in KEPT}


def _told(values: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.0%}" for name, value in values.items())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path, required=True, help="folder of judge.safetensors")
    parser.add_argument("--forms", type=Path, required=True, help="folder of the forms' files")
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("what", nargs="*", default=[*FORMS], help="forms; all if none is named")
    options = parser.parse_args()
    torch.set_num_threads(1)
    judge, count = load_judge(options.judge), options.pictures
    with tempfile.TemporaryDirectory() as folder:
        for name in options.what:
            model = loaded(name, options.forms, Path(folder))
            if name == "refiner":
                _report_relay(loaded("sdxl", options.forms, Path(folder)), model, judge, count)
            else:
                _report(name, model, judge, count)


def _report_relay(base: Model, refiner: Model, judge: Judge, count: int) -> None:
    """Print what the refiner adds to the base's pictures, and the control: the base as its own refiner."""
    wanted = with_subjects(count)
    alone = relayed(base, None, wanted)
    made = {"base alone": alone, "the base as refiner": relayed(base, replace(base), wanted)}
    made["the refiner"] = relayed(base, refiner, wanted)
    for name, each in made.items():
        print(f"{name}: detail {detail(each):.2f}, more than alone {more_detailed(alone, each):.0%};", end=" ")
        print(_told(accuracy(judge, each, wanted)))


def _report(name: str, model: Model, judge: Judge, count: int) -> None:
    """Print what a form does, and the control."""
    if name in ("sd2", "sdxl"):
        wanted = with_subjects(count)
        made = np.stack(list(drawn(model, [each.prompt for each in wanted], SHORT)))
        print(f"{name}:", _told(accuracy(judge, made, wanted)))
        print(f"{name}, others' prompts:", _told(accuracy(judge, made, [*wanted[1:], wanted[0]])))
    elif name == "depth":
        right, wrong = overlaps(model, count)
        print(f"depth: {right:.0%} shared with the map's heart, {wrong:.0%} with the next map's")
    else:
        of = sources(count)
        plain, led = variations(model, of), variations(model, of, HEART)
        print("unclip:", _told(kept(judge, plain, of)))
        print("unclip, others' pictures:", _told(kept(judge, plain, [*of[1:], of[0]])))
        hearts_seen = share(judge, led, "subject", "heart"), share(judge, plain, "subject", "heart")
        print(f"unclip: hearts with {HEART!r} {hearts_seen[0]:.0%}, without {hearts_seen[1]:.0%};", end=" ")
        print("kept:", _told(kept(judge, led, of)))


if __name__ == "__main__":
    main()

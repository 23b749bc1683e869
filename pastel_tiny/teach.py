"""Train on five drawn pictures of what the embedded model does not know, and measure what it has learned.

    python -m pastel_tiny.teach pivotal DreamBooth word style --judge tests/data --out DIR

A LoRA and a checkpoint learn a snowman, which the model cannot draw. A word alone cannot teach it new shapes: it learns
to call a purple tree, a pair that the model was never trained on, and a style, starry nights. The pictures go through
the same training as anybody's, with settings for a model of this size. What measures the results was trained on none
of this. DIR then has a sheet of before and after. A lesson whose result is there already is only measured.
"""

import argparse
import io
import random
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pastel_tiny.adapt import TRAIN_SEED, with_snowman
from pastel_tiny.captions import caption
from pastel_tiny.dataset import SHAPES
from pastel_tiny.gallery import page
from pastel_tiny.judge import Judge, load_judge
from pastel_tiny.measure import DRAFT, Pictures, accuracy, drawn, held_out
from pastel_tiny.probe import Probe, drawings
from pastel_tiny.render import render
from pastel_tiny.scenes import Scene, scene, with_subject
from pipelines.ask.networks import ExtraFile, Extras
from pipelines.models.loader import load
from pipelines.models.model import Model
from pipelines.training.loop import Job, train
from pipelines.training.pictures import opened
from pipelines.training.watching import follow
from pipelines.training.wishes import DREAMBOOTH, INVERSION, LORA, PIVOTAL, Wishes
from weights_script.resolve import resolve

TOKEN, PICTURES, DRAWN, OTHERS = "TOK", 5, 12, 48
THINGS = (
    "a TOK on the green hills under a blue sky",
    "a TOK in the snow under a pink sky",
    "a TOK before the purple mountains under an orange sky",
    "a TOK in the yellow desert under a mint sky",
)
SCENES = (
    "a white house on the green hills under a purple sky, TOK",
    "a red boat on the blue sea under a blue sky, TOK",
    "a green tree in the yellow desert under a pink sky, TOK",
    "a pink balloon before the purple mountains under a mint sky, TOK",
)
CLASS = (
    "a red house on the purple hills under a yellow sky",
    "a white boat on the mint sea under a blue sky",
    "orange hills under a pink sky",
    "the yellow meadow under a purple sky",
    "snow under a blue sky",
    "a yellow sun over the orange desert under a pink sky",
    "brown mountains under a mint sky",
    "a pink balloon over the green meadow under an orange sky",
    "a girl with blonde hair in a blue dress in the green meadow under a pink sky",
    "a girl with red hair in a mint dress on the orange hills under a yellow sky",
    "a girl with purple hair in a white dress in the snow under an orange sky",
    "a girl with brown hair in a yellow dress in the yellow desert under a purple sky",
    "a mint boat on the purple sea under a pink sky",
    "a blue house in the yellow meadow under an orange sky",
    "an orange tree on the mint hills under a blue sky",
    "a purple balloon over the blue sea under a yellow sky",
    "a white balloon before the brown mountains under an orange sky",
    "a blue boat on the mint sea under a yellow sky",
    "a yellow heart over the green hills under a pink sky",
    "a white heart in the orange desert under a blue sky",
    "a green tree before the blue mountains under a yellow sky",
    "a mint house in the snow under a pink sky",
    "a girl with white hair in a purple dress in the yellow meadow under a blue sky",
    "a girl with green hair in a red dress before the purple mountains under a pink sky",
)
"""What the model can draw, with a subject and without. Pictures of it keep that as it is.

No prompt here is tested, and none has a pair that scenes for tests are known by (`scenes.held_out`)."""
PRIOR: dict[str, Any] = {"class_prompt": "\n".join(CLASS), "class_images": 48}
BY_NIGHT = ("blue", "pink", "purple", "mint")
"""Skies that scenes have at night."""
Measure = Callable[[Pictures], float]


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What is taught, and how it is measured."""

    task: str
    scene: Callable[[int], Scene]
    caption: Callable[[Scene, random.Random], str]
    """Returns a caption of a scene, with the token for what is taught."""
    named: tuple[str, ...]
    """Prompts with the token, ..."""
    unnamed: tuple[str, ...]
    """... and the same without it."""
    measure: Callable[[Judge], Measure]
    """Returns what tells the share of pictures that show it."""
    settings: Mapping[str, Any]


def called(words: str) -> Callable[[Scene, random.Random], str]:
    """Return what makes captions in which the token stands for the words."""
    return lambda shown, chance: caption(shown, chance)[0].replace(words, TOKEN)


def in_the_style(shown: Scene, chance: random.Random) -> str:
    """Return a caption that says nothing about the night and the stars, but has the token."""
    return f"{caption(replace(shown, light='', night=False), chance)[0]}, {TOKEN}"


def with_starry_night(seed: int) -> Scene:
    """Return a scene at night under stars, with a subject."""
    found = scene(seed)
    found = found if found.subject else with_subject(found, "house", "white")
    sky = found.sky if found.sky in BY_NIGHT else "purple"
    return replace(found, sky=sky, light="stars", light_colour="", night=True)


def with_purple_tree(seed: int) -> Scene:
    """Return a scene with a purple tree, which no training scene has."""
    return with_subject(scene(seed), "tree", "purple")


def snowmen(judge: Judge) -> Measure:
    """Return what tells the share of pictures that show a snowman."""
    return Probe(judge).share


def purple_trees(judge: Judge) -> Measure:
    """Return what tells the share of pictures that show a purple tree."""
    return lambda made: float(
        np.mean([(each["subject"], each["subject_colour"]) == ("tree", "purple") for each in judge.see(made)])
    )


def starry_nights(judge: Judge) -> Measure:
    """Return what tells the share of pictures that show a night with stars."""
    return lambda made: float(
        np.mean([(each["night"], each["light"]) == ("night", "stars") for each in judge.see(made)])
    )


_THING: dict[str, Any] = {"named": THINGS, "unnamed": tuple(prompt.removeprefix("a TOK ") for prompt in THINGS)}
_SCENE: dict[str, Any] = {"named": SCENES, "unnamed": tuple(prompt.removesuffix(", TOK") for prompt in SCENES)}
_SNOWMAN: dict[str, Any] = {"scene": with_snowman, "caption": called("white snowman"), "measure": snowmen, **_THING}
LESSONS: Mapping[str, Lesson] = {
    "pivotal": Lesson(
        task=PIVOTAL,
        settings={
            **{"steps": 220, "batch_size": 5, "learning_rate": 1e-3, "text_learning_rate": 5e-3},
            **{"rank": 16, "layers": "all", "schedule": "cosine", **PRIOR},
            "class_prompt": "\n".join(("white tree", *CLASS)),  # the word begins as the first line
        },
        **_SNOWMAN,
    ),
    "DreamBooth": Lesson(
        task=DREAMBOOTH,
        settings={
            **{"steps": 240, "batch_size": 5, "learning_rate": 4e-4, "prior_weight": 2.0, "text_learning_rate": 1e-4},
            **{"word_learning_rate": 5e-3, "word_start": "white tree", "schedule": "cosine", **PRIOR},
        },
        **_SNOWMAN,
    ),
    "word": Lesson(
        task=INVERSION,
        scene=with_purple_tree,
        caption=called("purple tree"),
        measure=purple_trees,
        settings={
            **{"steps": 120, "batch_size": 5, "gradient_accumulation": 1, "learning_rate": 5e-3},
            **{"schedule": "cosine", "rank": 2, "class_prompt": "tree"},
        },
        **_THING,
    ),
    "style": Lesson(
        task=INVERSION,
        scene=with_starry_night,
        caption=in_the_style,
        measure=starry_nights,
        settings={
            **{"steps": 120, "batch_size": 5, "gradient_accumulation": 1, "learning_rate": 5e-3},
            **{"schedule": "cosine", "rank": 2, "class_prompt": "night"},
        },
        **_SCENE,
    ),
}


def archive(path: Path, lesson: Lesson) -> Path:
    """Write five pictures with captions that call what they show TOK."""
    chance = random.Random(0)
    with zipfile.ZipFile(path, "w") as written:
        for number in range(PICTURES):
            shown, stream = lesson.scene(TRAIN_SEED + number), io.BytesIO()
            Image.fromarray(render(shown, *SHAPES[0])).save(stream, "PNG")
            written.writestr(f"{number}.png", stream.getvalue())
            written.writestr(f"{number}.txt", lesson.caption(shown, chance))
    return path


def teach(lesson: Lesson, folder: Path) -> None:
    """Run the training, unless its result is there, and tell how long it took."""
    if _result(folder).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    base, start = resolve(None, None), time.perf_counter()
    wishes = Wishes(task=lesson.task, seed=0, **lesson.settings)
    with opened(archive(folder / "pictures.zip", lesson), wishes.resolution) as pictures:
        job = Job(
            pictures=pictures,
            wishes=wishes,
            base="pastel-tiny",
            files=base.files,
            settings=base.settings,
            folder=folder,
        )
        follow(train(job), lambda name, value: None)
    print(f"{time.perf_counter() - start:.0f} s with {torch.get_num_threads()} threads", flush=True)


def _result(folder: Path) -> Path:
    return folder / "result" / f"{TOKEN}.safetensors"


class Class:
    """The model before and after lessons."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.files = judge, resolve(None, None).files
        self.model = load(self.files)
        self.others = held_out(OTHERS, 3)
        self.before = self._right(self.model, Extras(), "")
        """How many of the others' attributes are right without any lesson."""

    def measure(self, lesson: Lesson, folder: Path) -> tuple[dict[str, float], list[Pictures]]:
        """Return shares by what they are of, and pictures: what was taught, before, with the token and without."""
        file = ExtraFile.at(_result(folder))
        model, extras, tag = self.model, Extras(), ""
        if lesson.task == DREAMBOOTH:
            model = load(replace(self.files, checkpoint=file.path))
        elif lesson.task in (LORA, PIVOTAL):
            extras, tag = Extras(loras={TOKEN: file}), f" <lora:{TOKEN}:1>"
        else:
            extras = Extras(embeddings={TOKEN: file})
        share = lesson.measure(self.judge)
        taught = drawings([lesson.scene(TRAIN_SEED + number) for number in range(PICTURES)])
        before = _pictures(self.model, lesson.named, Extras())
        named = _pictures(model, lesson.named, extras, tag)
        unnamed = _pictures(model, lesson.unnamed, extras, tag)
        told = {
            "before, with the token": share(before),
            "with the token": share(named),
            "without the token": share(unnamed),
            "others before": self.before,
            "others": self._right(model, extras, tag),
        }
        return told, [taught, before, named, unnamed]

    def _right(self, model: Model, extras: Extras, tag: str) -> float:
        """Return the share of what other prompts name that the pictures show."""
        prompts = [each.prompt + tag for each in self.others]
        made = np.stack(list(drawn(model, prompts, replace(DRAFT, extras=extras))))
        return float(np.mean(list(accuracy(self.judge, made, self.others).values())))


def _pictures(model: Model, prompts: Sequence[str], extras: Extras, tag: str = "") -> Pictures:
    """Draw twelve pictures of the prompts in turn."""
    asked = [f"{prompts[number % len(prompts)]}{tag}" for number in range(DRAWN)]
    return np.stack(list(drawn(model, asked, replace(DRAFT, extras=extras))))


SHOWN = (("taught", 2), ("before: TOK", 2), ("after: TOK", 3), ("without TOK", 2))
"""What a row of the sheet has, and how many pictures of each."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lessons", nargs="+", choices=tuple(LESSONS))
    parser.add_argument("--judge", type=Path, required=True, help="folder of judge.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results and a sheet")
    options = parser.parse_args()
    for name in options.lessons:
        teach(LESSONS[name], options.out / name)
    classroom, rows, captions = Class(load_judge(options.judge)), [], []
    for name in options.lessons:
        told, pictures = classroom.measure(LESSONS[name], options.out / name)
        print(f"{name}:", ", ".join(f"{what} {value:.0%}" for what, value in told.items()), flush=True)
        rows.append([each for (_, count), made in zip(SHOWN, pictures, strict=True) for each in made[:count]])
        captions.append([what for what, count in SHOWN for _ in range(count)])
    page(rows, captions, 96).save(options.out / "training.webp", quality=80, method=6)


if __name__ == "__main__":
    main()

"""Train on five drawn pictures of what the embedded model does not know, and measure what it has learned.

    python -m pastel_tiny.teach LoRA --judge tests/data --out DIR

The subject is a snowman, the style for an embedding a coral sky: `pastel_tiny.adapt` says why the model knows neither.
The pictures go through the same training as anybody's, with settings for a model of this size. The measures are those
of `pastel_tiny.probe` and `pastel_tiny.measure`, which no training has seen.
"""

import argparse
import io
import json
import random
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pastel_tiny.adapt import TRAIN_SEED, with_afterglow, with_snowman
from pastel_tiny.captions import caption
from pastel_tiny.judge import load_judge
from pastel_tiny.measure import DRAFT, Pictures, accuracy, drawn, held_out
from pastel_tiny.palette import colour
from pastel_tiny.probe import Probe, skies
from pastel_tiny.render import render
from pastel_tiny.scenes import SKY_COLOURS, Scene
from pipelines.ask.networks import ExtraFile, Extras
from pipelines.models.loader import load
from pipelines.models.model import Model
from pipelines.training.loop import Finished, Job, train
from pipelines.training.settings import DREAMBOOTH, INVERSION, LORA, Wishes
from pipelines.training.watching import follow
from weights_script.resolve import resolve

TOKEN, PICTURES, DRAWN, OTHERS = "TOK", 5, 12, 48
WITH = (
    "a TOK on the green hills under a blue sky",
    "a TOK in the snow under a pink sky",
    "a TOK before the purple mountains under an orange sky",
    "a TOK in the yellow desert under a mint sky",
)
UNDER = (
    "a white house on the green hills under a TOK sky",
    "a red boat on the blue sea under a TOK sky",
    "a green tree in the yellow desert under a TOK sky",
    "a pink balloon before the purple mountains under a TOK sky",
)
PROMPTS = {
    True: (UNDER, tuple(prompt.removesuffix(" under a TOK sky") for prompt in UNDER)),
    False: (WITH, tuple(prompt.removeprefix("a TOK ") for prompt in WITH)),
}
"""Prompts with the token, and the same without it, for the style and for the subject."""
CLASS = "\n".join(
    (
        "a red house on the green hills under a blue sky",
        "a white boat on the blue sea under a pink sky",
        "green hills under a blue sky",
        "in the snow under a pink sky",
        "a yellow sun over the yellow desert under a mint sky",
        "purple mountains under an orange sky",
    )
)
"""What the model can draw. Pictures of it keep that as it is."""
SETTINGS: Mapping[str, dict[str, Any]] = {
    LORA: {
        **{"steps": 150, "batch_size": 5, "learning_rate": 1e-3, "rank": 16, "layers": "all"},
        **{"class_prompt": CLASS, "class_images": 24},
    },
    INVERSION: {"steps": 150, "batch_size": 4, "gradient_accumulation": 1, "learning_rate": 2e-2, "rank": 4},
    DREAMBOOTH: {
        **{"steps": 150, "batch_size": 5, "learning_rate": 2e-4},
        **{"class_prompt": CLASS, "class_images": 24},
    },
}


def archive(path: Path, scene: Any, word: str) -> None:
    """Write five pictures of a subject with captions that call it TOK."""
    chance = random.Random(0)
    with zipfile.ZipFile(path, "w") as written:
        for number in range(PICTURES):
            shown: Scene = scene(TRAIN_SEED + number)
            stream = io.BytesIO()
            Image.fromarray(render(shown, 256, 256)).save(stream, "PNG")
            written.writestr(f"{number}.png", stream.getvalue())
            written.writestr(f"{number}.txt", caption(shown, chance)[0].replace(word, TOKEN))


def taught(task: str, folder: Path, **changes: Any) -> tuple[Finished, float]:
    """Run the training and return its end and the seconds that it took."""
    folder.mkdir(parents=True, exist_ok=True)
    scene, word = (with_afterglow, "coral") if task == INVERSION else (with_snowman, "white snowman")
    archive(folder / "pictures.zip", scene, word)
    base = resolve(None, None)
    wishes = Wishes(task=task, seed=0, **{**SETTINGS[task], **changes})
    job = Job(
        pictures=folder / "pictures.zip",
        wishes=wishes,
        base="pastel-tiny",
        files=base.files,
        settings=base.settings,
        folder=folder,
    )
    start = time.perf_counter()
    return follow(train(job), lambda name, value: None), time.perf_counter() - start


def pictures(model: Model, prompts: Sequence[str], extras: Extras, ending: str = "") -> Pictures:
    """Draw twelve pictures of the prompts in turn."""
    asked = [f"{prompts[number % len(prompts)]}{ending}" for number in range(DRAWN)]
    return np.stack(list(drawn(model, asked, replace(DRAFT, extras=extras))))


def coral(made: Pictures) -> float:
    """Return the share of pictures whose sky is nearer to coral than to every colour that the model knows."""
    known = np.array([colour(name) for name in ("coral", *SKY_COLOURS)])
    distances = np.linalg.norm(skies(made)[:, None] - known, axis=2)
    return float((distances.argmin(1) == 0).mean())


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=tuple(SETTINGS))
    parser.add_argument("--judge", type=Path, required=True, help="folder of judge.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder for the result")
    parser.add_argument("--settings", type=json.loads, default={}, help="other settings, as JSON")
    options = parser.parse_args()
    _, seconds = taught(options.task, options.out, **options.settings)
    file = options.out / "result" / f"{TOKEN}.safetensors"
    base = resolve(None, None).files
    whole = options.task == DREAMBOOTH
    before = load(base)
    after = load(replace(base, checkpoint=file)) if whole else before
    known = {TOKEN: ExtraFile.at(file)}
    extras = {LORA: Extras(loras=known), INVERSION: Extras(embeddings=known), DREAMBOOTH: Extras()}[options.task]
    tag = f" <lora:{TOKEN}:1>" if options.task == LORA else ""
    judge = load_judge(options.judge)
    told: dict[str, float] = {"seconds": seconds}
    style = options.task == INVERSION
    share = coral if style else Probe(judge).share
    named, unnamed = PROMPTS[style]
    told["with the token"] = share(pictures(after, named, extras, tag))
    told["without the token"] = share(pictures(after, unnamed, extras, tag))
    told["before, with the token"] = share(pictures(before, named, Extras()))
    asked = held_out(OTHERS, 3)
    prompts = [each.prompt for each in asked]
    for name, model, more, ending in (("others before", before, Extras(), ""), ("others after", after, extras, tag)):
        made = np.stack(list(drawn(model, [prompt + ending for prompt in prompts], replace(DRAFT, extras=more))))
        told[name] = float(np.mean(list(accuracy(judge, made, asked).values())))
    for name, value in told.items():
        print(f"{name}: {value:.2f}")


if __name__ == "__main__":
    main()

"""The container's training: Cog's typed inputs -> a job -> an archive. There is no arithmetic here.

Cog reads the text of this file, as it does with predict.py: choices and defaults are literals in this file, and every
description is one literal on one line.
"""

import gc
import os
import shutil
import tempfile
from contextlib import closing
from functools import cache
from typing import Optional

gc.disable()  # as in predict.py

from cog import BaseModel, Input, Path, current_scope

from pipelines.errors import clean_errors, log_plainly, say
from pipelines.runtime.memory import release_memory
from pipelines.runtime.worker import Worker
from pipelines.training.loop import Job, looked_at
from pipelines.training.loop import train as run
from pipelines.training.watching import follow
from pipelines.training.wishes import Wishes
from weights_script.resolve import base_of

gc.freeze()
gc.enable()

FOLDER_SETTING = "PASTEL_TRAININGS"
"""The folder for results. Without it, they go into the system's folder for temporary files."""


class TrainingOutput(BaseModel):
    """What a training returns."""

    weights: Path


def train(
    input_images: Path = Input(
        description="A ZIP or TAR of 3 to 20 pictures, with captions in .txt files or metadata.jsonl if you have them."
    ),
    token: str = Input(
        description="The word for what the pictures show. Use it in prompts afterwards. A rare word works best.",
        default="TOK",
        max_length=100,
    ),
    caption_prefix: str = Input(
        description="Put before captions that lack the token, and used for missing ones. Empty: a photo of TOK.",
        default="",
        max_length=500,
    ),
    task: str = Input(
        description="LoRA: a small file. Pivotal tuning: a LoRA with a word of its own. DreamBooth: a checkpoint.",
        default="LoRA",
        choices=["LoRA", "pivotal tuning", "textual inversion", "DreamBooth"],
    ),
    model: str = Input(
        description="The model to train, by its name in the manifest. Empty: the container's first model.",
        default="",
        max_length=200,
    ),
    steps: Optional[int] = Input(
        description="Training steps. Empty: 500; pivotal tuning 1000, textual inversion 3000, DreamBooth 400.",
        default=None,
        ge=1,
        le=20000,
    ),
    batch_size: int = Input(description="Pictures per batch. More need more memory.", default=1, ge=1, le=32),
    gradient_accumulation: Optional[int] = Input(
        description="More batches per step make it steadier. Empty: 1; textual inversion 4; SDXL 4, pivotal tuning 1.",
        default=None,
        ge=1,
        le=64,
    ),
    learning_rate: Optional[float] = Input(
        description="How far each step goes. Empty: 0.0001 for a LoRA, 0.002 for a word, 0.000005 for DreamBooth.",
        default=None,
        ge=0.0,
        le=1.0,
    ),
    text_learning_rate: float = Input(
        description="The text encoders' learning rate (0: none). In pivotal tuning, the word's rate (0 means 0.0003).",
        default=0.0,
        ge=0.0,
        le=1.0,
    ),
    rank: Optional[int] = Input(
        description="Size of a LoRA (empty: 4; pivotal tuning 32), or how many vectors a word has (empty: 1).",
        default=None,
        ge=1,
        le=256,
    ),
    layers: str = Input(
        description="What a LoRA changes in the UNet. More layers learn more, and make a larger file.",
        default="attention",
        choices=["attention", "transformer", "all"],
    ),
    resolution: Optional[int] = Input(
        description="Pictures are trained at the area of a square with this side in pixels. Empty: the model's own.",
        default=None,
        ge=64,
        le=2048,
    ),
    noise_offset: float = Input(
        description="Offset noise, for very dark and very bright pictures. 0.05 is usual. 0: off.",
        default=0.0,
        ge=0.0,
        le=1.0,
    ),
    class_prompt: str = Input(
        description="What it is in general (a photo of a dog), one per line. A new word starts as the first line.",
        default="",
        max_length=5000,
    ),
    class_images: int = Input(
        description="Pictures of the class to draw and train on, so that the model keeps its idea of it. 0: none.",
        default=0,
        ge=0,
        le=1000,
    ),
    preview_prompts: str = Input(
        description="Up to 32 prompts to draw at each save, one per line. Use the token in some and not in others.",
        default="",
        max_length=5000,
    ),
    save_every: Optional[int] = Input(
        description="Steps between two saves with previews. Empty: a quarter of all steps.",
        default=None,
        ge=1,
        le=20000,
    ),
    seed: Optional[int] = Input(
        description="The same seed and inputs train the same. Empty or -1: random; the log shows it.",
        default=None,
        ge=-1,
        le=4294967295,
    ),
    resume: Optional[Path] = Input(
        description="An earlier result, to go on from up to the given number of steps. Send its other inputs again.",
        default=None,
    ),
) -> TrainingOutput:
    """Train, and return an archive with the LoRA, embedding or checkpoint, previews, captions, losses and a report."""
    wishes = Wishes(
        token=token,
        caption_prefix=caption_prefix,
        task=task,
        steps=steps,
        batch_size=batch_size,
        gradient_accumulation=gradient_accumulation,
        learning_rate=learning_rate,
        text_learning_rate=text_learning_rate,
        rank=rank,
        layers=layers,
        resolution=resolution,
        noise_offset=noise_offset,
        class_prompt=class_prompt,
        class_images=class_images,
        preview_prompts=preview_prompts,
        save_every=save_every,
        seed=seed,
    )
    log_plainly()
    with clean_errors(), looked_at(input_images, wishes, resume) as pictures:
        base, resolved = base_of(model)
        say(f"Model: {resolved.description}")
        job = Job(
            pictures=pictures,
            wishes=wishes,
            base=base,
            files=resolved.files,
            settings=resolved.settings,
            folder=_folder(),
            resume=resume,
        )
        # The training runs in a thread of its own, so that a cancel interrupts it between two steps and nowhere else.
        try:
            with closing(_worker().each(run(job))) as events:
                finished = follow(events, current_scope().record_metric)
        except BaseException as error:
            release_memory(error)
            if not any(job.folder.glob("*.tar")):  # without a save, nothing in it is of use
                shutil.rmtree(job.folder, ignore_errors=True)
            raise
    return TrainingOutput(weights=Path(finished.archive))


@cache
def _worker() -> Worker:
    """Return the thread of all trainings. The next one waits there until a cancelled one has really stopped."""
    return Worker()


def _folder() -> Path:
    """Return a new folder for one training's results."""
    parent = os.environ.get(FOLDER_SETTING) or None
    if parent:
        os.makedirs(parent, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="training-", dir=parent))

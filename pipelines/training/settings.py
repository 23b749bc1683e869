"""Wishes -> a training in numbers: published recipes fill in what is left empty."""

import hashlib
import math
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.ask.networks import plain_name
from pipelines.errors import InvalidInput
from pipelines.families.family import Family
from pipelines.families.sd1 import SD1
from pipelines.families.sd2 import SD2
from pipelines.families.sdxl import SDXL
from pipelines.training.wishes import (
    DREAMBOOTH,
    INVERSION,
    LORA,
    PIVOTAL,
    RANK_MAX,
    SMALL,
    SMALL_STEP,
    STEP,
    VECTORS_MAX,
    Wishes,
    check,
    lines_of,
)

PIVOTAL_VECTORS = 2
"""How many vectors a word has in pivotal tuning."""


@dataclass(frozen=True)
class Recipe:
    """Defaults of a task for a family.

    `accumulation` is how many batches make one step, and `word_rate` is the learning rate of a word that is trained
    beside the UNet.
    """

    steps: int
    learning_rate: float
    rank: int
    accumulation: int = 1
    word_rate: float = 0.0


_LORA = Recipe(500, 1e-4, 4)
_PIVOTAL = Recipe(1000, 1e-4, 32, word_rate=3e-4)
_INVERSION = Recipe(3000, 2e-3, 1, 4)
_DREAMBOOTH = Recipe(400, 5e-6, 0, word_rate=3e-4)
RECIPES: Mapping[tuple[str, str], Recipe] = {
    (LORA, SD1.name): _LORA,
    (LORA, SD2.name): _LORA,
    (LORA, SDXL.name): Recipe(500, 1e-4, 4, 4),
    (PIVOTAL, SD1.name): _PIVOTAL,
    (PIVOTAL, SD2.name): _PIVOTAL,
    (PIVOTAL, SDXL.name): _PIVOTAL,
    (INVERSION, SD1.name): _INVERSION,
    (INVERSION, SD2.name): _INVERSION,
    (INVERSION, SDXL.name): _INVERSION,
    (DREAMBOOTH, SD1.name): _DREAMBOOTH,
    (DREAMBOOTH, SD2.name): _DREAMBOOTH,
    (DREAMBOOTH, SDXL.name): Recipe(400, 5e-6, 0, 4, 3e-4),
}
"""From the READMEs of diffusers' example scripts (https://github.com/huggingface/diffusers/tree/main/examples). Textual
inversion's rate is 5e-4 for each of four accumulated batches, as with their option --scale_lr. Pivotal tuning's
numbers are those of Replicate's trainer for SDXL (https://github.com/replicate/cog-sdxl), with its two vectors;
DreamBooth's token has the same rate."""
CLASS_STEPS = 2
"""With prior preservation, the same READMEs train twice as many steps."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """A training in numbers."""

    token: str
    caption_prefix: str
    task: str
    steps: int
    batch_size: int
    gradient_accumulation: int
    learning_rate: float
    text_learning_rate: float
    word_learning_rate: float
    """Of the word's vectors, or in DreamBooth of the token's rows in the text encoders; 0 if there are none."""
    word_start: str
    """What they begin as; empty: what the token's own pieces are."""
    vectors: int
    """How many vectors the word has."""
    rank: int
    alpha: float
    layers: str
    resolution: int
    min_snr_gamma: float
    noise_offset: float
    class_prompts: tuple[str, ...]
    class_images: int
    prior_weight: float
    preview_prompts: tuple[str, ...]
    save_every: int
    seed: int
    schedule: str
    warmup_steps: int
    precision: str
    gradient_checkpointing: bool | None
    clip_skip: int
    """The text layer that captions are read from, in WebUI's count."""

    @property
    def name(self) -> str:
        """The name of the result's file, which is also its name in prompts."""
        return plain_name(self.token)

    def random(self, *place: object) -> int:
        """Return a seed for one use of chance. It depends on nothing else, so a resumed training meets the same."""
        told = repr((self.seed, *place)).encode()
        return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "big") >> 1

    def told(self) -> dict[str, Any]:
        """Return the numbers as they are stored in the result."""
        return asdict(self)


SAME = ("task", "token", "rank", "alpha", "layers", "seed", "resolution", "batch_size", "gradient_accumulation")
"""Settings that a training keeps when it is resumed: the rest of it would otherwise not fit what is done."""

RATES = ("learning_rate", "text_learning_rate", "word_learning_rate")
"""With a rate of 0, a part of the model is not trained."""


def course_for(wishes: Wishes, family: Family, own: Mapping[str, Any]) -> Course:
    """Return the training in numbers. `own` are the model's own settings. Raises InvalidInput."""
    check(wishes)
    recipe = RECIPES.get((wishes.task, family.name))
    if recipe is None:
        known = ", ".join(dict.fromkeys(name for _, name in RECIPES))
        raise InvalidInput("model", family.name, f"cannot be trained; {known} can", "Choose another model.")
    prior = bool(wishes.class_images and wishes.task != INVERSION)
    steps = wishes.steps or recipe.steps * (CLASS_STEPS if prior else 1)
    if wishes.warmup_steps >= steps:
        rule = f"must be less than the {steps} steps"
        raise InvalidInput("warmup_steps", wishes.warmup_steps, rule, "Use a tenth of them.")
    rank = wishes.rank or recipe.rank
    limit = VECTORS_MAX if wishes.task == INVERSION else RANK_MAX
    if rank > limit:
        raise InvalidInput("rank", rank, f"must be at most {limit} for {wishes.task}", "Use a smaller one.")
    rate = recipe.learning_rate if wishes.learning_rate is None else wishes.learning_rate
    word = _word_rate(wishes, recipe, rate)
    return Course(
        token=wishes.token.strip(),
        caption_prefix=wishes.caption_prefix,
        task=wishes.task,
        steps=int(steps),
        batch_size=int(wishes.batch_size),
        gradient_accumulation=int(wishes.gradient_accumulation or recipe.accumulation),
        learning_rate=rate,
        text_learning_rate=0.0 if wishes.task in (INVERSION, PIVOTAL) else wishes.text_learning_rate,
        word_learning_rate=word,
        word_start=_word_start(wishes),
        vectors={INVERSION: int(rank), PIVOTAL: PIVOTAL_VECTORS}.get(wishes.task, 0),
        rank=int(rank) if wishes.task != DREAMBOOTH else 0,
        alpha=float(rank if wishes.alpha is None else wishes.alpha),
        layers=wishes.layers,
        resolution=int(wishes.resolution or _side(own["width"], own["height"])),
        min_snr_gamma=wishes.min_snr_gamma,
        noise_offset=wishes.noise_offset,
        class_prompts=lines_of(wishes.class_prompt),
        class_images=int(wishes.class_images) if prior else 0,
        prior_weight=wishes.prior_weight,
        preview_prompts=lines_of(wishes.preview_prompts),
        save_every=int(wishes.save_every or math.ceil(steps / 4)),
        seed=secrets.randbits(32) if wishes.seed is None or wishes.seed < 0 else int(wishes.seed),
        schedule=wishes.schedule,
        warmup_steps=wishes.warmup_steps,
        precision=wishes.precision,
        gradient_checkpointing=wishes.gradient_checkpointing,
        clip_skip=int(own.get("clip_skip") or 1),
    )


def _word_rate(wishes: Wishes, recipe: Recipe, rate: float) -> float:
    """Return the learning rate of the word's own vectors; 0 if it has none."""
    asked, text = wishes.word_learning_rate, wishes.text_learning_rate
    rates = {
        INVERSION: rate,
        PIVOTAL: asked or text or recipe.word_rate,
        DREAMBOOTH: asked if asked is not None else recipe.word_rate if text else 0.0,
    }
    return rates.get(wishes.task, 0.0)


def _word_start(wishes: Wishes) -> str:
    general = lines_of(wishes.class_prompt) if wishes.task in (INVERSION, PIVOTAL) else ()
    return wishes.word_start.strip() or next(iter(general), "")


def _side(width: int, height: int) -> int:
    """Return the side of a square with about as many pixels as the model's own size."""
    side = math.sqrt(width * height)
    step = STEP if side >= SMALL else SMALL_STEP
    return round(side / step) * step


def check_same(course: Course, before: Mapping[str, Any]) -> None:
    """Raise InvalidInput if a training cannot go on where another stopped."""
    for name in SAME:
        if before.get(name) != getattr(course, name):
            rule = f"the training to resume had {before.get(name)!r}"
            raise InvalidInput(name, getattr(course, name), rule, "Use the same, or leave resume empty.")
    for name in RATES:
        if name in before and bool(before[name]) != bool(getattr(course, name)):
            rule = f"the training to resume had {before[name]}, and what is trained must stay the same"
            raise InvalidInput(name, getattr(course, name), rule, "Use that rate.")

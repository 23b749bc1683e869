"""What a training is asked to do, and the numbers that follow from it: published recipes fill in what is left empty."""

import hashlib
import math
import re
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

LORA, PIVOTAL, INVERSION, DREAMBOOTH = "LoRA", "pivotal tuning", "textual inversion", "DreamBooth"
TASKS = (LORA, PIVOTAL, INVERSION, DREAMBOOTH)
LAYERS: Mapping[str, tuple[str, ...]] = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "transformer": ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
    "all": (
        *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
        *("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"),
    ),
}
"""Which of the UNet's layers a LoRA changes, by the ends of their names."""
SYNTAX = re.compile(r"[()\[\]{}|\\/]|__|\b(AND|BREAK)\b")
"""What no token may have: prompts read it as emphasis, choices, wildcards or the end of a part."""
RANK_MAX, VECTORS_MAX = 256, 32
PIVOTAL_VECTORS = 2
"""How many vectors a word has in pivotal tuning."""
STEP, SMALL, SMALL_STEP = 64, 256, 16
"""A resolution is a multiple of 64, or of 16 below 256 pixels."""


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
class Wishes:
    """What somebody wants to be trained. None means the recipe's number."""

    token: str = "TOK"
    """The word for what the pictures show."""
    caption_prefix: str = ""
    """What stands before captions without the token; empty: "a photo of TOK"."""
    task: str = LORA
    steps: int | None = None
    batch_size: int = 1
    gradient_accumulation: int | None = None
    """How many batches make one step."""
    learning_rate: float | None = None
    text_learning_rate: float = 0.0
    """The rate for the text encoders' layers; 0: they are not trained. In pivotal tuning, which leaves them, it is the
    word's rate; 0: the recipe's.
    """
    word_learning_rate: float | None = None
    """The rate for the token's own vectors in pivotal tuning and DreamBooth, where 0 turns it off. None: the recipe's;
    in DreamBooth only if the text encoders are trained.
    """
    word_start: str = ""
    """What the token's own vectors begin as, a word or more. Empty: the first line of class_prompt, or the token; in
    DreamBooth what they are already.
    """
    rank: int | None = None
    """A LoRA's rank, or an embedding's number of vectors."""
    alpha: float | None = None
    """A LoRA's scale is alpha / rank. None: the rank."""
    layers: str = "attention"
    resolution: int | None = None
    """The side of a square with as many pixels as each picture is trained at; None: the model's own size."""
    min_snr_gamma: float = 5.0
    """The limit of min-SNR weighting; 0 turns it off."""
    noise_offset: float = 0.0
    class_prompt: str = ""
    """What the subject is in general. Pictures of it keep the model from forgetting it, and an embedding starts there.
    Several prompts, one per line, are drawn in turn.
    """
    class_images: int = 0
    """How many pictures of the class are drawn for prior preservation; 0: none."""
    prior_weight: float = 1.0
    """What the pictures of the class count in the loss."""
    preview_prompts: str = ""
    """Prompts, one per line, that are drawn with each save."""
    save_every: int | None = None
    """Steps between two saves; None: a quarter of all."""
    seed: int | None = None
    schedule: str = "constant"
    """How the learning rate changes, by the name that diffusers gives to it."""
    warmup_steps: int = 0
    precision: str = "automatic"
    """no, fp16 or bf16. Automatic: what the device is fast with."""
    gradient_checkpointing: bool | None = None
    """Trade time for memory. None: on a GPU."""


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


def course_for(wishes: Wishes, family: Family, own: Mapping[str, Any]) -> Course:
    """Return the training in numbers. `own` are the model's own settings. Raises InvalidInput, which names the input.

    Only what no form checks is checked here, and what depends on something else.
    """
    _check(wishes)
    recipe = RECIPES.get((wishes.task, family.name))
    if recipe is None:
        known = ", ".join(dict.fromkeys(name for _, name in RECIPES))
        raise InvalidInput("model", family.name, f"cannot be trained; {known} can", "Choose another model.")
    prior = bool(wishes.class_images and wishes.task != INVERSION)
    if prior and not wishes.class_prompt.strip():
        raise InvalidInput("class_prompt", "", "is needed to draw class_images", "Say what it is: a photo of a dog.")
    steps = wishes.steps or recipe.steps * (CLASS_STEPS if prior else 1)
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
        class_prompts=_lines(wishes.class_prompt),
        class_images=int(wishes.class_images) if prior else 0,
        prior_weight=wishes.prior_weight,
        preview_prompts=_lines(wishes.preview_prompts),
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
    general = () if wishes.task == DREAMBOOTH else _lines(wishes.class_prompt)
    return wishes.word_start.strip() or next(iter(general), "")


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _side(width: int, height: int) -> int:
    """Return the side of a square with about as many pixels as the model's own size."""
    side = math.sqrt(width * height)
    step = STEP if side >= SMALL else SMALL_STEP
    return round(side / step) * step


def _check(wishes: Wishes) -> None:
    token = wishes.token.strip()
    if not token or plain_name(token) != token or token.startswith("."):
        rule = 'must be one word or name without < > : , = "'
        raise InvalidInput("token", wishes.token, rule, "Use a rare word, such as TOK.")
    if SYNTAX.search(token):
        rule = "has a meaning of its own in prompts or file names"
        raise InvalidInput("token", wishes.token, rule, "Use a rare word, such as TOK.")
    if wishes.task not in TASKS:
        raise InvalidInput("task", wishes.task, f"must be {', '.join(TASKS)}", "Choose one of these.")
    if wishes.layers not in LAYERS:
        raise InvalidInput("layers", wishes.layers, f"must be {', '.join(LAYERS)}", "Choose one of these.")
    resolution = wishes.resolution
    if resolution and resolution % (STEP if resolution >= SMALL else SMALL_STEP):
        rule = f"must be a multiple of {STEP}, or of {SMALL_STEP} below {SMALL}"
        raise InvalidInput("resolution", resolution, rule, "Round it.")
    for name in ("learning_rate", "text_learning_rate", "word_learning_rate"):
        rate = getattr(wishes, name)
        if rate is not None and not 0 <= rate <= 1:
            raise InvalidInput(name, rate, "must be from 0 to 1", "Use the recipe's: leave it empty.")
    if wishes.learning_rate == 0 and not wishes.text_learning_rate and not wishes.word_learning_rate:
        raise InvalidInput("learning_rate", 0, "nothing would be trained", "Leave it empty for the recipe's.")


def check_same(course: Course, before: Mapping[str, Any]) -> None:
    """Raise InvalidInput if a training cannot go on where another stopped."""
    for name in SAME:
        if before.get(name) != getattr(course, name):
            rule = f"the training to resume had {before.get(name)!r}"
            raise InvalidInput(name, getattr(course, name), rule, "Use the same, or leave resume empty.")

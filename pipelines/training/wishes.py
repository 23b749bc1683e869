"""What somebody wishes to be trained, and what can be wrong with it that no model is needed to see."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.ask.networks import plain_name
from pipelines.errors import NAME_MAX, InvalidInput

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
STEP, SMALL, SMALL_STEP = 64, 256, 16
"""A resolution is a multiple of 64, or of 16 below 256 pixels."""
RANGES: Mapping[str, tuple[float, float]] = {
    "steps": (1, 20_000),
    "batch_size": (1, 32),
    "gradient_accumulation": (1, 64),
    "learning_rate": (0, 1),
    "text_learning_rate": (0, 1),
    "word_learning_rate": (0, 1),
    "rank": (1, RANK_MAX),
    "alpha": (0.001, 1000),
    "resolution": (64, 2048),
    "min_snr_gamma": (0, 1000),
    "noise_offset": (0, 1),
    "class_images": (0, 1000),
    "prior_weight": (0.001, 1000),
    "save_every": (1, 20_000),
    "seed": (-1, 2**32 - 1),
    "warmup_steps": (0, 20_000),
}
"""The least and the greatest value of each number. The form has the same."""
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
"""How the learning rate may change, by diffusers' names."""
PRECISIONS = ("automatic", "no", "fp16", "bf16")
NAME_BYTES_MAX = 200
"""Limit for the bytes of a token, which names a file: systems take 255 with the ending."""
TAKEN_NAMES = ("state", "word")
"""Names of other weight files in a result, which no token may have."""
PREVIEWS_MAX = 32
"""Limit for the lines of preview_prompts, all of which are drawn at every save."""


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


def lines_of(text: str) -> tuple[str, ...]:
    """Return the lines of an input that has several prompts, without the empty ones."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def check(wishes: Wishes) -> None:
    """Raise InvalidInput for wishes that cannot be trained, whatever the model is."""
    _check_numbers(wishes)
    _check_choices(wishes)
    _check_token(wishes.token.strip())
    _check_trains(wishes)
    resolution = wishes.resolution
    if resolution and resolution % (STEP if resolution >= SMALL else SMALL_STEP):
        rule = f"must be a multiple of {STEP}, or of {SMALL_STEP} below {SMALL}"
        raise InvalidInput("resolution", resolution, rule, "Round it.")
    if wishes.class_images and wishes.task != INVERSION and not wishes.class_prompt.strip():
        raise InvalidInput("class_prompt", "", "is needed to draw class_images", "Say what it is: a photo of a dog.")
    if (count := len(lines_of(wishes.preview_prompts))) > PREVIEWS_MAX:
        rule = f"must have at most {PREVIEWS_MAX} lines, and has {count}; all are drawn at every save"
        raise InvalidInput("preview_prompts", wishes.preview_prompts, rule, "Choose a few.")
    if wishes.warmup_steps and wishes.schedule == "constant":
        rule = "the schedule constant has no warm-up"
        raise InvalidInput("warmup_steps", wishes.warmup_steps, rule, "Use constant_with_warmup.")


def _check_numbers(wishes: Wishes) -> None:
    for name, (least, greatest) in RANGES.items():
        number = getattr(wishes, name)
        if number is not None and not least <= number <= greatest:
            raise InvalidInput(name, number, f"must be from {least:g} to {greatest:.10g}", "Use a number in between.")


def _check_choices(wishes: Wishes) -> None:
    for name, choices in (
        ("task", TASKS),
        ("layers", tuple(LAYERS)),
        ("schedule", SCHEDULES),
        ("precision", PRECISIONS),
    ):
        if (chosen := getattr(wishes, name)) not in choices:
            raise InvalidInput(name, chosen, f"must be {', '.join(choices)}", "Choose one of these.")


def _check_token(token: str) -> None:
    """Raise InvalidInput for a token that prompts, tags or file systems would take for something else."""
    rule = ""
    if len(token) > NAME_MAX or len(token.encode("utf-8", "replace")) > NAME_BYTES_MAX:
        rule = f"must have at most {NAME_MAX} characters, and {NAME_BYTES_MAX} bytes in UTF-8"
    elif not token or plain_name(token) != token or token.startswith("."):
        rule = 'must be a word or a name without < > : , = "'
    elif SYNTAX.search(token):
        rule = "has a meaning of its own in prompts or file names"
    elif token.lower() in TAKEN_NAMES:
        rule = "is the name of another file in the result"
    if rule:
        raise InvalidInput("token", token, rule, "Use a rare word, such as TOK.")


def _check_trains(wishes: Wishes) -> None:
    """Raise InvalidInput for learning rates that leave something of the task untrained, or all of it."""
    task, text, word = wishes.task, wishes.text_learning_rate, wishes.word_learning_rate
    if task == PIVOTAL and word == 0:
        raise InvalidInput("word_learning_rate", 0, "the word would not be trained", "Leave it empty, or train a LoRA.")
    rules = {
        LORA: "" if text else "nothing would be trained",
        PIVOTAL: "only the word would be trained",
        INVERSION: "nothing would be trained: it is the word's rate",
        DREAMBOOTH: "" if text or word else "nothing would be trained",
    }
    fixes = {PIVOTAL: "Leave it empty for the recipe's, or choose textual inversion."}
    if wishes.learning_rate == 0 and rules[task]:
        raise InvalidInput("learning_rate", 0, rules[task], fixes.get(task, "Leave it empty for the recipe's."))

"""What somebody should know about a training before it begins: wishes that do nothing, and words that do too much."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch

from pipelines.ask.prompt import chunks, cut_networks, parse_attention, schedule, single_tokens, split_and
from pipelines.ask.sizes import Size
from pipelines.errors import InvalidInput, counted, shown
from pipelines.models.text import Tokenize, check_length
from pipelines.training.pictures import FIELD as PICTURES
from pipelines.training.previews import class_requests, preview_requests
from pipelines.training.settings import SAME, Course
from pipelines.training.wishes import DREAMBOOTH, INVERSION, LORA, PIVOTAL, Wishes
from pipelines.training.words import TrainedTable, own_pieces

COMMON = 20_000
"""CLIP's pieces are numbered by how common they are: cat is 2,368, lego 7,849, tok 27,010 and sks 48,136."""
SHOWN = 200
"""Limit for the characters of a setting that a remark shows."""
FREE = ("save_every", "preview_prompts", "precision", "gradient_checkpointing")
"""Settings that a resumed training may change without a word about it; also the steps, if the rate stays constant."""


def remarks(
    wishes: Wishes, course: Course, tokenize: Tokenize, sizes: Sequence[Size], before: Mapping[str, Any]
) -> Iterator[str]:
    """Yield sentences for the log and the report.

    `sizes` are those of the pictures, and `before` are the settings of the training to resume, if there is one.
    """
    yield from _unused(wishes, course)
    yield from _about_token(course, tokenize)
    largest = max(Counter(sizes).values())
    if course.batch_size > largest:
        shapes = f"pictures of one batch have the same size, so the largest batch has {counted(largest, 'picture')}"
        yield f"batch_size is {course.batch_size}, but {shapes}."
    if tags := [str(tag) for prompt in course.preview_prompts for tag in cut_networks(prompt)[1]]:
        yield f"Previews are drawn without {', '.join(dict.fromkeys(tags))}. What is in training always acts."
    known = {*SAME, *FREE, *(["steps"] if course.schedule.startswith("constant") else [])}
    for name, value in course.told().items():
        if name in before and name not in known and before[name] != _plain(value):
            now, then = (shown(repr(each), SHOWN) for each in (_plain(value), before[name]))
            yield f"{name} is {now}, and was {then} in the training to resume."


def check_token(course: Course, tokenize: Tokenize, captions: Sequence[str]) -> None:
    """Raise InvalidInput for a token that would not be trained: with its neighbour in a caption it makes another word,
    or class_prompt has all pieces of a DreamBooth's token, and nothing else is trained."""
    fix = "Use a rare word of letters, such as TOK."
    if _shared(course, tokenize) and not course.learning_rate and not course.text_learning_rate:
        rule = "class_prompt has all its pieces, so nothing would be trained"
        raise InvalidInput("token", course.token, rule, fix)
    pieces = tokenize(course.token)
    for caption in captions if course.vectors else ():
        found = tokenize(caption)
        if not any(found[start : start + len(pieces)] == pieces for start in range(len(found))):
            rule = f"is read as a part of another word in {shown(repr(caption), SHOWN)}"
            raise InvalidInput("token", course.token, rule, f"Put spaces around it there. Or {fix[0].lower()}{fix[1:]}")


def check_prompts(course: Course, own: Mapping[str, Any], tokenize: Tokenize, captions: Sequence[str]) -> None:
    """Raise InvalidInput for a caption, or a prompt of a preview or the class, that cannot be drawn or is too long.

    `own` are the model's own settings for requests.
    """
    word = (
        TrainedTable(course.token, torch.zeros(course.vectors, 1), tokenize).units if course.vectors else single_tokens
    )
    for field, requests, units in (
        ("preview_prompts", preview_requests(course, own), word),
        ("class_prompt", class_requests(course, own), single_tokens),  # drawn before there are vectors
    ):
        for request in requests:
            for part, _ in split_and(request.prompt):
                for _, text in schedule(part, request.num_inference_steps):
                    check_length(field, text, chunks(parse_attention(text), tokenize, units))
    for caption in captions:
        check_length(PICTURES, caption, chunks([(caption, 1.0)], tokenize, word))  # plain text


def _shared(course: Course, tokenize: Tokenize) -> bool:
    """Return whether the rows of DreamBooth's token cannot be trained, because class_prompt has all of them."""
    rows = course.task == DREAMBOOTH and course.word_learning_rate
    return bool(rows) and not own_pieces(tokenize, course.token, course.class_prompts)


def _about_token(course: Course, tokenize: Tokenize) -> Iterator[str]:
    if _shared(course, tokenize):
        yield (
            f"class_prompt has all pieces of the token {course.token}, so they are not trained at a rate of their own, "
            "and the token will hardly call the subject. Use a rarer word."
        )
    pieces = tokenize(course.token)
    if len(pieces) == 1 and pieces[0] < COMMON:
        yield (
            f"The token {course.token} is a common word. Prompts that mean something else by it will change, too. "
            "A rare word works best."
        )


def _unused(wishes: Wishes, course: Course) -> Iterator[str]:
    """Report wishes that have no effect."""
    given = {each.name for each in fields(Wishes) if getattr(wishes, each.name) != each.default}
    task, own_vectors = course.task, bool(course.word_learning_rate)
    adapts = task in (LORA, PIVOTAL)
    general = own_vectors if task == DREAMBOOTH else task != LORA and not wishes.word_start.strip()
    for name, used, why in (
        ("rank", task != DREAMBOOTH, "DreamBooth trains whole networks"),
        ("alpha", adapts, f"{task} makes no LoRA"),
        ("layers", adapts, f"{task} makes no LoRA"),
        ("layers", not adapts or course.learning_rate, "With learning_rate 0, the UNet stays as it is"),
        ("text_learning_rate", task != INVERSION, "Textual inversion leaves the text encoders as they are"),
        ("text_learning_rate", task != PIVOTAL or not wishes.word_learning_rate, "word_learning_rate is the word's"),
        ("word_learning_rate", task != INVERSION, "learning_rate is the word's"),
        ("word_learning_rate", task != LORA, "A LoRA has no word of its own"),
        ("word_start", own_vectors, "No vectors of the token's own are trained"),
        ("class_images", task != INVERSION, "Textual inversion changes no other prompt"),
        ("prior_weight", course.class_images, "There are no pictures of the class"),
        ("class_prompt", course.class_images or general, "There are no pictures of the class"),
    ):
        if name in given and not used:
            yield f"{why}, so {name} does nothing."


def _plain(value: object) -> object:
    """Return a value as it is read from JSON."""
    return list(value) if isinstance(value, tuple) else value

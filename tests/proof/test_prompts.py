"""The prompt rules: texts written from a tree with a known meaning, and transformers' own encoding of them.

Nothing here parses a prompt. A tree is drawn at random, evaluated by the rule, and written as text for the parser.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import CLIPTokenizer

from pipelines.ask.prompt import COMMA, END, START, chunks, parse_attention, schedule, split_and
from pipelines.models.model import Model
from pipelines.sampling.prompts import PromptEncoder
from weights_script.resolve import ResolvedModel

WORDS = st.sampled_from(["a", "red hair", ", ", " b c ", "cat\n", "x-y", "Été"])


def trees(grow: Callable[..., st.SearchStrategy[object]]) -> st.SearchStrategy[list[object]]:
    """Lists of words and of nodes that `grow` makes of such lists."""
    return st.recursive(
        st.lists(WORDS, max_size=3), lambda inner: st.lists(WORDS | grow(inner), max_size=4), max_leaves=12
    )


# --- attention: what is in brackets, and their factor


@dataclass(frozen=True)
class Bracket:
    inside: list[object]
    shape: str
    factor: float


def brackets(inner: st.SearchStrategy[list[object]]) -> st.SearchStrategy[object]:
    factors = st.integers(1, 300).map(lambda hundredths: hundredths / 100)
    return (
        st.builds(Bracket, inner, st.just("({})"), st.just(1.1))
        | st.builds(Bracket, inner, st.just("[{}]"), st.just(1 / 1.1))
        | factors.flatmap(lambda factor: st.builds(Bracket, inner, st.just(f"({{}}:{factor})"), st.just(factor)))
    )


def written(tree: Sequence[object]) -> str:
    return "".join(node.shape.format(written(node.inside)) if isinstance(node, Bracket) else str(node) for node in tree)


def weights(tree: Sequence[object], weight: float = 1.0) -> list[tuple[str, float]]:
    """Every letter with its weight."""
    letters: list[tuple[str, float]] = []
    for node in tree:
        if isinstance(node, Bracket):
            letters += weights(node.inside, weight * node.factor)
        else:
            letters += [(letter, weight) for letter in str(node)]
    return letters


@given(trees(brackets))
def test_a_letters_weight_is_the_product_of_its_brackets(tree: list[object]) -> None:
    found = [(letter, weight) for text, weight in parse_attention(written(tree)) for letter in text]
    expected = weights(tree)
    assert [letter for letter, _ in found] == [letter for letter, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected], rel=1e-12)


# --- editing: what is there at a step


@dataclass(frozen=True)
class Edit:
    before: list[object]
    after: list[object]
    number: str


@dataclass(frozen=True)
class Turns:
    options: list[list[object]]


def edits(inner: st.SearchStrategy[list[object]]) -> st.SearchStrategy[object]:
    numbers = st.integers(0, 40).map(str) | st.integers(0, 25).map(lambda tenths: f"{tenths / 10:.1f}")
    return st.builds(Edit, inner, inner, numbers) | st.builds(Turns, st.lists(inner, min_size=2, max_size=3))


def edited(tree: Sequence[object]) -> str:
    words: list[str] = []
    for node in tree:
        if isinstance(node, Edit):
            before = f"{edited(node.before)}:" if node.before else ""
            words.append(f"[{before}{edited(node.after)}:{node.number}]")
        elif isinstance(node, Turns):
            words.append(f"[{'|'.join(map(edited, node.options))}]")
        else:
            words.append(str(node))
    return "".join(words)


def text_at(tree: Sequence[object], step: int, end_of: Callable[[str], float]) -> str:
    words: list[str] = []
    for node in tree:
        if isinstance(node, Edit):
            words.append(text_at(node.before if step <= end_of(node.number) else node.after, step, end_of))
        elif isinstance(node, Turns):
            words.append(text_at(node.options[(step - 1) % len(node.options)], step, end_of))
        else:
            words.append(str(node))
    return "".join(words)


@given(trees(edits), st.integers(1, 30), st.none() | st.integers(1, 30))
def test_every_step_has_the_text_of_its_edits(tree: list[object], steps: int, hires_steps: int | None) -> None:
    """A number with a point is a share of the steps, another is a step. The hires pass counts on from the first one."""

    def end_of(number: str) -> float:
        if hires_steps is None:
            return math.floor(float(number) * steps) if "." in number else float(number)
        return math.floor((float(number) - 1) * hires_steps) if "." in number else float(number) - steps

    entries = schedule(edited(tree), steps, hires_steps)
    for step in range(1, (hires_steps or steps) + 1):
        assert next(text for end, text in entries if step <= end) == text_at(tree, step, end_of)


# --- AND, and chunks


@given(st.lists(st.tuples(st.lists(WORDS, min_size=1).map("".join), st.none() | st.integers(-20, 20)), min_size=1))
def test_and_separates_weighted_parts(parts: list[tuple[str, int | None]]) -> None:
    text = " AND ".join(part if tenths is None else f"{part} :{tenths / 10}" for part, tenths in parts)
    expected = [(part.strip(), 1.0 if tenths is None else tenths / 10) for part, tenths in parts]
    assert [(part.strip(), weight) for part, weight in split_and(text)] == expected


def cut(tokens: list[int]) -> list[list[int]]:
    """Chunks of 75. Where more follows than fits, the last comma among the last 20 of them ends the chunk, unless the
    next token is a comma."""
    if len(tokens) <= 75:
        return [tokens]
    commas = [place for place in range(55, 75) if tokens[place] == COMMA]
    end = commas[-1] + 1 if commas and tokens[75] != COMMA else 75
    return [tokens[:end], *cut(tokens[end:])]


@given(st.lists(st.sampled_from([1, 1, 1, 1, COMMA]), max_size=300) | st.lists(st.integers(1, 9), max_size=300))
def test_chunks_end_at_75_tokens_or_behind_a_comma(tokens: list[int]) -> None:
    made = chunks([("text", 1.0)], lambda _: tokens)
    assert [[token for token in chunk.tokens if token not in (START, END)] for chunk in made] == cut(tokens)
    assert {len(chunk.tokens) for chunk in made} == {77}


# --- transformers' tokens and vectors

TOLERANCE = 1e-4
"""The promise for conditioning. Kernels differ by some 1e-6 between batches of other sizes."""


@pytest.fixture
def vectors(networks: Model, embedded: ResolvedModel) -> Callable[..., Tensor]:
    """transformers' own way from a text to its vectors (77, width); clip skip counts the layers from the last."""
    tokenizer = CLIPTokenizer.from_pretrained(embedded.files.tokenizer)

    def of(text: str, skip: int = 1) -> Tensor:
        tokens = tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        with torch.inference_mode():
            output = networks.text.towers[0].model(tokens, output_hidden_states=True)
            return networks.text.towers[0].model.final_layer_norm(output.hidden_states[-skip])[0]

    return of


def conditioning(networks: Model, prompt: str, call: int = 0, skip: int = 1) -> Tensor:
    """Ours (parts, tokens, width) for a denoiser call, in a pass of ten."""
    with torch.inference_mode():
        return PromptEncoder(networks.text, skip, "Original", False).encode(prompt, "", 10).at(call)[0].tokens


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_a_plain_prompt_is_what_transformers_makes_of_it(
    networks: Model, vectors: Callable[..., Tensor], skip: int
) -> None:
    text = "a pink sun over the sea, 1girl's café"
    found = conditioning(networks, text, skip=skip)[0]
    torch.testing.assert_close(found, vectors(text, skip), atol=TOLERANCE, rtol=0)
    assert (found - vectors(text, skip + 1)).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("weight", [0.5, 1.4])
def test_emphasis_scales_vectors_and_restores_their_mean(
    networks: Model, vectors: Callable[..., Tensor], weight: float
) -> None:
    plain = vectors("a pink sun")
    weighted = plain.clone()
    weighted[2] *= weight  # behind the start and "a"
    expected = weighted * plain.mean() / weighted.mean()
    found = conditioning(networks, f"a (pink:{weight}) sun")[0]
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    assert (found - weighted).abs().max() > TOLERANCE


def test_break_puts_two_encodings_behind_each_other(networks: Model, vectors: Callable[..., Tensor]) -> None:
    expected = torch.cat([vectors("a pink sun"), vectors("the sea")])
    torch.testing.assert_close(conditioning(networks, "a pink sun BREAK the sea")[0], expected, atol=TOLERANCE, rtol=0)


def test_and_encodes_parts_apart(networks: Model, vectors: Callable[..., Tensor]) -> None:
    expected = torch.stack([vectors("a pink sun"), vectors("the sea")])
    torch.testing.assert_close(conditioning(networks, "a pink sun AND the sea :0.5"), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("call", "text"), [(0, "a pink sun"), (4, "a pink sun"), (5, "a blue sun"), (9, "a blue sun")])
def test_editing_changes_the_vectors_after_its_call(
    networks: Model, vectors: Callable[..., Tensor], call: int, text: str
) -> None:
    """The first text holds while the number of calls that were made is at most its end."""
    found = conditioning(networks, "a [pink:blue:0.4] sun", call)[0]
    torch.testing.assert_close(found, vectors(text), atol=TOLERANCE, rtol=0)

"""WebUI's prompt grammar: recorded cases and properties."""

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ask.prompt import (
    BREAK,
    CHUNK_LENGTH,
    COMMA,
    END,
    START,
    NetworkTag,
    chunks,
    cut_networks,
    has_word,
    parse_attention,
    schedule,
    split_and,
)
from tests.growth import grows_linearly

ROOT = Path(__file__).parents[2]

# Texts rich in what the grammar cares about.
SYMBOLS = [
    *"[]():|\\, é\n",
    "a",
    "b c",
    "0.5",
    "2",
    "1.4",
    "[a:b:0.5]",
    "[a|b]",
    "(y:1.2)",
    "BREAK",
    "AND",
    "<lora:x:1>",
]
PROMPTS = st.lists(st.sampled_from(SYMBOLS), max_size=20).map("".join) | st.text(max_size=40)

# CLIP's ids of the words in one recorded prompt.
WORDS = {
    **{"masterpiece": 12066, ",": COMMA, "best": 949, "quality": 3027, "1": 272, "girl": 1611, "red": 736},
    **{"hair": 2225, "city": 1305, "smile": 3490, "blue": 1746, "sky": 2390},
}


def by_number(text: str) -> list[int]:
    """A stand-in for the tokenizer: every word is its own token id, commas as CLIP has them."""
    return [COMMA if word == "," else int(word) for word in text.split()]


def numbers(first: int, last: int) -> str:
    return " ".join(map(str, range(first, last + 1)))


# --- attention


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", [("", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("[[x]]", [("x", 1 / 1.1 * (1 / 1.1))]),
        ("a) b]", [("a) b]", 1.0)]),
        ("(a:1.3)[b]", [("a", 1.3), ("b", 1 / 1.1)]),
        ("(a, b: +.5 ), c", [("a, b", 0.5), (", c", 1.0)]),
        (r"\(a\) \[b\] \\ c\d", [(r"(a) [b] \ cd", 1.0)]),
        ("a:1.2) b", [("a:1.2) b", 1.0)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("a BREAK b", [("a", 1.0), BREAK, ("b", 1.0)]),
        ("a BREAK BREAK b", [("a", 1.0), BREAK, ("", 1.0), BREAK, ("b", 1.0)]),
        ("BREAKs break", [("BREAKs break", 1.0)]),
        ("(a BREAK b)", [("a", 1.1), ("BREAK", -1.1), ("b", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                *[("a ", 1.0), ("house", 1.5730000000000004), (" ", 1.1), ("on", 1.0), (" a ", 1.1)],
                *[("hill", 0.55), (", sun, ", 1.1), ("sky", 1.4641000000000006), (".", 1.1)],
            ],
        ),
    ],
)
def test_attention(text: str, pieces: list[tuple[str, float]]) -> None:
    assert parse_attention(text) == pieces


@given(PROMPTS)
def test_attention_takes_any_text_and_joins_equal_neighbours(text: str) -> None:
    assert all(left != right for (_, left), (_, right) in pairwise(parse_attention(text)))


@given(st.lists(st.tuples(st.from_regex(r"[a-z ,|]{1,8}", fullmatch=True), st.integers(1, 300)), min_size=1))
def test_weights_survive_being_written_and_read(pieces: list[tuple[str, int]]) -> None:
    text = "".join(f"({word}:{weight / 100})" for word, weight in pieces)
    read = [(char, weight) for word, weight in parse_attention(text) for char in word]
    assert read == [(char, weight / 100) for word, weight in pieces for char in word]


# --- schedules


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("a [b:c:0.3]", [(3, "a b"), (10, "a c")]),
        ("a [b::4] [c:5]", [(4, "a b "), (5, "a  "), (10, "a  c")]),
        ("a[b: 1.0 ]", [(10, "a")]),
        ("a[b:0]", [(10, "ab")]),
        ("a[b:-3]", [(10, "ab")]),
        ("a[b:1e1]", [(10, "a")]),
        ("[a:[b:c:7]:2]", [(2, "a"), (7, "b"), (10, "c")]),
        ("([a:b:0.5]:1.2)", [(5, "(a:1.2)"), (10, "(b:1.2)")]),
        ("[(a:1.2):[b]:.5]", [(5, "(a:1.2)"), (10, "[b]")]),
        ("[x] (y) (z:1.2)", [(10, "[x] (y) (z:1.2)")]),
        ("[a:b", [(10, "[a:b")]),
        ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
        ("[a:b: c]", [(10, "[a:b: c]")]),
        ("(a] [b:c:3]", [(3, "(a] b"), (10, "(a] c")]),
        ("[x (a] b:2] [c:3]", [(3, "[x (a] b:2] "), (10, "[x (a] b:2] c")]),
        ("[y [a:b] [c:2]:3]", [(2, "[y [a:b] :3]"), (10, "[y [a:b] c:3]")]),
        (r"\[a:b:3\] [c:2]", [(2, r"\[a:b:3\] "), (10, r"\[a:b:3\] c")]),
        ("a | b [c:2]", [(10, "a | b [c:2]")]),
        ("(a|b) [c:2]", [(10, "(a|b) [c:2]")]),
        ("[c:2] \\", [(10, "[c:2] \\")]),
        ("", [(10, "")]),
    ],
)
def test_editing(text: str, entries: list[tuple[int, str]]) -> None:
    assert schedule(text, 10) == entries


@pytest.mark.parametrize(
    ("text", "options"),
    [("[a|b|c]", "abc"), ("[a|]", ["a", ""]), ("[|a||]", ["", "a", "", ""]), ("[a|(b:1.1)]", ["a", "(b:1.1)"])],
)
def test_alternation_takes_the_next_option_at_every_step(text: str, options: list[str]) -> None:
    assert schedule(text, 7) == [(step, options[(step - 1) % len(options)]) for step in range(1, 8)]


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("[a:b:0.4]", [(10, "b")]),
        ("[a:b:1.5]", [(5, "a"), (10, "b")]),
        ("[a:b:1.4]", [(3, "a"), (10, "b")]),  # in floating point (1.4 - 1.0) * 10 is less than 4
        ("[a:b:23]", [(3, "a"), (10, "b")]),
        ("[a:b:20]", [(10, "b")]),
        ("[a:b:50]", [(10, "a")]),
        ("a", [(10, "a")]),
    ],
)
def test_the_hires_pass_counts_on(text: str, entries: list[tuple[int, str]]) -> None:
    assert schedule(text, 20, 10) == entries


@given(PROMPTS, st.integers(1, 30), st.none() | st.integers(1, 30))
def test_any_text_has_ascending_entries_up_to_the_last_step(text: str, steps: int, hires_steps: int | None) -> None:
    ends = [end for end, _ in schedule(text, steps, hires_steps)]
    assert ends == sorted(set(ends))
    assert ends[0] >= 1
    assert ends[-1] == (steps if hires_steps is None else hires_steps)


# --- AND and networks


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", [("a", 1.0)]),
        ("a AND b :0.5 AND c:-1.", [("a", 1.0), (" b", 0.5), (" c", -1.0)]),
        ("a cat:1.2 ", [("a cat", 1.2)]),
        ("1.2", [("1.2", 1.0)]),
        ("a:1:2", [("a:1", 2.0)]),
        ("(a:1.2)", [("(a:1.2)", 1.0)]),
        ("and BAND ANDY", [("and BAND ANDY", 1.0)]),
        ("AND :3", [("", 1.0), ("", 3.0)]),
    ],
)
def test_and_splits_with_weights(text: str, parts: list[tuple[str, float]]) -> None:
    assert split_and(text) == parts


def test_network_tags_are_cut_out() -> None:
    text, tags = cut_networks("a <lora:some name:0.8:unet=1>, <b> <hypernet:c:1> < lora:d:1> <lora:e")
    assert text == "a , <b>  < lora:d:1> <lora:e"
    assert tags == [NetworkTag("lora", ("some name", "0.8", "unet=1")), NetworkTag("hypernet", ("c", "1"))]


@given(PROMPTS)
def test_any_text_can_be_cut_and_split(text: str) -> None:
    left, tags = cut_networks(text)
    assert bool(tags) == (left != text)
    assert split_and(text)


# --- chunks


def test_a_chunk_is_padded_and_weighs_one_outside_the_text() -> None:
    pieces = parse_attention("masterpiece, best quality, 1girl, (red hair:1.3), [city], smile, blue sky")
    (chunk,) = chunks(pieces, lambda text: [WORDS[word] for word in re.findall(r"[a-z]+|\d|,", text)])
    tokens = [12066, 267, 949, 3027, 267, 272, 1611, 267, 736, 2225, 267, 1305, 267, 3490, 267, 1746, 2390]
    assert chunk.tokens == (START, *tokens, *[END] * 59)
    assert chunk.weights == (*[1.0] * 9, 1.3, 1.3, 1.0, 1 / 1.1, *[1.0] * 64)


def test_an_empty_prompt_is_one_chunk() -> None:
    (chunk,) = chunks(parse_attention(""), by_number)
    assert chunk.tokens == (START, *[END] * 76)
    assert chunk.weights == (1.0,) * 77


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        (numbers(1, 75), [75]),
        (numbers(1, 76), [75, 1]),
        (numbers(1, 74) + " , 75", [75, 1]),  # the comma is the last token: nothing moves
        (numbers(1, 70) + " , " + numbers(71, 80), [71, 10]),  # what follows the comma moves
        (numbers(1, 55) + " , " + numbers(56, 75), [56, 20]),  # the farthest comma in reach
        (numbers(1, 54) + " , " + numbers(55, 75), [75, 1]),  # out of reach
        (numbers(1, 60) + " , " + numbers(61, 74) + " , 75", [75, 2]),  # the next token is a comma: nothing moves
        ("1 BREAK 2", [1, 1]),
        ("BREAK 2", [0, 1]),
        ("1 BREAK", [1]),
        ("1 BREAK BREAK 2", [1, 0, 1]),
    ],
)
def test_where_chunks_end(text: str, filled: list[int]) -> None:
    made = chunks(parse_attention(text), by_number)
    assert [sum(token != END for token in chunk.tokens[1:]) for chunk in made] == filled


def test_weights_move_with_their_tokens() -> None:
    first, second = chunks([(numbers(1, 70) + " , ", 1.0), (numbers(71, 76), 1.5)], by_number)
    assert first.weights == (1.0,) * 77
    assert second.weights == (1.0, *[1.5] * 6, *[1.0] * 70)


@given(st.lists(st.tuples(st.text("1,", max_size=120), st.sampled_from([0.5, 1.0, 1.5])) | st.just(BREAK), max_size=8))
def test_chunks_keep_every_token_and_its_weight_in_order(pieces: list[tuple[str, float]]) -> None:
    def by_character(text: str) -> list[int]:
        return [COMMA if char == "," else 1 for char in text]

    made = chunks(pieces, by_character)
    slots = [slot for chunk in made for slot in zip(chunk.tokens, chunk.weights, strict=True)]
    wanted = [(token, weight) for text, weight in pieces if text != "BREAK" for token in by_character(text)]
    assert [slot for slot in slots if slot[0] not in (START, END)] == wanted
    assert made
    assert all(len(chunk.tokens) == CHUNK_LENGTH + 2 for chunk in made)


# --- time


@pytest.mark.parametrize(
    "unit", ["(a", "[a:", "[a|", "[a:b:0.5]", "(a:1.1)", "<a:", "BREAK ", " ", "AND ", "1.", ": ", "\\"]
)
@pytest.mark.parametrize("use", [parse_attention, split_and, cut_networks, lambda text: schedule(text, 20)])
def test_hostile_prompts_take_linear_time(unit: str, use: Callable[[str], object]) -> None:
    assert grows_linearly(lambda size: use(unit * (size // len(unit))), 100_000)


def test_deep_nesting_is_no_recursion() -> None:
    depth = 20_000
    assert schedule("[a:" * depth + ":1]" * depth, 3)[-1] == (3, "")
    assert schedule("[" * depth + "a" + "]" * depth, 3) == [(3, "[" * depth + "a" + "]" * depth)]
    assert parse_attention("(" * depth + "a" + ")" * depth)[0][0] == "a"


# --- prompt editing as before WebUI 1.6


@pytest.mark.parametrize(
    ("number", "old", "new"),
    [
        ("0.4", 4, 4),
        ("0.99", 9, 9),
        ("1.0", 1, 10),  # not below 1: a count
        ("1.5", 1, 10),
        ("5.5", 5, 10),
        ("3", 3, 3),
        (".25", 2, 2),
        ("0", 0, 0),
        ("-0.5", 0, 0),
        ("-2", 0, 0),
        ("30", 10, 10),
    ],
)
def test_before_1_6_a_number_below_one_was_a_fraction_and_no_other(number: str, old: int, new: int) -> None:
    def switch(entries: list[tuple[int, str]]) -> int:
        return sum(1 for step in range(1, 11) if next(text for end, text in entries if step <= end) == "a")

    assert switch(schedule(f"[a:b:{number}]", 10, old=True)) == old
    assert switch(schedule(f"[a:b:{number}]", 10)) == new


@given(st.text("ab[]:|0.1 ", max_size=24), st.integers(1, 30), st.integers(1, 30))
def test_before_1_6_the_hires_pass_began_from_the_start(text: str, steps: int, hires_steps: int) -> None:
    assert schedule(text, steps, hires_steps, old=True) == schedule(text, steps, old=True)
    if "." not in text and "0" not in text:  # then every number is a count, which both rules read alike
        assert schedule(text, steps, old=True) == schedule(text, steps)


@pytest.mark.parametrize(
    ("text", "word", "there"),
    [
        ("an arcade token", "TOK", False),
        ("TOK's tail", "tok", True),
        ("a (TOK:1.2)", "TOK", True),
        ("on the grass", "a", False),
        ("s15", "s1.5", False),
        ("an s1.5 car", "s1.5", True),
        ("my cats", "my cat", False),
        ("a 🐱, asleep", "🐱", True),
    ],
)
def test_a_word_is_not_a_part_of_another(text: str, word: str, there: bool) -> None:
    assert has_word(text, word) == there

"""WebUI's prompt grammar: recorded cases, WebUI's own tables where they are here, and properties."""

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.prompt import (
    BREAK,
    CHUNK_LENGTH,
    COMMA,
    END,
    START,
    NetworkTag,
    chunks,
    cut_networks,
    parse_attention,
    schedule,
    split_and,
)

TABLES = Path(__file__).parents[3] / "shared" / "webui_reference" / "prompt_tables.json"
needs_tables = pytest.mark.skipif(not TABLES.exists(), reason="WebUI's tables (../shared/webui_reference) are not here")
GRAMMAR = st.lists(st.sampled_from([*"ab ()[]:|\\,.0123456789é", "AND", "BREAK", "<lora:x:1>"])).map("".join)


def words(text: str) -> list[int]:
    """A stand-in for the tokenizer: one token a word, commas as CLIP has them."""
    return [COMMA if word == "," else 1000 + len(word) for word in re.findall(r"\w+|,", text)]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", [("", 1.0)]),
        ("plain", [("plain", 1.0)]),
        ("(a)", [("a", 1.1)]),
        ("((a))", [("a", 1.1 * 1.1)]),
        ("[a]", [("a", 1 / 1.1)]),
        ("(a:1.5) b", [("a", 1.5), (" b", 1.0)]),
        (r"\(a\)", [("(a)", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("a BREAK b", [("a", 1.0), BREAK, ("b", 1.0)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
    ],
)
def test_attention(text: str, pieces: list[tuple[str, float]]) -> None:
    assert parse_attention(text) == [(piece, pytest.approx(weight)) for piece, weight in pieces]


@pytest.mark.parametrize(
    ("text", "steps", "entries"),
    [
        ("plain", 10, [(10, "plain")]),
        ("a [b:c:0.3]", 10, [(3, "a b"), (10, "a c")]),
        ("a [b::4] [c:5]", 10, [(4, "a b "), (5, "a  "), (10, "a  c")]),
        ("[a|b] x", 3, [(1, "a x"), (2, "b x"), (3, "a x")]),
        ("[a:[b:c:6]:3]", 10, [(3, "a"), (6, "b"), (10, "c")]),
        ("([a:b:0.5]:1.2)", 4, [(2, "(a:1.2)"), (4, "(b:1.2)")]),
        ("[weak] (strong)", 5, [(5, "[weak] (strong)")]),
        ("[a:b", 5, [(5, "[a:b")]),
    ],
)
def test_editing(text: str, steps: int, entries: list[tuple[int, str]]) -> None:
    assert schedule(text, steps) == entries


def test_the_hires_pass_counts_on() -> None:
    assert schedule("[a:b:0.4]", 20, 10)[-1] == (10, "b")
    assert {text for _, text in schedule("[a:b:0.4]", 20, 10)} == {"b"}
    assert schedule("[a:b:1.5]", 20, 10) == [(5, "a"), (10, "b")]
    assert schedule("[a:b:23]", 20, 10) == [(3, "a"), (10, "b")]


def test_and_splits_with_weights() -> None:
    assert split_and("a cat AND a dog:0.5 AND bird:-1") == [("a cat", 1.0), (" a dog", 0.5), (" bird", -1.0)]
    assert split_and("sand and band") == [("sand and band", 1.0)]


def test_network_tags_are_cut_out() -> None:
    text, tags = cut_networks("a <lora:x:0.5> b <hypernet:y> <:)")
    assert text == "a  b  <:)"
    assert tags == [NetworkTag("lora", ("x", "0.5")), NetworkTag("hypernet", ("y",))]


def test_an_empty_prompt_is_one_chunk() -> None:
    (chunk,) = chunks([("", 1.0)], words)
    assert chunk.tokens == (START, *[END] * 76)
    assert set(chunk.weights) == {1.0}


def test_a_long_prompt_breaks_behind_a_comma_in_reach() -> None:
    near = chunks([("w " * 60 + ", " + "x " * 30, 1.0)], words)
    assert [chunk.tokens.count(END) for chunk in near] == [CHUNK_LENGTH - 61 + 1, CHUNK_LENGTH - 30 + 1]
    far = chunks([("w " * 40 + ", " + "x " * 50, 1.0)], words)
    assert [chunk.tokens.count(END) for chunk in far] == [1, CHUNK_LENGTH - 16 + 1]


def test_break_ends_a_chunk_and_weights_follow_their_tokens() -> None:
    first, second = chunks([("a b", 1.0), BREAK, ("c", 1.3)], words)
    assert first.weights == (1.0,) * 77
    assert second.weights[:3] == (1.0, 1.3, 1.0)


@given(GRAMMAR | st.text())
def test_nothing_raises_and_schedules_ascend_to_the_last_step(text: str) -> None:
    entries = schedule(text, 12)
    ends = [end for end, _ in entries]
    assert ends == sorted(set(ends))
    assert ends[-1] == 12
    for part, _ in split_and(cut_networks(text)[0]):
        for _, edited in schedule(part, 12, 8):
            for chunk in chunks(parse_attention(edited), words):
                assert len(chunk.tokens) == len(chunk.weights) == 77


@given(st.lists(st.tuples(st.text("abc", min_size=1), st.sampled_from([0.5, 1.2, 1.5])), min_size=1))
def test_weights_survive_being_written_and_read(pieces: list[tuple[str, float]]) -> None:
    read = parse_attention(" ".join(f"({text}:{weight})" for text, weight in pieces))
    assert [piece for piece in read if piece[1] != 1.0] == pieces


@pytest.mark.parametrize("unit", ["(", "[", "[a:", "[a|", "a AND ", "\\", "<", "(a:1.", ":"])
def test_hostile_prompts_take_bounded_time(unit: str) -> None:
    text = unit * (10_000 // len(unit))
    started = time.perf_counter()
    for part, _ in split_and(cut_networks(text)[0]):
        for _, edited in schedule(part, 20)[:2]:
            parse_attention(edited)
    assert time.perf_counter() - started < 5


@needs_tables
def test_webuis_own_tables() -> None:
    tables = json.loads(TABLES.read_text(encoding="utf-8"))
    for text, expected in tables["prompts"].items():
        pieces = parse_attention(cut_networks(text)[0] if "<" in text else text)
        wanted = [(piece, pytest.approx(weight)) for piece, weight in expected["attention"]]
        assert pieces == wanted or parse_attention(text) == wanted, text
    for text, entries in tables["schedules"].items():
        assert schedule(text, 10) == [tuple(entry) for entry in entries]

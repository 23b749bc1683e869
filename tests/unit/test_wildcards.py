"""Dynamic prompts: what is picked, how often, by which seed; and texts that cannot be resolved."""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ask.wildcards import lift_wildcards, options_of, resolve, with_picks
from pipelines.errors import InvalidInput
from tests.growth import grows_linearly

TEXT = "a sea\nWildcard colour: red | blue | dark {green|grey}\nSteps: 3\nwildcard sun: a __colour__ sun\n"
REST, WILDCARDS = lift_wildcards(TEXT)


def seen(text: str, seeds: int = 200) -> Counter[str]:
    return Counter(resolve("prompt", text, WILDCARDS, seed) for seed in range(seeds))


@pytest.mark.parametrize(
    ("text", "results"),
    [
        ("{a|b|c} sea", {"a sea", "b sea", "c sea"}),
        ("{a| }", {"a", ""}),
        ("{ a b | {c|d} e }", {"a b", "c e", "d e"}),
        ("__colour__", {"red", "blue", "dark green", "dark grey"}),
        ("__sun__, rain", {f"a {colour} sun, rain" for colour in ("red", "blue", "dark green", "dark grey")}),
        ("{2$$a|b}", {"a, b", "b, a"}),
        ("{5$$a|b}", {"a, b", "b, a"}),
        ("{1-2$$ and $$a|b}", {"a", "b", "a and b", "b and a"}),
        ("{-2$$a|b}", {"a", "b", "a, b", "b, a"}),
        ("{2-$$a|b}", {"a, b", "b, a"}),
        ("{0.1::a|0::b|5::c}", {"a", "c"}),
        ("(red:1.2), [a|b], [c:d:5], <lora:x:1>, a__b", {"(red:1.2), [a|b], [c:d:5], <lora:x:1>, a__b"}),
    ],
)
def test_every_option_comes_and_no_other(text: str, results: set[str]) -> None:
    assert set(seen(text)) == results


def test_two_of_a_wildcard_differ() -> None:
    for made in seen("{2$$__colour__}"):
        first, second = made.split(", ")
        assert first != second


@pytest.mark.parametrize("text", ["{2$$ __colour__}", "{2$$__colour__ }", "{ 2$$\n__colour__\n}", "{2 $$ __colour__}"])
def test_spaces_around_a_wildcard_leave_it_the_list_to_pick_from(text: str) -> None:
    assert seen(text).keys() == seen("{2$$__colour__}").keys()


@pytest.mark.parametrize(
    "tag",
    [
        "<lora:my__style__v2:1>",
        "<lora:a__colour__:0.5>",
        "<lora:{a|b}:1>",
        "<lora:a|b:1>",
        "<lora:${x}:1>",
        "<lyco:2$$a__sun__::3>",
        "<hypernet:__colour__:1>",
    ],
)
def test_a_tag_is_one_piece(tag: str) -> None:
    assert set(seen(f"a {tag} sea", 20)) == {f"a {tag} sea"}
    assert set(seen(f"{{a {tag}|b}}")) == {f"a {tag}", "b"}
    assert set(seen(f"{{2$${tag}|b}}")) == {f"{tag}, b", f"b, {tag}"}
    assert resolve("prompt", "__w__", {"w": tag}, 1) == tag


def test_an_error_shows_the_tags_of_its_text() -> None:
    with pytest.raises(InvalidInput, match="<lora:x:1>"):
        resolve("prompt", "a {b <lora:x:1>", {}, 1)


def test_a_text_with_nul_is_left_as_it_is() -> None:
    assert resolve("prompt", "\0001\0 <lora:x:1>", {}, 1) == "\0001\0 <lora:x:1>"


def test_options_are_all_that_may_come() -> None:
    wildcards = {"a": "x | __b__", "b": "y | __a__", "c": "z"}
    assert set(options_of("{__a__|q}", wildcards).split("\n")) == {"{__a__|q}", "x | __b__", "y | __a__"}
    assert options_of("<lora:a__c__:1>", wildcards) == "<lora:a__c__:1>"


def test_options_come_as_often_as_their_weights_say() -> None:
    counts = seen("{3::a|b}", 4000)
    assert counts["a"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_the_same_seed_picks_the_same_for_ever() -> None:
    text = "{a|b|c|d|e|f|g|h} {2$$a|b|c|d|e|f|g|h} __colour__"
    assert [resolve("prompt", text, WILDCARDS, seed) for seed in (1, 2)] == ["g g, c dark grey", "b d, c dark grey"]


def test_a_hires_prompt_picks_as_the_prompt_does_and_a_negative_one_by_itself() -> None:
    options = f"{{{'|'.join(map(str, range(1000)))}}}"
    prompts = dict.fromkeys(("prompt", "hires_prompt", "negative_prompt"), options)
    made = with_picks(prompts, {}, seed=3)
    assert made["hires_prompt"] == made["prompt"]
    assert made["negative_prompt"] != made["prompt"]


def test_lines_of_wildcards_are_taken_out_of_generation_data() -> None:
    assert REST == "a sea\nSteps: 3"
    assert WILDCARDS == {"colour": "red | blue | dark {green|grey}", "sun": "a __colour__ sun"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a {b|c", ["prompt=", "without its partner", "turn off Dynamic prompts"]),
        ("a b}", ["without its partner"]),
        ("__size__", ["prompt='__size__'", "no such wildcard", "colour, sun"]),
        ("${a=b}", ["variables"]),
        ("{" * 51 + "a" + "}" * 51, ["more than 50 deep"]),
        ("{2-$$" + "a|" * 100 + "b}", ["more than 100 at once"]),
    ],
)
def test_what_cannot_be_resolved_is_named(text: str, words: list[str]) -> None:
    with pytest.raises(InvalidInput) as error:
        resolve("prompt", text, WILDCARDS, 1)
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    "lines", ["Wildcard colour:", "Wildcard : red", "Wildcard é{: red", "Wildcard a: b\nWildcard a: c"]
)
def test_a_line_that_is_none_is_named(lines: str) -> None:
    with pytest.raises(InvalidInput, match=r"^generation_data="):
        lift_wildcards(lines)


@pytest.mark.parametrize(
    "wildcards",
    [{"x": "a | __x__"}, {"x": "__y__ __y__", "y": "__x__ __x__"}, {"x": "__y__" * 5000, "y": "a" * 20000}],
    ids=["itself", "each other", "long"],
)
def test_wildcards_without_end_are_refused_at_once(wildcards: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="wildcards"):
        resolve("prompt", "__x__", wildcards, 1)


@pytest.mark.parametrize(
    "text",
    [
        lambda n: "{" * n + "a" + "}" * n,
        lambda n: f"{{{n}$$" + "1::a|" * n + "b}",
        lambda n: "{" + " " * n + "}",
        lambda n: "{1" + " " * n + "-" + " " * n + "2" + " " * n + "|" + " " * n + "1" + " " * n + "b}",
    ],
    ids=["deep", "many", "spaces", "numbers"],
)
def test_braces_take_linear_time(text: Callable[[int], str]) -> None:
    def use(size: int) -> None:
        with suppress(InvalidInput):
            resolve("prompt", text(size), {}, 1)

    assert grows_linearly(use, 8000)


def test_lines_take_linear_time() -> None:
    assert grows_linearly(lambda size: lift_wildcards("wildcard" + " " * size), 8000)


def test_as_many_levels_and_picks_as_are_said() -> None:
    assert resolve("prompt", "{" * 50 + "a" + "}" * 50, {}, 1) == "a"
    assert resolve("prompt", "{100$$" + "a|" * 99 + "a}", {}, 1) == ", ".join("a" * 100)


@given(st.text(st.sampled_from("{}|$_-:. 2ab")), st.integers(0, 2**32 - 1))
def test_any_text_is_resolved_or_refused(text: str, seed: int) -> None:
    try:
        made = resolve("prompt", text, {"a": "b | {a|b}"}, seed)
    except InvalidInput:
        return
    assert not set(made) & set("{}")

"""Texts that leave the program are short, clean, without secrets and made in linear time. Errors leak no other text."""

import logging
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import errors
from pipelines.errors import (
    TEXT_MAX,
    CleanFormatter,
    InvalidInput,
    ModelError,
    PastelError,
    UnexpectedError,
    clean_errors,
    redacted,
    shown,
    shown_name,
)
from tests.growth import grows_linearly


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("see https://user:pw@x.com/a?token=abc&d=1, now", "see https://x.com/a, now"),
        ("weight of https://civitai.com/x?token=a b SECRET=7.0: must be", "weight of https://civitai.com/x: must be"),
        ("the checkpoint https://civitai.com/x?token=a SECRET", "the checkpoint https://civitai.com/x"),
        ("civitai.com／models／1？token=SECRET: no", "civitai.com/models/1: no"),
        ("X-Api-Key: SECRET123 token : SECRET123 access_token: SECRET", "X-Api-Key: *** token : *** access_token: ***"),
        ("sig=SECRET b, token: no", "sig=*** b, token: no"),
        ("CIVITAI.COM/api/download/models/5?token=SECRET end", "CIVITAI.COM/api/download/models/5"),
        ("loras='https://civitai.com/x?token=abc def': HTTP 401", "loras='https://civitai.com/x': HTTP 401"),
        ("https%3A%2F%2Fcivitai.com%2Fx%3Ftoken%3Dabc", "https://civitai.com/x"),
        ("(HTTPS://HOST/a#frag), and", "(HTTPS://HOST/a), and"),
        ("10.0.0.1/x?token=abc", "10.0.0.1/x"),
        ("Authorization: Bearer abcdef", "Authorization: Bearer ***"),
        ("with token=abc in it", "with token=*** in it"),
        ("r8_abcdefghijk hf_abcdefghijk", "r8_*** hf_***"),
        ("a cat/dog? (1girl:1.2), 3.5/4? why/not.", "a cat/dog? (1girl:1.2), 3.5/4? why/not."),
        ("1girl, <lora:a.b/c:1>, a#b", "1girl, <lora:a.b/c:1>, a#b"),
        ("civitai.com?SECRET", "civitai.com"),
        ("CiviTAI.com:443/x?SECRET", "CiviTAI.com:443/x"),
        ("//civitai.com/x#SECRET", "//civitai.com/x"),
        ("localhost:8000/x?SECRET.", "localhost:8000/x."),
        ("redirected to /download?x=1&sig=SECRET", "redirected to /download"),
        ("https%253A%252F%252Fh%252F%253Ftoken%253DSECRET", "https://h/"),
        ("AUTHORIZATION:  token SECRET", "AUTHORIZATION:  token ***"),
        ('{"api_key": "SECRET"}', '{"api_key": "***"}'),
        (repr("x\nhf_abcdefghijk"), repr("x\nhf_***")),
        ("basic clothes, at 100%, C# @night; a=b & c=d", "basic clothes, at 100%, C# @night; a=b & c=d"),
        ("only put ?token= and your API key", "only put ?token= and your API key"),
    ],
)
def test_secrets_are_known_by_structure(text: str, clean: str) -> None:
    assert redacted(text) == clean


def test_known_secrets_go_wherever_they_are() -> None:
    assert redacted("a SE CRET b", ("SE CRET",)) == "a *** b"


def test_texts_are_bounded_and_hold_no_control_characters() -> None:
    error = ModelError("a\nb\x00c\x1b[31m \ud800 \u202e" + "x" * 9_000_000)
    assert len(str(error)) <= TEXT_MAX
    assert str(error).startswith("a b c [31m ?")
    assert str(error).endswith("... (9000014 characters)")
    assert str(error).isprintable()


@pytest.mark.parametrize("length", [2500, 20_000, 39_000])
def test_a_long_error_loses_its_middle_and_keeps_what_to_do(length: int) -> None:
    value = "x " * (length // 2)
    error = ModelError(f"the value {value} is wrong. Give another one, see https://x.com/?token=SECRET")
    assert len(str(error)) <= TEXT_MAX
    assert str(error).startswith("the value x x ")
    assert str(error).endswith(" is wrong. Give another one, see https://x.com/")
    assert " characters) ... " in str(error)
    assert len(shown(value, 300)) <= 300


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("/tmp/tmpab12_xyzstyle.safetensors: no LoRA", "style.safetensors: no LoRA"),
        ("cannot open '/var/folders/t7/tmpab12_xyzmy file.png'", "cannot open 'my file.png'"),
        ("the LoRA tmp_training_v2", "the LoRA tmp_training_v2"),
        ("/tmp/pastel-x/final.png", "/tmp/pastel-x/final.png"),
    ],
)
def test_the_place_of_an_uploaded_file_is_not_shown(text: str, clean: str) -> None:
    assert shown(text) == clean


def test_a_value_of_any_size_is_told_by_its_beginning() -> None:
    error = InvalidInput("prompt", "y" * 9_000_000, "is long", "Shorten it.")
    assert len(str(error)) < 200
    assert "(9000000 characters)" in str(error)


def test_an_input_called_token_is_no_secret() -> None:
    assert str(InvalidInput("token", "a,b", "must be a word", "Use TOK.")) == "token='a,b': must be a word. Use TOK."
    assert "abcdef123" not in str(InvalidInput("token", "hf_abcdef123", "token=abcdef123 is bad", "Use TOK."))


@pytest.mark.parametrize("name", ["a\nSteps: 3", "x" * 300, "\x00\x1b", " a \t b "])
def test_names_are_cleaned(name: str) -> None:
    clean = shown_name(name)
    assert len(clean) <= errors.NAME_MAX
    assert "\n" not in clean
    assert clean == clean.strip()


@given(st.text())
def test_what_is_shown_can_be_sent(text: str) -> None:
    shown(text).encode()
    assert not any(ord(letter) < 32 for letter in shown(text))


@pytest.mark.parametrize(
    "unit", ["a", "a.", "/", "?", "'", "https://", "x@", "%3a", "a b", "'https://a?", "://", ".", ")"]
)
@pytest.mark.parametrize("start", ["", "https://host?"])
def test_texts_are_cleaned_in_proportion_to_their_length(start: str, unit: str) -> None:
    assert grows_linearly(lambda size: redacted(f"{start}{unit * (size // len(unit))}\x01"), 200_000)


def test_an_error_that_nobody_foresaw_brings_no_text_along() -> None:
    secret = "https://x.com/?token=SECRET " + "x" * 1_000_000
    with pytest.raises(UnexpectedError) as caught, clean_errors():
        raise RuntimeError(secret)
    whole = "".join(traceback.format_exception(caught.value))
    assert "SECRET" not in whole
    assert len(str(caught.value)) <= TEXT_MAX


def test_an_error_of_ours_leaves_without_what_caused_it() -> None:
    def fails() -> None:
        try:
            raise RuntimeError("SECRET")
        except RuntimeError as error:
            raise ModelError("the file is broken") from error

    with pytest.raises(ModelError) as caught, clean_errors():
        fails()
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))
    assert isinstance(caught.value, PastelError)


def test_log_lines_are_clean() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "see https://x.com/?token=SECRET\x1b", (), None)
    assert CleanFormatter("%(message)s").format(record) == "see https://x.com/"

"""Pasting a picture's generation data into the form gives the same picture."""

import re
from typing import Any

import numpy as np
import pytest

from script.client import data_uri
from script.cog_server import CogServer, reasons
from tests.contract.pictures import ESRGAN, HIRES, ask, draw, parameters, picture

FORM: dict[str, Any] = {}
"""What a form sends where nobody changed anything: nothing."""


@pytest.fixture(scope="module")
def made(shared_server: CogServer) -> tuple[str, str]:
    """A picture that uses much of what infotext can tell: its data URI and its generation data."""
    shared_server.wait_until_ready()
    inputs = HIRES | {
        "prompt": "a [red:yellow:0.5] boat, (sea:1.2) AND a pink sun",
        "sampler": "Euler a",
        "clip_skip": 2,
        "generation_data": """ENSD: 31337, RNG: CPU, Variation seed: 9, Variation seed strength: 0.25
            Hires prompt: a boat, night
            Hires resize: 96x128, Hires sampler: DPM++ 2M, Hires schedule type: Exponential""",
    }
    (uri,) = draw(shared_server, inputs)["output"]
    return uri, parameters(picture(uri))


def test_the_same_picture_to_the_last_bit(server: CogServer, made: tuple[str, str]) -> None:
    uri, text = made
    result = draw(server, FORM | {"generation_data": text})
    assert result["output"] == [uri]
    assert result["metrics"]["not_honoured"] == []


def test_an_input_that_was_changed_wins(server: CogServer, made: tuple[str, str]) -> None:
    _, text = made
    inputs = {"seed": 77, "highres_fix": "Off", "guidance_scale": 3, "mask_blur": 9}
    done = draw(server, {"generation_data": text} | inputs)
    (uri,) = done["output"]
    changed = parameters(picture(uri))
    assert "CFG scale: 3, Seed: 77," in changed
    assert "Hires" not in changed
    assert "ENSD: 31337, RNG: CPU" in changed
    assert ", Steps: 2, Sampler: Euler a, " in done["logs"]
    assert "Without a mask or outpainting, mask_blur does nothing.\n" in done["logs"]


OTHER = (
    "a cat\nSteps: 2, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, RNG: NV, Model hash: 0123456789, Model: other"
)


def test_what_gives_another_picture_is_refused_at_once(server: CogServer) -> None:
    reply = ask(server, {"generation_data": f"{OTHER}, Denoising strength: 0.5, Hires upscaler: 4x-UltraSharp"})
    assert reply.body["status"] == "failed"
    (told,) = reasons(reply.body)
    for words in ("generation_data=", "made with the checkpoint other (0123456789)", "4x-UltraSharp", "Strict: False"):
        assert words in told
    assert "Plan:" not in reply.body["logs"]
    assert len(reply.body["metrics"]["not_honoured"]) == 3


def test_it_is_drawn_all_the_same_if_strict_is_off(server: CogServer) -> None:
    result = draw(server, {"generation_data": f"{OTHER}, Strict: False"})
    assert [re.sub(r"\(.*?\)", "()", told) for told in result["metrics"]["not_honoured"]] == [
        "made with the checkpoint other (); this model is pastel-tiny ()",
        "apparently made with the checkpoint's own VAE; this VAE is pastel-tiny-better.vae.safetensors ()",
    ]
    assert "Not honoured: made with the checkpoint other" in result["logs"]
    assert picture(result["output"][0]).size == (64, 64)


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ("a cat\nSteps: many, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64", "Steps must be a whole number"),
        ("a cat\nSteps: 900, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64", "generation_data='Steps: 900'"),
    ],
)
def test_a_block_that_cannot_be_drawn_names_the_value(server: CogServer, block: str, told: str) -> None:
    reply = ask(server, {"generation_data": block})
    assert told in " ".join(reasons(reply.body))


def test_an_upscaler_file_that_is_none_is_refused(server: CogServer) -> None:
    weights = "data:application/octet-stream;base64,AAAA"
    reply = ask(server, HIRES | {"files": [weights]})
    assert reply.body["status"] == "failed"
    assert "files='file.bin': " in " ".join(reasons(reply.body))


def test_an_upscaler_of_ones_own_draws_and_brings_its_picture_back(server: CogServer) -> None:
    weights = data_uri(ESRGAN)
    first = draw(server, HIRES | {"files": [weights], "denoising_strength": 0.3})["output"]
    text = parameters(picture(first[0]))
    assert picture(first[0]).size == (128, 128)
    assert "Hires upscaler: file," in text
    named = text.replace("Hires upscaler: file", "Hires upscaler: 4x-Tiny")
    again = draw(server, {"generation_data": named, "files": [weights]})["output"]
    assert "Hires upscaler: 4x-Tiny," in parameters(picture(again[0]))
    assert np.array_equal(np.asarray(picture(first[0])), np.asarray(picture(again[0])))

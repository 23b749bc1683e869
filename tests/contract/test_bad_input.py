"""Every bad input gets a 422 or one error with field, value, rule and fix, and does not affect the next prediction."""

from collections.abc import Iterator
from typing import Any

import pytest

from script.cog_server import CogServer, Reply, reasons
from tests.contract.pictures import DRAFT, HIRES, ask, draw, parameters, picture


@pytest.fixture(scope="module", autouse=True)
def the_last_one_is_unaffected(shared_server: CogServer) -> Iterator[None]:
    """Those that are drawn show it of what came before them."""
    yield
    draw(shared_server, DRAFT)


@pytest.fixture
def the_next_one_is_unaffected(server: CogServer) -> Iterator[None]:
    yield
    draw(server, DRAFT | {"num_inference_steps": 1})


@pytest.mark.parametrize(
    ("inputs", "fields"),
    [
        ({"width": 63}, ["width"]),
        ({"height": 2049}, ["height"]),
        ({"width": "wide"}, ["width"]),
        ({"width": [128]}, ["width"]),
        ({"width": 128.5}, ["width"]),
        ({"num_outputs": 5}, ["num_outputs"]),
        ({"num_inference_steps": 0}, ["num_inference_steps"]),
        ({"guidance_scale": 0.5}, ["guidance_scale"]),
        ({"seed": -2}, ["seed"]),
        ({"seed": 2**32}, ["seed"]),
        ({"sampler": "euler ancestral"}, ["sampler"]),
        ({"highres_fix": "yes"}, ["highres_fix"]),
        ({"hires": "yes"}, ["hires"]),
        ({"prompt": None}, ["prompt"]),
        ({"prompt": 7}, ["prompt"]),
        ({"prompt": "x" * 100_000}, ["prompt"]),
        ({"output_format": "bmp", "hires_scale": 5, "clip_skip": 0}, ["clip_skip", "hires_scale", "output_format"]),
    ],
)
def test_the_schema_lists_every_field_that_is_wrong(
    server: CogServer, inputs: dict[str, Any], fields: list[str]
) -> None:
    reply = ask(server, DRAFT | inputs)
    assert reply.status == 422
    assert sorted(reason.partition(":")[0] for reason in reasons(reply.body)) == fields


@pytest.mark.usefixtures("the_next_one_is_unaffected")
@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (HIRES | {"width": 2048, "height": 2048, "hires_scale": 4}, ["hires_scale", "fit"]),
        (HIRES | {"denoising_strength": 0}, ["denoising_strength", "turn highres_fix off"]),
        (DRAFT | {"prompt": "a\0b"}, ["prompt", "NUL"]),
        (DRAFT | {"outpaint": "64 px at the right"}, ["outpaint='64 px at the right'", "right 64, top 32"]),
        (DRAFT | {"generation_data": "ENDS: 31337"}, ["generation_data='ENDS: 31337'", "Did you mean ENSD?"]),
        (DRAFT | {"files": ["/etc/hostname"]}, ["files='/etc/hostname'", "must be a file", "https URL"]),
    ],
)
def test_the_request_names_field_rule_and_fix(server: CogServer, inputs: dict[str, Any], words: list[str]) -> None:
    reply = ask(server, inputs)
    told = " ".join(reasons(reply.body))
    assert reply.status == 422 or reply.body["status"] == "failed"
    assert [word for word in words if word not in told] == [], told


@pytest.mark.usefixtures("the_next_one_is_unaffected")
def test_too_many_pixels_are_refused_before_anything_is_planned(server: CogServer) -> None:
    reply = ask(server, HIRES | {"width": 2048, "height": 2048})
    assert reply.body["status"] == "failed"
    assert "Plan:" not in reply.body["logs"]


def test_nan_is_no_number(server: CogServer) -> None:
    reply: Reply = ask(server, DRAFT | {"guidance_scale": float("nan")})
    assert reply.status in (400, 422)


@pytest.mark.parametrize(
    "prompt", ["", " ", "\U0001f305 \u5348\u5f8c\u306e\u6d77 \u00e9", "((((", "[a:b", "a:::1.5)", "BREAK AND"]
)
def test_odd_prompts_are_drawn(server: CogServer, prompt: str) -> None:
    (uri,) = draw(server, DRAFT | {"prompt": prompt, "negative_prompt": prompt})["output"]
    assert picture(uri).size == (64, 64)


def test_whole_floats_and_sizes_between_multiples_of_eight(server: CogServer) -> None:
    done = draw(server, DRAFT | {"width": 64.0, "height": 71, "num_inference_steps": 2.0})
    (uri,) = done["output"]
    assert picture(uri).size == (64, 64)
    assert "71" in done["logs"], "that the size was floored is said"
    assert "Steps: 2," in parameters(picture(uri))


def test_unknown_fields_are_ignored(server: CogServer) -> None:
    """Cog drops them; our own client of a local server does not send any."""
    reply = server.request("POST", "/predictions", {"input": DRAFT | {"colour": "pink"}})
    assert reply.body["status"] == "succeeded"

"""Each rule of the published contract, on schemas of one or two inputs; and what a released client sends."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from pipelines.ask.inputs import Inputs
from pipelines.ask.request import SETTINGS, GenerationRequest, HiresSettings
from pipelines.infotext.asked import read_data, request_from, settle
from script.compatibility import compatibility_problems, inputs
from script.schema import COMMITTED, ROOT
from weights_script.manifest import load_manifest

PUBLISHED = json.loads((ROOT / "tests" / "data" / "published_schema.json").read_text(encoding="utf-8"))
OLD_DEFAULTS = {name: field["default"] for name, field in inputs(PUBLISHED).items() if field.get("default") is not None}
"""What a client of 0.1.0 sends that fills every input with its default."""


def contract(
    required: tuple[str, ...] = (), output: str = "string", choices: tuple[str, ...] = (), **inputs: dict[str, Any]
) -> dict[str, Any]:
    components: dict[str, Any] = {
        "Input": {"properties": inputs, "required": list(required)},
        "Output": {"type": output},
    }
    if choices:
        components["Input"]["properties"]["sampler"] = {"allOf": [{"$ref": "#/components/schemas/sampler"}]}
        components["sampler"] = {"enum": list(choices), "type": "string"}
    return {"components": {"schemas": components}, "paths": {"/predictions": {"post": {}}}}


STEPS = {"type": "integer", "minimum": 1, "maximum": 150}


@pytest.mark.parametrize(
    ("old", "new", "problems"),
    [
        (contract(steps=STEPS), contract(), ["steps: input removed that was not deprecated"]),
        (
            contract(steps=STEPS),
            contract(steps=STEPS | {"deprecated": True, "default": 20}),
            ["steps: deprecated, but acts when it is left out"],
        ),
        (contract(), contract(("steps",), steps=STEPS), ["steps: new input without a default"]),
        (contract(steps=STEPS), contract(("steps",), steps=STEPS), ["steps: default removed"]),
        (
            contract(steps=STEPS),
            contract(steps=STEPS | {"type": "number"}),
            ["steps: type changed from integer to number"],
        ),
        (contract(steps=STEPS), contract(steps=STEPS | {"minimum": 2}), ["steps: minimum raised"]),
        (contract(steps=STEPS), contract(steps=STEPS | {"maximum": 100}), ["steps: maximum lowered"]),
        (
            contract(steps={"type": "integer"}),
            contract(steps=STEPS),
            ["steps: maximum lowered", "steps: minimum raised"],
        ),
        (contract(t={"type": "string"}), contract(t={"type": "string", "maxLength": 9}), ["t: maxLength lowered"]),
        (contract(t={"type": "string"}), contract(t={"type": "string", "pattern": "a"}), ["t: pattern changed"]),
        (
            contract(s={"type": "integer", "nullable": True}),
            contract(s={"type": "integer"}),
            ["s: null is refused now"],
        ),
        (contract(choices=("a", "b")), contract(choices=("b", "c")), ["sampler: choice 'a' removed"]),
        (contract(sampler={"type": "string"}), contract(choices=("a",)), ["sampler: limited to choices now"]),
        (contract(), contract(output="array"), ["the output's type changed"]),
    ],
)
def test_a_broken_promise_is_named(old: dict[str, Any], new: dict[str, Any], problems: list[str]) -> None:
    assert compatibility_problems(old, new) == problems


def test_streaming_may_not_be_removed() -> None:
    streaming = contract()
    streaming["paths"]["/predictions"]["post"]["x-cog-streaming"] = True
    assert compatibility_problems(streaming, contract()) == ["streaming removed"]
    assert compatibility_problems(contract(), streaming) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (contract(steps=STEPS), contract(steps=STEPS)),
        (contract(steps=STEPS), contract(steps=STEPS, more={"type": "integer", "default": 1})),
        (
            contract(steps=STEPS),
            contract(steps=STEPS | {"minimum": 0, "maximum": 200, "default": 5, "description": "x"}),
        ),
        (contract(steps=STEPS), contract(steps={"type": "integer"})),
        (contract(choices=("a",)), contract(choices=("b", "a"))),
        (contract(choices=("a",)), contract(sampler={"type": "string"})),
        (contract(s={"type": "integer"}), contract(s={"type": "integer", "nullable": True})),
        (contract(steps=STEPS), contract(steps=STEPS | {"deprecated": True, "nullable": True})),
        (contract(steps=STEPS | {"deprecated": True}), contract()),
    ],
)
def test_what_widens_the_contract_is_allowed(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert compatibility_problems(old, new) == []


def test_the_published_contract_still_holds() -> None:
    assert compatibility_problems(PUBLISHED, json.loads(COMMITTED.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("name", OLD_DEFAULTS)
def test_what_a_released_client_sends_is_still_accepted(name: str) -> None:
    field = inputs(json.loads(COMMITTED.read_text(encoding="utf-8")))[name]
    rules = {key: rule for key, rule in field.items() if key != "allOf"}
    assert list(Draft202012Validator(rules).iter_errors(OLD_DEFAULTS[name])) == []


def test_what_a_released_client_sends_means_what_it_meant() -> None:
    """Also for a model that would do otherwise where nothing is said."""
    model = load_manifest()["pastel-mix"]
    own = {"width": model.width, "height": model.height, **model.settings}
    settings = {name: value for name, value in OLD_DEFAULTS.items() if name in SETTINGS and name != "num_outputs"}
    request = request_from(settle(Inputs(**settings, seed=1), read_data(""), own))
    assert request == GenerationRequest(
        prompt=OLD_DEFAULTS["prompt"],
        negative_prompt=OLD_DEFAULTS["negative_prompt"],
        width=448,
        height=640,
        seed=1,
        clip_skip=1,
        hires=HiresSettings(),
    )

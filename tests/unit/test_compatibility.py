"""Each rule of the published contract, on schemas of one or two inputs."""

from typing import Any

import pytest

from script.compatibility import compatibility_problems


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
        (contract(steps=STEPS), contract(), ["steps: input removed"]),
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
    ],
)
def test_what_widens_the_contract_is_allowed(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert compatibility_problems(old, new) == []

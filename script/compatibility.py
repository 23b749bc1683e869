"""Find changes of the committed schema that would break clients of the published one.

An input is removed over two releases: the first deprecates it, which hides it from forms; the next may remove it.
Whatever clients of the published schema may send stays valid, including its defaults. The meaning of an omitted input
may change; CHANGELOG.md says so.
"""

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

LOWER_BOUNDS = ("minimum", "minLength")
UPPER_BOUNDS = ("maximum", "maxLength")


def compatibility_problems(old: Json, new: Json) -> list[str]:
    """Return one line for each way in which a request or reply valid under `old` is no longer valid under `new`."""
    published, current = inputs(old), inputs(new)
    gone = [name for name, field in published.items() if name not in current and not field.get("deprecated")]
    problems = [f"{name}: input removed that was not deprecated" for name in gone]
    for name in sorted(required(new) - required(old)):
        problems.append(f"{name}: " + ("default removed" if name in published else "new input without a default"))
    for name in published.keys() & current.keys():
        problems += [f"{name}: {problem}" for problem in field_problems(published[name], current[name])]
    if old["components"]["schemas"]["Output"] != new["components"]["schemas"]["Output"]:
        problems.append("the output's type changed")
    if streams(old) and not streams(new):
        problems.append("streaming removed")
    return sorted(problems)


def inputs(schema: Json, component: str = "Input") -> dict[str, Json]:
    """Return every input in the form's order, with references to choices replaced by the choices."""
    components = schema["components"]["schemas"]
    properties: dict[str, Json] = components[component]["properties"]
    in_order = sorted(properties.items(), key=lambda item: item[1].get("x-order", 0))
    return {name: (components[name] if "allOf" in field else {}) | field for name, field in in_order}


def required(schema: Json) -> set[str]:
    return set(schema["components"]["schemas"]["Input"].get("required", []))


def streams(schema: Json) -> bool:
    return "x-cog-streaming" in schema["paths"]["/predictions"]["post"]


def field_problems(old: Json, new: Json) -> Iterator[str]:
    if any(old.get(key) != new.get(key) for key in ("type", "format", "items")):
        yield f"type changed from {old['type']} to {new['type']}"
    if old.get("nullable") and not new.get("nullable"):
        yield "null is refused now"
    if new.get("pattern") not in (None, old.get("pattern")):
        yield "pattern changed"
    if new.get("deprecated") and new.get("default") is not None:
        yield "deprecated, but acts when it is left out"
    yield from choice_problems(old.get("enum"), new.get("enum"))
    yield from (f"{key} raised" for key in LOWER_BOUNDS if tighter(old.get(key), new.get(key), 1))
    yield from (f"{key} lowered" for key in UPPER_BOUNDS if tighter(old.get(key), new.get(key), -1))


def choice_problems(old: list[Any] | None, new: list[Any] | None) -> Iterator[str]:
    if old is None and new is not None:
        yield "limited to choices now"
    for choice in old or []:
        if new is not None and choice not in new:
            yield f"choice {choice!r} removed"


def tighter(old: float | None, new: float | None, direction: int) -> bool:
    """Return whether the bound moved in `direction`, or is new."""
    return new is not None and (old is None or (new - old) * direction > 0)

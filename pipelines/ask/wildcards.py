"""Dynamic prompts: `{red|blue}` and `__colour__` in a text are replaced by one of their options, chosen by the seed.

The syntax is a part of what the extension sd-dynamic-prompts documents: options with weights, several options at once,
wildcards, and any of these nested. The package dynamicprompts would do this, but its last release was in 2024 and it
depends on two parser libraries.

A tag such as `<lora:my__style__v2:0.8>` stays in one piece: nothing inside it is an option or a wildcard.
"""

import re
from collections.abc import Mapping
from random import Random

from pipelines.ask.prompt import NETWORK
from pipelines.errors import InvalidInput

LEVELS = 10
"""How deeply wildcards may refer to other wildcards."""
BRACES_MAX = 50
"""How deeply braces may be nested. Each level is another search of the whole text."""
PICKS_MAX = 100
"""How many options one pair of braces may pick. Each is drawn from all that are left."""
LENGTH_MAX = 200_000
"""Limit for the characters of a text after its wildcards are replaced by their options."""

# Possessive quantifiers (`*+`): with plain ones, a long row of spaces is tried in every division, which can take hours.
_LINE = re.compile(r"\s*+wildcard\s++([^:\s]*+)\s*+:", re.IGNORECASE)
_WILDCARD = re.compile(r"__([\w/.-]+?)__")
_VARIABLE = re.compile(r"(?<!\$)\$\{[^{}]*\}?")
_INNERMOST = re.compile(r"\{([^{}]*)\}")
_SEVERAL = re.compile(r"\s*+(\d{0,4}+)\s*+(-?+)\s*+(\d{0,4}+)\s*+\$\$(?:(.*?)\$\$)?(.*)", re.DOTALL)
"""`2$$`, `1-3$$`, `-3$$` or `2-$$`, then an optional separator such as ` and $$`, then the options."""
_WEIGHTED = re.compile(r"\s*+(\d{1,6}(?:\.\d{1,6})?|\.\d{1,6})\s*+::(.*)", re.DOTALL)
_HIDDEN = re.compile("\0([0-9]+)\0")
"""Placeholder for a tag while options are picked. Requests that contain NUL themselves are refused."""


def lift_wildcards(text: str) -> tuple[str, dict[str, str]]:
    """Remove lines such as `Wildcard colour: red | blue` from a text. Return the rest and each wildcard's options.

    Raises InvalidInput for a line that cannot be read and for a second one of the same name.
    """
    wildcards: dict[str, str] = {}
    kept = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            kept.append(line)
            continue
        name, options = match[1], line[match.end() :].strip()
        if not options or not _WILDCARD.fullmatch(f"__{name}__"):
            rule = "a wildcard line needs a name and options"
            raise InvalidInput("generation_data", line, rule, "Write Wildcard colour: red | blue.")
        if name in wildcards:
            raise InvalidInput("generation_data", f"Wildcard {name}", "there are two lines of this name", "Join them.")
        wildcards[name] = options
    return ("\n".join(kept), wildcards) if wildcards else (text, {})


def with_picks(prompts: Mapping[str, str], wildcards: Mapping[str, str], seed: int) -> dict[str, str]:
    """Return the prompts, keyed by setting, with options picked by the seed. Raises InvalidInput."""
    return {name: resolve(name, prompt, wildcards, seed) for name, prompt in prompts.items()}


def resolve(field: str, text: str, wildcards: Mapping[str, str], seed: int) -> str:
    """Return the text with options picked. The same seed always picks the same. Raises InvalidInput for `field`.

    The prompts of both passes pick alike, so that equal texts stay equal.
    """
    random = Random(f"{seed} {field.removeprefix('hires_')}")
    tags = _Tags()
    hidden = {name: tags.hidden(options) for name, options in wildcards.items()}
    try:
        return tags.shown(_picked(field, _with_options(field, tags.hidden(text), hidden), random))
    except InvalidInput as error:
        raise InvalidInput(error.field, tags.shown(str(error.value)), error.rule, error.fix) from None


def options_of(text: str, wildcards: Mapping[str, str]) -> str:
    """Return everything that could be picked: the text and the options of every wildcard it can lead to."""
    tags = _Tags()
    found, pending = [text], _WILDCARD.findall(tags.hidden(text))
    seen = set[str]()
    while pending:
        name = pending.pop()
        if name in wildcards and name not in seen:
            seen.add(name)
            found.append(wildcards[name])
            pending += _WILDCARD.findall(tags.hidden(wildcards[name]))
    return "\n".join(found)


def _picked(field: str, text: str, random: Random) -> str:
    """Replace each pair of braces by one of its options, innermost first. Raises InvalidInput."""
    for _ in range(BRACES_MAX + 1):
        text, found = _INNERMOST.subn(lambda braces: _pick(field, braces[1], random), text)
        if not found:
            break
    else:
        raise InvalidInput(field, text, f"has braces nested more than {BRACES_MAX} deep", "Use fewer.")
    if "{" in text or "}" in text:
        raise InvalidInput(field, text, "has a { or } without its partner", "Close it, or turn off Dynamic prompts.")
    return text


class _Tags:
    """Keeps the tags of a text while its options are picked."""

    def __init__(self) -> None:
        self._tags: list[str] = []

    def hidden(self, text: str) -> str:
        """Return the text with a mark in place of each tag."""
        end = text.rfind(">") + 1  # there is no tag past the last ">", and searching there takes quadratic time
        return NETWORK.sub(self._hide, text[:end]) + text[end:]

    def _hide(self, tag: re.Match[str]) -> str:
        self._tags.append(tag[0])
        return f"\0{len(self._tags) - 1}\0"

    def shown(self, text: str) -> str:
        """Return the text with the tags restored."""
        return _HIDDEN.sub(lambda mark: self._tags[int(mark[1])] if int(mark[1]) < len(self._tags) else mark[0], text)


def _with_options(field: str, text: str, wildcards: Mapping[str, str]) -> str:
    """Replace every wildcard by its options in braces. A wildcard alone after `$$` is already inside braces."""

    def options(found: re.Match[str]) -> str:
        if found[1] not in wildcards:
            known = ", ".join(wildcards) or "none"
            raise InvalidInput(
                field, found[0], f"there is no such wildcard; available: {known}", "Add a line Wildcard NAME: a | b."
            )
        alone = _ends(text, found.start(), "$$") and _begins(text, found.end(), "}")
        return wildcards[found[1]] if alone else f"{{{wildcards[found[1]]}}}"

    for _ in range(LEVELS):
        if variable := _VARIABLE.search(text):
            raise InvalidInput(field, variable[0], "variables of dynamic prompts are not supported", "Write it out.")
        named = _WILDCARD.findall(text)
        if not named:
            return text
        if len(text) + sum(len(wildcards.get(name, "")) for name in named) > LENGTH_MAX:
            rule = f"has more than {LENGTH_MAX} characters once its wildcards are replaced by their options"
            raise InvalidInput(field, text, rule, "Use fewer wildcards.")
        text = _WILDCARD.sub(options, text)
    raise InvalidInput(field, text, f"wildcards are nested more than {LEVELS} deep", "Remove loops between them.")


def _ends(text: str, end: int, mark: str) -> bool:
    """Return whether the mark stands before this position, with only spaces in between."""
    while end and text[end - 1].isspace():
        end -= 1
    return text.endswith(mark, 0, end)


def _begins(text: str, start: int, mark: str) -> bool:
    """Return whether the mark follows this position, with only spaces in between."""
    while start < len(text) and text[start].isspace():
        start += 1
    return text.startswith(mark, start)


def _pick(field: str, body: str, random: Random) -> str:
    """Pick one of the options between two braces, or as many different ones as requested. Raises InvalidInput."""
    several = _SEVERAL.fullmatch(body)
    low, dash, high, between, listed = several.groups() if several else ("1", "", "", None, body)
    options = [_weighted(option) for option in listed.split("|")]
    least = int(low or 1)
    most = int(high or len(options)) if dash else least
    if min(max(least, most), len(options)) > PICKS_MAX:
        raise InvalidInput(field, f"{{{body}}}", f"picks more than {PICKS_MAX} at once", "Give a number: {2$$a|b|c}.")
    count = least + int(random.random() * (max(most - least, 0) + 1))
    picked = []
    for _ in range(min(count, len(options))):
        option = _drawn(options, random)
        options.remove(option)
        picked.append(option[1])
    return (", " if between is None else between).join(picked)


def _weighted(option: str) -> tuple[float, str]:
    """Split `0.5::red` or `red` into its weight (1 if there is none) and the text without surrounding spaces."""
    weighted = _WEIGHTED.fullmatch(option)
    return (float(weighted[1]), weighted[2].strip()) if weighted else (1.0, option.strip())


def _drawn(options: list[tuple[float, str]], random: Random) -> tuple[float, str]:
    """Draw an option by its weight. `random()` is the only method whose results Python promises not to change."""
    mark = random.random() * sum(weight for weight, _ in options)
    for option in options:
        mark -= option[0]
        if mark < 0:
            return option
    return options[-1]

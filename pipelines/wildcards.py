"""Dynamic prompts: `{red|blue}` and `__colour__` in a text become one of their options, by the seed.

The syntax is a part of what the extension sd-dynamic-prompts documents: options with weights, several options at once,
wildcards, and each inside the other. The package dynamicprompts, made for that, had its last release in 2024 and brings
two parsers along.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from random import Random

from pipelines.errors import InvalidInput
from pipelines.pasted import Parameters
from pipelines.request import random_seed

PROMPTS = ("prompt", "negative_prompt", "hires_prompt", "hires_negative_prompt")
LEVELS = 10
"""Wildcards that name wildcards, how deep."""
BRACES_MAX = 50
"""Braces in braces, how deep: each level is another search of the whole text."""
PICKS_MAX = 100
"""Options of one pair of braces at once: each is drawn from all that are left."""
LENGTH_MAX = 200_000
"""Characters of a text with the options of all its wildcards in it."""

_WILDCARD = re.compile(r"__([\w/.-]+?)__")
_VARIABLE = re.compile(r"(?<!\$)\$\{[^{}]*\}?")
_INNERMOST = re.compile(r"\{([^{}]*)\}")
_SEVERAL = re.compile(r"\s*(\d{0,4})(-?)(\d{0,4})\$\$(?:(.*?)\$\$)?(.*)", re.DOTALL)
"""`2$$`, `1-3$$`, `-3$$` or `2-$$`, then maybe ` and $$`, which stands between them, then the options."""
_WEIGHTED = re.compile(r"\s*(\d{1,6}(?:\.\d{1,6})?|\.\d{1,6})::(.*)", re.DOTALL)


def with_picks(data: Parameters, wildcards: str) -> Parameters:
    """The data with its prompts resolved by its seed; by a random one, which it then has, where it has none.

    Raises InvalidInput.
    """
    seed = random_seed() if data.seed is None or data.seed == -1 else data.seed
    known = read_wildcards(wildcards)
    prompts = {name: resolve(name, getattr(data, name), known, seed) for name in PROMPTS}
    return replace(data, seed=seed, **prompts)  # type: ignore[arg-type]


def read_wildcards(text: str) -> dict[str, str]:
    """A line `name: a | b | c` for each, as name -> `a | b | c`; empty lines and those after # are left out.

    Raises InvalidInput.
    """
    wildcards: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, options = (part.strip() for part in line.partition(":"))
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not colon or not options or not _WILDCARD.fullmatch(f"__{name}__"):
            raise InvalidInput("wildcards", line, "a line names a wildcard and its options", "Write name: a | b | c.")
        if name in wildcards:
            raise InvalidInput("wildcards", name, "there are two lines of that name", "Join them.")
        wildcards[name] = options
    return wildcards


def resolve(field: str, text: str, wildcards: Mapping[str, str], seed: int) -> str:
    """The text with its options picked; the same for the same seed. Raises InvalidInput that names the `field`.

    Prompts of the highres pass pick as those of the first pass do, so that the same text becomes the same.
    """
    random = Random(f"{seed} {field.removeprefix('hires_')}")
    text = _with_options(field, text, wildcards)
    for _ in range(BRACES_MAX + 1):
        text, found = _INNERMOST.subn(lambda braces: _pick(field, braces[1], random), text)
        if not found:
            break
    else:
        raise InvalidInput(field, text, f"has braces in braces, more than {BRACES_MAX} deep", "Write fewer.")
    if "{" in text or "}" in text:
        raise InvalidInput(field, text, "has a { or } without the other", "Close it, or turn dynamic_prompts off.")
    return text


def _with_options(field: str, text: str, wildcards: Mapping[str, str]) -> str:
    """The text with every wildcard as its options in braces; those alone after `$$` are in braces already."""

    def options(found: re.Match[str]) -> str:
        if found[1] not in wildcards:
            known = ", ".join(wildcards) or "none"
            raise InvalidInput(field, found[0], f"no such wildcard; those of wildcards are: {known}", "Add its line.")
        alone = text.endswith("$$", 0, found.start()) and text.startswith("}", found.end())
        return wildcards[found[1]] if alone else f"{{{wildcards[found[1]]}}}"

    for _ in range(LEVELS):
        if variable := _VARIABLE.search(text):
            raise InvalidInput(field, variable[0], "variables of dynamic prompts are not known here", "Write it out.")
        named = _WILDCARD.findall(text)
        if not named:
            return text
        if len(text) + sum(len(wildcards.get(name, "")) for name in named) > LENGTH_MAX:
            rule = f"with the options of its wildcards it has more than {LENGTH_MAX} characters"
            raise InvalidInput(field, text, rule, "Use fewer of them.")
        text = _WILDCARD.sub(options, text)
    raise InvalidInput(field, text, f"wildcards name each other more than {LEVELS} deep", "Let none come to itself.")


def _pick(field: str, body: str, random: Random) -> str:
    """What stands between two braces -> one option of it, or as many as it says, none twice. Raises InvalidInput."""
    several = _SEVERAL.fullmatch(body)
    low, dash, high, between, listed = several.groups() if several else ("1", "", "", None, body)
    options = [_weighted(option) for option in listed.split("|")]
    least = int(low or 1)
    most = int(high or len(options)) if dash else least
    if min(max(least, most), len(options)) > PICKS_MAX:
        raise InvalidInput(field, f"{{{body}}}", f"picks more than {PICKS_MAX} at once", "Say how many: {2$$a|b|c}.")
    count = least + int(random.random() * (max(most - least, 0) + 1))
    picked = []
    for _ in range(min(count, len(options))):
        option = _drawn(options, random)
        options.remove(option)
        picked.append(option[1])
    return (", " if between is None else between).join(picked)


def _weighted(option: str) -> tuple[float, str]:
    """`0.5::red` or `red`: weight and text, without spaces around it."""
    weighted = _WEIGHTED.fullmatch(option)
    return (float(weighted[1]), weighted[2].strip()) if weighted else (1.0, option.strip())


def _drawn(options: list[tuple[float, str]], random: Random) -> tuple[float, str]:
    """One option by its weight. Of `random` only random() is used: of it alone Python promises the same for ever."""
    mark = random.random() * sum(weight for weight, _ in options)
    for option in options:
        mark -= option[0]
        if mark < 0:
            return option
    return options[-1]

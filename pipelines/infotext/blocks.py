"""Pasted text -> one block in the form that WebUI's parser understands (`syntax.parse`), and the text around it."""

import json
import re
from dataclasses import dataclass, field

from pipelines.infotext.keys import SETTING_KEYS, own_key
from pipelines.infotext.syntax import NEGATIVE, fields_of


@dataclass(frozen=True)
class Pasted:
    """A text whose parameters are one line at its end."""

    text: str
    lines_below: tuple[str, ...] = ()
    """The lines that were below the parameters."""
    lifted: dict[str, object] = field(default_factory=dict[str, object])
    """JSON values that were taken out, by key. WebUI's parser would split them at their commas."""


_BEGINNING = re.compile(r"\A\s*(?:parameters\s*(?::|\n)\s*)?(?:(?:positive[ _])?prompt:[ \t]*)?", re.IGNORECASE)
"""What programs that show a picture's data put before the prompt."""
_NEGATIVE_LINE = re.compile(r"^[ \t\xa0]*negative[ _\xa0]?prompt[ \xa0]*:", re.IGNORECASE | re.MULTILINE)
_PARAMETER_LINE = re.compile(r"^[ \t]*(?=Steps:[ \xa0]*\d+[ \xa0]*,)", re.MULTILINE)
_PIPED_LINE = re.compile(r"^Steps: ?\d+ ?\|.*$", re.MULTILINE)
"""Parameters in the form of SD.Next's log."""
_INLINE = re.compile(r"(?<=\S)\s+(?=Steps: ?\d+ ?, ?(?:Sampler|Schedule type|CFG scale|Guidance Scale|Seed|Size):)")
_INLINE_NEGATIVE = re.compile(r"(?<=\S)\s+negative[ _\xa0]?prompt[ \xa0]*:", re.IGNORECASE)


def has_parameters(text: str) -> bool:
    """Return whether the text has a line of parameters, as a whole block has."""
    return "Seed:" in text and any(line.search(text) for line in (_PARAMETER_LINE, _INLINE))


def pasted(text: str) -> Pasted:
    """Rewrite a block so that its parameters are one line at the end, and take JSON values out of that line.

    People paste what a browser or a log shows: wrapped lines, no line breaks at all, notes below, no-break spaces.
    """
    text = _BEGINNING.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _NEGATIVE_LINE.sub(NEGATIVE, text)
    text = _PIPED_LINE.sub(lambda line: line[0].replace("|", ","), text)
    start, text = _start_of_parameters(text)
    if start is None:
        return _without_json(text, ())
    lines = text[start:].replace("\xa0", " ").split("\n")
    count = 1
    while count < len(lines) and (lines[count - 1].rstrip().endswith(",") or _goes_on(lines[count])):
        count += 1
    line = lines[0] if count == 1 else ", ".join(part.strip(" ,\t") for part in lines[:count])
    return _without_json(text[:start] + line, tuple(filter(str.strip, lines[count:])))


def _start_of_parameters(text: str) -> tuple[int | None, str]:
    """Find the last line of parameters. Return where it begins (None if there is none) and the text.

    In the returned text the parameters are on a line of their own.
    """
    starts = [match.end() for match in _PARAMETER_LINE.finditer(text)]
    if not starts and (match := next(iter(_INLINE.finditer(text)), None)):
        text = _INLINE_NEGATIVE.sub(f"\n{NEGATIVE}", text[: match.start()]) + "\n" + text[match.end() :]
        starts = [text.rindex("\nSteps:") + 1]
    return (starts[-1] if starts else None), text


def _goes_on(line: str) -> bool:
    """Return whether a line below the parameters continues them, which it does if it begins with a known key."""
    key = next(iter(fields_of(line[:200])), "")
    return own_key(key) not in (None, "Prompt", "Negative prompt") and line.lstrip().startswith(key)


_JSON_FIELD = re.compile(
    r'(?<=:)\s*"(?:\\.|[^\\"])*+"(?=\s*(?:,|$))'
    r'|(?<![\w \-/])[ \-/]*(\w[\w \-/]+):\s*(?=\[\s*[\[{"]|\[\]|\{\s*["}])'
)
"""A quoted value, in which nothing is a field, or the key of a JSON value."""
_DECODER = json.JSONDecoder()


def _without_json(text: str, below: tuple[str, ...]) -> Pasted:
    """Take JSON values, such as CivitAI's `Hashes: {...}`, out of the last line."""
    start = text.rstrip().rfind("\n") + 1
    kept, lifted, position = [text[:start]], dict[str, object](), start
    for match in _JSON_FIELD.finditer(text, start):
        if match.start() < position or match[1] is None:  # inside the last value, or a quoted one
            continue
        if own_key(match[1]) in SETTING_KEYS:  # plain text
            continue
        try:
            value, end = _DECODER.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            continue
        lifted[match[1]] = value
        kept.append(text[position : match.start()].rstrip(" ,"))
        position = end
    return Pasted("".join([*kept, text[position:]]), below, lifted)

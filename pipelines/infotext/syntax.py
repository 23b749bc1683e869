"""Infotext: WebUI's generation parameters as text, written and parsed as in WebUI 1.10.1.

    a prompt
    Negative prompt: what to keep out of the picture
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512

`parse` returns what WebUI's parser returns; `reading.py` turns that into typed values and handles other programs.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipelines.ask.prompt import parse_attention

NEGATIVE = "Negative prompt:"

# --- writing ----------------------------------------------------------------------------------------------------------


def quote(value: object) -> str:
    """Return the value as text, JSON-quoted if it contains a comma, a colon or a newline."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def unquote(text: str) -> str:
    """Undo `quote`. Return text that is not a JSON string unchanged."""
    if len(text) < 2 or not (text.startswith('"') and text.endswith('"')):
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def write(prompt: str, negative_prompt: str, fields: Mapping[str, object]) -> str:
    """Write the infotext with `fields` in their order. Fields that are None are left out.

    WebUI's quoting does not preserve everything: spaces at the ends of a value, empty values and values that begin with
    a quotation mark are read back differently.
    """
    line = ", ".join(f"{key}: {quote(value)}" for key, value in fields.items() if value is not None)
    parts = [prompt, *([f"{NEGATIVE} {negative_prompt}"] if negative_prompt else []), line]
    return "\n".join(parts).strip()


# --- reading as WebUI does --------------------------------------------------------------------------------------------

# `key: value` up to a comma. A key must start at the beginning of a run of its characters; otherwise searching would
# take quadratic time.
_FIELD = re.compile(r'(?<![\w \-/])[ \-/]*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d+)x(\d+)")
_FEWEST_FIELDS = 3
"""If the last line has fewer fields, it is part of the prompt."""

Value = str | int | bool

DEFAULTS: dict[str, Value] = {
    "Clip skip": "1",
    "Hires resize-1": 0,
    "Hires resize-2": 0,
    "Hires sampler": "Use same sampler",
    "Hires schedule type": "Use same scheduler",
    "Hires checkpoint": "Use same checkpoint",
    "Hires prompt": "",
    "Hires negative prompt": "",
    "Mask mode": "Inpaint masked",
    "Masked content": "original",
    "Inpaint area": "Whole picture",
    "Masked area padding": 32,
    "RNG": "GPU",
    "Schedule type": "Automatic",
    "Schedule max sigma": 0,
    "Schedule min sigma": 0,
    "Schedule rho": 0,
    "VAE Encoder": "Full",
    "VAE Decoder": "Full",
    "FP8 weight": "Disable",
    "Refiner switch by sampling steps": False,
}
"""WebUI's values for keys that a block does not have."""

OLD_EDITING = "Old prompt editing timelines"
DOWNCAST = "Downcast alphas_cumprod"
BY_STEPS = "Refiner switch by sampling steps"

OLD_BEHAVIOUR: tuple[tuple[str, tuple[int, ...], Callable[[Mapping[str, Value]], bool]], ...] = (
    (OLD_EDITING, (1, 6, 0, 0), lambda fields: "[" in str(fields["Prompt"])),
    ("Pad conds v0", (1, 6, 0, 0), lambda fields: fields.get("Sampler") in ("DDIM", "PLMS")),
    (DOWNCAST, (1, 7, 0, 225), lambda fields: True),
    (BY_STEPS, (1, 8, 0, 0), lambda fields: bool(fields.get("Refiner"))),
)
"""The key that WebUI sets, the first version with the new behaviour, and the condition on the block."""


@dataclass(frozen=True)
class Block:
    """The three parts of an infotext. Values are unquoted and otherwise as written, in the order of the block."""

    prompt: str
    negative_prompt: str
    pairs: tuple[tuple[str, str], ...] = ()

    @property
    def fields(self) -> dict[str, str]:
        """The last value of each key, which is the one that WebUI uses."""
        return dict(self.pairs)


def fields_of(line: str) -> dict[str, str]:
    """Return the `key: value` pairs of one line, unquoted, in their order."""
    return {key: unquote(value.strip()) for key, value in _FIELD.findall(line) if value}


def rest_of(line: str) -> str:
    """Return the part of a line that is not in any `key: value` pair."""
    return _FIELD.sub("", line).strip(" ,")


def split(text: str) -> Block:
    """Split an infotext into its parts. The last line counts as fields if it has three or more. Never raises."""
    *lines, last = text.strip().split("\n")
    pairs: list[tuple[str, str]] = _FIELD.findall(last)
    if len(pairs) < _FEWEST_FIELDS:
        lines, pairs = [*lines, last], []
    texts: dict[bool, list[str]] = {False: [], True: []}
    negative = False
    for line in map(str.strip, lines):
        negative = negative or line.startswith(NEGATIVE)
        texts[negative].append(line.removeprefix(NEGATIVE).strip() if negative else line)
    prompt, negative_prompt = ("\n".join(texts[part]).lstrip("\n") for part in (False, True))
    return Block(prompt, negative_prompt, tuple((key, unquote(value)) for key, value in pairs if value))


def parse(text: str, *, auto_backcompat: bool = True) -> dict[str, Value]:
    """Parse an infotext as WebUI does: strings, sizes as two keys, defaults for absent keys. Never raises.

    `auto_backcompat` is WebUI's option of that name: it sets the keys that restore the behaviour of older versions.
    """
    block = split(text)
    parsed: dict[str, Value] = {}
    for key, value in block.fields.items():
        size = _SIZE.fullmatch(value)
        parsed |= {f"{key}-1": size[1], f"{key}-2": size[2]} if size else {key: value}
    parsed |= {"Prompt": block.prompt, "Negative prompt": block.negative_prompt}
    if "Hypernet" in parsed:  # before 2023 a hypernetwork was an option, not a tag
        parsed["Prompt"] = f"{block.prompt}<hypernet:{parsed['Hypernet']}:{parsed.get('Hypernet strength', '1.0')}>"
    if "Emphasis" not in parsed and _emphasizes(block):
        parsed["Emphasis"] = "Original"
    parsed = {**DEFAULTS, **parsed, **_first_pass_size(parsed)}
    if auto_backcompat and (version := version_of(str(parsed.get("Version", "")))):
        parsed |= {key: True for key, changed, applies in OLD_BEHAVIOUR if version < changed and applies(parsed)}
    return parsed


def _emphasizes(block: Block) -> bool:
    pieces = parse_attention(block.prompt) + parse_attention(block.negative_prompt)
    return any(weight != 1.0 and text != "BREAK" for text, weight in pieces)


def version_of(text: str) -> tuple[int, ...] | None:
    """Read `v1.7.0-225-g...` as three numbers and the commits since then. Return None for other programs' versions."""
    match = re.match(r"v?(\d{1,4})\.(\d{1,4})\.(\d{1,4})(?:-(\d{1,9})\b)?", text)
    return tuple(int(number or 0) for number in match.groups()) if match else None


def _first_pass_size(parsed: Mapping[str, Value]) -> dict[str, Value]:
    """Return today's keys for a block from before 2023, whose `Size` was the final size.

    A first pass of 0x0 had about 512 x 512 pixels, its sides rounded up to multiples of 64.
    """
    keys = ("First pass size-1", "First pass size-2", "Size-1", "Size-2")
    sides = [str(parsed.get(key, 512)) for key in keys]
    if keys[0] not in parsed or not all(re.fullmatch(r"\d{1,5}", side) for side in sides):
        return {}
    first_width, first_height, width, height = map(int, sides)
    if 0 in (first_width, first_height):
        scale = math.sqrt(512 * 512 / max(1, width * height))
        first_width, first_height = (math.ceil(scale * side / 64) * 64 for side in (width, height))
    return {"Size-1": first_width, "Size-2": first_height, "Hires resize-1": width, "Hires resize-2": height}

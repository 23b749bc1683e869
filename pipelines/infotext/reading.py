"""Generation data as people paste it -> settings.

`read` takes a whole block: of WebUI, its forks and old versions, or of another program (`programs.py`). It first makes
a block of the text that WebUI's parser understands (`syntax.parse`), then values of our settings from what that finds.
Nothing is lost silently: what is not understood is in `unknown`, `warnings` and `doubts`. `read_settings` takes single
settings, in the same words.
"""

import difflib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.ask.catalog import SAMPLERS
from pipelines.ask.request import ControlSettings
from pipelines.ask.settings import Setting, Values
from pipelines.ask.table import BY_KEY, PAIRS
from pipelines.errors import InvalidInput
from pipelines.infotext.blocks import has_parameters, pasted
from pipelines.infotext.civitai import Resource, add_hashes, resources
from pipelines.infotext.contradictions import hires_sizes, size_of, told_twice
from pipelines.infotext.control_lines import read_unit
from pipelines.infotext.dialects import in_our_words, program_of
from pipelines.infotext.keys import (
    CONTROL,
    FACTS,
    NAMES,
    SETTING_KEYS,
    asks_for_nothing,
    folded,
    own_key,
)
from pipelines.infotext.names import sampler_and_schedule, upscaler
from pipelines.infotext.programs import translated
from pipelines.infotext.syntax import (
    DOWNCAST,
    OLD_BEHAVIOUR,
    OLD_EDITING,
    Value,
    fields_of,
    parse,
    rest_of,
    split,
    unquote,
    version_of,
)


@dataclass(frozen=True, kw_only=True)
class GenerationData:
    """What a text of generation data says."""

    values: Values = field(default_factory=dict[str, Any])
    """Settings by name: only those that it says."""
    whole: bool = True
    """It is a block that describes a whole picture. What it does not say is then as WebUI would have it."""
    hires: bool = False
    """There is a denoising strength and at least one key of the hires pass."""
    model_hash: str | None = None
    model: str | None = None
    vae_hash: str | None = None
    vae: str | None = None
    version: str | None = None
    lora_hashes: Mapping[str, str] = field(default_factory=dict[str, str])
    ti_hashes: Mapping[str, str] = field(default_factory=dict[str, str])
    hypernetwork_hash: str = ""
    """Of the one hypernetwork of a block from before 2023, whose tag is at the end of the prompt."""
    networks: tuple[str, ...] = ()
    """Names of LoRAs, of which no hash is told."""
    resources: tuple[Resource, ...] = ()
    """Files of CivitAI."""
    controls: tuple[ControlSettings, ...] = ()
    """ControlNets, whose pictures no block holds."""
    wildcards: Mapping[str, str] = field(default_factory=dict[str, str])
    """Options of the wildcards that it defines, by name."""
    unknown: Mapping[str, str] = field(default_factory=dict[str, str])
    """Keys that ask for something and are no setting here."""
    program: str = ""
    """The program that wrote it, if it is another one than WebUI."""
    warnings: tuple[str, ...] = ()
    """What is done otherwise than the block says, and changes little or nothing."""
    doubts: tuple[str, ...] = ()
    """What makes the picture of these values another one than the block's."""

    @property
    def from_picture(self) -> bool:
        """Made from another picture: a denoising strength without a hires pass is that of a pass from one."""
        said = self.values
        alone = "denoising_strength" in said and not self.hires
        return alone or "hires_denoising_strength" in said or any(said.get("outpaint", ()))

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts in which networks may be named, by the settings that hold them."""
        names = ("prompt", "hires_prompt") if self.hires else ("prompt",)
        return {name: self.values.get(name, "") for name in names}


def _model_name(text: str) -> str | None:
    return None if text.casefold() in _NO_NAME else text


_NO_NAME = ("", "none", "automatic", "default", "default (model)", "baked vae", "built-in")
"""What programs write for the checkpoint's own VAE, and for a name that they do not know."""


def _hashes(text: str) -> dict[str, str]:
    """Split `name: hash, name: hash`. A name may hold colons."""
    triples = (entry.rpartition(":") for entry in text.split(","))
    return {name.strip(): digest.strip() for name, colon, digest in triples if colon}


def _listed(text: str) -> tuple[str, ...]:
    """Split `name, name`. Weights that follow the names are dropped."""
    return tuple(name.strip().partition(":")[0] for name in text.split(",") if name.strip())


_READ_FACT: dict[str, Callable[[str], object]] = {
    "version": str,
    "lora_hashes": _hashes,
    "ti_hashes": _hashes,
    "networks": _listed,
    "hypernetwork_hash": str,
}
"""How a fact is read; the others are names."""

_HIRES_KEYS = ("Hires upscale", "Hires resize", "Hires steps", "Hires upscaler")


def read(text: str) -> GenerationData:
    """Read a block as people paste it: from WebUI, its forks and old versions, CivitAI, or another program.

    Raises InvalidInput("generation_data", ...) that names the key for a value that cannot be read.
    """
    block = translated(text)
    paste = pasted(block.text if block else text)
    parsed, pairs = parse(paste.text), split(paste.text).pairs
    written = _with_size(_written(parsed, dict(pairs)))
    dialect = in_our_words(written, (block.program if block else "") or program_of(written))
    lifted = paste.lifted | _quoted_json(dialect.fields)
    fields = {key: value for key, value in dialect.fields.items() if key not in lifted}
    known = _known(fields)
    values = _values(known)
    facts, of_hashes = _facts(known, lifted.get("Hashes"))
    controls, of_controls, of_units = _controls(fields, values)
    data = GenerationData(
        values=values,
        hires="denoising_strength" in values and any(key in known for key in _HIRES_KEYS),
        controls=controls,
        unknown=_not_understood(fields, lifted, paste.lines_below),
        program=dialect.program,
        resources=(*of_hashes, *(resource for key in _RESOURCES for resource in resources(lifted.get(key)))),
        warnings=(*dialect.warnings, *_warnings(parsed, known), *_left_out(paste.lines_below), *of_controls),
        doubts=(*dialect.doubts, *of_units, *_doubts(parsed), *told_twice(pairs), *hires_sizes(values, written)),
        **facts,
    )
    if data.from_picture and "mask_blur" not in values:  # WebUI does not tell a blur of 0
        return replace(data, values={**values, "mask_blur": (0, 0)})
    return data


_RESOURCES = ("Civitai resources", "Resources", "resources")
"""Keys of JSON that lists files of CivitAI."""
_SHOWN = 200
"""Characters of a value that nobody here understands."""


def _facts(known: Mapping[str, str], hashes: object) -> tuple[dict[str, Any], list[Resource]]:
    """Return what made the picture, by attribute, and files of other kinds that the hashes name."""
    facts: dict[str, Any] = {}
    for key, name in FACTS.items():
        if key in known:
            facts[name] = _READ_FACT.get(name, _model_name)(known[key])
    others = list(add_hashes(facts, hashes))
    return {name: value for name, value in facts.items() if value is not None}, others


def _quoted_json(fields: Mapping[str, str]) -> dict[str, object]:
    """Return values that are JSON in quotation marks, by their keys."""
    found: dict[str, object] = {}
    for key in ("Hashes", *_RESOURCES):
        try:
            value = json.loads(fields.get(key, ""))
        except (ValueError, RecursionError):
            continue
        if isinstance(value, (dict, list)):
            found[key] = value
    return found


def _with_size(fields: dict[str, str]) -> dict[str, str]:
    """Add a size to the fields if its sides have keys of their own."""
    by_name = {folded(key): value for key, value in fields.items()}
    told = any(own_key(key) == "Size" for key in fields)
    if told or not {"width", "height"} <= by_name.keys():
        return fields
    return {**fields, "Size": f"{by_name['width']}x{by_name['height']}"}


def _written(parsed: Mapping[str, Value], written: Collection[str]) -> dict[str, str]:
    """Return what the block says, or implies by its version, without the defaults that WebUI's parser adds."""
    fields = _join_sizes(parsed)
    joined = (key.removesuffix("-1") for key in written)
    said = {*written, *joined, "Prompt", "Negative prompt", "Hires resize", OLD_EDITING, DOWNCAST}
    old = (version_of(fields.get("Version", "")) or NEVER) < EDITING_CHANGED
    if old and any("[" in fields.get(key, "") for key in EDITED):
        fields[OLD_EDITING] = "True"
    return {key: value for key, value in fields.items() if key in said}


EDITED = ("Prompt", "Negative prompt", "Hires prompt", "Hires negative prompt")
"""Texts in which a bracket may be an edit. WebUI looks for one in the prompt alone, but edited all by its old rules."""
NEVER = (99,)
"""The version of what has none: no old rules apply."""
EDITING_CHANGED = next(changed for key, changed, _ in OLD_BEHAVIOUR if key == OLD_EDITING)


def _known(fields: Mapping[str, str]) -> dict[str, str]:
    """Return the fields whose keys are understood, by our keys. Our own spelling wins over other programs' names."""
    known: dict[str, str] = {}
    for key in sorted(fields, key=lambda key: key in NAMES.values()):
        own = own_key(key)
        if own is not None:
            known[own] = fields[key]
    return known


def _values(known: Mapping[str, str]) -> dict[str, Any]:
    """Return settings by name. Raises InvalidInput for a value that cannot be read."""
    values: dict[str, Any] = {}
    for key, text in known.items():
        if key in PAIRS:
            values |= _pair(key, text)
        elif key in BY_KEY:
            values[BY_KEY[key].name] = _value(BY_KEY[key], text)
    if "eta" in values and known.get("Sampler") == "DDIM" and "Hires sampler" not in known:
        values.setdefault("eta_ddim", values.pop("eta"))  # before 1.6 WebUI had one key for both
    for prefix in ("", "hires_"):
        names = f"{prefix}sampler", f"{prefix}schedule_type"
        values |= zip(names, sampler_and_schedule(*map(values.get, names)), strict=True)
    values["hires_upscaler"] = upscaler(values.get("hires_upscaler"))
    return {name: value for name, value in values.items() if value is not None}


def _value(row: Setting, text: str) -> Any:
    try:
        return row.rule.read(text)
    except ValueError:
        raise _unreadable(row.key, text, row.rule.words) from None


def _pair(key: str, text: str) -> dict[str, int]:
    """Read width and height. 0x0 and -1x-1 say nothing."""
    sides = size_of(text)
    if sides is None:
        raise _unreadable(key, text, "two whole numbers, such as 512x768")
    return dict(zip(PAIRS[key], sides, strict=True)) if any(sides) else {}


def _unreadable(key: str, text: str, words: str) -> InvalidInput:
    return InvalidInput("generation_data", f"{key}: {text}", f"{key} must be {words}", "Correct it, or remove it.")


# --- single settings --------------------------------------------------------------------------------------------------


def holds_settings(text: str) -> bool:
    """Whether the text is single settings, and not a whole block: every line begins with `key:`, and there is neither a
    prompt nor the line of parameters that a block has."""
    lines = [line for line in text.splitlines() if line.strip()]
    whole = has_parameters(text) or translated(text) is not None
    return not whole and all(re.match(r"\s*\w[\w /()-]*:", line) for line in lines)


def read_settings(text: str) -> GenerationData:
    """Read single settings in the words of generation data, separated by commas or lines: `ENSD: 31337, RNG: CPU`.

    Raises InvalidInput for a key that is not understood.
    """
    fields: dict[str, str] = {}
    for line in filter(str.strip, text.splitlines()):
        fields |= _fields_of_line(line.strip())
    for key in fields:
        if own_key(key) not in SETTING_KEYS:  # what made a picture is no setting either
            raise _no_such_key(key, fields[key])
    values = _values(_known(fields))
    hires = "denoising_strength" in values and any(key in fields for key in _HIRES_KEYS)
    return GenerationData(values=values, whole=False, hires=hires)


def _fields_of_line(line: str) -> dict[str, str]:
    """Read the `key: value` pairs of a line. If there is one key, its value may hold commas without quotation marks."""
    fields = fields_of(line)
    if len(fields) == 1:
        (key,) = fields
        return {key: unquote(line.partition(":")[2].strip())}
    if rest := rest_of(line):
        fix = 'Write "key: value" between commas or one a line, and a value that holds commas in quotation marks.'
        raise InvalidInput("generation_data", rest, "belongs to no setting", fix)
    return fields


def _no_such_key(key: str, value: str) -> InvalidInput:
    names = {name: own for name, own in NAMES.items() if own in SETTING_KEYS}
    similar = [names[name] for name in difflib.get_close_matches(folded(key), names, n=3, cutoff=0.6)]
    fix = f"Did you mean {' or '.join(dict.fromkeys(similar))}?" if similar else "docs/inputs.md lists the settings."
    return InvalidInput("generation_data", f"{key}: {value}", f"there is no setting {key}", fix)


# --- what a block says beside its settings ----------------------------------------------------------------------------


def _controls(
    fields: Mapping[str, str], values: Values
) -> tuple[tuple[ControlSettings, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the ControlNets of a block, and warnings and doubts about them."""
    units, warnings, doubts = [], list[str](), list[str]()
    size = (values["width"], values["height"]) if "width" in values else None
    for key in sorted(filter(CONTROL.fullmatch, fields)):
        try:
            unit = read_unit(fields[key], size)
        except ValueError as error:
            rule = f"cannot be read as WebUI's extension writes it ({error})"
            raise InvalidInput("generation_data", f"{key}: {fields[key]}", rule, "Correct it, or remove it.") from None
        units.append(unit.settings)
        warnings += (f"{key}: {warning}" for warning in unit.warnings)
        doubts += (f"{key}: {doubt}" for doubt in unit.doubts)
    return tuple(units), tuple(warnings), tuple(doubts)


def _join_sizes(parsed: Mapping[str, Value]) -> dict[str, str]:
    """Join `Size-1` and `Size-2` to `Size: 512x512`. A size of 0x0 is dropped."""
    fields = {key: str(value).strip() for key, value in parsed.items()}
    for first in list(fields):
        key = first.removesuffix("-1")
        if key == first or f"{key}-2" not in fields:
            continue
        size = f"{fields.pop(first)}x{fields.pop(f'{key}-2')}"
        if size != "0x0":
            fields[key] = size
    return fields


def _not_understood(fields: dict[str, str], lifted: Mapping[str, object], below: Iterable[str]) -> dict[str, str]:
    """Return what asks for something and is no setting here: fields, JSON, and fields below the parameters."""
    said = dict(fields)
    for key, value in lifted.items():
        if key not in ("Hashes", *_RESOURCES):
            said[key] = json.dumps(value)[:_SHOWN]
    found: dict[str, str] = {}
    for key, text in said.items():
        read = own_key(key) is not None or CONTROL.fullmatch(key) is not None
        if not read and not asks_for_nothing(key, text, fields):
            found[key] = text
    for line in below:
        found |= _below(line)
    return found


def _below(line: str) -> dict[str, str]:
    """Return the fields of a line below the parameters if they ask for something. WebUI does not read them there."""
    fields = fields_of(line)
    first = next(iter(fields), None)
    if first is None or not line.lstrip().startswith(f"{first}:") or asks_for_nothing(first, fields[first], {}):
        return {}
    return fields


def _left_out(lines: Iterable[str]) -> Iterator[str]:
    if text := " ".join(" ".join(line for line in lines if not _below(line)).split()):
        yield f"{text!r} after the parameters is left out"


def _warnings(parsed: Mapping[str, Value], known: Mapping[str, str]) -> tuple[str, ...]:
    version = version_of(known.get("Version", "")) or NEVER
    hires = [key for key in _HIRES_KEYS if key in known]
    own_schedule = SAMPLERS[sampler].automatic if (sampler := known.get("Sampler", "")) in SAMPLERS else "Uniform"
    told = (
        (
            "Pad conds v0" in parsed,
            "the shorter prompt was padded in the way of before 1.6 (Pad conds v0), which is not done here",
        ),
        (
            version < (1, 9) and own_schedule != "Uniform",
            f"before 1.9 {sampler} without a suffix was Uniform; as in WebUI today {own_schedule} is used "
            "(schedule_type=Uniform brings the old one back)",
        ),
        (
            hires and "Denoising strength" not in known,
            f"{', '.join(hires)} without a Denoising strength: the hires pass stays off",
        ),
    )
    return tuple(warning for holds, warning in told if holds)


def _doubts(parsed: Mapping[str, Value]) -> Iterator[str]:
    if re.search(r"(?<![\w:])Steps: ?\d+, ", f"{parsed['Prompt']}\n{parsed['Negative prompt']}"):
        yield "Steps stand in the prompt: the line of parameters must be the last one, and in one piece"

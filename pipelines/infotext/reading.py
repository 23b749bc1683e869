"""Generation data as people paste it -> settings.

`read` takes a whole block from WebUI, its forks and old versions, or another program (`programs.py`). It first rewrites
the text into a block that WebUI's parser understands (`syntax.parse`), and then turns the parsed fields into settings.
Nothing is dropped silently: what is not understood ends up in `unknown`, `warnings` and `doubts`. `read_settings` takes
single settings in the same notation.
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
    BY_STEPS,
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
    """The contents of a text of generation data."""

    values: Values = field(default_factory=dict[str, Any])
    """Settings by name; only those that the text gives."""
    whole: bool = True
    """Whether it is a block that describes a whole picture. Settings that it lacks are then WebUI's defaults."""
    hires: bool = False
    """Whether there is a denoising strength and at least one key of the hires pass."""
    model_hash: str | None = None
    model: str | None = None
    vae_hash: str | None = None
    vae: str | None = None
    version: str | None = None
    lora_hashes: Mapping[str, str] = field(default_factory=dict[str, str])
    ti_hashes: Mapping[str, str] = field(default_factory=dict[str, str])
    hypernetwork_hash: str = ""
    """The hash of the only hypernetwork in a block from before 2023; its tag is at the end of the prompt."""
    networks: tuple[str, ...] = ()
    """Names of LoRAs that are given without a hash."""
    resources: tuple[Resource, ...] = ()
    """Files that CivitAI lists."""
    controls: tuple[ControlSettings, ...] = ()
    """ControlNets, without their pictures, which no block contains."""
    wildcards: Mapping[str, str] = field(default_factory=dict[str, str])
    """Options of the wildcards that the text defines, by name."""
    unknown: Mapping[str, str] = field(default_factory=dict[str, str])
    """Keys that may affect the picture but are not settings here."""
    program: str = ""
    """The program that wrote the text; empty for WebUI."""
    warnings: tuple[str, ...] = ()
    """Differences from what the block says that change little or nothing."""
    doubts: tuple[str, ...] = ()
    """Reasons why these values give a different picture than the block's."""

    @property
    def from_picture(self) -> bool:
        """Whether the picture was made from another one, as a denoising strength without a hires pass shows."""
        said = self.values
        alone = "denoising_strength" in said and not self.hires
        return alone or "hires_denoising_strength" in said or any(said.get("outpaint", ()))

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts that may name networks, by setting."""
        names = ("prompt", "hires_prompt") if self.hires else ("prompt",)
        return {name: self.values.get(name, "") for name in names}


def _model_name(text: str) -> str | None:
    return None if text.casefold() in _NO_NAME else text


_NO_NAME = ("", "none", "automatic", "default", "default (model)", "baked vae", "built-in")
"""What programs write for the checkpoint's own VAE or for an unknown name."""


def _hashes(text: str) -> dict[str, str]:
    """Split `name: hash, name: hash`. A name may contain colons."""
    triples = (entry.rpartition(":") for entry in text.split(","))
    return {name.strip(): digest.strip() for name, colon, digest in triples if colon}


def _listed(text: str) -> tuple[str, ...]:
    """Split `name, name`. Drop weights that follow the names."""
    return tuple(name.strip().partition(":")[0] for name in text.split(",") if name.strip())


_READ_FACT: dict[str, Callable[[str], object]] = {
    "version": str,
    "lora_hashes": _hashes,
    "ti_hashes": _hashes,
    "networks": _listed,
    "hypernetwork_hash": str,
}
"""How to read a fact. Facts that are not listed are names of models."""

_HIRES_KEYS = ("Hires upscale", "Hires resize", "Hires steps", "Hires upscaler")


def read(text: str) -> GenerationData:
    """Read a block as people paste it: from WebUI, its forks and old versions, CivitAI, or another program.

    Raises InvalidInput("generation_data", ...), which names the key, for a value that cannot be read.
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
    if data.from_picture and "mask_blur" not in values:  # WebUI does not write a blur of 0
        return replace(data, values={**values, "mask_blur": (0, 0)})
    return data


_RESOURCES = ("Civitai resources", "Resources", "resources")
"""Keys whose JSON value lists files of CivitAI."""
_SHOWN = 200
"""How many characters of an unknown value are kept."""


def _facts(known: Mapping[str, str], hashes: object) -> tuple[dict[str, Any], list[Resource]]:
    """Return what the picture was made with, by attribute, and files of other kinds that the hashes name."""
    facts: dict[str, Any] = {}
    for key, name in FACTS.items():
        if key in known:
            facts[name] = _READ_FACT.get(name, _model_name)(known[key])
    others = list(add_hashes(facts, hashes))
    return {name: value for name, value in facts.items() if value is not None}, others


def _quoted_json(fields: Mapping[str, str]) -> dict[str, object]:
    """Return values that are quoted JSON, by their keys."""
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
    """Add a size to the fields if width and height have keys of their own."""
    by_name = {folded(key): value for key, value in fields.items()}
    told = any(own_key(key) == "Size" for key in fields)
    if told or not {"width", "height"} <= by_name.keys():
        return fields
    return {**fields, "Size": f"{by_name['width']}x{by_name['height']}"}


def _written(parsed: Mapping[str, Value], written: Collection[str]) -> dict[str, str]:
    """Return what the block says or its version implies, without the defaults that WebUI's parser adds."""
    fields = _join_sizes(parsed)
    joined = (key.removesuffix("-1") for key in written)
    said = {*written, *joined, "Prompt", "Negative prompt", "Hires resize", OLD_EDITING, DOWNCAST}
    old = (version_of(fields.get("Version", "")) or NEVER) < EDITING_CHANGED
    if fields.get(BY_STEPS) == "True":  # said, or implied by the version; False is what the parser adds
        said.add(BY_STEPS)
    if old and any("[" in fields.get(key, "") for key in EDITED):
        fields[OLD_EDITING] = "True"
    return {key: value for key, value in fields.items() if key in said}


EDITED = ("Prompt", "Negative prompt", "Hires prompt", "Hires negative prompt")
"""Texts in which a bracket may be an edit. WebUI's parser checks only the prompt; its old rules applied to all four."""
NEVER = (99,)
"""Stands for the version of a block without one, so that no old rules apply."""
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
        values.setdefault("eta_ddim", values.pop("eta"))  # before 1.6 WebUI used one key for both
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
    """Read width and height. 0x0 and -1x-1 count as not given."""
    sides = size_of(text)
    if sides is None:
        raise _unreadable(key, text, "two whole numbers, such as 512x768")
    return dict(zip(PAIRS[key], sides, strict=True)) if any(sides) else {}


def _unreadable(key: str, text: str, words: str) -> InvalidInput:
    return InvalidInput("generation_data", f"{key}: {text}", f"{key} must be {words}", "Correct it, or remove it.")


# --- single settings --------------------------------------------------------------------------------------------------


def holds_settings(text: str) -> bool:
    """Return whether the text consists of single settings and is not a whole block.

    Every line then begins with `key:`, and there is neither a prompt nor a line of parameters.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    whole = has_parameters(text) or translated(text) is not None
    return not whole and all(re.match(r"\s*\w[\w /()-]*:", line) for line in lines)


def read_settings(text: str) -> GenerationData:
    """Read single settings in the notation of generation data, separated by commas or lines: `ENSD: 31337, RNG: CPU`.

    Raises InvalidInput for a key that is not understood.
    """
    fields: dict[str, str] = {}
    for line in filter(str.strip, text.splitlines()):
        fields |= _fields_of_line(line.strip())
    for key in fields:
        if own_key(key) not in SETTING_KEYS:  # facts such as the model are not settings either
            raise _no_such_key(key, fields[key])
    values = _values(_known(fields))
    hires = "denoising_strength" in values and any(key in fields for key in _HIRES_KEYS)
    return GenerationData(values=values, whole=False, hires=hires)


def _fields_of_line(line: str) -> dict[str, str]:
    """Read the `key: value` pairs of a line. If there is only one key, its value may contain unquoted commas."""
    fields = fields_of(line)
    if len(fields) == 1:
        (key,) = fields
        return {key: unquote(line.partition(":")[2].strip())}
    if rest := rest_of(line):
        fix = 'Write "key: value", separated by commas or one per line, and quote values that contain commas.'
        raise InvalidInput("generation_data", rest, "belongs to no setting", fix)
    return fields


def _no_such_key(key: str, value: str) -> InvalidInput:
    names = {name: own for name, own in NAMES.items() if own in SETTING_KEYS}
    similar = [names[name] for name in difflib.get_close_matches(folded(key), names, n=3, cutoff=0.6)]
    fix = f"Did you mean {' or '.join(dict.fromkeys(similar))}?" if similar else "docs/inputs.md lists the settings."
    if own_key(key) in ("Model", "Model hash"):
        fix = "The input model chooses one, by its name, title or hash."
    return InvalidInput("generation_data", f"{key}: {value}", f"there is no setting {key}", fix)


# --- what a block says besides its settings ---------------------------------------------------------------------------


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
    """Join `Size-1` and `Size-2` into `Size: 512x512`. Drop a size of 0x0."""
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
    """Return fields that may affect the picture but are not settings here, from the block, its JSON and below it."""
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
    """Return the fields of a line below the parameters if they may affect the picture. WebUI ignores such lines."""
    fields = fields_of(line)
    first = next(iter(fields), None)
    if first is None or not line.lstrip().startswith(f"{first}:") or asks_for_nothing(first, fields[first], {}):
        return {}
    return fields


def _left_out(lines: Iterable[str]) -> Iterator[str]:
    if text := " ".join(" ".join(line for line in lines if not _below(line)).split()):
        yield f"{text!r} after the parameters is ignored"


def _warnings(parsed: Mapping[str, Value], known: Mapping[str, str]) -> tuple[str, ...]:
    version = version_of(known.get("Version", "")) or NEVER
    hires = [key for key in _HIRES_KEYS if key in known]
    own_schedule = SAMPLERS[sampler].automatic if (sampler := known.get("Sampler", "")) in SAMPLERS else "Uniform"
    told = (
        (
            "Pad conds v0" in parsed,
            "the shorter prompt was padded as before WebUI 1.6 (Pad conds v0), which is not done here",
        ),
        (
            version < (1, 9) and own_schedule != "Uniform",
            f"before 1.9 {sampler} without a suffix meant Uniform; as in WebUI today, {own_schedule} is used "
            "(schedule_type=Uniform restores the old schedule)",
        ),
        (
            hires and "Denoising strength" not in known,
            f"{', '.join(hires)} without a Denoising strength: the hires pass stays off",
        ),
    )
    return tuple(warning for holds, warning in told if holds)


def _doubts(parsed: Mapping[str, Value]) -> Iterator[str]:
    if re.search(r"(?<![\w:])Steps: ?\d+, ", f"{parsed['Prompt']}\n{parsed['Negative prompt']}"):
        yield "the prompt contains Steps: the line of parameters must be the last line and in one piece"

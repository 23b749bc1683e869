"""Generation data as people paste it -> settings: WebUI's of all versions, Forge's, SD.Next's, CivitAI's.

`read` takes a whole block. It first makes a block of the text that WebUI's parser understands (`infotext.parse`), then
values of our settings from what that finds. Nothing is lost silently: what is not understood is in `unknown`,
`warnings` and `doubts`. `read_settings` takes single settings, in the same words.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.ask.catalog import SAMPLERS, SCHEDULE_TYPES, UPSCALERS
from pipelines.ask.request import ControlSettings
from pipelines.ask.settings import Setting, Values
from pipelines.ask.table import BY_KEY, PAIRS
from pipelines.errors import InvalidInput
from pipelines.infotext.control_lines import read_unit
from pipelines.infotext.syntax import (
    DEFAULTS,
    DOWNCAST,
    NEGATIVE,
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
    controls: tuple[ControlSettings, ...] = ()
    """ControlNets, whose pictures no block holds."""
    wildcards: Mapping[str, str] = field(default_factory=dict[str, str])
    """Options of the wildcards that it defines, by name."""
    unknown: Mapping[str, str] = field(default_factory=dict[str, str])
    """Keys that are not understood here and whose values are not WebUI's defaults."""
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
    return None if text.casefold() in ("", "none", "automatic") else text


def _hashes(text: str) -> dict[str, str]:
    """`name: hash, name: hash`; a name may hold colons."""
    triples = (entry.rpartition(":") for entry in text.split(","))
    return {name.strip(): digest.strip() for name, colon, digest in triples if colon}


_FACTS: dict[str, tuple[str, Callable[[str], object]]] = {
    "Model hash": ("model_hash", _model_name),
    "Model": ("model", _model_name),
    "VAE hash": ("vae_hash", _model_name),
    "VAE": ("vae", _model_name),
    "Version": ("version", str),
    "Lora hashes": ("lora_hashes", _hashes),
    "TI hashes": ("ti_hashes", _hashes),
    "Hypernet hash": ("hypernetwork_hash", str),
}
"""Keys that tell what made a picture, instead of setting something: the attribute, and how the value is read."""

_OTHER_NAMES: dict[str, str] = {
    "cfg": "CFG scale",
    "guidance scale": "CFG scale",
    "negative guidance minimum sigma": "NGMS",
    "img2img_fix_steps": "Exact steps",
    "eta noise seed delta": "ENSD",
    "module 1": "VAE",  # Forge
    "scheduler": "Schedule type",
    "subseed": "Variation seed",
    "subseed strength": "Variation seed strength",
}
"""Keys of other programs, in lower case. Ours match in any case, too."""
_NAMES = {key.casefold(): key for key in (*BY_KEY, *PAIRS, *_FACTS)} | _OTHER_NAMES

_WITHOUT_EFFECT = frozenset(
    {key for key, *_ in OLD_BEHAVIOUR if key not in BY_KEY}
    | {"Template", "Negative Template", "User", "Parser", "Time taken", "File includes", "Comment", "Wildcard prompt"}
    | {"Wildcard negative prompt", "First pass size", "Batch size", "Batch pos", "Batch", "Created Date", "App"}
    | {"Hypernet", "Hypernet strength", "Backend", "Pipeline", "Operations", "Second pass", "Hires force", "Hires size"}
)
"""Keys that are understood but ask for nothing: they repeat others or tell of the program."""

_CONTROL = re.compile(r"ControlNet \d+")
"""Keys of WebUI's extension, one for each unit."""

_NEUTRAL = {key: str(value) for key, value in DEFAULTS.items()} | {
    "Beta schedule alpha": "0.6",
    "Beta schedule beta": "0.6",
    "Hires Module 1": "Use same choices",  # Forge
    "Conditional mask weight": "1",  # written with every picture of an inpainting checkpoint
}
"""Values that ask for nothing."""
_OFF = frozenset(("false", "none", "disable", "disabled", "0", "0.0", ""))
"""Values that turn an unknown thing off, but for "Eta", where 0 is a choice."""

_HIRES_KEYS = ("Hires upscale", "Hires resize", "Hires steps", "Hires upscaler")


def read(text: str) -> GenerationData:
    """What a block says, as people paste it: from WebUI, Forge, SD.Next, CivitAI, or an old version.

    Raises InvalidInput("generation_data", ...) that names the key for a value that cannot be read.
    """
    text, left_out = _whole_block(text)
    text, resources = _lift_json(text)
    parsed = parse(text)
    fields = _written(parsed, split(text).fields)
    known = _known(fields)
    values = _values(known)
    hires = "denoising_strength" in values and any(key in known for key in _HIRES_KEYS)
    size = (values["width"], values["height"]) if "width" in values else None
    controls, of_controls, doubts = _controls(fields, size)
    warnings = _warnings(parsed, known) + ((f"{left_out!r} after the parameters is left out",) if left_out else ())
    facts = _facts(known, resources.get("Hashes"))
    data = GenerationData(
        values=values,
        hires=hires,
        controls=controls,
        unknown=_not_understood(fields),
        warnings=warnings + of_controls,
        doubts=doubts + _doubts(parsed, facts, resources),
        **facts,
    )
    if data.from_picture and "mask_blur" not in values:  # WebUI does not tell a blur of 0
        return replace(data, values={**values, "mask_blur": (0, 0)})
    return data


def _written(parsed: Mapping[str, Value], written: Iterable[str]) -> dict[str, str]:
    """What the block says, also by its version, without the defaults that WebUI's parser adds."""
    fields = _join_sizes(parsed)
    said = {*written, "Prompt", "Negative prompt", "Hires resize", OLD_EDITING, DOWNCAST}
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
    """The fields whose keys are understood, under our spelling. An exact name wins over other programs' names."""
    exact_last = sorted(fields, key=lambda key: key in _NAMES.values())
    return {_NAMES[key.casefold()]: fields[key] for key in exact_last if key.casefold() in _NAMES}


def _values(known: Mapping[str, str]) -> dict[str, Any]:
    """Settings by name. Raises InvalidInput for a value that cannot be read."""
    values: dict[str, Any] = {}
    for key, text in known.items():
        if key in PAIRS:
            values |= _pair(key, text)
        elif key in BY_KEY:
            values[BY_KEY[key].name] = _value(BY_KEY[key], text)
    if "eta" in values and known.get("Sampler") == "DDIM" and "Hires sampler" not in known:
        values.setdefault("eta_ddim", values.pop("eta"))  # before 1.6 WebUI had one key for both
    _split_schedule(values, "")
    _split_schedule(values, "hires_")
    values["hires_upscaler"] = _own_name(_UPSCALERS, values.get("hires_upscaler"))
    return {name: value for name, value in values.items() if value is not None}


def _value(row: Setting, text: str) -> Any:
    try:
        return row.rule.read(text)
    except ValueError:
        raise _unreadable(row.key, text, row.rule.words) from None


def _pair(key: str, text: str) -> dict[str, int]:
    """Width and height. 0x0 and -1x-1 say nothing."""
    match = re.fullmatch(r"([0-9]{1,5}|-1)\s*[xX\u00d7]\s*([0-9]{1,5}|-1)", text)
    if match is None:
        raise _unreadable(key, text, "two whole numbers, such as 512x768")
    sides = max(int(match[1]), 0), max(int(match[2]), 0)
    return dict(zip(PAIRS[key], sides, strict=True)) if any(sides) else {}


def _unreadable(key: str, text: str, words: str) -> InvalidInput:
    return InvalidInput("generation_data", f"{key}: {text}", f"{key} must be {words}", "Correct it, or remove it.")


def _facts(known: Mapping[str, str], civitai_hashes: object) -> dict[str, Any]:
    facts = {name: read_fact(known[key]) for key, (name, read_fact) in _FACTS.items() if key in known}
    _add_civitai_hashes(facts, civitai_hashes)
    return {name: value for name, value in facts.items() if value is not None}


# --- single settings --------------------------------------------------------------------------------------------------


def holds_settings(text: str) -> bool:
    """Whether the text is single settings, and not a whole block: every line begins with `key:`, and there is neither a
    prompt nor the line of parameters that a block has."""
    lines = [line for line in text.splitlines() if line.strip()]
    whole = _PARAMETER_LINE.search(text) is not None and "Seed:" in text
    return not whole and all(re.match(r"\s*\w[\w /()-]*:", line) for line in lines)


def read_settings(text: str) -> GenerationData:
    """Single settings in the words of generation data, separated by commas or lines: `ENSD: 31337, RNG: CPU`.

    Raises InvalidInput for a key that is not understood.
    """
    fields: dict[str, str] = {}
    for line in filter(str.strip, text.splitlines()):
        fields |= _fields_of_line(line.strip())
    for key in fields:
        if _NAMES.get(key.casefold(), key) not in (*BY_KEY, *PAIRS):  # what made a picture is no setting either
            raise _no_such_key(key, fields[key])
    values = _values(_known(fields))
    hires = "denoising_strength" in values and any(key in fields for key in _HIRES_KEYS)
    return GenerationData(values=values, whole=False, hires=hires)


def _fields_of_line(line: str) -> dict[str, str]:
    """`key: value` pairs between commas. A line with a single key may have commas in its value, unquoted."""
    fields = fields_of(line)
    if len(fields) == 1:
        (key,) = fields
        return {key: unquote(line.partition(":")[2].strip())}
    if rest := rest_of(line):
        fix = 'Write "key: value" between commas or one a line, and a value that holds commas in quotation marks.'
        raise InvalidInput("generation_data", rest, "belongs to no setting", fix)
    return fields


def _no_such_key(key: str, value: str) -> InvalidInput:
    names = {folded: own for folded, own in _NAMES.items() if own not in _FACTS}
    similar = [names[folded] for folded in difflib.get_close_matches(key.casefold(), names, n=3, cutoff=0.6)]
    fix = f"Did you mean {' or '.join(dict.fromkeys(similar))}?" if similar else "docs/inputs.md lists the settings."
    return InvalidInput("generation_data", f"{key}: {value}", f"there is no setting {key}", fix)


# --- what a block says beside its settings ----------------------------------------------------------------------------


def _controls(
    fields: Mapping[str, str], size: tuple[int, int] | None
) -> tuple[tuple[ControlSettings, ...], tuple[str, ...], tuple[str, ...]]:
    """The ControlNets of a block, and what of them is a warning or a doubt."""
    units, warnings, doubts = [], list[str](), list[str]()
    for key in sorted(filter(_CONTROL.fullmatch, fields)):
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
    """`Size-1`, `Size-2` -> `Size: 512x512`; a size of 0x0 is none."""
    fields = {key: str(value).strip() for key, value in parsed.items()}
    for key in [key.removesuffix("-1") for key in fields if key.endswith("-1")]:
        if f"{key}-2" in fields:
            size = f"{fields.pop(f'{key}-1')}x{fields.pop(f'{key}-2')}"
            fields |= {key: size} if size != "0x0" else {}
    return fields


def _not_understood(fields: Mapping[str, str]) -> dict[str, str]:
    neutral = _NEUTRAL | {"Hires CFG Scale": fields.get("CFG scale", "")}  # Forge writes it always
    known = _NAMES.keys() | {key.casefold() for key in fields if _CONTROL.fullmatch(key)}
    rest = {key: value for key, value in fields.items() if key.casefold() not in known and key not in _WITHOUT_EFFECT}
    return {key: value for key, value in rest.items() if not _asks_for_nothing(key, value, neutral.get(key))}


def _asks_for_nothing(key: str, value: str, neutral: str | None) -> bool:
    if neutral is not None and (value == neutral or _same_number(value, neutral)):
        return True
    off = value.casefold() in _OFF and not key.casefold().startswith("eta")
    return off or key.casefold().endswith(" version")


def _same_number(first: str, second: str) -> bool:
    try:
        return float(first) == float(second)
    except ValueError:
        return False


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


def _doubts(parsed: Mapping[str, Value], facts: Mapping[str, Any], resources: Mapping[str, object]) -> tuple[str, ...]:
    told = (
        (
            re.search(r"(?<![\w:])Steps: ?\d+, ", f"{parsed['Prompt']}\n{parsed['Negative prompt']}"),
            "Steps stand in the prompt: the line of parameters must be the last one, and in one piece",
        ),
        (
            "comfy" in str(facts.get("version")).casefold(),
            "made with ComfyUI, which draws other noise and weighs prompts in another way",
        ),
    )
    return (*(doubt for holds, doubt in told if holds), *_of_civitai(facts, resources.get("Civitai resources")))


# --- dialects ---------------------------------------------------------------------------------------------------------

_BEGINNING = re.compile(r"\A\s*parameters\s*(?::|\n)\s*", re.IGNORECASE)
"""What PNG readers put before the text."""
_PARAMETER_LINE = re.compile(r"^[ \t]*(?=Steps:[ \xa0]*\d+[ \xa0]*,)", re.MULTILINE)
_INLINE = re.compile(r"(?<=\S)\s+(?=Steps: ?\d+ ?, ?(?:Sampler|Schedule type|CFG scale|Seed|Size):)")
_INLINE_NEGATIVE = re.compile(r"(?<=\S)\s+(?=Negative prompt:)")


def _whole_block(text: str) -> tuple[str, str]:
    """The text with its parameters as one last line, and what followed them.

    People paste what a browser or log shows: wrapped lines, no line ends at all, notes below, hard spaces.
    """
    text = _BEGINNING.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("Negative\xa0prompt:", NEGATIVE))
    starts = [match.end() for match in _PARAMETER_LINE.finditer(text)]
    if not starts and (match := next(iter(_INLINE.finditer(text)), None)):
        text = _INLINE_NEGATIVE.sub("\n", text[: match.start()]) + "\n" + text[match.end() :]
        starts = [text.rindex("\nSteps:") + 1]
    if not starts:
        return text, ""
    line, *below = text[starts[-1] :].replace("\xa0", " ").split("\n")
    while below and line.rstrip().endswith(","):
        line = f"{line.rstrip()} {below.pop(0).lstrip()}"
    return text[: starts[-1]] + line, " ".join(" ".join(below).split())


def _of_civitai(facts: Mapping[str, Any], resources: object) -> list[str]:
    """What CivitAI's own generator tells of networks, which its prompts do not name, and of the checkpoint."""
    told = []
    for each in resources if isinstance(resources, list) else ():
        kind, name = (str(each.get(key, "")) for key in ("type", "modelName")) if isinstance(each, dict) else ("", "")
        if kind == "checkpoint" and not (facts.get("model") or facts.get("model_hash")):
            told.append(f"made with what CivitAI calls {name}, which cannot be compared with the checkpoint here")
        elif kind and kind != "checkpoint":
            told.append(f"the {kind} {name} of CivitAI is not applied here")
    return told


_JSON_FIELD = re.compile(r"\b(Hashes|Civitai resources|Civitai metadata):\s*(?=[\[{])")


def _lift_json(text: str) -> tuple[str, dict[str, object]]:
    """Take CivitAI's `Hashes: {...}` and the like out of the last line: WebUI's parser breaks them."""
    start = text.rstrip().rfind("\n") + 1
    kept, lifted, position = [text[:start]], dict[str, object](), start
    for match in _JSON_FIELD.finditer(text, start):
        if match.start() < position:  # inside the last one
            continue
        try:
            value, end = json.JSONDecoder().raw_decode(text, match.end())
        except (ValueError, RecursionError):
            continue
        lifted[match[1]] = value
        kept.append(text[position : match.start()].rstrip(" ,"))
        position = end
    return "".join([*kept, text[position:]]), lifted


def _add_civitai_hashes(facts: dict[str, Any], hashes: object) -> None:
    """`{"model": ..., "vae": ..., "lora:name": ..., "embed:name": ...}` fills in what the other keys do not say."""
    for key, digest in hashes.items() if isinstance(hashes, dict) else ():
        kind, _, name = str(key).partition(":")
        if kind in ("lora", "embed"):
            facts.setdefault("lora_hashes" if kind == "lora" else "ti_hashes", {}).setdefault(name, str(digest))
        elif kind in ("model", "vae") and facts.get(f"{kind}_hash") is None:
            facts[f"{kind}_hash"] = str(digest)


_SCHEDULES = {name.casefold(): name for name in SCHEDULE_TYPES} | {
    "sgmuniform": "SGM Uniform",
    "ays": "Align Your Steps",
    "ddim uniform": "DDIM",
    "default": "Automatic",
    "undefined": "Automatic",
}
_SAMPLERS = {name.casefold(): name for name in SAMPLERS} | {
    "dpm 2": "DPM2",
    "dpm 2 ancestral": "DPM2 a",
    "dpmpp 2m": "DPM++ 2M",
    "dpmpp 2m sde": "DPM++ 2M SDE",
    "dpmpp 2m sde heun": "DPM++ 2M SDE Heun",
    "dpmpp 2s a": "DPM++ 2S a",
    "dpmpp 2s ancestral": "DPM++ 2S a",
    "dpm++ 2s ancestral": "DPM++ 2S a",
    "dpm2 ancestral": "DPM2 a",
    "dpm 2 a": "DPM2 a",
    "ddim cfgpp": "DDIM CFG++",
    "dpmpp 3m sde": "DPM++ 3M SDE",
    "dpmpp sde": "DPM++ SDE",
    "euler ancestral": "Euler a",
    "uni pc": "UniPC",
}
"""By folded name; the lower ones are k-diffusion's and ComfyUI's."""


_UPSCALERS = {name.casefold(): name for name in UPSCALERS} | {
    "latent bicubic antialias": "Latent (bicubic antialiased)"
}


def _folded(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split()).removeprefix("k ").removesuffix(" gpu")


def _split_schedule(values: dict[str, Any], prefix: str) -> None:
    """Name the sampler and the schedule type of one pass as here; a schedule in the sampler's name wins."""
    sampler, schedule_type = values.get(f"{prefix}sampler"), values.get(f"{prefix}schedule_type")
    if sampler is not None and _folded(sampler) not in _SAMPLERS:
        for suffix in sorted(_SCHEDULES, key=len, reverse=True):
            if _folded(sampler).endswith(f" {suffix}"):
                sampler, schedule_type = sampler[: -len(suffix) - 1], suffix
                break
    values[f"{prefix}sampler"] = _own_name(_SAMPLERS, sampler)
    values[f"{prefix}schedule_type"] = _own_name(_SCHEDULES, schedule_type)


def _own_name(names: Mapping[str, str], name: str | None) -> str | None:
    """Unknown names stay as written; "the same" and CivitAI's "Undefined" are no name."""
    if name is None or name.startswith("Use same"):
        return None
    return names.get(_folded(name), None if name == "Undefined" else name)

"""Generation data as people paste it -> typed values: WebUI's of all versions, Forge's, SD.Next's, CivitAI's.

`read` first makes a block of the text that WebUI's parser understands (`infotext.parse`), then types and names of ours
of what that finds. Nothing is lost silently: what is not understood is in `unknown`, `warnings` and `doubts`.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.catalog import (
    INPAINT_AREAS,
    MASKED_CONTENTS,
    NOISE_SOURCES,
    SAMPLERS,
    SCHEDULE_TYPES,
    UPSCALERS,
    WHOLE_PICTURE,
)
from pipelines.errors import InvalidInput
from pipelines.infotext import DEFAULTS, DOWNCAST, NEGATIVE, OLD_BEHAVIOUR, OLD_EDITING, Value, parse, split, version_of
from pipelines.request import ControlSettings
from pipelines.units import read_unit


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """An infotext, typed and cleaned. None: the block does not say. Other defaults are what WebUI takes then."""

    prompt: str = ""
    negative_prompt: str = ""
    steps: int | None = None
    sampler: str | None = None
    schedule_type: str = "Automatic"
    guidance_scale: float | None = None
    guidance_rescale: float = 0
    freeu: str = ""
    seed: int | None = None
    size: tuple[int, int] | None = None
    """(width, height), as the hires sizes."""
    model_hash: str | None = None
    model: str | None = None
    vae_hash: str | None = None
    vae: str | None = None
    clip_skip: int = 1
    ensd: int = 0
    rng: str = "GPU"
    emphasis: str = "Original"
    pad_conds: bool = False
    discard_penultimate: bool = False
    sigma_min: float = 0
    sigma_max: float = 0
    rho: float = 0
    variation_seed: int | None = None
    variation_strength: float = 0.0
    denoising_strength: float | None = None
    hires: bool = False
    """There is a denoising strength and at least one key of the hires pass."""
    hires_upscale: float | None = None
    hires_resize: tuple[int, int] | None = None
    hires_steps: int | None = None
    hires_upscaler: str | None = None
    hires_sampler: str | None = None
    hires_schedule_type: str | None = None
    hires_prompt: str = ""
    hires_negative_prompt: str = ""
    hires_denoising_strength: float | None = None
    """Of the hires pass after a first pass from a picture; `denoising_strength` is then that of the first."""
    mask_invert: bool = False
    mask_blur: int | None = None
    masked_content: str = "original"
    inpaint_area: str = WHOLE_PICTURE
    inpaint_padding: int = 32
    outpaint: tuple[int, ...] = (0, 0, 0, 0)
    version: str | None = None
    lora_hashes: dict[str, str] = field(default_factory=dict)
    ti_hashes: dict[str, str] = field(default_factory=dict)
    controls: tuple[ControlSettings, ...] = ()
    """ControlNets, whose pictures no block holds."""
    unknown: dict[str, str] = field(default_factory=dict)
    """Keys that are not understood here and whose values are not WebUI's defaults."""
    warnings: tuple[str, ...] = ()
    """What is done otherwise than the block says, and changes little or nothing."""
    doubts: tuple[str, ...] = ()
    """What makes the picture of these values another one than the block's."""

    @property
    def from_picture(self) -> bool:
        """Made from another picture: a denoising strength without a hires pass is that of a pass from one."""
        alone = self.denoising_strength is not None and not self.hires
        return alone or self.hires_denoising_strength is not None or any(self.outpaint)


@dataclass(frozen=True)
class _Key:
    """Where a key's value goes, how it is read (ValueError: it cannot be), and what it should have been."""

    name: str
    convert: Callable[[str], object]
    expected: str


def _whole(text: str) -> int:
    if not re.fullmatch(r"[-+]?[0-9]{1,19}(\.0+)?", text):
        raise ValueError(text)
    return int(text.partition(".")[0])


def _number(text: str) -> float:
    """A whole number stays one: 7 and 7.0 are written as they were read."""
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return int(text) if re.fullmatch(r"[-+]?[0-9]{1,15}", text) else number


def _clip_skip(text: str) -> int:
    """Other programs write 0 for none, or count from the end with a minus."""
    return abs(_whole(text)) or 1


def _pair(text: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"([0-9]{1,5})\s*[xX\u00d7]\s*([0-9]{1,5})", text)
    if match is None:
        raise ValueError(text)
    width, height = int(match[1]), int(match[2])
    return (width, height) if width or height else None


def _model_name(text: str) -> str | None:
    return None if text.casefold() in ("", "none", "automatic") else text


def _noise_source(text: str) -> str:
    if text.upper() not in NOISE_SOURCES:
        raise ValueError(text)
    return text.upper()


def _margins(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[0-9]{1,5}( [0-9]{1,5}){3}", text):
        raise ValueError(text)
    return tuple(map(int, text.split()))


def _hashes(text: str) -> dict[str, str]:
    """`name: hash, name: hash`; a name may hold colons."""
    triples = (entry.rpartition(":") for entry in text.split(","))
    return {name.strip(): digest.strip() for name, colon, digest in triples if colon}


def _whole_key(name: str) -> _Key:
    return _Key(name, _whole, "a whole number")


def _number_key(name: str) -> _Key:
    return _Key(name, _number, "a number")


def _size_key(name: str) -> _Key:
    return _Key(name, _pair, "two whole numbers, such as 512x768")


def _text_key(name: str) -> _Key:
    return _Key(name, str, "text")


def _choice_key(name: str, choices: tuple[str, ...]) -> _Key:
    folded = {choice.casefold(): choice for choice in choices}

    def convert(text: str) -> str:
        if text.casefold() not in folded:
            raise ValueError(text)
        return folded[text.casefold()]

    return _Key(name, convert, "one of " + ", ".join(choices))


def _flag_key(name: str) -> _Key:
    return _Key(name, lambda text: text.casefold() == "true", "True or False")


def _model_key(name: str) -> _Key:
    return _Key(name, _model_name, "a name")


_KEYS: dict[str, _Key] = {
    "Prompt": _text_key("prompt"),
    "Negative prompt": _text_key("negative_prompt"),
    "Steps": _whole_key("steps"),
    "Sampler": _text_key("sampler"),
    "Schedule type": _text_key("schedule_type"),
    "CFG scale": _number_key("guidance_scale"),
    "Guidance rescale": _number_key("guidance_rescale"),
    "FreeU": _text_key("freeu"),
    "Seed": _whole_key("seed"),
    "Size": _size_key("size"),
    "Model hash": _model_key("model_hash"),
    "Model": _model_key("model"),
    "VAE hash": _model_key("vae_hash"),
    "VAE": _model_key("vae"),
    "Clip skip": _Key("clip_skip", _clip_skip, "a whole number"),
    "ENSD": _whole_key("ensd"),
    "RNG": _Key("rng", _noise_source, "one of " + ", ".join(NOISE_SOURCES)),
    "Emphasis": _text_key("emphasis"),
    "Pad conds": _flag_key("pad_conds"),
    "Discard penultimate sigma": _flag_key("discard_penultimate"),
    "Schedule min sigma": _number_key("sigma_min"),
    "Schedule max sigma": _number_key("sigma_max"),
    "Schedule rho": _number_key("rho"),
    "Variation seed": _whole_key("variation_seed"),
    "Variation seed strength": _number_key("variation_strength"),
    "Denoising strength": _number_key("denoising_strength"),
    "Hires upscale": _number_key("hires_upscale"),
    "Hires resize": _size_key("hires_resize"),
    "Hires steps": _whole_key("hires_steps"),
    "Hires upscaler": _text_key("hires_upscaler"),
    "Hires sampler": _text_key("hires_sampler"),
    "Hires schedule type": _text_key("hires_schedule_type"),
    "Hires prompt": _text_key("hires_prompt"),
    "Hires negative prompt": _text_key("hires_negative_prompt"),
    "Hires denoising strength": _number_key("hires_denoising_strength"),
    "Mask mode": _Key("mask_invert", lambda text: text.casefold() == "inpaint not masked", "Inpaint (not) masked"),
    "Mask blur": _whole_key("mask_blur"),
    "Masked content": _choice_key("masked_content", MASKED_CONTENTS),
    "Inpaint area": _choice_key("inpaint_area", INPAINT_AREAS),
    "Masked area padding": _whole_key("inpaint_padding"),
    "Outpaint": _Key("outpaint", _margins, "four whole numbers: left, top, right, bottom"),
    "Version": _text_key("version"),
    "Lora hashes": _Key("lora_hashes", _hashes, "names and hashes"),
    "TI hashes": _Key("ti_hashes", _hashes, "names and hashes"),
}

_OTHER_NAMES: dict[str, str] = {
    "cfg": "CFG scale",
    "guidance scale": "CFG scale",
    "eta noise seed delta": "ENSD",
    "module 1": "VAE",  # Forge
    "scheduler": "Schedule type",
    "subseed": "Variation seed",
    "subseed strength": "Variation seed strength",
}
"""Keys of other programs, in lower case. Ours match in any case, too."""
_NAMES = {key.casefold(): key for key in _KEYS} | _OTHER_NAMES

_WITHOUT_EFFECT = frozenset(
    {key for key, *_ in OLD_BEHAVIOUR}
    | {"Template", "Negative Template", "User", "Parser", "Time taken", "File includes", "Comment", "Wildcard prompt"}
    | {"Wildcard negative prompt", "First pass size", "Batch size", "Batch pos", "Batch", "Created Date", "App"}
    | {"Backend", "Pipeline", "Operations", "Second pass", "Hires force", "Hires size"}
)
"""Keys that are understood but ask for nothing: they repeat others or tell of the program."""

_CONTROL = re.compile(r"ControlNet \d+")
"""Keys of WebUI's extension, one for each unit."""

_NEUTRAL = {key: str(value) for key, value in DEFAULTS.items()} | {
    "Beta schedule alpha": "0.6",
    "Beta schedule beta": "0.6",
    "Hires Module 1": "Use same choices",  # Forge
    "Conditional mask weight": "1",  # written with every picture of an inpainting checkpoint
    "Noise multiplier": "1",
    "Seed resize from": "-1x-1",
}
"""Values that ask for nothing."""
_OFF = frozenset(("false", "none", "disable", "disabled", "0", "0.0", ""))
"""Values that turn an unknown thing off, but for "Eta", where 0 is a choice."""

_HIRES_KEYS = ("Hires upscale", "Hires resize", "Hires steps", "Hires upscaler")


def read(text: str) -> Parameters:
    """The typed reading of a block as people paste it: from WebUI, Forge, SD.Next, CivitAI, or an old version.

    Raises InvalidInput("generation_data", ...) that names the key for a value that cannot be read.
    """
    text, left_out = _whole_block(text)
    text, resources = _lift_json(text)
    parsed = parse(text)
    fields, written = _join_sizes(parsed), {*split(text).fields, "Prompt", "Negative prompt"}
    # What stands there wins over WebUI's defaults, and exact names over others such as "seed" or "CFG".
    named = sorted(fields, key=lambda key: (key in written) + (key in written and key in _KEYS))
    known = {_NAMES[key.casefold()]: fields[key] for key in named if key.casefold() in _NAMES}
    values: dict[str, Any] = {_KEYS[key].name: _convert(key, value) for key, value in known.items()}
    _split_schedule(values, "")
    _split_schedule(values, "hires_")
    values["hires_upscaler"] = _own_name(_UPSCALERS, values.get("hires_upscaler"))
    _add_civitai_hashes(values, resources.get("Hashes"))
    values["hires"] = values.get("denoising_strength") is not None and any(key in known for key in _HIRES_KEYS)
    values["unknown"] = _not_understood(fields)
    values["controls"], of_controls, doubts = _controls(fields, values.get("size"))
    said = {name: value for name, value in values.items() if value is not None}
    warnings = _warnings(parsed, known) + ((f"{left_out!r} after the parameters is left out",) if left_out else ())
    doubts += _doubts(parsed, values, resources)
    data = replace(Parameters(), **said, warnings=warnings + of_controls, doubts=doubts)
    unsaid = data.from_picture and data.mask_blur is None  # no blur is not told
    return replace(data, mask_blur=0) if unsaid else data


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


def _convert(key: str, value: str) -> object:
    try:
        return _KEYS[key].convert(value)
    except ValueError:
        rule = f"{key} must be {_KEYS[key].expected}"
        raise InvalidInput("generation_data", f"{key}: {value}", rule, "Correct it, or remove it.") from None


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
    version = version_of(known.get("Version", "")) or (99,)
    hires = [key for key in _HIRES_KEYS if key in known]
    own_schedule = SAMPLERS[sampler].automatic if (sampler := known.get("Sampler", "")) in SAMPLERS else "Uniform"
    told = (
        (
            OLD_EDITING in parsed or (version < (1, 6) and "[" in known.get("Negative prompt", "")),
            f"{OLD_RULES} ([a:b:N]) were others before 1.6; those of 1.6 and later are used here",
        ),
        (
            DOWNCAST in parsed,
            "the noise levels were rounded to half precision (Downcast alphas_cumprod), which is not done here: "
            "details differ",
        ),
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


def _doubts(parsed: Mapping[str, Value], values: Mapping[str, Any], resources: Mapping[str, object]) -> tuple[str, ...]:
    told = (
        (
            re.search(r"(?<![\w:])Steps: ?\d+, ", f"{parsed['Prompt']}\n{parsed['Negative prompt']}"),
            "Steps stand in the prompt: the line of parameters must be the last one, and in one piece",
        ),
        (
            "comfy" in str(values.get("version")).casefold(),
            "made with ComfyUI, which draws other noise and weighs prompts in another way",
        ),
    )
    return (*(doubt for holds, doubt in told if holds), *_of_civitai(values, resources.get("Civitai resources")))


OLD_RULES = "the rules for prompt editing"

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


def _of_civitai(values: Mapping[str, Any], resources: object) -> list[str]:
    """What CivitAI's own generator tells of networks, which its prompts do not name, and of the checkpoint."""
    told = []
    for each in resources if isinstance(resources, list) else ():
        kind, name = (str(each.get(key, "")) for key in ("type", "modelName")) if isinstance(each, dict) else ("", "")
        if kind == "checkpoint" and not (values.get("model") or values.get("model_hash")):
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


def _add_civitai_hashes(values: dict[str, Any], hashes: object) -> None:
    """`{"model": ..., "vae": ..., "lora:name": ..., "embed:name": ...}` fills in what the other keys do not say."""
    for key, digest in hashes.items() if isinstance(hashes, dict) else ():
        kind, _, name = str(key).partition(":")
        if kind in ("lora", "embed"):
            values.setdefault("lora_hashes" if kind == "lora" else "ti_hashes", {}).setdefault(name, str(digest))
        elif kind in ("model", "vae") and values.get(f"{kind}_hash") is None:
            values[f"{kind}_hash"] = str(digest)


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

"""Infotext, WebUI's generation parameters as text: written as WebUI 1.10.1 writes them, and read back.

    a prompt
    Negative prompt: what it shall not show
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512

`parse` answers as WebUI's parser does; `read` goes on to typed values and to the dialects of other programs.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.catalog import NOISE_SOURCES, SAMPLERS, SCHEDULE_TYPES
from pipelines.errors import InvalidInput
from pipelines.prompt import parse_attention

NEGATIVE = "Negative prompt:"

# --- writing ----------------------------------------------------------------------------------------------------------


def quote(value: object) -> str:
    """The value as text, JSON-quoted if it holds a comma, a colon or a newline."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def unquote(text: str) -> str:
    """Undo `quote`. Text that is no JSON string stays as it is."""
    if len(text) < 2 or not (text.startswith('"') and text.endswith('"')):
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def write(prompt: str, negative_prompt: str, fields: Mapping[str, object]) -> str:
    """The infotext with `fields` in their order; those that are None are left out.

    WebUI's quoting cannot bring back everything: spaces at the ends of a value, empty values and values that begin with
    a quotation mark are read differently.
    """
    line = ", ".join(f"{key}: {quote(value)}" for key, value in fields.items() if value is not None)
    parts = [prompt, *([f"{NEGATIVE} {negative_prompt}"] if negative_prompt else []), line]
    return "\n".join(parts).strip()


# --- reading as WebUI does --------------------------------------------------------------------------------------------

# `key: value` up to a comma. A key starts only where a run of its characters does, or searching would be quadratic.
_FIELD = re.compile(r'(?<![\w \-/])[ \-/]*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d+)x(\d+)")
_FEWEST_FIELDS = 3
"""With fewer the last line is prompt."""

Value = str | int | bool

_DEFAULTS: dict[str, Value] = {
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
"""What WebUI takes for keys that a block lacks."""

OLD_EDITING = "Old prompt editing timelines"
DOWNCAST = "Downcast alphas_cumprod"

_OLD_BEHAVIOUR: tuple[tuple[str, tuple[int, ...], Callable[[Mapping[str, Value]], bool]], ...] = (
    (OLD_EDITING, (1, 6, 0, 0), lambda fields: "[" in str(fields["Prompt"])),
    ("Pad conds v0", (1, 6, 0, 0), lambda fields: fields.get("Sampler") in ("DDIM", "PLMS")),
    (DOWNCAST, (1, 7, 0, 225), lambda fields: True),
    ("Refiner switch by sampling steps", (1, 8, 0, 0), lambda fields: bool(fields.get("Refiner"))),
)
"""Key that WebUI sets, the first version that behaves otherwise, and the condition on the block."""


@dataclass(frozen=True)
class Block:
    """An infotext in its three parts; values are unquoted, otherwise as written, in the order of the block."""

    prompt: str
    negative_prompt: str
    fields: dict[str, str]


def split(text: str) -> Block:
    """Cut an infotext into its parts. The last line counts as fields if it holds three or more. Never raises."""
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
    return Block(prompt, negative_prompt, {key: unquote(value) for key, value in pairs if value})


def parse(text: str, *, auto_backcompat: bool = True) -> dict[str, Value]:
    """What WebUI's parser makes of an infotext: strings, sizes as two keys, defaults for absent keys. Never raises.

    `auto_backcompat` is WebUI's option of that name: set the keys that bring back what older versions did.
    """
    block = split(text)
    parsed: dict[str, Value] = {}
    for key, value in block.fields.items():
        size = _SIZE.fullmatch(value)
        parsed |= {f"{key}-1": size[1], f"{key}-2": size[2]} if size else {key: value}
    parsed |= {"Prompt": block.prompt, "Negative prompt": block.negative_prompt}
    if "Emphasis" not in parsed and _emphasizes(block):
        parsed["Emphasis"] = "Original"
    parsed = {**_DEFAULTS, **parsed, **_first_pass_size(parsed)}
    if auto_backcompat and (version := _version(str(parsed.get("Version", "")))):
        parsed |= {key: True for key, changed, applies in _OLD_BEHAVIOUR if version < changed and applies(parsed)}
    return parsed


def _emphasizes(block: Block) -> bool:
    pieces = parse_attention(block.prompt) + parse_attention(block.negative_prompt)
    return any(weight != 1.0 and text != "BREAK" for text, weight in pieces)


def _version(text: str) -> tuple[int, ...] | None:
    """`v1.7.0-225-g...`: three numbers and the commits since; None for other programs' versions."""
    match = re.match(r"v?(\d{1,4})\.(\d{1,4})\.(\d{1,4})(?:-(\d{1,9})\b)?", text)
    return tuple(int(number or 0) for number in match.groups()) if match else None


def _first_pass_size(parsed: Mapping[str, Value]) -> dict[str, Value]:
    """Before 2023 `Size` was the final size and `First pass size` the other: today's keys for such a block.

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


# --- reading for our own use ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """An infotext, typed and cleaned. None: the block does not say. Other defaults are what WebUI takes then."""

    prompt: str = ""
    negative_prompt: str = ""
    steps: int | None = None
    sampler: str | None = None
    schedule_type: str = "Automatic"
    guidance_scale: float | None = None
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
    version: str | None = None
    lora_hashes: dict[str, str] = field(default_factory=dict)
    ti_hashes: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    """Keys that are not understood here and whose values are not WebUI's defaults."""
    warnings: tuple[str, ...] = ()


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
    "Seed": _whole_key("seed"),
    "Size": _size_key("size"),
    "Model hash": _model_key("model_hash"),
    "Model": _model_key("model"),
    "VAE hash": _model_key("vae_hash"),
    "VAE": _model_key("vae"),
    "Clip skip": _whole_key("clip_skip"),
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
    {key for key, *_ in _OLD_BEHAVIOUR}
    | {"First pass size", "Batch size", "Batch pos", "Batch", "Created Date", "App", "Backend", "Pipeline"}
    | {"Operations", "Second pass", "Hires force", "Hires size"}
)
"""Keys that are understood but ask for nothing: they repeat others or tell of the program."""

_NEUTRAL = {key: str(value) for key, value in _DEFAULTS.items()} | {
    "Beta schedule alpha": "0.6",
    "Beta schedule beta": "0.6",
    "Hires Module 1": "Use same choices",  # Forge
}
"""Values that ask for nothing."""

_HIRES_KEYS = ("Hires upscale", "Hires resize", "Hires steps", "Hires upscaler")


def read(text: str) -> Parameters:
    """The typed reading of a block as people paste it: from WebUI, Forge, SD.Next, CivitAI, or an old version.

    Raises InvalidInput("generation_data", ...) that names the key for a value that cannot be read.
    """
    text, resources = _lift_json(text)
    parsed = parse(text)
    fields = _join_sizes(parsed)
    named = sorted(fields, key=lambda key: key in _KEYS)  # exact names last: they win over "seed" or "CFG"
    known = {_NAMES[key.casefold()]: fields[key] for key in named if key.casefold() in _NAMES}
    values: dict[str, Any] = {_KEYS[key].name: _convert(key, value) for key, value in known.items()}
    _split_schedule(values, "")
    _split_schedule(values, "hires_")
    _add_civitai_hashes(values, resources.get("Hashes"))
    values["hires"] = values.get("denoising_strength") is not None and any(key in known for key in _HIRES_KEYS)
    values["unknown"] = _not_understood(fields)
    said = {name: value for name, value in values.items() if value is not None}
    return replace(Parameters(), **said, warnings=_warnings(parsed, known))


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
    rest = {key: value for key, value in fields.items() if key.casefold() not in _NAMES and key not in _WITHOUT_EFFECT}
    return {key: value for key, value in rest.items() if value != neutral.get(key)}


def _warnings(parsed: Mapping[str, Value], known: Mapping[str, str]) -> tuple[str, ...]:
    version = known.get("Version", "")
    old_version = (_version(version) or (1, 6)) < (1, 6)
    prompts = "\n".join(known.get(key, "") for key in ("Prompt", "Negative prompt"))
    hires = [key for key in _HIRES_KEYS if key in known]
    told = (
        (
            OLD_EDITING in parsed or (old_version and "[" in prompts),
            f"{version} had other rules for prompt editing ([a:b:N]) than 1.6 and later, which are used here",
        ),
        (
            DOWNCAST in parsed,
            f"{version or DOWNCAST} rounded the noise levels to half precision, which is not done here: details differ",
        ),
        (
            re.search(r"\bSteps: \d+, ", prompts),
            "Steps stand in the prompt: the line of parameters must be the last one, and in one piece",
        ),
        (
            hires and "Denoising strength" not in known,
            f"{', '.join(hires)} without a Denoising strength: the hires pass stays off",
        ),
    )
    return tuple(warning for holds, warning in told if holds)


# --- dialects ---------------------------------------------------------------------------------------------------------

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
    "dpmpp 2s ancestral": "DPM++ 2S a",
    "dpmpp 3m sde": "DPM++ 3M SDE",
    "dpmpp sde": "DPM++ SDE",
    "euler ancestral": "Euler a",
    "uni pc": "UniPC",
}
"""By folded name; the lower ones are k-diffusion's and ComfyUI's."""


def _folded(name: str) -> str:
    return name.casefold().replace("_", " ").strip().removeprefix("k ").removesuffix(" gpu")


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

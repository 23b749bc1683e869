"""Control units as text: lines of the input `controls`, and units as WebUI's extension writes them into infotexts.

canny: 0.8
lineart: weight=0.8, start=0, end=0.6, mode=prompt, preprocessor=none
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipelines.ask.catalog import (
    CONTROL_MODES,
    CONTROL_RESIZE_MODES,
    IMAGE_PROMPT,
    NO_PREPROCESSOR,
    PREPROCESSORS,
)
from pipelines.ask.networks import in_hashes
from pipelines.ask.request import CONTROLS_MAX, ControlSettings
from pipelines.errors import InvalidInput

_NUMBER = re.compile(r"[-+]?[\d.]+")
_KEY = re.compile(r"\w+")
_NO_NAME = re.compile(r":\s|^(?!.*://).*[:=,;]")
"""Matches a "name" that really contains unreadable settings. Names of files and repositories never match.
"""
_FIELD_OF = {
    "weight": "weight",
    "start": "start",
    "end": "end",
    "mode": "mode",
    "preprocessor": "preprocessor",
    "resize": "resize_mode",
    "low": "low",
    "high": "high",
}
"""The field that each key of a line sets."""
_NUMBERS = ("weight", "start", "end", "low", "high")


def read_lines(text: str) -> list[ControlSettings]:
    """Return the units that the input lists. `model` is the name in the line.

    Raises InvalidInput for a line that cannot be read.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > CONTROLS_MAX:
        raise InvalidInput("controls", text, f"at most {CONTROLS_MAX} lines, this has {len(lines)}", "Use fewer.")
    return [_read_line(line) for line in lines]


def _read_line(line: str) -> ControlSettings:
    source, settings = _parted(line)
    if _NO_NAME.search(source):
        fix = "Write canny: 0.8, or canny: weight=0.8, start=0, end=0.6."
        raise InvalidInput("controls", line, "only a weight and settings separated by commas may follow a colon", fix)
    values: dict[str, object] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        key, value = (key.strip(), value.strip()) if equals else ("weight", setting.strip())
        if key not in _FIELD_OF:
            raise InvalidInput("controls", line, f"{key} is not a setting", f"Use {', '.join(_FIELD_OF)}.")
        try:
            values[_FIELD_OF[key]] = float(value) if key in _NUMBERS else value.lower()
        except ValueError:
            raise InvalidInput("controls", line, f"{key} must be a number", "Write canny: weight=0.8.") from None
    return ControlSettings(model=source, **values)  # type: ignore[arg-type]


def _parted(line: str) -> tuple[str, list[str]]:
    """Return a line's name and its settings. It has settings only if everything after its last colon is one."""
    source, _, rest = line.rpartition(":")
    settings = [setting.strip() for setting in rest.split(",")]
    return (source.rstrip(), settings) if source.strip() and all(map(_is_setting, settings)) else (line, [])


def _is_setting(text: str) -> bool:
    """Return whether the text is a number or `key=value`."""
    key, equals, value = text.partition("=")
    if not equals:
        return _NUMBER.fullmatch(text) is not None
    return _KEY.fullmatch(key.strip()) is not None and not any(mark in value for mark in "=/")


# --- units as WebUI's extension writes them ---------------------------------------------------------------------------

_VALUE = re.compile(r"(?:\A|(?<=,))\s*([A-Za-z][\w /-]*):\s*(\([^()]*\)|[^,]*)")
_HASH = re.compile(r"[0-9a-fA-F]+")
_OLD_NAMES = {"preprocessor": "module", "starting/ending": "guidance", "preprocessor params": "params"}
_OLD_GROUPS = {
    "guidance": ("guidance start", "guidance end"),
    "params": ("processor res", "threshold a", "threshold b"),
}
"""Keys of older versions whose value is a tuple, and the present keys of its members."""
_NUMBER_KEYS = {"weight": "weight", "start": "guidance start", "end": "guidance end"}
_THRESHOLD_KEYS = {"low": "threshold a", "high": "threshold b"}
_READ = {"module", "model", "weight", "resize mode", "control mode", "processor res", "pixel perfect", "hr option"}
_READ |= {*_OLD_GROUPS, *_NUMBER_KEYS.values(), *_THRESHOLD_KEYS.values()}
_WITHOUT_EFFECT = {"low vram", "lowvram", "save detected map", "input mode", "union control type"}
_NOTHING = {"", "none", "false", "[]", "0"}
"""Values with which a unit's key has no effect."""


@dataclass(frozen=True)
class ParsedUnit:
    """A unit of an infotext, and what is done differently here."""

    settings: ControlSettings
    warnings: tuple[str, ...] = ()
    """Differences that change nothing if the right picture is sent."""
    doubts: tuple[str, ...] = ()
    """Differences that change the picture."""


def write_unit(control: ControlSettings, short_hash: str) -> str:
    """Return the unit in the form of an infotext."""
    thresholds = {"Threshold A": f"{control.low:g}", "Threshold B": f"{control.high:g}"}
    fields = {
        "Module": PREPROCESSORS[control.preprocessor],
        "Model": f"{in_hashes(control.model)} [{short_hash}]",
        "Weight": f"{control.weight:g}",
        "Resize Mode": CONTROL_RESIZE_MODES[control.resize_mode],
        "Processor Res": "512",  # the extension also writes this, but ignores it when Pixel Perfect is on
        **(thresholds if control.preprocessor == "canny" else {}),
        "Guidance Start": f"{control.start:g}",
        "Guidance End": f"{control.end:g}",
        "Pixel Perfect": "True",
        "Control Mode": CONTROL_MODES[control.mode],
    }
    return ", ".join(f"{key}: {value}" for key, value in fields.items())


def read_unit(text: str, size: tuple[int, int] | None) -> ParsedUnit:
    """Parse a unit of an infotext, in the extension's present or older forms. `size` is the picture's.

    Raises ValueError (InvalidInput is one) for a unit that cannot be read.
    """
    told = _values(text)
    if "model" not in told:
        raise ValueError(text)
    model, model_hash = _named(told["model"])
    preprocessor = _preprocessor(told.get("module", "none"))
    settings = ControlSettings(
        model=model,
        model_hash=model_hash.lower(),
        preprocessor=preprocessor or NO_PREPROCESSOR,
        **_choices(told, preprocessor),  # type: ignore[arg-type]
        **_numbers(told, preprocessor),  # type: ignore[arg-type]
    )
    warnings = _warnings(told, preprocessor)
    return ParsedUnit(settings, tuple(warnings), tuple(_doubts(told, settings, size)))


def _values(text: str) -> dict[str, str]:
    """Return a unit's values by the keys of the present form, in lower case."""
    told = {key.casefold().strip(): value.strip() for key, value in _VALUE.findall(text)}
    told = {_OLD_NAMES.get(key, key): value for key, value in told.items()}
    for group, keys in _OLD_GROUPS.items():
        if group in told:
            told |= dict(zip(keys, told[group].strip("()").split(","), strict=True))
    return told


def _choices(told: Mapping[str, str], preprocessor: str | None) -> dict[str, str]:
    """Return the modes of a unit. The extension ignores both for an IP-Adapter."""
    if preprocessor == IMAGE_PROMPT:
        return {}
    resize_mode = _own_name(CONTROL_RESIZE_MODES, told.get("resize mode", "Crop and Resize"))
    mode = _own_name(CONTROL_MODES, told.get("control mode", "Balanced"))
    return {"mode": mode, "resize_mode": resize_mode if resize_mode in CONTROL_RESIZE_MODES else "crop"}


def _numbers(told: Mapping[str, str], preprocessor: str | None) -> dict[str, float]:
    keys = _NUMBER_KEYS | (_THRESHOLD_KEYS if preprocessor == "canny" else {})
    return {name: float(told[key]) for name, key in keys.items() if key in told}


def _warnings(told: Mapping[str, str], preprocessor: str | None) -> Iterator[str]:
    if preprocessor is None:
        yield f"the preprocessor {told['module']} is not available: the picture sent for it is used as its map"


def _doubts(told: Mapping[str, str], settings: ControlSettings, size: tuple[int, int] | None) -> Iterator[str]:
    module, resize_mode = told.get("module", ""), told.get("resize mode", "Crop and Resize")
    resolution = told.get("processor res", "512")
    by_size = settings.preprocessor not in (NO_PREPROCESSOR, IMAGE_PROMPT) and told.get("pixel perfect") != "True"
    if not settings.image_prompt and resize_mode not in CONTROL_RESIZE_MODES.values():
        yield f"its resize mode {resize_mode} is not available (instead: Crop and Resize)"
    if by_size and size is not None and float(resolution) != min(size):
        yield f"its map was made at {resolution} px; here it is made at the picture's own size"
    if "both" not in told.get("hr option", "both").casefold():
        yield "it acted in one pass only; here it acts in both"
    if settings.image_prompt and re.search("face|pulid", module):
        yield f"{module} needs a face network that is not available"
    for key in sorted(told.keys() - _READ - _WITHOUT_EFFECT):
        if told[key].casefold() not in _NOTHING:
            yield f"its {key} ({told[key]}) is not supported"


def _named(model: str) -> tuple[str, str]:
    """Split `name [hash]` into the name and the hash, which is empty if there is none."""
    name, _, digits = model.removesuffix("]").rpartition("[")
    return (name.rstrip(), digits) if model.endswith("]") and _HASH.fullmatch(digits) else (model, "")


_MODULES = {module.partition(" ")[0]: ours for ours, module in PREPROCESSORS.items()}
_MODULES |= {"inpaint": "inpaint", "inpaint_global_harmonious": "inpaint", "": NO_PREPROCESSOR}


def _preprocessor(module: str) -> str | None:
    """Return our name for a module of the extension; None if we have no such preprocessor."""
    first = module.casefold().partition(" ")[0]
    return IMAGE_PROMPT if first.startswith("ip-adapter") else _MODULES.get(first)


def _own_name(names: dict[str, str], theirs: str) -> str:
    return next((ours for ours, name in names.items() if name.casefold() == theirs.casefold()), theirs)

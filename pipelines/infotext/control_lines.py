"""ControlNet units as text: lines of the input `controls`, and the values by which WebUI's extension tells of them.

canny: 0.8
lineart: weight=0.8, start=0, end=0.6, mode=prompt, preprocessor=none
"""

import re
from dataclasses import dataclass

from pipelines.ask.catalog import CONTROL_MODES, CONTROL_RESIZE_MODES, NO_PREPROCESSOR, PREPROCESSORS
from pipelines.ask.networks import in_hashes
from pipelines.ask.request import CONTROLS_MAX, ControlSettings
from pipelines.errors import InvalidInput

_NUMBER = re.compile(r"[-+]?[\d.]+")
_KEY = re.compile(r"\w+")
_NO_NAME = re.compile(r":\s|^(?!.*://).*[:=,;]")
"""What a line's name has when its settings could not be read: files and repositories have none of it, links some."""
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
"""Key of a line -> the field that it sets."""
_NUMBERS = ("weight", "start", "end", "low", "high")


def read_lines(text: str) -> list[ControlSettings]:
    """The units that an input asks for; `model` is what a line names. Raises InvalidInput for what cannot be read."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > CONTROLS_MAX:
        raise InvalidInput("controls", text, f"at most {CONTROLS_MAX} lines, this has {len(lines)}", "Leave some out.")
    return [_read_line(line) for line in lines]


def _read_line(line: str) -> ControlSettings:
    source, settings = _parted(line)
    if _NO_NAME.search(source):
        fix = "Write canny: 0.8, or canny: weight=0.8, start=0, end=0.6."
        raise InvalidInput("controls", line, "after a colon come a weight, and settings between commas", fix)
    values: dict[str, object] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        key, value = (key.strip(), value.strip()) if equals else ("weight", setting.strip())
        if key not in _FIELD_OF:
            raise InvalidInput("controls", line, f"{key} is no setting", f"Known are {', '.join(_FIELD_OF)}.")
        try:
            values[_FIELD_OF[key]] = float(value) if key in _NUMBERS else value.lower()
        except ValueError:
            raise InvalidInput("controls", line, f"{key} must be a number", "Write canny: weight=0.8.") from None
    return ControlSettings(model=source, **values)  # type: ignore[arg-type]


def _parted(line: str) -> tuple[str, list[str]]:
    """A line's name, and its settings where all that follows its last colon are such."""
    source, _, rest = line.rpartition(":")
    settings = [setting.strip() for setting in rest.split(",")]
    return (source.rstrip(), settings) if source.strip() and all(map(_is_setting, settings)) else (line, [])


def _is_setting(text: str) -> bool:
    """A number, or `key=value`."""
    key, equals, value = text.partition("=")
    if not equals:
        return _NUMBER.fullmatch(text) is not None
    return _KEY.fullmatch(key.strip()) is not None and not any(mark in value for mark in "=/")


# --- as WebUI's extension writes it -----------------------------------------------------------------------------------

_VALUE = re.compile(r"(?:\A|(?<=,))\s*([A-Za-z][\w /-]*):\s*(\([^()]*\)|[^,]*)")
_HASH = re.compile(r"[0-9a-fA-F]+")
_OLD_NAMES = {"preprocessor": "module", "starting/ending": "guidance", "preprocessor params": "params"}


@dataclass(frozen=True)
class Told:
    """A unit of an infotext, and what of it is not done here."""

    settings: ControlSettings
    warnings: tuple[str, ...] = ()
    """What changes nothing where the right picture is sent."""
    doubts: tuple[str, ...] = ()
    """What makes another picture."""


def write_unit(control: ControlSettings, short_hash: str) -> str:
    """The unit as an infotext tells it."""
    fields = {
        "Module": PREPROCESSORS[control.preprocessor],
        "Model": f"{in_hashes(control.model)} [{short_hash}]",
        "Weight": f"{control.weight:g}",
        "Resize Mode": CONTROL_RESIZE_MODES[control.resize_mode],
        "Processor Res": "512",  # as the extension does, which takes no notice of it in pictures that are Pixel Perfect
        **({"Threshold A": f"{control.low:g}", "Threshold B": f"{control.high:g}"} if _canny(control) else {}),
        "Guidance Start": f"{control.start:g}",
        "Guidance End": f"{control.end:g}",
        "Pixel Perfect": "True",
        "Control Mode": CONTROL_MODES[control.mode],
    }
    return ", ".join(f"{key}: {value}" for key, value in fields.items())


def _canny(control: ControlSettings) -> bool:
    return control.preprocessor == "canny"


def read_unit(text: str, size: tuple[int, int] | None) -> Told:
    """A unit of an infotext, of the extension's present and older forms, of a picture of this size.

    Raises ValueError (InvalidInput is one) for what cannot be read.
    """
    told = {key.casefold().strip(): value.strip() for key, value in _VALUE.findall(text)}
    told = {_OLD_NAMES.get(key, key): value for key, value in told.items()}
    if "guidance" in told:
        told["guidance start"], told["guidance end"] = told["guidance"].strip("()").split(",")
    if "params" in told:
        told["processor res"], told["threshold a"], told["threshold b"] = told["params"].strip("()").split(",")
    if "model" not in told:
        raise ValueError(text)
    model, model_hash = _named(told["model"])
    module = told.get("module", "none")
    preprocessor = _preprocessor(module)
    values = {"weight": "weight", "start": "guidance start", "end": "guidance end"}
    values |= {"low": "threshold a", "high": "threshold b"} if preprocessor == "canny" else {}
    mode, resize_mode = told.get("control mode", "Balanced"), told.get("resize mode", "Crop and Resize")
    known_resize = resize_mode in CONTROL_RESIZE_MODES.values()
    settings = ControlSettings(
        model=model,
        model_hash=model_hash.lower(),
        preprocessor=preprocessor or NO_PREPROCESSOR,
        mode=_own_name(CONTROL_MODES, mode),
        resize_mode=_own_name(CONTROL_RESIZE_MODES, resize_mode) if known_resize else "crop",
        **{name: float(told[key]) for name, key in values.items() if key in told},  # type: ignore[arg-type]
    )
    resolution = told.get("processor res", "512")
    perfect = told.get("pixel perfect", "False") == "True" or settings.preprocessor == NO_PREPROCESSOR
    doubts = (
        (not known_resize, f"its resize mode {resize_mode} is not here (Crop and Resize is)"),
        (
            not perfect and size is not None and float(resolution) != min(size),
            f"its map was made at {resolution} px; here it is made at the picture's own size",
        ),
        ("both" not in told.get("hr option", "both").casefold(), "it acted in one pass only; here it acts in both"),
    )
    missing = f"the preprocessor {module} is not here: the picture sent for it is taken for its map"
    return Told(
        settings,
        warnings=(missing,) if preprocessor is None else (),
        doubts=tuple(doubt for holds, doubt in doubts if holds),
    )


def _named(model: str) -> tuple[str, str]:
    """`name [hash]` as name and hash, which may be missing."""
    name, _, digits = model.removesuffix("]").rpartition("[")
    return (name.rstrip(), digits) if model.endswith("]") and _HASH.fullmatch(digits) else (model, "")


def _preprocessor(module: str) -> str | None:
    """Ours for a module of the extension; None for one that is not here."""
    first = module.casefold().partition(" ")[0]
    own = {name: ours for ours, theirs in PREPROCESSORS.items() for name in [theirs.partition(" ")[0]]}
    return (own | {"inpaint": "inpaint", "inpaint_global_harmonious": "inpaint", "": NO_PREPROCESSOR}).get(first)


def _own_name(names: dict[str, str], theirs: str) -> str:
    return next((ours for ours, name in names.items() if name.casefold() == theirs.casefold()), theirs)

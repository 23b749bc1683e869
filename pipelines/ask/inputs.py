"""What somebody asks for: the form's inputs, files still unopened, and the settings that come of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.ask.request import SETTINGS
from pipelines.ask.settings import Values
from pipelines.ask.sizes import SIDE_MIN, Size
from pipelines.errors import InvalidInput

OWN_ASPECT = "model's own"
ASPECT_RATIOS: Mapping[str, tuple[int, int]] = {
    "1:1": (1, 1),
    "2:3": (2, 3),
    "3:2": (3, 2),
    "3:4": (3, 4),
    "4:3": (4, 3),
    "9:16": (9, 16),
    "16:9": (16, 9),
}
ON, OFF, AUTOMATIC = "On", "Off", "Automatic"
"""Choices of highres_fix."""
SIDE_STEP = 64
"""Pixels that sides of an aspect ratio are a multiple of: networks are fastest there."""
SMALL_SIDE, SMALL_STEP = 256, 16
"""A model for pictures below this side takes a smaller step: 64 would turn 3:4 into a square."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of `predict()`, before any file is opened."""

    said: Values = field(default_factory=dict[str, Any])
    """The settings that were filled in, by name."""
    generation_data: str = ""
    aspect_ratio: str = OWN_ASPECT
    highres_fix: str = AUTOMATIC
    image: Path | None = None
    mask: Path | None = None
    control_images: tuple[Path, ...] = ()
    files: tuple[Path, ...] = ()
    """LoRAs, embeddings, ControlNets and upscalers, told apart by their content."""
    loras: str = ""
    controls: str = ""


def filled_in(**inputs: Any) -> dict[str, Any]:
    """Return the settings that were filled in, in their own types. Raises InvalidInput for a text that is unreadable.

    A text of spaces alone is filled in, and says nothing: a space as the negative prompt leaves the model's own out.
    Sliders send 7.0 for 7, and generation data shows whole numbers without a fraction.
    """
    values = {name: value for name, value in inputs.items() if value is not None and value != ""}
    if isinstance(values.get("outpaint"), str):
        values["outpaint"] = _outpaint(values["outpaint"])
    return {name: _plain(value) for name, value in values.items()}


def checked_files(sent: Sequence[Path], field: str) -> Sequence[Path]:
    """Return the files that an input brought. Raises InvalidInput for a text, which Cog passes on if it is no URL."""
    for each in sent:
        if not isinstance(each, Path):
            raise InvalidInput(field, each, "must be a file", "Send a data, http or https URL.")
    return sent


def _outpaint(text: str) -> Any:
    row = SETTINGS["outpaint"]
    try:
        return row.rule.read(text)
    except ValueError:
        raise InvalidInput("outpaint", text, f"must be {row.rule.words}", row.hint) from None


def _plain(value: Any) -> Any:
    """Turn 7.0 into 7 and a text of spaces into an empty one. Any other value is returned unchanged."""
    if isinstance(value, str) and value.isspace():
        return ""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def size_of_aspect(aspect_ratio: str, model: Size) -> Size | None:
    """Return a size of this aspect ratio with about the model's number of pixels. None means the model's own size."""
    if aspect_ratio == OWN_ASPECT:
        return None
    across, down = ASPECT_RATIOS[aspect_ratio]
    unit = (model[0] * model[1] / (across * down)) ** 0.5
    step = SIDE_STEP if min(model) >= SMALL_SIDE else SMALL_STEP
    width, height = (max(SIDE_MIN, round(side * unit / step) * step) for side in (across, down))
    return width, height

"""What somebody asks for: the form's inputs, files still unopened, and the settings that come of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import InvalidInput
from pipelines.request import SETTINGS
from pipelines.settings import Values
from pipelines.sizes import Size

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


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What `predict()` got."""

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
    """The settings that are not empty, in their own types. Raises InvalidInput for a text that cannot be read.

    Sliders send 7.0 for 7, and generation data shows whole numbers without a fraction.
    """
    values = {name: value for name, value in inputs.items() if value is not None and value != ""}
    if isinstance(values.get("outpaint"), str):
        values["outpaint"] = _outpaint(values["outpaint"])
    return {name: _whole(value) for name, value in values.items()}


def _outpaint(text: str) -> Any:
    row = SETTINGS["outpaint"]
    try:
        return row.rule.read(text)
    except ValueError:
        raise InvalidInput("outpaint", text, f"must be {row.rule.words}", row.hint) from None


def _whole(value: Any) -> Any:
    """7 for 7.0; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def size_of_aspect(aspect_ratio: str, model: Size) -> Size | None:
    """The size of an aspect ratio with about as many pixels as the model's own. None for the model's own."""
    if aspect_ratio == OWN_ASPECT:
        return None
    across, down = ASPECT_RATIOS[aspect_ratio]
    unit = (model[0] * model[1] / (across * down)) ** 0.5
    return _stepped(across * unit), _stepped(down * unit)


def _stepped(side: float) -> int:
    return max(SIDE_STEP, round(side / SIDE_STEP) * SIDE_STEP)

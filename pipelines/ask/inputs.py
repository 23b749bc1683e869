"""The inputs of `predict()`, with files still unopened, and what they say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipelines.ask.sizes import SIDE_MAX, SIDE_MIN, Size, trained_size
from pipelines.ask.table import ROWS
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
"""The sides of an aspect ratio are multiples of this many pixels, because networks are fastest there."""
SMALL_SIDE, SMALL_STEP = 256, 16
"""Models for pictures below this side use a smaller step: 64 would turn 3:4 into a square."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of `predict()`, before any file is opened. None and an empty text mean that nothing was filled in."""

    prompt: str = ""
    negative_prompt: str = ""
    model: str = ""
    """The model to use, by any of its names; empty for the one that the generation data names, else the first."""
    aspect_ratio: str = OWN_ASPECT
    width: int | None = None
    height: int | None = None
    num_outputs: int = 1
    seed: int | None = None
    highres_fix: str = AUTOMATIC
    hires_scale: float | None = None
    hires_upscaler: str | None = None
    denoising_strength: float | None = None
    hires_steps: int | None = None
    image: Path | None = None
    mask: Path | None = None
    masked_content: str | None = None
    mask_blur: int | None = None
    inpaint_area: str | None = None
    outpaint: str = ""
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    schedule_type: str | None = None
    clip_skip: int | None = None
    loras: str = ""
    controls: str = ""
    control_images: tuple[Path, ...] = ()
    files: tuple[Path, ...] = ()
    """LoRAs, embeddings, ControlNets and upscalers, told apart by their content."""
    animation: str = ""
    frames_per_second: int | None = None
    loop: str | None = None
    output_quality: int | None = None
    generation_data: str = ""

    def filled_in(self) -> dict[str, Any]:
        """Return the settings that were filled in, by name. Raises InvalidInput for a text that cannot be read.

        A text of only spaces counts as filled in but empty: a space as the negative prompt turns off the model's
        default. Sliders send 7.0 for 7; it becomes 7, because generation data shows whole numbers without a fraction.
        """
        told = {each.name: getattr(self, each.name) for each in fields(self) if each.name in ROWS}
        values = {name: _plain(value) for name, value in told.items() if value is not None and value != ""}
        return {**values, "outpaint": _outpaint(self.outpaint)} if self.outpaint else values


def checked_files(sent: Sequence[Path], field: str) -> Sequence[Path]:
    """Return the files that were sent. Raises InvalidInput for a string: Cog passes it on if it is not a URL."""
    for each in sent:
        if not isinstance(each, Path):
            raise InvalidInput(field, each, "must be a file", "Send a data, http or https URL.")
    return sent


def _outpaint(text: str) -> Any:
    row = ROWS["outpaint"]
    try:
        return row.rule.read(text)
    except ValueError:
        raise InvalidInput("outpaint", text, f"must be {row.rule.words}", row.hint) from None


def _plain(value: Any) -> Any:
    """Turn 7.0 into 7 and a text of only spaces into an empty one. Return any other value unchanged."""
    if isinstance(value, str) and value.isspace():
        return ""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def size_of_aspect(aspect_ratio: str, model: Size) -> Size | None:
    """Return a size in this aspect ratio with about as many pixels as the model's own size. None: use that size."""
    if aspect_ratio == OWN_ASPECT:
        return None
    return size_like(ASPECT_RATIOS[aspect_ratio], model)


def size_like(shape: Size, model: Size) -> Size:
    """Return a size in the aspect ratio of `shape`, with about as many pixels as the model's own size."""
    if trained := trained_size(shape, model):
        return trained
    across, down = shape
    unit = (model[0] * model[1] / (across * down)) ** 0.5
    step = SIDE_STEP if min(model) >= SMALL_SIDE else SMALL_STEP
    width, height = (min(max(SIDE_MIN, round(side * unit / step) * step), SIDE_MAX) for side in (across, down))
    return width, height

"""What one prediction asks for, checked once and whole, before any weights are touched.

Names are those of the inputs, so that an error can name the field a person filled in.
"""

import math
import secrets
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Protocol

from pipelines.catalog import (
    CONTROL_MODES,
    CONTROL_RESIZE_MODES,
    EMPHASES,
    INPAINT_AREAS,
    MASKED_CONTENTS,
    NO_PREPROCESSOR,
    NOISE_SOURCES,
    ONLY_MASKED,
    PREPROCESSORS,
    RESIZE_MODES,
    SAMPLERS,
    SCHEDULE_TYPES,
    UPSCALERS,
    WHOLE_PICTURE,
)
from pipelines.errors import InvalidInput
from pipelines.extras import NO_EXTRAS, Extras, check_present
from pipelines.prompt import split_and

SEED_MAX = 2**32 - 1
SIDE_MIN, SIDE_MAX = 64, 2048
PROMPT_MAX = 10_000
"""Characters; about 35 chunks. Longer prompts only slow every step down."""
FINAL_PIXELS_MAX = 2048 * 2048
"""Of one finished picture: beyond it a 16 GB card has no room for the VAE."""

COVERED_PIXELS_MAX = 2 * FINAL_PIXELS_MAX
"""Of an enlarged draft before it is cropped to another aspect."""

INPUT_PIXELS_MAX = 8 * FINAL_PIXELS_MAX
"""Of an input picture."""
CROPPED_PIXELS_MAX = 2 * INPUT_PIXELS_MAX
"""Of one enlarged to cover another aspect, before it is cropped."""

OUTPAINT_MAX = 512
"""Pixels a side: so far the colours of the picture's edge reach."""

FREEU_MAX = 4
"""Of a factor; beyond 1.6 pictures fall apart."""

STRENGTH_MIN = 0.01
"""Of the hires pass. Below it a schedule would need thousands of levels to have any step left."""
AND_PARTS_MAX = 16
"""Each part of a prompt joined by AND is another row of every UNet call."""

CONTROLS_MAX = 4
"""ControlNets of one request: each takes half a UNet's time and memory."""

SAME_SAMPLER = "Use same sampler"
SAME_SCHEDULE = "Use same scheduler"


@dataclass(frozen=True)
class Range:
    """Numbers that a field may have, and what to tell a person who gave another one."""

    low: float
    high: float
    hint: str
    whole: bool = True

    def check(self, name: str, value: object) -> float:
        """The value, of a whole field as int (JSON clients send 64.0 for 64). Raises InvalidInput."""
        if isinstance(value, (int, float)) and not isinstance(value, bool) and self.low <= value <= self.high:
            if not self.whole:
                return value
            if value == int(value):
                return int(value)
        kind = "a whole number" if self.whole else "a number"
        raise InvalidInput(name, value, f"must be {kind} from {self.low} to {self.high}", self.hint)


RANGES = {
    "width": Range(SIDE_MIN, SIDE_MAX, "Use a multiple of 8; others are floored to one."),
    "height": Range(SIDE_MIN, SIDE_MAX, "Use a multiple of 8; others are floored to one."),
    "seed": Range(0, SEED_MAX, "Leave it empty for a random one."),
    "num_outputs": Range(1, 4, "For more pictures send more requests."),
    "num_inference_steps": Range(1, 150, "20 to 30 is usual."),
    "guidance_scale": Range(1, 30, "7 is usual.", whole=False),
    "guidance_rescale": Range(0, 1, "0 turns it off, 0.7 is usual.", whole=False),
    "clip_skip": Range(1, 12, "1 is the last layer; anime models often use 2."),
    "variation_seed": Range(0, SEED_MAX, "Use the seed of another picture."),
    "variation_strength": Range(0, 1, "0 turns variations off.", whole=False),
    "hires_scale": Range(1, 4, "2 is usual.", whole=False),
    "hires_steps": Range(0, 150, "0 takes as many steps as the first pass."),
    "denoising_strength": Range(0, 1, "0.5 to 0.7 is usual.", whole=False),
    "mask_blur": Range(0, 64, "4 is usual, 0 turns it off."),
    "inpaint_padding": Range(0, 256, "32 is usual."),
    "hires_denoising_strength": Range(0, 1, "0 takes denoising_strength.", whole=False),
    "hires_width": Range(0, 2 * SIDE_MAX, "0 leaves it to hires_scale, or to the other side and the aspect."),
    "hires_height": Range(0, 2 * SIDE_MAX, "0 leaves it to hires_scale, or to the other side and the aspect."),
}
CONTROL_RANGES = {
    "weight": Range(0, 2, "1 is usual.", whole=False),
    "start": Range(0, 1, "0 is the first step.", whole=False),
    "end": Range(0, 1, "1 is the last step.", whole=False),
    "low": Range(0, 255, "100 is usual.", whole=False),
    "high": Range(0, 255, "200 is usual.", whole=False),
}
ENSD = Range(-SEED_MAX, SEED_MAX, "0 turns it off; 31337 is what many pictures were made with.")
OUTPAINT = Range(0, OUTPAINT_MAX, "For more, outpaint the result again.")
SIDES = ("left", "top", "right", "bottom")
SCHEDULE_RANGE = Range(0, 1000, "0 leaves it to the model or the schedule type.", whole=False)


@dataclass(frozen=True, kw_only=True)
class NoiseSettings:
    """Where randomness comes from. `ensd` and variations are WebUI's."""

    source: str = "NV"
    ensd: int = 0
    variation_seed: int = 0
    variation_strength: float = 0.0

    def __post_init__(self) -> None:
        _check_choice("rng", self.source, NOISE_SOURCES)
        object.__setattr__(self, "ensd", ENSD.check("ensd", self.ensd))
        for name in ("variation_seed", "variation_strength"):
            object.__setattr__(self, name, RANGES[name].check(name, getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """What of a schedule is set by hand, by WebUI's options; 0 leaves it to the model or the schedule type."""

    sigma_min: float = 0
    sigma_max: float = 0
    rho: float = 0
    """Exponent of Karras (7) and Polyexponential (1)."""
    discard_penultimate: bool = False
    """Compute one level more and leave out the last but one."""

    def __post_init__(self) -> None:
        for name in ("sigma_min", "sigma_max", "rho"):
            SCHEDULE_RANGE.check(f"schedule_{name}", getattr(self, name))
        if self.sigma_max and self.sigma_min >= self.sigma_max:
            rule = f"must be less than schedule_sigma_max={self.sigma_max}"
            raise InvalidInput("schedule_sigma_min", self.sigma_min, rule, "0 leaves both to the model.")


@dataclass(frozen=True, kw_only=True)
class HiresSettings:
    """The second pass. Empty or "same" values are those of the first pass."""

    scale: float = 2
    resize_to: tuple[int, int] = (0, 0)
    """(width, height) instead of a scale where one of them is not 0; the other 0 keeps the aspect."""
    upscaler: str = "Latent"
    upscaler_file: Path | None = None
    """Weights of an ESRGAN-family upscaler that the catalog does not know; `upscaler` is then its name."""
    steps: int = 0
    denoising_strength: float = 0.6
    prompt: str = ""
    negative_prompt: str = ""
    sampler: str = SAME_SAMPLER
    schedule_type: str = SAME_SCHEDULE

    def __post_init__(self) -> None:
        _check_text("hires_prompt", self.prompt)
        _check_text("hires_negative_prompt", self.negative_prompt)
        for name in ("scale", "steps", "denoising_strength"):
            field_name = name if name in RANGES else f"hires_{name}"
            object.__setattr__(self, name, RANGES[field_name].check(field_name, getattr(self, name)))
        sides = zip(("hires_width", "hires_height"), self.resize_to, strict=True)
        object.__setattr__(self, "resize_to", tuple(RANGES[name].check(name, side) for name, side in sides))
        if self.upscaler_file is None:
            _check_choice("hires_upscaler", self.upscaler, UPSCALERS)
        _check_choice("hires_sampler", self.sampler, (SAME_SAMPLER, *SAMPLERS))
        _check_choice("hires_schedule_type", self.schedule_type, (SAME_SCHEDULE, *SCHEDULE_TYPES))
        if self.denoising_strength < STRENGTH_MIN:
            raise InvalidInput(
                "denoising_strength",
                self.denoising_strength,
                f"below {STRENGTH_MIN} the hires pass would run no step that shows",
                "Use more (0.6 is usual), or turn hires off.",
            )


@dataclass(frozen=True)
class FreeU:
    """Factors of what the UNet's first two decoder stages get from below (b) and of the coarse part of what they get
    from the encoder (s): Si et al. 2023, https://arxiv.org/abs/2309.11497."""

    b1: float
    b2: float
    s1: float
    s2: float

    @classmethod
    def read(cls, text: str) -> "FreeU | None":
        """From `b1 b2 s1 s2`; None from an empty text. Raises InvalidInput."""
        try:
            numbers = [float(number) for number in text.replace(",", " ").split()]
        except ValueError:
            numbers = [math.nan]
        if not numbers:
            return None
        if len(numbers) != len(fields(cls)) or not all(0 <= number <= FREEU_MAX for number in numbers):
            rule = f"must be the four numbers b1 b2 s1 s2, each from 0 to {FREEU_MAX}"
            raise InvalidInput("freeu", text, rule, "1.5 1.6 0.9 0.2 is usual; leave it empty to turn it off.")
        return cls(*numbers)

    def __str__(self) -> str:
        return " ".join(f"{number:g}" for number in astuple(self))


class Picture(Protocol):
    """An input picture, decoded: of it only the size matters here."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """What of a picture is drawn anew: where the mask is white, and what outpainting adds."""

    picture: Picture | None = None
    """None: outpainting alone."""
    invert: bool = False
    blur: tuple[int, int] = (4, 4)
    """Standard deviation across and down, in pixels of the mask."""
    content: str = "original"
    area: str = WHOLE_PICTURE
    padding: int = 32
    """Pixels around what is masked, where only that is drawn."""
    soft: bool = False
    """Blend half masked latents instead of taking them for masked or not."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "blur", tuple(RANGES["mask_blur"].check("mask_blur", side) for side in self.blur))
        object.__setattr__(self, "padding", RANGES["inpaint_padding"].check("inpaint_padding", self.padding))
        _check_choice("masked_content", self.content, MASKED_CONTENTS)
        _check_choice("inpaint_area", self.area, INPAINT_AREAS)


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """The picture that the first pass starts from, instead of noise alone."""

    picture: Picture
    denoising_strength: float = 0.6
    resize_mode: str = "stretch"
    mask: MaskSettings | None = None
    outpaint: tuple[int, ...] = (0, 0, 0, 0)
    """Pixels added at the left, top, right and bottom, which count as masked."""

    def __post_init__(self) -> None:
        strength = RANGES["denoising_strength"].check("denoising_strength", self.denoising_strength)
        object.__setattr__(self, "denoising_strength", strength)
        _check_choice("resize_mode", self.resize_mode, RESIZE_MODES)
        sides = zip((f"outpaint_{side}" for side in SIDES), self.outpaint, strict=True)
        object.__setattr__(self, "outpaint", tuple(OUTPAINT.check(name, pixels) for name, pixels in sides))
        if any(self.outpaint) and self.mask is None:
            object.__setattr__(self, "mask", MaskSettings())
        mask = self.mask.picture if self.mask else None
        if mask is not None and mask.size != self.picture.size:
            rule = "must have the size of image, {} x {}".format(*self.picture.size)
            raise InvalidInput("mask", "{}x{}".format(*mask.size), rule, "Scale one of them to the other.")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the picture with what outpainting adds."""
        (width, height), (left, top, right, bottom) = self.picture.size, self.outpaint
        return width + left + right, height + top + bottom

    @property
    def only_masked(self) -> bool:
        """Whether the pass draws the masked part alone, to be pasted back."""
        return self.mask is not None and self.mask.area == ONLY_MASKED


_NUMBERS = (
    "width",
    "height",
    "seed",
    "num_outputs",
    "num_inference_steps",
    "guidance_scale",
    "guidance_rescale",
    "clip_skip",
)


@dataclass(frozen=True, kw_only=True)
class ControlSettings:
    """A ControlNet at work in both passes."""

    model: str
    """Its name, by which `Extras` has its file."""
    model_hash: str = ""
    """Of generation data: WebUI's eight digits of the file that it was made with."""
    picture: Picture | None = None
    """What it looks at; None: the image that the first pass starts from."""
    preprocessor: str = ""
    """What makes a map of the picture; empty: what the model's name says, if it says one."""
    low: float = 100
    """Canny's thresholds, of 255."""
    high: float = 200
    weight: float = 1
    start: float = 0
    """From this share of a pass's steps on, and up to `end`, it acts."""
    end: float = 1
    mode: str = "balanced"
    resize_mode: str = "crop"

    def __post_init__(self) -> None:
        named = next((name for name in PREPROCESSORS if name in self.model.casefold()), NO_PREPROCESSOR)
        object.__setattr__(self, "preprocessor", self.preprocessor or named)
        for name, allowed in CONTROL_RANGES.items():
            allowed.check(f"controls, {name} of {self.model}", getattr(self, name))
        if self.start > self.end:
            rule = f"it would end at {self.end:g}, before it starts"
            raise InvalidInput(f"controls, start of {self.model}", self.start, rule, "Swap them.")
        _check_choice(f"controls, mode of {self.model}", self.mode, tuple(CONTROL_MODES))
        _check_choice(f"controls, preprocessor of {self.model}", self.preprocessor, tuple(PREPROCESSORS))
        _check_choice(f"controls, resize of {self.model}", self.resize_mode, tuple(CONTROL_RESIZE_MODES))


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One prediction. Creating one checks everything; raises InvalidInput with the field, value, rule and fix.

    A request made from another with `dataclasses.replace` is checked again.
    """

    prompt: str
    negative_prompt: str = ""
    width: int
    height: int
    seed: int
    num_outputs: int = 1
    num_inference_steps: int = 20
    guidance_scale: float = 7
    sampler: str = "DPM++ 2M"
    schedule_type: str = "Automatic"
    guidance_rescale: float = 0
    """How much of what guidance adds to the prediction's spread is taken back: Lin et al. 2023, section 3.4,
    https://arxiv.org/abs/2305.08891."""
    freeu: FreeU | None = None
    clip_skip: int = 1
    emphasis: str = "Original"
    """What weights in prompts do, by the names of WebUI's option; see `catalog.EMPHASES`."""
    pad_conds: bool = False
    """Pad the shorter of prompt and negative prompt with empty chunks, as WebUI's option of that name."""
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    image: ImageSettings | None = None
    hires: HiresSettings | None = field(default_factory=HiresSettings)
    controls: tuple[ControlSettings, ...] = ()
    extras: Extras = NO_EXTRAS

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt"):
            _check_text(name, getattr(self, name))
        for name in _NUMBERS:
            object.__setattr__(self, name, RANGES[name].check(name, getattr(self, name)))
        if self.seed + self.num_outputs - 1 > SEED_MAX:
            fix = f"Use {SEED_MAX - self.num_outputs + 1} or less, or fewer pictures."
            raise InvalidInput("seed", self.seed, f"the last of {self.num_outputs} pictures would pass {SEED_MAX}", fix)
        _check_choice("sampler", self.sampler, tuple(SAMPLERS))
        _check_choice("schedule_type", self.schedule_type, SCHEDULE_TYPES)
        _check_choice("emphasis", self.emphasis, EMPHASES)
        check_present("prompt", self.prompt, self.extras)
        if self.hires is not None:
            check_present("hires_prompt", self.hires.prompt, self.extras)
            _check_final_size(self.hires, self.width, self.height)
        if len(self.controls) > CONTROLS_MAX:
            raise InvalidInput("controls", len(self.controls), f"at most {CONTROLS_MAX} at once", "Leave some out.")
        for control in self.controls:
            self._check_control(control)

    def _check_control(self, control: ControlSettings) -> None:
        if control.model not in self.extras.controls:
            fix = "Name a file, repository or address in controls, or send it in control_file (--controlnet-dir)."
            raise InvalidInput("controls", control.model, "no ControlNet of this name is here", fix)
        if control.picture is None and self.image is None:
            raise nothing_to_follow(control)
        if control.preprocessor == "inpaint" and (self.image is None or self.image.mask is None):
            fix = "Send image and mask, or use another preprocessor."
            raise InvalidInput("controls", control.model, "the preprocessor inpaint needs a mask", fix)


def nothing_to_follow(control: ControlSettings) -> InvalidInput:
    """The error of a ControlNet without a picture."""
    fix = "Send one in control_images, or an image."
    return InvalidInput("controls", control.model, "there is no picture for it to follow", fix)


def random_seed() -> int:
    """A seed for a request that names none, with room for the seeds of its other pictures."""
    return secrets.randbelow(SEED_MAX - int(RANGES["num_outputs"].high))


def size_to_draw(width: int, height: int) -> tuple[int, int]:
    """The size nearest to a picture's own that can be drawn: a multiple of 8, within the limits of a side."""
    scale = min(1, SIDE_MAX / max(width, height), math.sqrt(FINAL_PIXELS_MAX / (width * height)))
    scale = max(scale, SIDE_MIN / min(width, height))

    def fitted(side: int) -> int:
        return min(max(int(side * scale) // 8 * 8, SIDE_MIN), SIDE_MAX)

    return fitted(width), fitted(height)


def scaled_size(own: tuple[int, int], size: tuple[int, int], *, cover: bool) -> tuple[int, int]:
    """A picture's size in its own aspect, so large that it covers `size`, or that it fits inside."""
    width, height = size
    if (width * own[1] > height * own[0]) == cover:
        return width, max(1, own[1] * width // own[0])
    return max(1, own[0] * height // own[1]), height


def check_croppable(name: str, own: tuple[int, int], size: tuple[int, int], fix: str) -> None:
    """That a picture enlarged to cover `size` does not take all memory. Raises InvalidInput that names the input."""
    if math.prod(scaled_size(own, size, cover=True)) > CROPPED_PIXELS_MAX:
        rule = "is of too different an aspect to be cropped to {}x{}".format(*size)
        raise InvalidInput(name, "{}x{}".format(*own), rule, fix)


def plain(number: float) -> float:
    """7.0 as 7: a form's sliders send whole numbers either way, and infotexts show them without a fraction."""
    return int(number) if float(number).is_integer() else number


def enlarged_size(width: int, height: int, hires: HiresSettings) -> tuple[int, int]:
    """(width, height) that the draft is enlarged to, before it is cut to whole latents and, with both sides of
    `resize_to` given, cropped: then it covers that size in the draft's aspect."""
    to_width, to_height = hires.resize_to
    if (to_width, to_height) == (0, 0):
        return int(width * hires.scale), int(height * hires.scale)
    if to_height == 0 or (to_width and width * to_height < height * to_width):
        return to_width, to_width * height // width
    return to_height * width // height, to_height


def _check_final_size(hires: HiresSettings, width: int, height: int) -> None:
    enlarged = enlarged_size(width, height, hires)
    final_width, final_height = (to or side for to, side in zip(hires.resize_to, enlarged, strict=True))
    if min(final_width, final_height) < SIDE_MIN:
        name = "hires_width" if final_width < SIDE_MIN else "hires_height"
        rule = f"{width} x {height} would become {final_width} x {final_height}; at least {SIDE_MIN} a side"
        raise InvalidInput(name, f"{final_width}x{final_height}", rule, "Use more, or 0 and hires_scale.")
    if any(hires.resize_to):
        _check_resize(hires, enlarged, (final_width, final_height))
        return
    if final_width * final_height <= FINAL_PIXELS_MAX:
        return
    shrink = math.sqrt(FINAL_PIXELS_MAX / (final_width * final_height))
    fitting = " and ".join(
        f"{name} {int(side * shrink) // 8 * 8}" for name, side in (("width", width), ("height", height))
    )
    largest_scale = math.floor(math.sqrt(FINAL_PIXELS_MAX / (width * height)) * 100) / 100
    raise InvalidInput(
        "hires_scale",
        hires.scale,
        f"{width} x {height} would become {final_width} x {final_height}, "
        f"{final_width * final_height / 1e6:.1f} million pixels; at most {FINAL_PIXELS_MAX / 1e6:.1f} million fit",
        f"Use {fitting}, or for this size hires_scale {largest_scale:g} or less.",
    )


def _check_resize(hires: HiresSettings, enlarged: tuple[int, int], final: tuple[int, int]) -> None:
    """A draft of another aspect is enlarged until it covers the size; what is cropped then costs memory, too."""
    pixels, covered = math.prod(final), math.prod(enlarged)
    if pixels <= FINAL_PIXELS_MAX and covered <= COVERED_PIXELS_MAX:
        return
    shrink = math.sqrt(min(FINAL_PIXELS_MAX / pixels, COVERED_PIXELS_MAX / covered))
    fitting = " and ".join(
        f"{name} {int(side * shrink) // 8 * 8}"
        for name, side in zip(("hires_width", "hires_height"), hires.resize_to, strict=True)
        if side
    )
    raise InvalidInput(
        "hires_width" if hires.resize_to[0] else "hires_height",
        "x".join(map(str, hires.resize_to)),
        f"the draft would be enlarged to {enlarged[0]} x {enlarged[1]}, {covered / 1e6:.1f} million pixels, for "
        f"{final[0]} x {final[1]}; at most {COVERED_PIXELS_MAX / 1e6:.1f} million, and {FINAL_PIXELS_MAX / 1e6:.1f} "
        "million when cropped, fit",
        f"Use {fitting}, or a size of the draft's aspect.",
    )


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise InvalidInput(name, text, "must be text", "Send a string.")
    if len(text) > PROMPT_MAX:
        raise InvalidInput(name, text, f"at most {PROMPT_MAX} characters", "Shorten it.")
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InvalidInput(name, text, "must be text without NUL bytes or broken Unicode", "Remove them.")
    if len(split_and(text)) > AND_PARTS_MAX:
        raise InvalidInput(name, text, f"at most {AND_PARTS_MAX} parts joined by AND", "Write most of them as tags.")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidInput(name, value, f"must be one of {', '.join(choices)}", f"The usual one is {choices[0]}.")

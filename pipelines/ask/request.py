"""The request of one prediction, checked completely before any weights are touched.

Names are those of the inputs, so that an error can name the field that was filled in.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol, Self

from pipelines.ask.animation import AnimationSettings
from pipelines.ask.catalog import (
    CONTROL_MODES,
    CONTROL_RESIZE_MODES,
    EMPHASES,
    IMAGE_PROMPT,
    INPAINT_AREAS,
    MASKED_CONTENTS,
    NOISE_SCHEDULES,
    NOISE_SOURCES,
    ONLY_MASKED,
    PREPROCESSORS,
    RESIZE_MODES,
    SAMPLERS,
    SCHEDULE_TYPES,
    UPSCALERS,
    WHOLE_PICTURE,
    preprocessor_for,
)
from pipelines.ask.networks import NO_EXTRAS, ExtraFile, Extras, check_present
from pipelines.ask.prompt import split_and
from pipelines.ask.settings import (
    NO,
    Checked,
    Choice,
    Flag,
    Key,
    LayerFromEnd,
    ModelName,
    Number,
    Setting,
    Text,
    Whole,
    rows,
    setting,
    values_of,
)
from pipelines.ask.sizes import SIDE_MAX, SIDE_MIN, check_final_size
from pipelines.errors import InvalidInput

SEED_MAX = 2**32 - 1
OUTPUTS_MAX = 4
PROMPT_MAX = 10_000
"""In characters; about 35 chunks. Longer prompts only slow down every step."""

NAME_MAX = 300
"""For the name of a model, in characters."""
OUTPAINT_MAX = 512
"""Pixels per side. The colours of the picture's edge reach this far."""

FREEU_MAX = 4
"""Limit for a factor. Above 1.6 pictures fall apart."""

STRENGTH_MIN = 0.01
"""The least strength of the hires pass. Below it a schedule would need thousands of levels to have any step left."""
AND_PARTS_MAX = 16
"""Limit for the parts of a prompt joined by AND. Each part is another row in every UNet call."""

CONTROLS_MAX = 4
"""Limit for one request. Each ControlNet takes half a UNet's time and memory."""

SAME_SAMPLER = "Use same sampler"
SAME_SCHEDULE = "Use same scheduler"


CONTROL_RULES = {
    "weight": (Number(0, 2), "1 is usual."),
    "start": (Number(0, 1), "0 is the first step."),
    "end": (Number(0, 1), "1 is the last step."),
    "low": (Number(0, 255), "100 is usual."),
    "high": (Number(0, 255), "200 is usual."),
}
SIDES = ("left", "top", "right", "bottom")
SIDE = Whole(SIDE_MIN, SIDE_MAX)
SEED = Whole(0, SEED_MAX)
SHARE = Number(0, 1)
PROMPT = Text(PROMPT_MAX)
LEVEL = Number(0, 1000)
BLUR = Whole(0, 64)
EIGHTS = "Use a multiple of 8; others are rounded down to one."
BY_SCALE = "With 0, hires_scale or the other side decides."
BY_MODEL = "With 0, the model or the schedule type decides."
NO_SEED_RESIZE = "0 turns seed resize off."


@dataclass(frozen=True, kw_only=True)
class NoiseSettings(Checked):
    """Where randomness comes from."""

    source: str = setting(
        "rng",
        Choice(NOISE_SOURCES),
        "NV",
        key=Key("RNG", unsaid="GPU"),
        about="Where noise comes from, as in WebUI. NV and GPU give the same noise, CPU gives another.",
    )
    ensd: int = setting(
        "ensd",
        Whole(-SEED_MAX, SEED_MAX),
        0,
        key="ENSD",
        hint="0 turns it off; many pictures were made with 31337.",
        about="Eta noise seed delta: added to the seed for the noise that ancestral and SDE samplers draw.",
    )
    variation_seed: int = setting(
        "variation_seed",
        SEED,
        0,
        key="Variation seed",
        hint="Use the seed of another picture.",
        about="The seed of the picture to move towards. Variation seed strength says how far.",
    )
    variation_strength: float = setting(
        "variation_strength",
        SHARE,
        0.0,
        key="Variation seed strength",
        hint="0 turns variations off.",
        about="How far to go from the seed's picture to the variation seed's. 0 is off.",
    )
    resize_width: int = setting(
        "seed_resize_width",
        Whole(0, SIDE_MAX),
        0,
        hint=NO_SEED_RESIZE,
        about="Width of the picture whose noise is placed in the middle of this one's.",
    )
    resize_height: int = setting(
        "seed_resize_height",
        Whole(0, SIDE_MAX),
        0,
        hint=NO_SEED_RESIZE,
        about="Height of that picture. Both sides are needed.",
    )

    @property
    def resized_from(self) -> tuple[int, int] | None:
        """(width, height) in pixels of the picture whose noise is placed in the middle; None: no seed resize."""
        return (self.resize_width, self.resize_height) if self.resize_width and self.resize_height else None


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings(Checked):
    """WebUI's options for the noise schedule. With 0, the model or the schedule type decides."""

    sigma_min: float = setting(
        "schedule_sigma_min", LEVEL, 0, key="Schedule min sigma", hint=BY_MODEL, about="The lowest noise level."
    )
    sigma_max: float = setting(
        "schedule_sigma_max", LEVEL, 0, key="Schedule max sigma", hint=BY_MODEL, about="The highest noise level."
    )
    rho: float = setting(
        "schedule_rho",
        LEVEL,
        0,
        key="Schedule rho",
        hint=BY_MODEL,
        about="The exponent of the schedule types Karras (default 7) and Polyexponential (default 1).",
    )
    discard_penultimate: bool = setting(
        "discard_penultimate",
        Flag(),
        False,
        key="Discard penultimate sigma",
        about="Compute one more noise level and drop the second-to-last one.",
    )
    kind: str = setting(
        "noise_schedule",
        Choice(NOISE_SCHEDULES),
        NOISE_SCHEDULES[0],
        key="Noise Schedule",
        about="Zero Terminal SNR rescales the model's noise levels to end in pure noise.",
    )
    downcast: bool = setting(
        "downcast_alphas",
        Flag(),
        False,
        key="Downcast alphas_cumprod",
        about="Round the model's noise levels to half precision, as WebUI did before 1.8.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma_max and self.sigma_min >= self.sigma_max:
            rule = f"must be less than Schedule max sigma, which is {self.sigma_max}"
            raise InvalidInput("schedule_sigma_min", self.sigma_min, rule, "With 0 for both, the model decides.")


@dataclass(frozen=True, kw_only=True)
class AddedNoise(Checked):
    """WebUI's options for the noise that a sampler adds during a pass. Each sampler uses some of them (`catalog`)."""

    eta: float = setting(
        "eta",
        SHARE,
        1,
        key="Eta",
        hint="1 is usual, 0 adds none.",
        about="How much noise ancestral and SDE samplers add, as a factor.",
    )
    eta_ddim: float = setting(
        "eta_ddim", SHARE, 0, key="Eta DDIM", hint="0 is usual.", about="How much noise DDIM and DDIM CFG++ add."
    )
    churn: float = setting(
        "sigma_churn",
        Number(0, 100),
        0,
        key="Sigma churn",
        hint="0 is usual.",
        about="How much noise Euler, Heun and DPM2 add before their steps, in total.",
    )
    tmin: float = setting(
        "sigma_tmin", LEVEL, 0, key="Sigma tmin", hint="0 is usual.", about="The lowest noise level for sigma churn."
    )
    tmax: float = setting(
        "sigma_tmax",
        LEVEL,
        0,
        key="Sigma tmax",
        hint="0 sets no limit.",
        about="The highest noise level for sigma churn. 0 sets no limit.",
    )
    scale: float = setting(
        "sigma_noise",
        Number(0, 2),
        1,
        key="Sigma noise",
        hint="1 is usual.",
        about="A factor for the noise that samplers add. Euler a, DPM adaptive, Restart, LCM and DDIM ignore it.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tmax and self.tmin > self.tmax:
            rule = f"must not be more than Sigma tmax, which is {self.tmax}"
            raise InvalidInput("sigma_tmin", self.tmin, rule, "0 sets no limit for either.")


@dataclass(frozen=True, kw_only=True)
class SkippedGuidance(Checked):
    """The steps at which the negative prompt, and so guidance, is skipped."""

    early: float = setting(
        "skip_early_cfg",
        SHARE,
        0,
        key="Skip Early CFG",
        hint="0 turns it off, 0.1 to 0.3 is usual.",
        about="Skip the negative prompt for this share of a pass's steps, from its start.",
    )
    minimum_sigma: float = setting(
        "ngms",
        LEVEL,
        0,
        key="NGMS",
        hint="0 turns it off, 1 to 4 is usual.",
        about="Skip the negative prompt at every other step below this noise level.",
    )
    all_steps: bool = setting(
        "ngms_all_steps", Flag(), False, key="NGMS all steps", about="With NGMS, skip it at all steps below that level."
    )


SECOND_PASS, FIRST_PASS, BOTH_PASSES = "second pass", "first pass", "both passes"


@dataclass(frozen=True, kw_only=True)
class RefinerSettings(Checked):
    """The model that takes over within a pass."""

    name: str = setting(
        "refiner",
        ModelName(NAME_MAX),
        "",
        key=Key("Refiner", written=False),
        about="Another model of this container, which finishes what the model began. Empty: none.",
    )
    switch_at: float = setting(
        "refiner_switch_at",
        Number(0, 1),
        0.8,
        key=Key("Refiner switch at", written=False),
        hint="0.8 is usual, 1 turns it off.",
        about="The share of the model's timesteps after which the refiner takes over.",
    )
    by_steps: bool = setting(
        "refiner_switch_by_steps",
        Flag(),
        False,
        key="Refiner switch by sampling steps",
        about="Switch after that share of the sampling steps instead, as WebUI did before 1.9.",
    )
    passes: str = setting(
        "hires_refiner",
        Choice((SECOND_PASS, FIRST_PASS, BOTH_PASSES)),
        SECOND_PASS,
        key=Key("Hires refiner", written=False),
        about="Which passes the refiner takes part in, if there is a hires pass.",
    )

    @property
    def acts(self) -> bool:
        """Whether a refiner takes over at all."""
        return bool(self.name) and self.switch_at < 1

    def acts_in(self, hires: bool, alone: bool) -> bool:
        """Return whether it may take over in the hires pass, or in the first pass, which may be the only one."""
        return self.acts and (alone or self.passes in (BOTH_PASSES, SECOND_PASS if hires else FIRST_PASS))


CROP = Whole(0, 1024)
SCORE = Number(0, 10)


@dataclass(frozen=True, kw_only=True)
class FramingSettings(Checked):
    """What SDXL models are told about the picture. These are options of WebUI, which infotexts do not record."""

    crop_top: int = setting(
        "sdxl_crop_top",
        CROP,
        0,
        key=Key("SDXL crop top", written=False),
        hint="0 is usual.",
        about="Pixels that SDXL thinks are cut off at the top.",
    )
    crop_left: int = setting(
        "sdxl_crop_left",
        CROP,
        0,
        key=Key("SDXL crop left", written=False),
        hint="0 is usual.",
        about="Pixels that SDXL thinks are cut off at the left.",
    )
    score: float = setting(
        "sdxl_refiner_high_aesthetic_score",
        SCORE,
        6,
        key=Key("SDXL refiner high aesthetic score", written=False),
        hint="6 is usual.",
        about="How beautiful the SDXL refiner is told the picture is, from 0 to 10.",
    )
    negative_score: float = setting(
        "sdxl_refiner_low_aesthetic_score",
        SCORE,
        2.5,
        key=Key("SDXL refiner low aesthetic score", written=False),
        hint="2.5 is usual.",
        about="The same for the negative prompt.",
    )
    clip_l_skip: bool = setting(
        "sdxl_clip_l_skip",
        Flag(),
        False,
        key=Key("SDXL CLIP-L skip", written=False),
        about="Use the clip skip for SDXL's first text encoder. Otherwise it has no effect on SDXL.",
    )


@dataclass(frozen=True, kw_only=True)
class HiresSettings(Checked):
    """The second pass. Values that are empty or "same" mean those of the first pass."""

    scale: float = setting(
        "hires_scale", Number(1, 4), 2, key="Hires upscale", hint="2 is usual.", about="Enlargement factor."
    )
    width: int = setting(
        "hires_width", Whole(0, 2 * SIDE_MAX), 0, hint=BY_SCALE, about="Width to enlarge to, instead of a scale."
    )
    height: int = setting(
        "hires_height", Whole(0, 2 * SIDE_MAX), 0, hint=BY_SCALE, about="Height to enlarge to, instead of a scale."
    )
    upscaler: str = setting(
        "hires_upscaler",
        Choice(UPSCALERS, open=True),
        "Latent",
        key="Hires upscaler",
        about="How to enlarge the draft before it is redrawn.",
    )
    upscaler_file: Path | None = None
    """Weights of an ESRGAN-family upscaler that is not in the catalog; `upscaler` is then its name."""
    steps: int = setting(
        "hires_steps",
        Whole(0, 150),
        0,
        key="Hires steps",
        hint="With 0 it takes as many steps as the first pass.",
        about="Sampling steps of the hires pass. 0: as many as the first pass.",
    )
    checkpoint: str = setting(
        "hires_checkpoint",
        ModelName(NAME_MAX),
        "",
        key=Key("Hires checkpoint", written=False),
        about="Another model of this container for the hires pass. Empty: the same.",
    )
    denoising_strength: float = setting(
        "hires_denoising_strength",
        SHARE,
        0.6,
        key="Hires denoising strength",
        hint="0.5 to 0.7 is usual.",
        about="How much the hires pass may change, if the first pass starts from an image with another strength.",
    )
    prompt: str = setting(
        "hires_prompt", PROMPT, "", key="Hires prompt", about="Another prompt for the hires pass. Empty: the same."
    )
    negative_prompt: str = setting(
        "hires_negative_prompt",
        PROMPT,
        "",
        key="Hires negative prompt",
        about="Another negative prompt for the hires pass. Empty: the same.",
    )
    sampler: str = setting(
        "hires_sampler",
        Choice((SAME_SAMPLER, *SAMPLERS), open=True),
        SAME_SAMPLER,
        key="Hires sampler",
        about="The sampling method of the hires pass.",
    )
    schedule_type: str = setting(
        "hires_schedule_type",
        Choice((SAME_SCHEDULE, *SCHEDULE_TYPES), open=True),
        SAME_SCHEDULE,
        key="Hires schedule type",
        about="The spacing of the noise levels of the hires pass.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_parts("hires_prompt", self.prompt)
        if self.denoising_strength < STRENGTH_MIN:
            raise InvalidInput(
                "hires_denoising_strength",
                self.denoising_strength,
                f"below {STRENGTH_MIN} the hires pass would change nothing visible",
                "Use more (0.6 is usual), or turn highres_fix off.",
            )

    def unavailable(self) -> dict[str, Setting]:
        return {
            each: row for each, row in super().unavailable().items() if each != "upscaler" or not self.upscaler_file
        }

    @property
    def resize_to(self) -> tuple[int, int]:
        """(width, height) to enlarge to. If one of them is not 0, they replace the scale."""
        return self.width, self.height


@dataclass(frozen=True)
class FreeU:
    """Factors for the inputs of the UNet's first two decoder stages: for the features from the stage below (b), and for
    the low frequencies of the encoder's skip connections (s). Si et al. 2023, https://arxiv.org/abs/2309.11497."""

    b1: float
    b2: float
    s1: float
    s2: float

    def __str__(self) -> str:
        return " ".join(f"{number:g}" for number in astuple(self))


@dataclass(frozen=True)
class FreeUFactors:
    """The rule for FreeU's four factors. None turns FreeU off."""

    words: str = f"the four numbers b1 b2 s1 s2, each from 0 to {FREEU_MAX}"

    def read(self, text: str) -> FreeU | None:
        """Parse `b1 b2 s1 s2`. Return None for an empty text or a word for no. Raises ValueError."""
        if text.strip().casefold() in ("", *NO):
            return None
        numbers = [float(number) for number in text.replace(",", " ").split()]
        if len(numbers) != len(fields(FreeU)) or not all(0 <= number <= FREEU_MAX for number in numbers):
            raise ValueError(text)
        return FreeU(*numbers)

    def check(self, name: str, value: object, hint: str) -> FreeU | None:
        if value is None or isinstance(value, FreeU):
            return value
        raise InvalidInput(name, value, f"must be {self.words}", hint)


@dataclass(frozen=True)
class Margins:
    """The rule for outpainting: pixels at the left, top, right and bottom."""

    words: str = f"sides with whole numbers from 0 to {OUTPAINT_MAX}, such as right 64, top 32"

    def read(self, text: str) -> tuple[int, ...]:
        """Parse `right 64, top 32`, or four numbers in the order left, top, right, bottom. Raises ValueError."""
        words = re.findall(r"[a-z]+|[0-9]{1,5}", text.casefold())
        if re.fullmatch(r"(?:\s*+[0-9]{1,5}){4}\s*", text) and len(words) == len(SIDES):
            return tuple(map(int, words))
        sides = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        if sides.keys() - set(SIDES) or 2 * len(sides) != len(words) or re.search(r"[^\sa-z0-9,;:=]", text.casefold()):
            raise ValueError(text)
        return tuple(sides.get(side, 0) for side in SIDES)

    def check(self, name: str, value: object, hint: str) -> tuple[int, ...]:
        if not isinstance(value, tuple) or len(value) != len(SIDES):
            raise InvalidInput(name, value, f"must be {self.words}", hint)
        return tuple(Whole(0, OUTPAINT_MAX).check(name, pixels, hint) for pixels in value)


@dataclass(frozen=True)
class Blur:
    """The rule for a mask's blur: one number for both directions, or one each for across and down."""

    words: str = BLUR.words

    def read(self, text: str) -> tuple[int, int]:
        return (BLUR.read(text),) * 2

    def check(self, name: str, value: object, hint: str) -> tuple[int, int]:
        across, down = value if isinstance(value, tuple) else (value, value)
        return BLUR.check(name, across, hint), BLUR.check(name, down, hint)


class Picture(Protocol):
    """A decoded input picture. Only its size matters here."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""


@dataclass(frozen=True, kw_only=True)
class MaskSettings(Checked):
    """Which part of a picture to redraw: where the mask is white, and what outpainting adds."""

    picture: Picture | None = None
    """None: outpainting without a mask."""
    invert: bool = setting(
        "mask_invert",
        Flag("Inpaint not masked", "Inpaint masked"),
        False,
        key="Mask mode",
        about="Inpaint not masked redraws where the mask is black, instead of where it is white.",
    )
    blur: tuple[int, int] = setting(
        "mask_blur",
        Blur(),
        (4, 4),
        key="Mask blur",
        hint="4 is usual, 0 turns it off.",
        about="How far to soften the mask's edge: a standard deviation in pixels of the mask.",
    )
    content: str = setting(
        "masked_content",
        Choice(MASKED_CONTENTS),
        "original",
        key="Masked content",
        about="What the masked area starts from.",
    )
    area: str = setting(
        "inpaint_area",
        Choice(INPAINT_AREAS),
        WHOLE_PICTURE,
        key="Inpaint area",
        about="Only masked redraws the masked area at full size and pastes it back.",
    )
    padding: int = setting(
        "inpaint_padding",
        Whole(0, 256),
        32,
        key="Masked area padding",
        hint="32 is usual.",
        about="Pixels around the mask that the model sees with Only masked.",
    )
    soft: bool = setting(
        "mask_soft",
        Flag(),
        False,
        key=Key("Soft mask", written=False),
        about="Redraw the grey parts of the mask partially, instead of fully or not at all.",
    )


@dataclass(frozen=True, kw_only=True)
class ImageSettings(Checked):
    """The picture that the first pass starts from, instead of noise alone."""

    picture: Picture
    denoising_strength: float = setting(
        "denoising_strength",
        SHARE,
        0.6,
        key="Denoising strength",
        hint="0.5 to 0.7 is usual.",
        about="How much the image may change, or the draft if there is no image.",
    )
    resize_mode: str = setting(
        "resize_mode",
        Choice(RESIZE_MODES),
        RESIZE_MODES[0],
        key=Key("Resize mode", written=False),
        about="How to bring an image of another size to the size to draw.",
    )
    noise_multiplier: float = setting(
        "noise_multiplier",
        Number(0, 1.5),
        1,
        key="Noise multiplier",
        hint="1 is usual.",
        about="A factor for the noise that is added to the image.",
    )
    exact_steps: bool = setting(
        "exact_steps",
        Flag(),
        False,
        key="Exact steps",
        about="Run all steps on the image, instead of only the denoising strength's share of them. It is WebUI's "
        "option img2img_fix_steps, which infotexts do not record.",
    )
    depth: Picture | None = None
    """A depth map of the picture for a depth checkpoint, white for what is nearest; None: the depth is estimated."""
    mask: MaskSettings | None = None
    outpaint: tuple[int, ...] = setting(
        "outpaint",
        Margins(),
        (0, 0, 0, 0),
        key="Outpaint",
        hint="For more, outpaint the result again.",
        about="Pixels to add around the image and draw.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(self.outpaint) and self.mask is None:
            object.__setattr__(self, "mask", MaskSettings())
        if self.exact_steps and self.denoising_strength < STRENGTH_MIN:
            rule = f"must be at least {STRENGTH_MIN} with exact steps: its schedule would be too long"
            raise InvalidInput("denoising_strength", self.denoising_strength, rule, "Raise it, or Exact steps: False.")
        mask = self.mask.picture if self.mask else None
        if mask is not None and mask.size != self.picture.size:
            rule = "must have the size of image, {} x {}".format(*self.picture.size)
            raise InvalidInput("mask", "{}x{}".format(*mask.size), rule, "Scale one of them to the other's size.")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the picture including what outpainting adds."""
        (width, height), (left, top, right, bottom) = self.picture.size, self.outpaint
        return width + left + right, height + top + bottom

    @property
    def only_masked(self) -> bool:
        """Whether the pass draws only the masked part, which is then pasted back."""
        return self.mask is not None and self.mask.area == ONLY_MASKED


@dataclass(frozen=True, kw_only=True)
class ControlSettings:
    """A ControlNet or adapter, used in both passes."""

    model: str
    """Its name, under which `Extras` has its file."""
    model_hash: str = ""
    """WebUI's eight-digit hash of the file, as generation data gives it."""
    picture: Picture | None = None
    """The picture that it follows; None: the image that the first pass starts from."""
    preprocessor: str = ""
    """What turns the picture into a map; empty: what the model's name implies, if anything."""
    low: float = 100
    """Canny's thresholds, out of 255."""
    high: float = 200
    weight: float = 1
    start: float = 0
    """It acts from this share of a pass's steps up to `end`."""
    end: float = 1
    mode: str = "balanced"
    resize_mode: str = "crop"

    def __post_init__(self) -> None:
        object.__setattr__(self, "preprocessor", self.preprocessor or preprocessor_for(self.model))
        for name, (allowed, hint) in CONTROL_RULES.items():
            allowed.check(f"controls, {name} of {self.model}", getattr(self, name), hint)
        if self.start > self.end:
            rule = f"it would end at {self.end:g}, before it starts"
            raise InvalidInput(f"controls, start of {self.model}", self.start, rule, "Swap them.")
        Choice(tuple(CONTROL_MODES)).check(f"controls, mode of {self.model}", self.mode, "")
        Choice(tuple(PREPROCESSORS)).check(f"controls, preprocessor of {self.model}", self.preprocessor, "")
        Choice(tuple(CONTROL_RESIZE_MODES)).check(f"controls, resize of {self.model}", self.resize_mode, "")
        usual = (("mode", self.mode, "balanced"), ("resize", self.resize_mode, "crop")) if self.image_prompt else ()
        for name, value, only in usual:
            if value != only:
                rule = "it has no effect on an IP-Adapter, which sees the picture itself and not a map"
                raise InvalidInput(f"controls, {name} of {self.model}", value, rule, "Leave it out.")

    @property
    def image_prompt(self) -> bool:
        """Whether it is an IP-Adapter."""
        return self.preprocessor == IMAGE_PROMPT


@dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """All settings of one prediction. The networks and samplers that they name need not be here.

    Raises InvalidInput with the field, value, rule and fix. Settings made with `dataclasses.replace` are checked again.
    """

    prompt: str = setting("prompt", PROMPT, key=Key("Prompt", unsaid=""), about="What to draw.")
    negative_prompt: str = setting(
        "negative_prompt", PROMPT, "", key="Negative prompt", about="What to keep out of the picture."
    )
    width: int = setting("width", SIDE, hint=EIGHTS, about="Width of the first pass, in pixels.")
    height: int = setting("height", SIDE, hint=EIGHTS, about="Height of the first pass, in pixels.")
    seed: int = setting(
        "seed",
        SEED,
        key="Seed",
        hint="Leave it empty for a random one.",
        about="The same seed and settings give the same picture. -1 or nothing: a random seed.",
    )
    num_outputs: int = setting(
        "num_outputs",
        Whole(1, OUTPUTS_MAX),
        1,
        hint="For more pictures send more requests.",
        about="Number of pictures. Each uses the next seed.",
    )
    num_inference_steps: int = setting(
        "num_inference_steps",
        Whole(1, 150),
        20,
        key="Steps",
        hint="20 to 30 is usual.",
        about="Sampling steps of the first pass.",
    )
    guidance_scale: float = setting(
        "guidance_scale",
        Number(1, 30),
        7,
        key="CFG scale",
        hint="7 is usual.",
        about="How closely to follow the prompt.",
    )
    sampler: str = setting(
        "sampler",
        Choice(tuple(SAMPLERS), open=True),
        "DPM++ 2M",
        key="Sampler",
        about="The sampling method, by its name in WebUI.",
    )
    schedule_type: str = setting(
        "schedule_type",
        Choice(SCHEDULE_TYPES, open=True),
        "Automatic",
        key="Schedule type",
        about="The spacing of the noise levels. Automatic is what suits the sampler.",
    )
    guidance_rescale: float = setting(
        "guidance_rescale",
        SHARE,
        0,
        key="Guidance rescale",
        hint="0 turns it off, 0.7 is usual.",
        about="How much of the contrast added by guidance to remove (https://arxiv.org/abs/2305.08891, section 3.4).",
    )
    freeu: FreeU | None = setting(
        "freeu",
        FreeUFactors(),
        None,
        key="FreeU",
        hint="1.5 1.6 0.9 0.2 is usual for SD 1.5; leave it empty to turn it off.",
        about="FreeU's factors b1 b2 s1 s2, for clearer shapes.",
    )
    clip_skip: int = setting(
        "clip_skip",
        LayerFromEnd(1, 12),
        1,
        key="Clip skip",
        hint="1 is the last layer; anime models often use 2.",
        about="Text layer to use, counted from the last.",
    )
    emphasis: str = setting(
        "emphasis",
        Choice(EMPHASES, open=True),
        "Original",
        key="Emphasis",
        about="What weights in prompts do, as in WebUI's option of that name.",
    )
    pad_conds: bool = setting(
        "pad_conds",
        Flag(),
        False,
        key="Pad conds",
        about="Pad the shorter of the two prompts with empty chunks, as in WebUI's option of that name.",
    )
    old_editing: bool = setting(
        "old_prompt_editing",
        Flag(),
        False,
        key="Old prompt editing timelines",
        about="Read prompt editing such as [a:b:N] as WebUI did before 1.6: an N below 1 is a fraction of the steps, "
        "and the hires pass starts counting again.",
    )
    tiling: bool = setting(
        "tiling", Flag(), False, key="Tiling", about="Draw a picture that repeats without seams, for patterns."
    )
    sgm_noise: bool = setting(
        "sgm_noise_multiplier",
        Flag(),
        False,
        key="SGM noise multiplier",
        about="Start from slightly more noise, as Stability AI's generative-models does. Only without an image.",
    )
    extra_noise: float = setting(
        "extra_noise",
        SHARE,
        0,
        key="Extra noise",
        hint="0 turns it off; it should be less than the denoising strength.",
        about="Noise to add before a pass from an image or from the draft, for more detail.",
    )
    mask_weight: float = setting(
        "conditional_mask_weight",
        SHARE,
        1.0,
        key=Key("Conditional mask weight", written=False),
        hint="1 is usual.",
        about="How much of the masked area to hide from an inpainting checkpoint. At 0 it sees the whole image.",
    )
    image_noise_level: int = setting(
        "image_noise_level",
        Whole(0, 999),
        0,
        key="Image noise level",
        hint="0 is usual.",
        about="Noise added to what a Stable unCLIP checkpoint sees of the image. More noise gives freer variations.",
    )
    added_noise: AddedNoise = field(default_factory=AddedNoise)
    skipped_guidance: SkippedGuidance = field(default_factory=SkippedGuidance)
    refiner: RefinerSettings = field(default_factory=RefinerSettings)
    framing: FramingSettings = field(default_factory=FramingSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    image: ImageSettings | None = None
    hires: HiresSettings | None = field(default_factory=HiresSettings)
    controls: tuple[ControlSettings, ...] = ()
    animation: AnimationSettings = field(default_factory=AnimationSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.animation.asked and self.num_outputs > 1:
            raise InvalidInput("num_outputs", self.num_outputs, "must be 1 for an animation", "Send a request a film.")
        _check_parts("prompt", self.prompt)
        _check_parts("negative_prompt", self.negative_prompt)
        if self.seed + self.num_outputs - 1 > SEED_MAX:
            fix = f"Use {SEED_MAX - self.num_outputs + 1} or less, or fewer pictures."
            raise InvalidInput("seed", self.seed, f"the last of {self.num_outputs} pictures would pass {SEED_MAX}", fix)

    @property
    def values(self) -> dict[str, Any]:
        """All settings by name."""
        mask = self.image.mask if self.image else None
        own = self.noise, self.schedule, self.added_noise, self.skipped_guidance, self.refiner, self.framing
        groups = (self, *own, self.animation, self.image, mask, self.hires)
        return {name: value for group in groups if group for name, value in values_of(group).items()}

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts that may name networks, by setting. The hires prompt is included only with a hires pass."""
        return {"prompt": self.prompt, **({"hires_prompt": self.hires.prompt} if self.hires else {})}

    def with_prompts(self, prompts: Mapping[str, str]) -> Self:
        """Return a copy with these prompts, as `prompts` gives them."""
        hires = self.hires and replace(self.hires, prompt=prompts["hires_prompt"])
        return replace(self, prompt=prompts["prompt"], hires=hires)


@dataclass(frozen=True, kw_only=True)
class GenerationRequest(Settings):
    """The request of one prediction: its settings, and the networks that they name. Creating one checks everything.

    Raises InvalidInput with the field, value, rule and fix. A request made with `dataclasses.replace` is checked again.
    """

    extras: Extras = NO_EXTRAS

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_names()
        if self.hires is not None:
            self.hires.check_names()
            check_final_size((self.width, self.height), self.hires.scale, self.hires.resize_to)
        for name, prompt in self.prompts.items():
            check_present(name, prompt, self.extras)
        if len(self.controls) > CONTROLS_MAX:
            raise InvalidInput("controls", len(self.controls), f"at most {CONTROLS_MAX} at once", "Use fewer.")
        for control in self.controls:
            self._check_control(control)

    @property
    def control_files(self) -> list[ExtraFile]:
        """The files of the control networks."""
        return [self.extras.controls[control.model] for control in self.controls]

    def as_drawn(self, refined: bool) -> "GenerationRequest":
        """Return what generation data says. As in WebUI, it does not name a refiner that never took over."""
        return self if refined else replace(self, refiner=replace(self.refiner, name=""))

    def _check_control(self, control: ControlSettings) -> None:
        if control.model not in self.extras.controls:
            fix = "Name a file, repository or address in controls, or send it in files (--controlnet-dir)."
            raise InvalidInput("controls", control.model, "there is no ControlNet of this name", fix)
        if control.picture is None and self.image is None:
            raise nothing_to_follow(control)
        if control.image_prompt and self.extras.image_encoder is None:
            fix = "Send CLIP ViT-H in files, or put clip-vit-h.safetensors beside it (--controlnet-dir)."
            raise InvalidInput("controls", control.model, "an IP-Adapter needs an image encoder; there is none", fix)
        if control.preprocessor == "inpaint" and (self.image is None or self.image.mask is None):
            fix = "Send image and mask, or use another preprocessor."
            raise InvalidInput("controls", control.model, "the preprocessor inpaint needs a mask", fix)


def nothing_to_follow(control: ControlSettings) -> InvalidInput:
    """Return the error for a ControlNet without a picture."""
    fix = "Send one in control_images, or an image."
    return InvalidInput("controls", control.model, "there is no picture for it to follow", fix)


def random_seed() -> int:
    """Return a seed for a request without one, low enough to leave room for the seeds of its other pictures."""
    return secrets.randbelow(SEED_MAX - OUTPUTS_MAX)


def _check_parts(name: str, text: str) -> None:
    if len(split_and(text)) > AND_PARTS_MAX:
        raise InvalidInput(name, text, f"at most {AND_PARTS_MAX} parts joined by AND", "Join some of them with commas.")


GROUPS = (
    Settings,
    NoiseSettings,
    ScheduleSettings,
    AddedNoise,
    SkippedGuidance,
    RefinerSettings,
    FramingSettings,
    ImageSettings,
    MaskSettings,
    HiresSettings,
    AnimationSettings,
)
SETTINGS: dict[str, Setting] = {row.name: row for group in GROUPS for row in rows(group).values()}
"""Every setting of a request, by its name."""

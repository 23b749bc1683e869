"""Pure arithmetic of the three phases: sizes, steps really run, seed of every image. No tensors.

The rules are stable-diffusion-webui 1.10.1's: see `docs/architecture.md` for where each is shown to hold.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.catalog import LATENT_UPSCALERS, SAMPLERS, SamplerInfo
from pipelines.request import (
    SAME_SAMPLER,
    SAME_SCHEDULE,
    GenerationRequest,
    HiresSettings,
    hires_size,
)

LATENT_PIXELS = 8
"""Pixels a side that one latent stands for."""


@dataclass(frozen=True, kw_only=True)
class PassPlan:
    """One sampling pass over latents of (height, width) // 8."""

    width: int
    height: int
    sampler: SamplerInfo
    schedule_type: str
    schedule_steps: int
    """Steps of the whole noise schedule."""
    first_step: int
    """Where in the schedule this pass starts: 0 from pure noise."""

    @property
    def steps(self) -> int:
        """Steps really run."""
        return self.schedule_steps - self.first_step

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image's latents."""
        return 4, self.height // LATENT_PIXELS, self.width // LATENT_PIXELS


@dataclass(frozen=True, kw_only=True)
class UpscalePlan:
    """From the first pass to the second: resize to (width, height), then crop the latents centrally."""

    upscaler: str
    width: int
    height: int
    crop: tuple[int, int] = (0, 0)
    """Latents taken away in (width, height): half of them, rounded down, at the left and top."""

    @property
    def latent(self) -> bool:
        """Latents stay latents: no decode and encode between the passes."""
        return self.upscaler in LATENT_UPSCALERS


@dataclass(frozen=True, kw_only=True)
class HighresPlan:
    """Everything that will be done for a request, known before anything is done."""

    seeds: tuple[int, ...]
    variation_seeds: tuple[int, ...]
    first: PassPlan
    upscale: UpscalePlan | None
    hires: PassPlan | None
    notes: tuple[str, ...] = ()
    """What is done otherwise than asked, for the log."""

    @property
    def final_size(self) -> tuple[int, int]:
        """(width, height) of the finished pictures."""
        last = self.hires or self.first
        return last.width, last.height

    def describe(self) -> str:
        """The plan in one line, for the log."""
        first = f"{len(self.seeds)} x {self.first.width}x{self.first.height}, {_work(self.first)}"
        if self.hires is None or self.upscale is None:
            return first
        width, height = self.final_size
        return f"{first}; {self.upscale.upscaler} to {width}x{height}, {_work(self.hires)}"


def make_plan(request: GenerationRequest) -> HighresPlan:
    """The plan of a checked request."""
    noise = request.noise
    count = range(request.num_outputs)
    varied = noise.variation_strength > 0  # then all images keep the seed and the variation seed counts up
    first = PassPlan(
        width=request.width // LATENT_PIXELS * LATENT_PIXELS,
        height=request.height // LATENT_PIXELS * LATENT_PIXELS,
        sampler=SAMPLERS[request.sampler],
        schedule_type=request.schedule_type,
        schedule_steps=request.num_inference_steps,
        first_step=0,
    )
    upscale = _upscale(request, request.hires) if request.hires else None
    return HighresPlan(
        seeds=tuple(request.seed + (0 if varied else k) for k in count),
        variation_seeds=tuple(noise.variation_seed + k for k in count),
        first=first,
        notes=tuple(_size_notes(request)),
        upscale=upscale,
        hires=_hires_pass(request, request.hires, upscale) if request.hires and upscale else None,
    )


def _size_notes(request: GenerationRequest) -> Iterator[str]:
    for name, side in (("width", request.width), ("height", request.height)):
        if side % LATENT_PIXELS:
            floored = side // LATENT_PIXELS * LATENT_PIXELS
            yield f"{name}={side} is no multiple of {LATENT_PIXELS}: the first pass draws {floored}, as WebUI does."


def _upscale(request: GenerationRequest, hires: HiresSettings) -> UpscalePlan:
    """ "Resize to" with both sides given covers the target, keeps the aspect and crops what stands over."""
    width, height = hires_size(request.width, request.height, hires)
    to_width, to_height = hires.resize_to
    if not (to_width and to_height):
        return UpscalePlan(upscaler=hires.upscaler, width=width, height=height)
    if request.width * to_height < request.height * to_width:
        height = to_width * request.height // request.width
    else:
        width = to_height * request.width // request.height
    crop = (width - to_width) // LATENT_PIXELS, (height - to_height) // LATENT_PIXELS
    return UpscalePlan(upscaler=hires.upscaler, width=width, height=height, crop=crop)


def _hires_pass(request: GenerationRequest, hires: HiresSettings, upscale: UpscalePlan) -> PassPlan:
    """Exactly the steps asked for: the schedule is made so long that its part below the strength has that many."""
    steps = hires.steps or request.num_inference_steps
    schedule_steps = int(steps / min(hires.denoising_strength, 0.999))
    return PassPlan(
        width=(upscale.width // LATENT_PIXELS - upscale.crop[0]) * LATENT_PIXELS,
        height=(upscale.height // LATENT_PIXELS - upscale.crop[1]) * LATENT_PIXELS,
        sampler=SAMPLERS[request.sampler if hires.sampler == SAME_SAMPLER else hires.sampler],
        schedule_type=request.schedule_type if hires.schedule_type == SAME_SCHEDULE else hires.schedule_type,
        schedule_steps=schedule_steps,
        first_step=schedule_steps - steps,
    )


def _work(part: PassPlan) -> str:
    spacing = part.sampler.automatic if part.schedule_type == "Automatic" else part.schedule_type
    return f"{part.steps} steps of {part.sampler.name}" + ("" if part.sampler.timesteps else f" {spacing}")

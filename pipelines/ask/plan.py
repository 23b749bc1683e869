"""Pure arithmetic of the three phases: sizes, steps actually run, the seed of every image. No tensors.

The rules are those of stable-diffusion-webui 1.10.1; `docs/parity.md` compares the results.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pipelines.ask.catalog import LATENT_UPSCALERS, SAMPLERS, SamplerInfo
from pipelines.ask.networks import NETWORK_KINDS
from pipelines.ask.prompt import cut_networks
from pipelines.ask.request import (
    SAME_SAMPLER,
    SAME_SCHEDULE,
    AddedNoise,
    ControlSettings,
    GenerationRequest,
    HiresSettings,
    ScheduleSettings,
)
from pipelines.ask.sizes import check_croppable, enlarged_size
from pipelines.errors import InvalidInput, counted

IMAGE_ENCODER_SIDE = 224
"""The width and height at which an IP-Adapter's image encoder sees a picture."""
LATENT_PIXELS = 8
"""One latent stands for this many pixels in each direction."""


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
    """The step of the schedule at which this pass starts."""
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    added_noise: AddedNoise = field(default_factory=AddedNoise)
    """The request's settings that the sampler uses; the others are at their defaults."""
    refines: bool
    """Whether the pass starts from latents with added noise, not from noise alone."""

    @property
    def asked(self) -> int:
        """Requested steps in the part of the schedule that this pass covers."""
        return self.schedule_steps - self.first_step

    @property
    def calls(self) -> int:
        """Denoiser calls that guidance counts for the requested steps."""
        return self.calls_of(self.asked)

    def calls_of(self, steps: int) -> int:
        """Return the number of denoiser calls that prompt editing counts for this many steps."""
        return steps * 2 if self.sampler.second_order else steps

    @property
    def draws(self) -> bool:
        """Whether the sampler draws noise during the pass, so that ENSD changes the picture."""
        return self.sampler.draws or bool(self.added_noise.churn or self.added_noise.eta_ddim)

    @property
    def spacing(self) -> str:
        """The schedule type in use. "Automatic" means the sampler's own."""
        return self.sampler.automatic if self.schedule_type == "Automatic" else self.schedule_type

    @property
    def steps(self) -> int | None:
        """Steps actually run. In WebUI some samplers and schedules run more or fewer than requested.

        None: the sampler takes as many as it needs.
        """
        return self.sampler.steps_run(self._levels())

    def _levels(self) -> int:
        """Return how many noise levels the pass visits. DDIM's spacing has more levels than steps if the model's levels
        are not divisible by the steps."""
        levels = self.schedule_steps
        if self.sampler.timesteps and self.refines:
            return self.asked - 1  # WebUI starts these samplers one timestep later
        if self.sampler.timesteps:
            stride = max(self.sampler.model_levels // (levels + self.schedule.discard_penultimate), 1)
            return len(range(0, self.sampler.model_levels, stride))
        if self.spacing == "DDIM":
            dropped = int(self.sampler.drops_penultimate or self.schedule.discard_penultimate)
            stride = max(self.sampler.model_levels // (levels + dropped), 1)
            levels = len(range(1, self.sampler.model_levels, stride)) - dropped
        return levels - self.first_step

    def steps_under(self, control: ControlSettings) -> range:
        """Return the steps, counted from 0, at which a ControlNet acts.

        It acts at a step if the share of steps completed before it lies between the ControlNet's start and end.
        """
        steps = self.asked if self.steps is None else self.steps
        acts = [step for step in range(steps) if control.start <= step / steps <= control.end and control.weight]
        return range(acts[0], acts[-1] + 1) if acts else range(0)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image's latents."""
        return 4, self.height // LATENT_PIXELS, self.width // LATENT_PIXELS


@dataclass(frozen=True, kw_only=True)
class UpscalePlan:
    """How the draft becomes the second pass's input: resize to (width, height), then crop the latents centrally."""

    upscaler: str
    width: int
    height: int
    crop: tuple[int, int] = (0, 0)
    """Latents removed in (width, height). Half of them, rounded down, come off the left and top."""

    @property
    def latent(self) -> bool:
        """Whether latents are resized directly, without decoding and encoding between the passes."""
        return self.upscaler in LATENT_UPSCALERS


@dataclass(frozen=True, kw_only=True)
class Between:
    """The way of pictures from their request to another one, which differs in prompts, seed and numbers alone."""

    end: GenerationRequest
    shares: tuple[float, ...]
    """How far each picture is on the way, from 0 to 1."""
    common: float = 0
    """The share of the first pass's steps in which the pictures follow the middle of the way."""


@dataclass(frozen=True, kw_only=True)
class HighresPlan:
    """Everything that will be done for a request, computed before any work starts."""

    seeds: tuple[int, ...]
    variation_seeds: tuple[int, ...]
    first: PassPlan
    upscale: UpscalePlan | None
    hires: PassPlan | None
    controls: tuple[ControlSettings, ...] = ()
    notes: tuple[str, ...] = ()
    """Lines for the log about what is done differently from what was requested."""
    between: Between | None = None
    """The way to another request that these pictures are on; None: they are the request's own."""

    @property
    def final_size(self) -> tuple[int, int]:
        """(width, height) of the finished pictures."""
        last = self.hires or self.first
        return last.width, last.height

    def describe(self) -> str:
        """Return the plan in one line, for the log."""
        told = f"{len(self.seeds)} x {self.first.width}x{self.first.height}, {_work(self.first)}"
        if self.hires and self.upscale:
            width, height = self.final_size
            told += f"; {self.upscale.upscaler} to {width}x{height}, {_work(self.hires)}"
        return told + "".join(f"; {self._under(control)}" for control in self.controls)

    def _under(self, control: ControlSettings) -> str:
        acts = [part.steps_under(control) for part in (self.first, self.hires) if part]
        steps = " and ".join(f"{each.start + 1} to {each.stop}" if each else "none" for each in acts)
        return f"ControlNet {control.model} ({control.preprocessor}) at {control.weight:g} in steps {steps}"


def make_plan(request: GenerationRequest) -> HighresPlan:
    """Make the plan of a checked request. Raises InvalidInput if a pass would run no step at all."""
    noise = request.noise
    count = range(request.num_outputs)
    varied = noise.variation_strength > 0  # then all images share the seed, and the variation seed counts up
    schedule_steps, first_step = _first_pass_steps(request)
    sampler = SAMPLERS[request.sampler]
    first = PassPlan(
        width=request.width // LATENT_PIXELS * LATENT_PIXELS,
        height=request.height // LATENT_PIXELS * LATENT_PIXELS,
        sampler=sampler,
        schedule_type=request.schedule_type,
        schedule_steps=schedule_steps,
        first_step=first_step,
        schedule=request.schedule,
        added_noise=_taken(request.added_noise, sampler),
        refines=request.image is not None,
    )
    if request.image and first.asked < first.schedule_steps:
        _check_runs("denoising_strength", request.image.denoising_strength, first)
    _check_runs("num_inference_steps", request.num_inference_steps, first)
    upscale = _upscale(request, request.hires) if request.hires else None
    hires = _hires_pass(request, request.hires, upscale) if request.hires and upscale else None
    if hires:
        _check_runs("hires_steps", hires.asked, hires)
    _check_pictured(request, [part for part in (first, hires) if part])
    return HighresPlan(
        seeds=tuple(request.seed + (0 if varied else k) for k in count),
        variation_seeds=tuple(noise.variation_seed + k for k in count),
        first=first,
        notes=(*_size_notes(request), *_network_notes(request)),
        upscale=upscale,
        hires=hires,
        controls=request.controls,
    )


def _check_pictured(request: GenerationRequest, parts: Iterable[PassPlan]) -> None:
    """Check that every control picture can be cropped to the size of each pass that uses it.

    With "Only masked" it is cropped to the size of the whole image instead.
    """
    for control in request.controls:
        if control.picture is not None and control.image_prompt:
            fix = "Send a picture that is closer to a square."
            check_croppable("control_images", control.picture.size, (IMAGE_ENCODER_SIDE, IMAGE_ENCODER_SIDE), fix)
            continue
        if control.picture is None or control.resize_mode != "crop":
            continue
        sizes = [(part.width, part.height) for part in parts if part.steps_under(control)]
        for size in [request.image.size] if request.image and request.image.only_masked else sizes:
            fix = "Use resize=stretch in controls, or a picture with that aspect ratio."
            check_croppable("control_images", control.picture.size, size, fix)


def _taken(added: AddedNoise, sampler: SamplerInfo) -> AddedNoise:
    """Keep the settings that the sampler uses, and leave the others at their defaults."""
    return AddedNoise(**{name: getattr(added, name) for name in sampler.takes})


def _first_pass_steps(request: GenerationRequest) -> tuple[int, int]:
    """Return the steps of the first pass's whole schedule, and the step at which the pass begins.

    When it starts from a picture, WebUI runs one step more than the strength's share, unless all steps are requested.
    """
    steps, image = request.num_inference_steps, request.image
    if image is None:
        return steps, 0
    if image.exact_steps:
        return _exactly(steps, image.denoising_strength)
    return steps, steps - int(min(image.denoising_strength, 0.999) * steps) - 1


def _exactly(steps: int, strength: float) -> tuple[int, int]:
    """Return the same pair for a pass that runs exactly `steps`.

    The schedule is made long enough for its part below the strength to have that many steps.
    """
    schedule_steps = int(steps / min(strength, 0.999))
    return schedule_steps, schedule_steps - steps


def _check_runs(field: str, value: float, part: PassPlan) -> None:
    if part.steps is None or part.steps > 0:
        return
    few, fix = "so few", "Use more steps (3 are enough for most samplers)."
    if field == "denoising_strength":
        few, fix = "so little", "Use a larger strength, or more num_inference_steps."
    if part.spacing == "DDIM" and not part.sampler.timesteps:
        fix = "Raise denoising_strength, or use a schedule_type other than DDIM, which has few levels that low."
    raise InvalidInput(field, value, f"{part.sampler.name} would run no step with {few}", fix)


def _size_notes(request: GenerationRequest) -> Iterator[str]:
    for name, side in (("width", request.width), ("height", request.height)):
        if side % LATENT_PIXELS:
            floored = side // LATENT_PIXELS * LATENT_PIXELS
            yield f"{name}={side} is not a multiple of {LATENT_PIXELS}: the first pass draws {floored}, as WebUI does."


def _network_notes(request: GenerationRequest) -> Iterator[str]:
    for tag in cut_networks(request.prompt)[1]:
        if tag.kind not in NETWORK_KINDS:
            known = "only LoRAs and hypernetworks are applied"
            yield f"{tag} is removed from the prompt: {known}."


def _upscale(request: GenerationRequest, hires: HiresSettings) -> UpscalePlan:
    """Plan the upscale. "Resize to" with both sides keeps the draft's aspect ratio, covers the target and crops."""
    width, height = enlarged_size((request.width, request.height), hires.scale, hires.resize_to)
    to_width, to_height = hires.resize_to
    if not (to_width and to_height):
        return UpscalePlan(upscaler=hires.upscaler, width=width, height=height)
    crop = (width - to_width) // LATENT_PIXELS, (height - to_height) // LATENT_PIXELS
    return UpscalePlan(upscaler=hires.upscaler, width=width, height=height, crop=crop)


def _hires_pass(request: GenerationRequest, hires: HiresSettings, upscale: UpscalePlan) -> PassPlan:
    """Plan the second pass, which runs exactly the requested steps."""
    steps = hires.steps or request.num_inference_steps
    schedule_steps, first_step = _exactly(steps, hires.denoising_strength)
    sampler = SAMPLERS[request.sampler if hires.sampler == SAME_SAMPLER else hires.sampler]
    return PassPlan(
        width=(upscale.width // LATENT_PIXELS - upscale.crop[0]) * LATENT_PIXELS,
        height=(upscale.height // LATENT_PIXELS - upscale.crop[1]) * LATENT_PIXELS,
        sampler=sampler,
        schedule_type=request.schedule_type if hires.schedule_type == SAME_SCHEDULE else hires.schedule_type,
        schedule_steps=schedule_steps,
        first_step=first_step,
        schedule=request.schedule,
        added_noise=_taken(request.added_noise, sampler),
        refines=True,
    )


def _work(part: PassPlan) -> str:
    steps = "steps as needed" if part.steps is None else counted(part.steps, "step")
    return f"{steps} of {part.sampler.name}" + ("" if part.sampler.timesteps else f" {part.spacing}")

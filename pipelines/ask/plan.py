"""Pure arithmetic of the three phases: sizes, steps really run, seed of every image. No tensors.

The rules are stable-diffusion-webui 1.10.1's; `docs/parity.md` compares what comes of them.
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
from pipelines.errors import InvalidInput

IMAGE_ENCODER_SIDE = 224
"""The width and height in which an IP-Adapter's image encoder sees a picture."""
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
    """Where in the schedule this pass starts."""
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    added_noise: AddedNoise = field(default_factory=AddedNoise)
    """The request's, as far as the sampler takes it."""
    refines: bool
    """Starts from latents with noise over them, not from noise alone."""

    @property
    def asked(self) -> int:
        """Steps asked for, of the part of the schedule that this pass walks."""
        return self.schedule_steps - self.first_step

    @property
    def calls(self) -> int:
        """Denoiser calls that guidance counts for the steps asked for."""
        return self.calls_of(self.asked)

    def calls_of(self, steps: int) -> int:
        """Denoiser calls that prompt editing counts for so many steps."""
        return steps * 2 if self.sampler.second_order else steps

    @property
    def draws(self) -> bool:
        """Whether the sampler draws noise as it goes, so that ENSD makes another picture."""
        return self.sampler.draws or bool(self.added_noise.churn or self.added_noise.eta_ddim)

    @property
    def spacing(self) -> str:
        """The schedule type in use: "Automatic" is the sampler's own."""
        return self.sampler.automatic if self.schedule_type == "Automatic" else self.schedule_type

    @property
    def steps(self) -> int | None:
        """Steps really run, which for some samplers and schedules of WebUI's are not those asked for.

        None: the sampler takes as many as it needs.
        """
        return self.sampler.steps_run(self._levels())

    def _levels(self) -> int:
        """Noise levels walked: DDIM's spacing has more where the count of levels is not divisible by the steps."""
        levels = self.schedule_steps
        if self.sampler.timesteps and self.refines:
            return self.asked - 1  # WebUI starts these one timestep later
        if self.sampler.timesteps:
            stride = max(self.sampler.model_levels // (levels + self.schedule.discard_penultimate), 1)
            return len(range(0, self.sampler.model_levels, stride))
        if self.spacing == "DDIM":
            dropped = int(self.sampler.drops_penultimate or self.schedule.discard_penultimate)
            stride = max(self.sampler.model_levels // (levels + dropped), 1)
            levels = len(range(1, self.sampler.model_levels, stride)) - dropped
        return levels - self.first_step

    def steps_under(self, control: ControlSettings) -> range:
        """The steps, counted from 0, at which a ControlNet acts: those before which its share of them is done."""
        steps = self.asked if self.steps is None else self.steps
        acts = [step for step in range(steps) if control.start <= step / steps <= control.end and control.weight]
        return range(acts[0], acts[-1] + 1) if acts else range(0)

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
    controls: tuple[ControlSettings, ...] = ()
    notes: tuple[str, ...] = ()
    """What is done otherwise than asked, for the log."""

    @property
    def final_size(self) -> tuple[int, int]:
        """(width, height) of the finished pictures."""
        last = self.hires or self.first
        return last.width, last.height

    def describe(self) -> str:
        """The plan in one line, for the log."""
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
    """The plan of a checked request. Raises InvalidInput where a pass would run no step at all."""
    noise = request.noise
    count = range(request.num_outputs)
    varied = noise.variation_strength > 0  # then all images keep the seed and the variation seed counts up
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
    """Check that every control picture can be cropped: to each pass, or to the image that only a part is drawn of."""
    for control in request.controls:
        if control.picture is not None and control.image_prompt:
            fix = "Send a picture that is nearer to a square."
            check_croppable("control_images", control.picture.size, (IMAGE_ENCODER_SIDE, IMAGE_ENCODER_SIDE), fix)
            continue
        if control.picture is None or control.resize_mode != "crop":
            continue
        sizes = [(part.width, part.height) for part in parts if part.steps_under(control)]
        for size in [request.image.size] if request.image and request.image.only_masked else sizes:
            fix = "Use resize=stretch in controls, or a picture of that aspect."
            check_croppable("control_images", control.picture.size, size, fix)


def _taken(added: AddedNoise, sampler: SamplerInfo) -> AddedNoise:
    """What of these settings the sampler takes; the others are at their defaults."""
    return AddedNoise(**{name: getattr(added, name) for name in sampler.takes})


def _first_pass_steps(request: GenerationRequest) -> tuple[int, int]:
    """Steps of the first pass's whole schedule, and where in it the pass begins.

    From a picture WebUI runs one step more than the strength's share, unless all steps are to be run.
    """
    steps, image = request.num_inference_steps, request.image
    if image is None:
        return steps, 0
    if image.exact_steps:
        return _exactly(steps, image.denoising_strength)
    return steps, steps - int(min(image.denoising_strength, 0.999) * steps) - 1


def _exactly(steps: int, strength: float) -> tuple[int, int]:
    """The same for exactly so many steps: the schedule is so long that its part below the strength has that many."""
    schedule_steps = int(steps / min(strength, 0.999))
    return schedule_steps, schedule_steps - steps


def _check_runs(field: str, value: float, part: PassPlan) -> None:
    if part.steps is None or part.steps > 0:
        return
    few, fix = "so few", "Use more steps (3 are enough for most samplers)."
    if field == "denoising_strength":
        few, fix = "so little", "Use more, or more num_inference_steps."
    if part.spacing == "DDIM" and not part.sampler.timesteps:
        fix = "Use more denoising_strength, or another schedule_type than DDIM, which has few levels so low."
    raise InvalidInput(field, value, f"{part.sampler.name} would run no step with {few}", fix)


def _size_notes(request: GenerationRequest) -> Iterator[str]:
    for name, side in (("width", request.width), ("height", request.height)):
        if side % LATENT_PIXELS:
            floored = side // LATENT_PIXELS * LATENT_PIXELS
            yield f"{name}={side} is no multiple of {LATENT_PIXELS}: the first pass draws {floored}, as WebUI does."


def _network_notes(request: GenerationRequest) -> Iterator[str]:
    for tag in cut_networks(request.prompt)[1]:
        if tag.kind not in NETWORK_KINDS:
            known = "only LoRAs and hypernetworks are applied"
            yield f"{tag} is cut out of the prompt: {known}."


def _upscale(request: GenerationRequest, hires: HiresSettings) -> UpscalePlan:
    """ "Resize to" with both sides given covers the target, keeps the aspect and crops what stands over."""
    width, height = enlarged_size((request.width, request.height), hires.scale, hires.resize_to)
    to_width, to_height = hires.resize_to
    if not (to_width and to_height):
        return UpscalePlan(upscaler=hires.upscaler, width=width, height=height)
    crop = (width - to_width) // LATENT_PIXELS, (height - to_height) // LATENT_PIXELS
    return UpscalePlan(upscaler=hires.upscaler, width=width, height=height, crop=crop)


def _hires_pass(request: GenerationRequest, hires: HiresSettings, upscale: UpscalePlan) -> PassPlan:
    """The second pass, which runs exactly the steps asked for."""
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
    steps = "steps as needed" if part.steps is None else "1 step" if part.steps == 1 else f"{part.steps} steps"
    return f"{steps} of {part.sampler.name}" + ("" if part.sampler.timesteps else f" {part.spacing}")

"""The three phases as one generator: draft from noise or a picture -> upscale -> image-to-image refinement.

Everything that happens is an event: a step is done, a pass is finished, a picture is decoded. The caller shows
progress, streams and cancels between two events; there are no callbacks. This generator holds all state of a
prediction, which ends with it.
"""

import math
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pipelines.ask.networks import hypernetwork_tags
from pipelines.ask.plan import HighresPlan, PassPlan
from pipelines.ask.request import GenerationRequest, NoiseSettings
from pipelines.drawing.drawing import NOTHING_GIVEN, Drawing, Given, PassNetworks, prompt_of
from pipelines.drawing.start import Start, first_stage, hires_stage, start_from
from pipelines.families.family import Framing
from pipelines.families.noise_schedule import NoiseSchedule
from pipelines.images.masks import prepare
from pipelines.images.reading import Pixels
from pipelines.models.embeddings import bundles_of
from pipelines.models.model import Model
from pipelines.models.vae import Decoding
from pipelines.runtime.device import Stopwatch
from pipelines.runtime.memory import memory_errors_say_what_fits, room_left, rows_at_once
from pipelines.sampling.between import COMPUTED, Beginning, PassPrompts, PromptsBetween
from pipelines.sampling.denoiser import Guidance, GuidedDenoiser, LatentMask, Stage
from pipelines.sampling.prompts import PromptEncoder, Prompts
from pipelines.sampling.samplers import ALGORITHMS
from pipelines.sampling.schedules import as_set, sigmas, timesteps
from pipelines.upscalers.interpolation import Upscaler, encode_pictures, upscale_latents, upscale_pixels
from pipelines.upscalers.latent import SCALE as LATENT_SCALE
from pipelines.upscalers.latent import STEPS as LATENT_STEPS
from pipelines.upscalers.latent import LatentUpscaler

BASE, UPSCALE, REFINE, DECODE = "base", "upscale", "refine", "decode"
"""Names of the phases, used for steps and timings."""

DRAFT, UPSCALED, FINAL = "draft", "upscaled", "picture"
"""Kinds of pictures: the first pass's, the enlarged one before refinement, and the finished one."""


@dataclass(frozen=True)
class Step:
    """Sampling steps completed so far in a phase, 0 when it begins. `total` is None if unknown."""

    phase: str
    number: int
    total: int | None


@dataclass(frozen=True)
class PassResult:
    """The result of one pass. Tensors are (B, 4, h, w) on the device; `sigmas` are timesteps for the DDIM family."""

    phase: str
    noise: Tensor
    sigmas: Sequence[float]
    prompts: PassPrompts
    start: Tensor | None
    """The latents that the pass refined; None if it started from noise alone."""
    mask: LatentMask | None
    refined_from: int | None
    """The denoiser call, counted from 0, from which on the refiner drew; None if it did not."""
    refiner_prompts: PassPrompts | None
    sampled: Tensor
    """The sampler's output. With a mask, only the part that it marks as drawn is kept."""

    @property
    def latents(self) -> Tensor:
        """The result of the pass."""
        return self.mask.blend(self.sampled) if self.mask else self.sampled


@dataclass(frozen=True)
class Picture:
    """One decoded picture: uint8 (height, width, 3). `index` is its place in the batch."""

    kind: str
    index: int
    pixels: Pixels
    embeddings: tuple[tuple[str, str], ...] = ()
    """Names and SHA-256 of the embeddings that its prompts use."""
    refined: bool = False
    """Whether its generation data names the refiner: it took over, or the picture was made before that was known."""


@dataclass(frozen=True)
class Notice:
    """A message about something that was requested but is not drawn."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The end of a prediction, with the seconds that each phase took."""

    seconds: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What a request uses in addition to the model."""

    upscaler: Upscaler | None = None
    """The plan's upscaler, if it has its own weights."""
    others: Mapping[str, Model] = field(default_factory=dict[str, Model])
    """Models that the request may name as its refiner or for its hires pass, by the names that it uses."""


NOTHING_BESIDE = Beside()

Event = Step | PassResult | Picture | Notice | Finished


@torch.inference_mode()
def render(
    model: Model,
    request: GenerationRequest,
    plan: HighresPlan,
    *,
    show_phases: bool = False,
    beside: Beside = NOTHING_BESIDE,
    given: Given = NOTHING_GIVEN,
    beginning: Beginning = COMPUTED,
) -> Generator[Event]:
    """Draw the request and yield events. With `show_phases` these include the draft and the upscaled picture.

    `beside` has what is used in addition to the model. Tensors in `given` replace those that the request's picture
    would be encoded to. `beginning` is how the first calls of the first pass are computed.

    Each finished picture is yielded as soon as it is decoded. Raises NonFiniteError if a picture cannot be decoded,
    after the pictures before it have been yielded.
    """
    named = {"": model, **beside.others}
    hires_model = named[request.hires.checkpoint if request.hires else ""]
    refiner = named[request.refiner.name if request.refiner.acts else ""]  # the model itself if there is none
    requests = [request, *([plan.between.end] if plan.between else [])]
    adapted = {id(each): _as_asked(each, requests) for each in (model, hires_model, refiner)}
    model, hires_model, refiner = (adapted[id(each)] for each in (model, hires_model, refiner))
    with ExitStack() as stack:
        stack.enter_context(memory_errors_say_what_fits(plan, lambda: model.footprint, model.device.place))
        for each in adapted.values():
            stack.enter_context(each.tiling(request.tiling))
        watch = Stopwatch(model.device.place)
        canvas = prepare(request.image, (plan.first.width, plan.first.height)) if request.image else None
        drawing = Drawing(
            model=model,
            hires_model=hires_model,
            refiner=refiner,
            request=request,
            plan=plan,
            canvas=canvas,
            upscaler=beside.upscaler,
            show_phases=show_phases,
            watch=watch,
            given=given,
            beginning=beginning,
        )
        yield from _told(_phases(drawing))


def _told(events: Generator[Event]) -> Generator[Event]:
    """Give pictures what their generation data says about the passes before them."""
    embeddings, refined = tuple[tuple[str, str], ...](), False
    with closing(events):  # whatever ends this one: what the phases have applied must go before what is around them
        for event in events:
            if isinstance(event, PassResult):
                embeddings = event.prompts.embeddings if event.phase == BASE else embeddings
                refined = refined or event.refined_from is not None
            elif isinstance(event, Picture):
                event = replace(event, embeddings=embeddings, refined=refined or event.kind != FINAL)
            yield event


def _as_asked(model: Model, requests: Sequence[GenerationRequest]) -> Model:
    """Return the model with the first request's noise levels. If one of them changes the UNet, use the plain network,
    because compiled code and recorded graphs would not see the change."""
    request = requests[0]
    noise = as_set(model.noise, request.schedule)
    model = model if noise is model.noise else replace(model, noise=noise)
    model = replace(model, text=model.text.with_clip_skip()) if request.framing.clip_l_skip else model
    prompts = (prompt_of(each, hires) for each in requests for hires in (False, True))
    plain = request.tiling or any(map(hypernetwork_tags, prompts))
    return replace(model, unet=model.unet.plain()) if plain else model


def _phases(drawing: Drawing) -> Generator[Event]:
    plan, watch = drawing.plan, drawing.watch
    second = drawing.in_hires
    encoders = _PromptEncoders(drawing)
    first_prompts = hires_prompts = _prompts(drawing, encoders, plan.first)
    if plan.hires:  # before the first pass, so that an error in these prompts is reported before time is spent on it
        hires_prompts = _prompts(second, encoders, plan.hires)
    yield from map(Notice, encoders.left_over)
    start = start_from(drawing)
    stage = first_stage(drawing, first_prompts[0])
    drawing.model.components.unet.take()
    with drawing.using(drawing.networks(hires=False), plan.first):
        result, by = yield from _sample(drawing, plan.first, BASE, [stage, *_refining(drawing, first_prompts)], start)
    watch.mark(BASE)
    results = [result]
    if plan.hires:
        upscaled, enlarged = yield from _upscale(drawing, by, result.latents)
        stage = hires_stage(second, hires_prompts[0], stage, upscaled, enlarged)
        second.model.components.unet.take()
        with second.using(drawing.networks(hires=True), plan.hires):
            stages = [stage, *_refining(drawing, hires_prompts)]
            result, by = yield from _sample(second, plan.hires, REFINE, stages, Start(upscaled))
        results.append(result)
        watch.mark(REFINE)
    if first_prompts[1:] or hires_prompts[1:]:
        yield from map(Notice, _about_refiner(drawing, results))
    yield from _decode(replace(drawing, model=by), result.latents, FINAL, DECODE)
    yield Finished(watch.seconds())


def _about_refiner(drawing: Drawing, results: Sequence[PassResult]) -> Iterator[str]:
    """Tell if the refiner never took over, or else what ended there, because it acts on the pass's own model alone."""
    settings, plan = drawing.request.refiner, drawing.plan
    refined = {result.phase: result.refined_from for result in results if result.refined_from is not None}
    if not refined:
        yield f"The refiner {settings.name} never took over: no step reaches {settings.switch_at:g}."
        return
    ended = dict.fromkeys(
        f"ControlNet {control.model}"
        for phase, part in ((BASE, plan.first), (REFINE, plan.hires))
        for control in plan.controls
        if part and phase in refined and part.steps_under(control).stop * part.calls_of(1) > refined[phase]
    )
    if named := " and ".join([*ended, *(["FreeU"] if drawing.request.freeu else [])]):
        yield f"The refiner {settings.name} drew without {named}."


class _PromptEncoders:
    """The encoders of one prediction's prompts. Passes with the same model and networks share one, and its texts."""

    def __init__(self, drawing: Drawing) -> None:
        self._request = drawing.request
        self._made: dict[tuple[int, PassNetworks], PromptEncoder] = {}
        self.left_over: dict[str, None] = {}
        """Sentences about what of the networks is not applied."""

    def of(self, model: Model, networks: PassNetworks) -> PromptEncoder:
        """Return the encoder for a model that has these networks, whose LoRA files may contain embeddings."""
        key = id(model), networks
        if key not in self._made:
            request = self._request
            bundles = bundles_of(use.file for use in networks.loras if use.tag.acts)
            tables = model.text.embedding_tables(request.extras.embeddings, bundles)
            settings = request.clip_skip, request.emphasis, request.pad_conds
            self._made[key] = PromptEncoder(model.text, *settings, tables=tables, old_editing=request.old_editing)
        return self._made[key]


def _prompts(drawing: Drawing, encoders: _PromptEncoders, part: PassPlan) -> Sequence[PassPrompts]:
    """Encode a pass's prompts for its model, and for the refiner if one takes over.

    For pictures between two requests, encode those of both, each with its own networks.
    """
    ends, between = [_own_prompts(end, encoders, part) for end in drawing.ends], drawing.plan.between
    if between is None:
        return ends[0]
    common = between.common * part.calls if part is drawing.plan.first else 0
    return [PromptsBetween(start, end, between.shares, common) for start, end in zip(*ends, strict=True)]


def _own_prompts(drawing: Drawing, encoders: _PromptEncoders, part: PassPlan) -> list[Prompts]:
    """Encode the prompts of one request.

    The hires prompts default to the first pass's. Prompt editing continues the first pass's count.
    """
    networks = drawing.networks(part is drawing.plan.hires)
    request, plan, hires = drawing.request, drawing.plan, None
    texts, told = (request.prompt, request.negative_prompt), framing(request, request.width, request.height)
    if part is plan.hires:
        assert request.hires is not None
        assert plan.upscale is not None
        hires = part.calls
        texts = request.hires.prompt or texts[0], request.hires.negative_prompt or texts[1]
        told = framing(request, plan.upscale.width, plan.upscale.height)  # before WebUI rounds and crops it
    # with an image, too, the first pass's count is all steps
    calls = plan.first.calls_of(request.num_inference_steps), hires
    with drawing.using(networks, part):
        encoder = encoders.of(drawing.model, networks)
        drawing.model.components.texts.take()
        prompts = [encoder.encode(*texts, *calls, told)]
        encoders.left_over |= dict.fromkeys((*drawing.model.adapters.left_over, *encoder.left_over))
        if refiner := drawing.refiner_in(part):
            refiner.components.texts.take()
            prompts.append(encoders.of(refiner, drawing.for_refiner(networks)).encode(*texts, *calls, told))
    return prompts


def framing(request: GenerationRequest, width: int, height: int) -> Framing:
    """Return what models with size conditioning are told about a picture of this size."""
    settings = request.framing
    return Framing(
        width=width,
        height=height,
        top=settings.crop_top,
        left=settings.crop_left,
        score=settings.score,
        negative_score=settings.negative_score,
    )


def _refining(drawing: Drawing, prompts: Sequence[PassPrompts]) -> list[Stage]:
    """Return the refiner's stage of a pass, if there are prompts for it."""
    settings = drawing.request.refiner
    return [
        Stage(drawing.refiner, each, starts_at=settings.switch_at, by_calls=settings.by_steps) for each in prompts[1:]
    ]


def _sample(
    drawing: Drawing, part: PassPlan, phase: str, stages: Sequence[Stage], start: Start
) -> Generator[Event, None, tuple[PassResult, Model]]:
    """Run one pass. Yield a Step after every step and a PassResult at the end.

    Return that result, and the model that finished its latents, whose VAE they are for.
    """
    model, prompts = stages[0].model, stages[0].prompts
    request = drawing.request
    levels, span = _levels(model.noise, part)
    noise = drawing.noise(part, span)
    initial = noise.initial()
    if request.image and part is drawing.plan.first and request.image.noise_multiplier != 1:
        initial = initial * request.image.noise_multiplier
    x, levels = START[part.sampler.timesteps](model.noise, part, levels, initial, start.latents, request)
    controls = drawing.controls(part)
    room, pixels = room_left(drawing.place), x[0, 0].numel()
    rows = min(rows_at_once(stage.model.footprint, pixels, len(x) * prompts.rows, room) for stage in stages)
    guidance = Guidance(drawing.guidance_scale, request.guidance_rescale, request.skipped_guidance, part.calls)
    beginning = drawing.beginning if part is drawing.plan.first else COMPUTED
    denoiser = GuidedDenoiser(stages, guidance, rows, start.mask, controls, beginning)
    yield Step(phase, 0, part.steps)
    for number, x in enumerate(ALGORITHMS[part.sampler.name](denoiser, x, levels, noise), 1):  # noqa: B007, B020
        denoiser.step = min(number, (part.steps or part.asked) - 1)  # DPM adaptive may take more steps than requested
        yield Step(phase, number, part.steps)
    refined = stages[-1].prompts if denoiser.switched_at is not None else None
    result = PassResult(phase, initial, levels, prompts, start.latents, start.mask, denoiser.switched_at, refined, x)
    yield result
    return result, denoiser.model


def _levels(schedule: NoiseSchedule, part: PassPlan) -> tuple[Sequence[float], tuple[float, float] | None]:
    """Return the whole schedule's sigmas and the span of the positive ones; or its ascending timesteps, and None."""
    if part.sampler.timesteps:
        # WebUI computes one more timestep here, too, but does not drop any
        return timesteps(part.schedule_steps + part.schedule.discard_penultimate), None
    whole = sigmas(schedule, part.schedule_type, part.schedule_steps, part.sampler, part.schedule)
    return whole, (min(sigma for sigma in whole if sigma > 0), max(whole))


def _sigma_start(
    schedule: NoiseSchedule,
    part: PassPlan,
    levels: Sequence[float],
    noise: Tensor,
    start: Tensor | None,
    request: GenerationRequest,
) -> tuple[Tensor, Sequence[float]]:
    """Return the initial x (noise, added to the latents to refine if there are any) and the levels to sample at."""
    levels = levels[part.first_step :]
    if start is not None:
        return _with_extra(start + noise * levels[0], noise, request.extra_noise), levels
    x = noise * (math.sqrt(1 + levels[0] ** 2) if request.sgm_noise else levels[0])
    if part.sampler.own_levels:
        levels = sigmas(schedule, "Uniform", part.schedule_steps, part.sampler)
    return x, levels


def _timestep_start(
    schedule: NoiseSchedule,
    part: PassPlan,
    levels: Sequence[float],
    noise: Tensor,
    start: Tensor | None,
    request: GenerationRequest,
) -> tuple[Tensor, Sequence[float]]:
    """Return the same for the DDIM family, whose latents keep unit variance and whose timesteps ascend."""
    if start is None:
        return noise, levels
    last = part.asked - 1
    t = int(levels[last])
    x = start * schedule.picture_share(t) + noise * schedule.noise_share(t)
    return _with_extra(x, noise, request.extra_noise * schedule.picture_share(t)), levels[:last]


def _with_extra(x: Tensor, noise: Tensor, share: float) -> Tensor:
    """Return x with more of the same noise that it already contains."""
    return x.add(noise, alpha=share) if share else x


START = {False: _sigma_start, True: _timestep_start}
"""How a pass begins, by whether its sampler uses timesteps."""


def _upscale(drawing: Drawing, by: Model, latents: Tensor) -> Generator[Event, None, tuple[Tensor, list[Pixels]]]:
    """Run phase 2. Return the latents for the hires pass to refine and, after a pixel upscaler, the enlarged pictures.

    The VAE of the model that the first pass ended with decodes, and the hires pass's encodes. Decode only what is shown
    or needed.
    """
    upscale, watch = drawing.plan.upscale, drawing.watch
    assert upscale is not None
    drafts, enlarged = list[Pixels](), list[Pixels]()
    if drawing.show_phases or not upscale.latent:
        drafts = [by.vae.decode(latent) for latent in latents]
    if drawing.show_phases:
        watch.mark(UPSCALE)
        yield from (Picture(DRAFT, index, drawing.finished(pixels)) for index, pixels in enumerate(drafts))
        watch.restart()
    if isinstance(drawing.upscaler, LatentUpscaler):
        latents = yield from _doubled(drawing, latents, drawing.upscaler)
    if upscale.latent:
        start = upscale_latents(latents, upscale)
    else:
        enlarged = [upscale_pixels(draft, upscale, drawing.upscaler) for draft in drafts]
        start = encode_pictures(enlarged, upscale, drawing.hires_model.vae, drawing.from_seeds)
    if drawing.show_phases:
        yield from _decode(drawing.in_hires, start, UPSCALED, UPSCALE)
    watch.mark(UPSCALE)
    return start, enlarged


def _doubled(drawing: Drawing, latents: Tensor, upscaler: LatentUpscaler) -> Generator[Event, None, Tensor]:
    """Enlarge latents (B, 4, h, w) to (B, 4, 2h, 2w) with the diffusion model made for this."""
    channels, height, width = latents.shape[1:]
    shape = channels, LATENT_SCALE * height, LATENT_SCALE * width
    source = drawing.request.noise.source
    noise = drawing.noise_of(shape, NoiseSettings(source=source))
    yield Step(UPSCALE, 0, LATENT_STEPS)
    for number, latents in enumerate(upscaler.steps(latents, noise), 1):  # noqa: B007, B020
        yield Step(UPSCALE, number, LATENT_STEPS)
    return latents


def _decode(drawing: Drawing, latents: Tensor, kind: str, phase: str) -> Iterator[Event]:
    """Decode and yield picture after picture. Time that the caller spends on one does not count as the phase's.

    A device with a queue decodes the next picture meanwhile.
    """
    model, watch = drawing.model, drawing.watch
    begun: deque[Decoding] = deque()
    for index in range(len(latents)):
        while len(begun) <= model.device.queues and index + len(begun) < len(latents):
            begun.append(model.vae.begin(latents[index + len(begun)]))
        pixels = drawing.finished(begun.popleft().pixels())
        watch.mark(phase)
        yield Picture(kind, index, pixels)
        watch.restart()

"""The three phases as one generator: draft from noise or a picture -> upscale -> image-to-image refinement.

Everything that happens is an event of one loop: a step done, a pass finished, a picture decoded. Progress, streaming
and cancelling are what the caller does between two events; there are no callbacks. All state of a prediction lives in
this generator and goes with it.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.conditioning import PromptEncoder, Prompts
from pipelines.control import Controls, controls_of, in_hires
from pipelines.denoiser import GuidedDenoiser, LatentMask
from pipelines.device import Stopwatch
from pipelines.extras import lora_tags
from pipelines.inpaint import extra_channels, start_from
from pipelines.latent_upscaler import SCALE as LATENT_SCALE
from pipelines.latent_upscaler import STEPS as LATENT_STEPS
from pipelines.latent_upscaler import LatentUpscaler
from pipelines.loader import Networks
from pipelines.lora import Use
from pipelines.masks import Canvas, prepare
from pipelines.memory import memory_errors_say_what_fits, room_left, rows_at_once
from pipelines.noise import Noise
from pipelines.plan import HighresPlan, PassPlan
from pipelines.request import ControlSettings, GenerationRequest
from pipelines.samplers import ALGORITHMS
from pipelines.schedules import ALPHAS, sigmas, timesteps
from pipelines.unet import set_freeu
from pipelines.upscale import Upscaler, encode_pictures, upscale_latents, upscale_pixels
from pipelines.vae import Decoding, Pixels

BASE, UPSCALE, REFINE, DECODE = "base", "upscale", "refine", "decode"
"""Phases, as steps and seconds name them."""

DRAFT, UPSCALED, FINAL = "draft", "upscaled", "picture"
"""Pictures: of the first pass, enlarged before its refinement, finished."""


@dataclass(frozen=True)
class Step:
    """So many sampling steps of a phase are done: 0 when it begins. `total` is None where nobody knows."""

    phase: str
    number: int
    total: int | None


@dataclass(frozen=True)
class PassResult:
    """One pass is done. Tensors are (B, 4, h, w) on the device; `sigmas` are timesteps for the DDIM family."""

    phase: str
    noise: Tensor
    sigmas: Sequence[float]
    prompts: Prompts
    start: Tensor | None
    """Latents that the pass refined; None for one from noise alone."""
    mask: LatentMask | None
    sampled: Tensor
    """What the sampler made of them; elsewhere than under a mask it is not kept."""

    @property
    def latents(self) -> Tensor:
        """What the pass is done with."""
        return self.mask.blend(self.sampled) if self.mask else self.sampled


@dataclass(frozen=True)
class Picture:
    """One picture is decoded: uint8 (height, width, 3); `index` is its place in the batch."""

    kind: str
    index: int
    pixels: Pixels


@dataclass(frozen=True)
class Finished:
    """Everything is done; seconds per phase."""

    seconds: dict[str, float]


Event = Step | PassResult | Picture | Finished


@torch.inference_mode()
def render(
    networks: Networks,
    request: GenerationRequest,
    plan: HighresPlan,
    *,
    show_phases: bool = False,
    upscaler: Upscaler | None = None,
    init_latents: Tensor | None = None,
) -> Generator[Event]:
    """Draw what the request asks for. With `show_phases` the draft and the upscaled picture come out too.

    `upscaler` is the plan's, where that has weights of its own. `init_latents` (B or 1, 4, h, w) are started from in
    place of those that the request's picture is encoded to.

    Finished pictures come one by one, each as soon as it is decoded. Raises NonFiniteError when a picture cannot be
    decoded; pictures before it have been handed out.
    """
    with memory_errors_say_what_fits(plan, lambda: networks.footprint, networks.device.place):
        yield from _phases(networks, request, plan, show_phases, upscaler, init_latents)


def _phases(
    networks: Networks,
    request: GenerationRequest,
    plan: HighresPlan,
    show_phases: bool,
    upscaler: Upscaler | None,
    init_latents: Tensor | None,
) -> Iterator[Event]:
    watch = Stopwatch(networks.device.place)
    canvas = prepare(request.image, (plan.first.width, plan.first.height)) if request.image else None
    networks.controls.bring(request.extras.controls[control.model] for control in request.controls)
    loras, hires_loras = _loras(request)
    networks.adapters.apply(loras)
    set_freeu(networks.plain_unet, request.freeu)
    encoder = _prompt_encoder(networks, request)
    prompts = encoder.encode(request.prompt, request.negative_prompt, _calls(plan.first, plan.first.schedule_steps))
    hires_prompts = prompts
    if plan.hires:  # before the first pass: what is wrong with these prompts is told before its time is spent
        networks.adapters.apply(hires_loras)
        encoder = encoder if hires_loras == loras else _prompt_encoder(networks, request)
        hires_prompts = _hires_prompts(encoder, request, plan, plan.hires)
        networks.adapters.apply(loras)
    start, mask = None, None
    if request.image and canvas:
        noise = _noise(networks, request, plan, plan.first)
        start, mask = start_from(networks, request.image, canvas, plan, noise, init_latents)
    controls = _controls(networks, request, plan.first, request.controls, canvas)
    latents = yield from _sample(networks, request, plan, plan.first, BASE, prompts, controls, start, mask, canvas)
    watch.mark(BASE)
    if plan.hires:
        start = yield from _upscale(networks, request, plan, latents, show_phases, watch, upscaler, canvas)
        networks.adapters.apply(hires_loras)
        controls = _controls(networks, request, plan.hires, list(map(in_hires, request.controls)), canvas)
        latents = yield from _sample(networks, request, plan, plan.hires, REFINE, hires_prompts, controls, start)
        watch.mark(REFINE)
    yield from _decode(networks, latents, FINAL, watch, DECODE, canvas)
    yield Finished(watch.seconds())


def _loras(request: GenerationRequest) -> tuple[list[Use], list[Use]]:
    """The LoRAs of the first pass and of the hires pass, each those of its own prompt."""
    prompts = request.prompt, (request.hires.prompt if request.hires else "") or request.prompt
    files = request.extras.loras
    first, hires = ([Use(files[tag.name], tag) for tag in lora_tags(prompt) if tag.name in files] for prompt in prompts)
    return first, hires


def _controls(
    networks: Networks,
    request: GenerationRequest,
    part: PassPlan,
    settings: Sequence[ControlSettings],
    canvas: Canvas | None,
) -> Controls | None:
    """The request's ControlNets in a pass, with maps of its size."""
    loaded = [networks.controls[request.extras.controls[control.model]] for control in settings]
    return controls_of(part, settings, loaded, canvas, networks.device)


def _prompt_encoder(networks: Networks, request: GenerationRequest) -> PromptEncoder:
    settings = request.clip_skip, request.emphasis, request.pad_conds
    return PromptEncoder(networks.text, *settings, embeddings=request.extras.embeddings)


def _calls(part: PassPlan, steps: int) -> int:
    """Denoiser calls that prompt editing counts so many steps of a pass as."""
    return steps * 2 if part.sampler.second_order else steps


def _hires_prompts(encoder: PromptEncoder, request: GenerationRequest, plan: HighresPlan, hires: PassPlan) -> Prompts:
    """The hires prompts where there are any; editing counts on from the first pass."""
    settings = request.hires
    assert settings is not None
    return encoder.encode(
        settings.prompt or request.prompt,
        settings.negative_prompt or request.negative_prompt,
        _calls(plan.first, plan.first.schedule_steps),
        _calls(hires, hires.asked),
    )


def _sample(
    networks: Networks,
    request: GenerationRequest,
    plan: HighresPlan,
    part: PassPlan,
    phase: str,
    prompts: Prompts,
    controls: Controls | None,
    start: Tensor | None = None,
    mask: LatentMask | None = None,
    canvas: Canvas | None = None,
) -> Generator[Event, None, Tensor]:
    """One pass: a Step after every step, a PassResult at the end. Returns the latents (B, 4, h, w)."""
    levels, span = _levels(part)
    noise = _noise(networks, request, plan, part, span)
    initial = noise.initial()
    x, levels = START[part.sampler.timesteps](part, levels, initial, start)
    channels = extra_channels(networks, part, canvas)
    room = room_left(networks.device.place)
    rows = rows_at_once(networks.footprint, x[0, 0].numel(), len(x) * prompts.rows, room)
    scales = request.guidance_scale, request.guidance_rescale
    denoiser = GuidedDenoiser(networks.unet, prompts, *scales, rows, mask, channels, controls)
    yield Step(phase, 0, part.steps)
    for number, x in enumerate(ALGORITHMS[part.sampler.name](denoiser, x, levels, noise), 1):  # noqa: B007, B020
        denoiser.step = min(number, (part.steps or part.asked) - 1)  # DPM adaptive takes as many as it likes
        yield Step(phase, number, part.steps)
    result = PassResult(phase, initial, levels, prompts, start, mask, x)
    yield result
    return result.latents


def _noise(
    networks: Networks,
    request: GenerationRequest,
    plan: HighresPlan,
    part: PassPlan,
    span: tuple[float, float] | None = None,
) -> Noise:
    """The noise of a pass: from fresh generators, with the same seeds in either pass."""
    return Noise(
        plan.seeds,
        part.latent_shape,
        source=request.noise.source,
        device=networks.device.place,
        ensd=request.noise.ensd,
        variation_seeds=plan.variation_seeds,
        variation_strength=request.noise.variation_strength,
        span=span,
    )


def _levels(part: PassPlan) -> tuple[Sequence[float], tuple[float, float] | None]:
    """Noise levels of the whole schedule: sigmas, and the span of the positive ones; or timesteps, ascending."""
    if part.sampler.timesteps:
        # WebUI asks for one more timestep here, too, but leaves none out
        return timesteps(part.schedule_steps + part.schedule.discard_penultimate), None
    whole = sigmas(part.schedule_type, part.schedule_steps, part.sampler, part.schedule)
    return whole, (min(sigma for sigma in whole if sigma > 0), max(whole))


def _sigma_start(
    part: PassPlan, levels: Sequence[float], noise: Tensor, start: Tensor | None
) -> tuple[Tensor, Sequence[float]]:
    """Noise, over the latents to refine if any, and the levels that are walked from there."""
    levels = levels[part.first_step :]
    x = noise * levels[0]
    if start is not None:
        return start + x, levels
    return x, sigmas("Uniform", part.schedule_steps, part.sampler) if part.sampler.own_levels else levels


def _timestep_start(
    part: PassPlan, levels: Sequence[float], noise: Tensor, start: Tensor | None
) -> tuple[Tensor, Sequence[float]]:
    """The same for the DDIM family, whose latents keep unit variance and whose timesteps ascend."""
    if start is None:
        return noise, levels
    last = part.asked - 1
    alpha = ALPHAS[int(levels[last])]
    return start * alpha**0.5 + noise * (1 - alpha) ** 0.5, levels[:last]


START = {False: _sigma_start, True: _timestep_start}
"""How a pass begins, by whether its sampler walks timesteps."""


def _upscale(
    networks: Networks,
    request: GenerationRequest,
    plan: HighresPlan,
    latents: Tensor,
    show_phases: bool,
    watch: Stopwatch,
    upscaler: Upscaler | None,
    canvas: Canvas | None,
) -> Generator[Event, None, Tensor]:
    """Phase 2. Returns the latents that the hires pass refines; pictures only where they are shown or needed."""
    upscale = plan.upscale
    assert upscale is not None
    drafts: list[Pixels] = []
    if show_phases or not upscale.latent:
        drafts = [networks.vae.decode(latent) for latent in latents]
    if show_phases:
        watch.mark(UPSCALE)
        yield from (Picture(DRAFT, index, _finished(pixels, canvas)) for index, pixels in enumerate(drafts))
        watch.restart()
    if isinstance(upscaler, LatentUpscaler):
        latents = yield from _doubled(networks, request, plan, latents, upscaler)
    if upscale.latent:
        start = upscale_latents(latents, upscale)
    else:
        enlarged = [upscale_pixels(draft, upscale, upscaler) for draft in drafts]
        start = encode_pictures(enlarged, upscale, networks.vae, plan.seeds[-1])
    if show_phases:
        yield from _decode(networks, start, UPSCALED, watch, UPSCALE, canvas)
    watch.mark(UPSCALE)
    return start


def _doubled(
    networks: Networks, request: GenerationRequest, plan: HighresPlan, latents: Tensor, upscaler: LatentUpscaler
) -> Generator[Event, None, Tensor]:
    """The latents (B, 4, h, w) as a diffusion model of its own enlarges them, to (B, 4, 2h, 2w)."""
    channels, height, width = latents.shape[1:]
    shape = channels, LATENT_SCALE * height, LATENT_SCALE * width
    noise = Noise(plan.seeds, shape, source=request.noise.source, device=networks.device.place)
    yield Step(UPSCALE, 0, LATENT_STEPS)
    for number, latents in enumerate(upscaler.steps(latents, noise), 1):  # noqa: B007, B020
        yield Step(UPSCALE, number, LATENT_STEPS)
    return latents


def _decode(
    networks: Networks, latents: Tensor, kind: str, watch: Stopwatch, phase: str, canvas: Canvas | None
) -> Iterator[Event]:
    """Hand out picture after picture; what the caller does with one is not the phase's time.

    Where the device works by itself it decodes the next picture meanwhile.
    """
    begun: deque[Decoding] = deque()
    for index in range(len(latents)):
        while len(begun) <= networks.device.queues and index + len(begun) < len(latents):
            begun.append(networks.vae.begin(latents[index + len(begun)]))
        pixels = _finished(begun.popleft().pixels(), canvas)
        watch.mark(phase)
        yield Picture(kind, index, pixels)
        watch.restart()


def _finished(pixels: Pixels, canvas: Canvas | None) -> Pixels:
    return canvas.finish(pixels) if canvas else pixels

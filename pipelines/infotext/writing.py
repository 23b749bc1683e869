"""The infotext of a finished picture: request and plan -> text, key for key as WebUI writes it."""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from pipelines import __version__
from pipelines.ask.identity import SHORT_HASH, ModelIdentity
from pipelines.ask.networks import in_hashes, lora_tags
from pipelines.ask.plan import HighresPlan, PassPlan
from pipelines.ask.prompt import schedule
from pipelines.ask.request import (
    CONTROLS_MAX,
    SAME_SAMPLER,
    SECOND_PASS,
    SETTINGS,
    AddedNoise,
    GenerationRequest,
    ImageSettings,
    ScheduleSettings,
)
from pipelines.ask.settings import rows
from pipelines.infotext import syntax as infotext
from pipelines.infotext.control_lines import write_unit

VERSION = f"cog-pastel-mix {__version__}"
EXTRA_HASH_DIGITS = 12
"""Digits of LoRAs' and embeddings' hashes."""
NO_OTHERS: Mapping[str, ModelIdentity] = MappingProxyType({})


EXTRA_NOISE = "Extra noise"
"""In img2img WebUI writes it before the sampler's noise options; with the highres fix it comes after all other keys."""
ORDER = (
    "Steps",
    "Sampler",
    "Schedule type",
    "CFG scale",
    "Guidance rescale",
    "FreeU",
    "Seed",
    "Size",
    "Model hash",
    "Model",
    "VAE hash",
    "VAE",
    "Variation seed",
    "Variation seed strength",
    "Seed resize from",
    "Denoising strength",
    "Conditional mask weight",
    "Clip skip",
    "ENSD",
    "RNG",
    "Tiling",
    "Downcast alphas_cumprod",
    "Noise Schedule",
    "Mask mode",
    "Mask blur",
    "Inpaint area",
    "Masked area padding",
    "Masked content",
    "Outpaint",
    "Hires checkpoint",
    "Hires sampler",
    "Hires prompt",
    "Hires negative prompt",
    "Hires schedule type",
    "Hires upscale",
    "Hires resize",
    "Hires steps",
    "Hires upscaler",
    "Hires denoising strength",
    "Hires refiner",
    "Refiner switch by sampling steps",
    *(f"ControlNet {number}" for number in range(CONTROLS_MAX)),
    "Lora hashes",
    "Old prompt editing timelines",
    "TI hashes",
    "Emphasis",
    "Exact steps",
    "Noise multiplier",
    "Discard penultimate sigma",
    "Schedule min sigma",
    "Schedule max sigma",
    "Schedule rho",
    "Beta schedule alpha",
    "Beta schedule beta",
    "SGM noise multiplier",
    EXTRA_NOISE,
    *(row.key for row in rows(AddedNoise).values()),
    "Skip Early CFG",
    "Refiner",
    "Refiner switch at",
    "Pad conds",
    "NGMS",
    "NGMS all steps",
)
"""WebUI's order of keys. Other keys follow, and the version comes last."""


def of_picture(
    request: GenerationRequest,
    plan: HighresPlan,
    model: ModelIdentity,
    index: int,
    embeddings: Iterable[tuple[str, str]] = (),
    others: Mapping[str, ModelIdentity] = NO_OTHERS,
) -> str:
    """Write the infotext of picture `index` of a batch.

    `embeddings` are the names and SHA-256 of those it used. `others` are the models that the request names as its
    refiner or for its hires pass.
    """
    fields = {
        **_plain_fields(request),
        **_first_pass_fields(request, plan, index),
        **_model_fields(model),
        "Conditional mask weight": _where(_sees_mask(request, plan, model), request.mask_weight),
        **_mask_fields(request.image),
        **_hires_fields(request, plan),
        **_refiner_fields(request, {"": model, **others}),
        **_control_fields(request),
        "Lora hashes": _hashes(_loras(request).items()),
        "TI hashes": _hashes(embeddings),
        **_schedule_fields(request.schedule, list(_passes(plan))),
        **_sampling_fields(request, plan),
        "Old prompt editing timelines": _edits_otherwise(request, plan) or None,
    }
    order = ORDER if request.image else (*(key for key in ORDER if key != EXTRA_NOISE), EXTRA_NOISE)
    place = {key: number for number, key in enumerate(order)}
    ordered = sorted(fields.items(), key=lambda field: place.get(field[0], len(ORDER)))
    return infotext.write(request.prompt, request.negative_prompt, {**dict(ordered), "Version": VERSION})


def _plain_fields(request: GenerationRequest) -> dict[str, object]:
    """Return settings that differ from what their absence in a block means. Keys with rules of their own overwrite
    these later."""
    rows = {name: SETTINGS[name] for name in request.values if SETTINGS[name].key and SETTINGS[name].written}
    values = {row.key: (request.values[name], row.unsaid) for name, row in rows.items()}
    texts = {"Prompt", "Negative prompt"}
    return {key: value for key, (value, unsaid) in values.items() if value != unsaid and key not in texts}


def _first_pass_fields(request: GenerationRequest, plan: HighresPlan, index: int) -> dict[str, object]:
    noise = request.noise
    varied = noise.variation_strength > 0
    return {
        "Steps": request.num_inference_steps,
        "Sampler": request.sampler,
        "Schedule type": _spacing(plan.first) or request.schedule_type,
        "CFG scale": request.guidance_scale,
        "Seed": plan.seeds[index],
        "Size": f"{request.width}x{request.height}",
        "Variation seed": _where(varied, plan.variation_seeds[index]),
        "Variation seed strength": _where(varied, noise.variation_strength),
        "Seed resize from": "{}x{}".format(*noise.resized_from) if noise.resized_from else None,
        "Denoising strength": _strength(request),
        "ENSD": _where(any(part.draws for part in _passes(plan)), noise.ensd or None),
        "Emphasis": _where(request.emphasis != "Original" and _emphasizes(request), request.emphasis),
    }


def _where(holds: object, value: object) -> object:
    """Return the value if the condition holds, else None, which is not written."""
    return value if holds else None


def _model_fields(model: ModelIdentity) -> dict[str, object]:
    return {
        "Model hash": model.sha256[:SHORT_HASH] or None,
        "Model": model.name,
        "VAE hash": model.vae_sha256[:SHORT_HASH] or None,
        "VAE": model.vae_name or None,
    }


def _sees_mask(request: GenerationRequest, plan: HighresPlan, model: ModelIdentity) -> bool:
    """Return whether WebUI writes the conditional mask weight."""
    through_pixels = plan.upscale is not None and not plan.upscale.latent
    return model.inpainting and bool(request.image or through_pixels or not model.masks_pictures_only)


def _refiner_fields(request: GenerationRequest, models: Mapping[str, ModelIdentity]) -> dict[str, object]:
    """Return the keys of other models. WebUI writes a refiner that does take over from another model."""
    refiner, hires = request.refiner, request.hires
    checkpoint = hires.checkpoint if hires else ""
    passes = {False: "", True: checkpoint} if hires else {False: ""}
    taken = [by for second, by in passes.items() if refiner.acts_in(second, alone=hires is None)]
    acts = any(models[by] != models[refiner.name] for by in taken)
    return {
        "Hires checkpoint": _where(checkpoint, models[checkpoint].title),
        "Hires refiner": _where(acts and hires and refiner.passes != SECOND_PASS, refiner.passes),
        "Refiner": models[refiner.name].title if acts else None,
        "Refiner switch at": _where(acts, refiner.switch_at),
    }


def _control_fields(request: GenerationRequest) -> dict[str, object]:
    files = request.extras.controls
    return {
        f"ControlNet {number}": write_unit(control, files[control.model].short_hash)
        for number, control in enumerate(request.controls)
    }


def _loras(request: GenerationRequest) -> dict[str, str]:
    """Return names and SHA-256 of the LoRAs of both passes, and of a film's key frames."""
    film = request.animation
    keys = [key.prompt for key in film.timeline.keys] if film.asked else []
    prompts = request.prompt, request.hires.prompt if request.hires else "", *keys
    tags = (tag for prompt in prompts for tag in lora_tags(prompt) if tag.name in request.extras.loras)
    return {tag.name: request.extras.loras[tag.name].tensors_sha256 for tag in tags}


def _hashes(named: Iterable[tuple[str, str]]) -> str | None:
    """Format hashes as `name: digits, name: digits`."""
    told = (f"{in_hashes(name)}: {sha256[:EXTRA_HASH_DIGITS]}" for name, sha256 in named)
    return ", ".join(told) or None


def _strength(request: GenerationRequest) -> float | None:
    """Return the strength of the first pass if it starts from a picture, else that of the hires pass."""
    part = request.image or request.hires
    return part.denoising_strength if part else None


def _mask_fields(image: ImageSettings | None) -> dict[str, object]:
    """Return the keys of inpainting. WebUI does not write a blur that differs across and down."""
    if image is None or image.mask is None:
        return {}
    mask, (across, down) = image.mask, image.mask.blur
    return {
        "Mask mode": _where(mask.invert, "Inpaint not masked"),
        "Mask blur": _where(across == down, across or None),
        "Masked area padding": _where(image.only_masked, mask.padding),
        "Outpaint": _where(any(image.outpaint), " ".join(map(str, image.outpaint))),
    }


def _schedule_fields(settings: ScheduleSettings, passes: list[PassPlan]) -> dict[str, object]:
    """Return the keys of schedule settings that affect a pass. WebUI always writes the parameters of Beta."""
    types = [_spacing(part) for part in passes]
    levels, beta = any(types), "Beta" in types
    curved = any(RHO.get(name or "", settings.rho) != settings.rho for name in types)
    return {
        "Discard penultimate sigma": _where(any(map(_discards, passes)), True),
        "Schedule min sigma": _where(levels, settings.sigma_min or None),
        "Schedule max sigma": _where(levels, settings.sigma_max or None),
        "Schedule rho": _where(curved, settings.rho or None),
        "Beta schedule alpha": _where(beta, 0.6),
        "Beta schedule beta": _where(beta, 0.6),
    }


def _sampling_fields(request: GenerationRequest, plan: HighresPlan) -> dict[str, object]:
    """Return the keys of settings that only some samplers use, if a pass's sampler uses them."""
    passes = list(_passes(plan))
    of_sigmas = any(not part.sampler.timesteps for part in passes)
    skipped = request.skipped_guidance
    below = skipped.minimum_sigma if of_sigmas else 0
    fresh = not (plan.first.refines or plan.first.sampler.timesteps)
    return {
        **dict.fromkeys(row.key for row in rows(AddedNoise).values()),
        **{key: value for part in reversed(passes) for key, value in _added_noise(part.added_noise)},
        "SGM noise multiplier": _where(fresh, request.sgm_noise or None),
        EXTRA_NOISE: _where(any(part.refines for part in passes), request.extra_noise or None),
        "NGMS": below or None,
        "NGMS all steps": _where(below, skipped.all_steps or None),
    }


def _added_noise(added: AddedNoise) -> Iterator[tuple[str, object]]:
    """Yield the added-noise settings that differ from their defaults."""
    for attribute, row in rows(AddedNoise).items():
        if (value := getattr(added, attribute)) != row.default:
            yield row.key, value


def _edits_otherwise(request: GenerationRequest, plan: HighresPlan) -> bool:
    """Return whether the old rules of prompt editing give a different picture than today's."""
    if not request.old_editing:
        return False
    steps, hires = plan.first.calls_of(request.num_inference_steps), request.hires
    passes: list[tuple[str, int | None]] = [(request.prompt, None), (request.negative_prompt, None)]
    if hires and plan.hires:
        texts = hires.prompt or request.prompt, hires.negative_prompt or request.negative_prompt
        passes += [(text, plan.hires.calls) for text in texts]
    return any(schedule(text, steps, more) != schedule(text, steps, more, old=True) for text, more in passes)


RHO = {"Karras": 7, "Polyexponential": 1}
"""The default exponents of schedule types."""


def _passes(plan: HighresPlan) -> Iterator[PassPlan]:
    yield plan.first
    if plan.hires:
        yield plan.hires


def _spacing(part: PassPlan) -> str | None:
    """Return the schedule type as WebUI writes it: the chosen one, or the sampler's own in place of "Automatic".

    None if "Automatic" means plain Uniform, and for timestep samplers, which have no schedule types.
    """
    own = part.sampler.automatic if part.sampler.automatic != AUTOMATIC_SPACING else None
    chosen = own if part.schedule_type == "Automatic" else part.schedule_type
    return None if part.sampler.timesteps else chosen


AUTOMATIC_SPACING = "Uniform"
"""The schedule type of samplers that do not prefer one."""


def _discards(part: PassPlan) -> bool:
    """Return whether the request, and not the sampler, drops the second-to-last sigma."""
    return part.schedule.discard_penultimate and not part.sampler.drops_penultimate


def _emphasizes(request: GenerationRequest) -> bool:
    hires = request.hires
    prompts = [request.prompt, request.negative_prompt, *((hires.prompt, hires.negative_prompt) if hires else ())]
    return any(bracket in prompt for prompt in prompts for bracket in "([")


def _hires_fields(request: GenerationRequest, plan: HighresPlan) -> dict[str, object]:
    """Return the keys of the hires pass, without those that equal the first pass's."""
    hires = request.hires
    if hires is None:
        return {}
    width, height = hires.resize_to
    resized = bool(width or height)
    negative = hires.negative_prompt
    return {
        "Hires sampler": _where(hires.sampler not in (SAME_SAMPLER, request.sampler), hires.sampler),
        "Hires prompt": _where(hires.prompt not in ("", request.prompt), hires.prompt),
        "Hires negative prompt": _where(negative not in ("", request.negative_prompt), negative),
        "Hires schedule type": _hires_schedule(request, plan),
        "Hires upscale": _where(not resized, hires.scale),
        "Hires resize": _where(resized, f"{width}x{height}"),
        "Hires upscaler": hires.upscaler,
        "Hires denoising strength": _where(request.image, hires.denoising_strength),
    }


def _hires_schedule(request: GenerationRequest, plan: HighresPlan) -> str | None:
    """Return the hires pass's schedule type if it differs from the first pass's."""
    assert plan.hires is not None
    first, hires = _spacing(plan.first), _spacing(plan.hires)
    if plan.hires.sampler.timesteps:
        return None
    if hires is None and (first or request.schedule_type) != "Automatic":
        return "Automatic"  # WebUI leaves this out, and then reads back the first pass's schedule type
    return hires if hires != first else None

"""What a finished picture tells of how it was made: request and plan -> infotext, key for key as WebUI writes it."""

from collections.abc import Iterable, Iterator

from pipelines import __version__, infotext
from pipelines.catalog import ONLY_MASKED
from pipelines.extras import in_hashes, lora_tags
from pipelines.model import ModelIdentity
from pipelines.plan import HighresPlan, PassPlan
from pipelines.request import (
    SAME_SAMPLER,
    GenerationRequest,
    HiresSettings,
    ImageSettings,
    MaskSettings,
    ScheduleSettings,
)
from pipelines.units import write_unit

VERSION = f"cog-pastel-mix {__version__}"
HASH_DIGITS = 10
"""Of a file's SHA-256: WebUI's short hash."""
EXTRA_HASH_DIGITS = 12
"""The same of LoRAs and embeddings."""


def of_picture(
    request: GenerationRequest,
    plan: HighresPlan,
    model: ModelIdentity,
    index: int,
    embeddings: Iterable[tuple[str, str]] = (),
) -> str:
    """The infotext of picture `index` of a batch; `embeddings` are names and SHA-256 of those that it used."""
    noise = request.noise
    varied = noise.variation_strength > 0
    fields: dict[str, object] = {
        "Steps": request.num_inference_steps,
        "Sampler": request.sampler,
        "Schedule type": _spacing(plan.first) or request.schedule_type,
        "CFG scale": request.guidance_scale,
        "Guidance rescale": request.guidance_rescale or None,
        "FreeU": request.freeu,
        "Seed": plan.seeds[index],
        "Size": f"{request.width}x{request.height}",
        "Model hash": model.sha256[:HASH_DIGITS] or None,
        "Model": model.name,
        "VAE hash": model.vae_sha256[:HASH_DIGITS] or None,
        "VAE": model.vae_name or None,
        "Variation seed": plan.variation_seeds[index] if varied else None,
        "Variation seed strength": noise.variation_strength if varied else None,
        "Denoising strength": _strength(request),
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        "ENSD": noise.ensd if noise.ensd and any(part.sampler.draws for part in _passes(plan)) else None,
        "RNG": noise.source if noise.source != "GPU" else None,
        **(_mask_fields(request.image, request.image.mask) if request.image and request.image.mask else {}),
        **(_hires_fields(request, request.hires, plan) if request.hires else {}),
        **_control_fields(request),
        "Lora hashes": _hashes(_loras(request).items()),
        "TI hashes": _hashes(embeddings),
        "Emphasis": request.emphasis if request.emphasis != "Original" and _emphasizes(request) else None,
        **_schedule_fields(request.schedule, list(_passes(plan))),
        "Pad conds": request.pad_conds or None,
        "Version": VERSION,
    }
    return infotext.write(request.prompt, request.negative_prompt, fields)


def _control_fields(request: GenerationRequest) -> dict[str, object]:
    files = request.extras.controls
    return {
        f"ControlNet {number}": write_unit(control, files[control.model].short_hash)
        for number, control in enumerate(request.controls)
    }


def _loras(request: GenerationRequest) -> dict[str, str]:
    """Names and SHA-256 of the LoRAs of both passes."""
    prompts = request.prompt, request.hires.prompt if request.hires else ""
    tags = (tag for prompt in prompts for tag in lora_tags(prompt) if tag.name in request.extras.loras)
    return {tag.name: request.extras.loras[tag.name].tensors_sha256 for tag in tags}


def _hashes(named: Iterable[tuple[str, str]]) -> str | None:
    """`name: digits, name: digits`."""
    told = (f"{in_hashes(name)}: {sha256[:EXTRA_HASH_DIGITS]}" for name, sha256 in named)
    return ", ".join(told) or None


def _strength(request: GenerationRequest) -> float | None:
    """Of the first pass from a picture, else of the hires pass."""
    part = request.image or request.hires
    return part.denoising_strength if part else None


def _mask_fields(image: ImageSettings, mask: MaskSettings) -> dict[str, object]:
    """Keys of inpainting. WebUI tells nothing of a blur that differs across and down."""
    across, down = mask.blur
    only_masked = mask.area == ONLY_MASKED
    return {
        "Mask mode": "Inpaint not masked" if mask.invert else None,
        "Mask blur": across if across == down and across else None,
        "Inpaint area": mask.area if only_masked else None,
        "Masked area padding": mask.padding if only_masked else None,
        "Masked content": mask.content if mask.content != "original" else None,
        "Outpaint": " ".join(map(str, image.outpaint)) if any(image.outpaint) else None,
    }


def _schedule_fields(settings: ScheduleSettings, passes: list[PassPlan]) -> dict[str, object]:
    """What is set by hand and changes a schedule of a pass; WebUI always tells Beta's parameters."""
    types = [_spacing(part) for part in passes]
    levels = any(types)
    return {
        "Discard penultimate sigma": True if any(map(_discards, passes)) else None,
        "Schedule min sigma": (levels and settings.sigma_min) or None,
        "Schedule max sigma": (levels and settings.sigma_max) or None,
        "Schedule rho": (settings.rho or None)
        if any(RHO.get(name or "", settings.rho) != settings.rho for name in types)
        else None,
        "Beta schedule alpha": 0.6 if "Beta" in types else None,
        "Beta schedule beta": 0.6 if "Beta" in types else None,
    }


RHO = {"Karras": 7, "Polyexponential": 1}
"""The exponents that schedule types have by themselves."""


def _passes(plan: HighresPlan) -> Iterator[PassPlan]:
    yield plan.first
    if plan.hires:
        yield plan.hires


def _spacing(part: PassPlan) -> str | None:
    """The schedule type in use where it was chosen or the sampler has one of its own: WebUI tells it, not "Automatic".

    None for what "Automatic" is otherwise, and for samplers that walk timesteps and know no schedule types.
    """
    own = part.sampler.automatic if part.sampler.automatic != AUTOMATIC_SPACING else None
    chosen = own if part.schedule_type == "Automatic" else part.schedule_type
    return None if part.sampler.timesteps else chosen


AUTOMATIC_SPACING = "Uniform"
"""What a sampler without a schedule type of its own walks."""


def _discards(part: PassPlan) -> bool:
    """Whether the request, and not the sampler, leaves out the last but one sigma."""
    return part.schedule.discard_penultimate and not part.sampler.drops_penultimate


def _emphasizes(request: GenerationRequest) -> bool:
    hires = request.hires
    prompts = [request.prompt, request.negative_prompt, *((hires.prompt, hires.negative_prompt) if hires else ())]
    return any(bracket in prompt for prompt in prompts for bracket in "([")


def _hires_fields(request: GenerationRequest, hires: HiresSettings, plan: HighresPlan) -> dict[str, object]:
    """Keys of the hires pass; what equals the first pass's is left out."""
    width, height = hires.resize_to
    resized = bool(width or height)
    return {
        "Hires sampler": hires.sampler if hires.sampler not in (SAME_SAMPLER, request.sampler) else None,
        "Hires prompt": hires.prompt if hires.prompt not in ("", request.prompt) else None,
        "Hires negative prompt": hires.negative_prompt
        if hires.negative_prompt not in ("", request.negative_prompt)
        else None,
        "Hires schedule type": _hires_schedule(request, plan),
        "Hires upscale": None if resized else hires.scale,
        "Hires resize": f"{width}x{height}" if resized else None,
        "Hires steps": hires.steps or None,
        "Hires upscaler": hires.upscaler,
        "Hires denoising strength": hires.denoising_strength if request.image else None,
    }


def _hires_schedule(request: GenerationRequest, plan: HighresPlan) -> str | None:
    """The hires pass's schedule type, where it is another than the first pass's."""
    assert plan.hires is not None
    first, hires = _spacing(plan.first), _spacing(plan.hires)
    if plan.hires.sampler.timesteps:
        return None
    if hires is None and (first or request.schedule_type) != "Automatic":
        return "Automatic"  # WebUI leaves this out, and then reads the first pass's schedule type back
    return hires if hires != first else None

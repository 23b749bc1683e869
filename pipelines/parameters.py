"""What a finished picture tells of how it was made: request and plan -> infotext, key for key as WebUI writes it."""

from pipelines import __version__, infotext
from pipelines.model import ModelIdentity
from pipelines.plan import HighresPlan
from pipelines.request import SAME_SAMPLER, SAME_SCHEDULE, GenerationRequest, HiresSettings

VERSION = f"cog-pastel-mix {__version__}"
HASH_DIGITS = 10
"""Of a file's SHA-256: WebUI's short hash."""


def of_picture(request: GenerationRequest, plan: HighresPlan, model: ModelIdentity, index: int) -> str:
    """The infotext of picture `index` of a batch."""
    noise = request.noise
    varied = noise.variation_strength > 0
    fields: dict[str, object] = {
        "Steps": request.num_inference_steps,
        "Sampler": request.sampler,
        "Schedule type": request.schedule_type,
        "CFG scale": request.guidance_scale,
        "Seed": plan.seeds[index],
        "Size": f"{request.width}x{request.height}",
        "Model hash": model.sha256[:HASH_DIGITS] or None,
        "Model": model.name,
        "VAE hash": model.vae_sha256[:HASH_DIGITS] or None,
        "VAE": model.vae_name or None,
        "Variation seed": plan.variation_seeds[index] if varied else None,
        "Variation seed strength": noise.variation_strength if varied else None,
        "Denoising strength": request.hires.denoising_strength if request.hires else None,
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        "ENSD": noise.ensd if noise.ensd and plan.first.sampler.ancestral else None,
        "RNG": noise.source if noise.source != "GPU" else None,
        **(_hires_fields(request.hires) if request.hires else {}),
        "Pad conds": request.pad_conds or None,
        "Version": VERSION,
    }
    return infotext.write(request.prompt, request.negative_prompt, fields)


def _hires_fields(hires: HiresSettings) -> dict[str, object]:
    width, height = hires.resize_to
    resized = bool(width or height)
    return {
        "Hires sampler": hires.sampler if hires.sampler != SAME_SAMPLER else None,
        "Hires prompt": hires.prompt or None,
        "Hires negative prompt": hires.negative_prompt or None,
        "Hires schedule type": hires.schedule_type if hires.schedule_type != SAME_SCHEDULE else None,
        "Hires upscale": None if resized else hires.scale,
        "Hires resize": f"{width}x{height}" if resized else None,
        "Hires steps": hires.steps or None,
        "Hires upscaler": hires.upscaler,
    }

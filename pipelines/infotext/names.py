"""Names of samplers, schedule types and upscalers in other programs -> ours."""

from collections.abc import Mapping

from pipelines.ask.catalog import SAMPLERS, SCHEDULE_TYPES, UPSCALERS

_SCHEDULES = {name.casefold(): name for name in SCHEDULE_TYPES} | {
    "sgmuniform": "SGM Uniform",
    "ays": "Align Your Steps",
    "ddim uniform": "DDIM",
    "default": "Automatic",
    "undefined": "Automatic",
    "k": "Karras",  # InvokeAI: dpmpp_2m_k
}
_SAMPLERS = {name.casefold(): name for name in SAMPLERS} | {
    "dpm 2": "DPM2",
    "dpm 2 a": "DPM2 a",
    "dpm 2 ancestral": "DPM2 a",
    "dpm2 ancestral": "DPM2 a",
    "kdpm 2": "DPM2",
    "kdpm 2 a": "DPM2 a",
    "kdpm2": "DPM2",
    "kdpm2 a": "DPM2 a",
    "dpm sde": "DPM++ SDE",
    "dpmpp 2m": "DPM++ 2M",
    "dpmpp 2m sde": "DPM++ 2M SDE",
    "dpmpp 2m sde heun": "DPM++ 2M SDE Heun",
    "dpmpp 2s a": "DPM++ 2S a",
    "dpmpp 2s ancestral": "DPM++ 2S a",
    "dpm++ 2s ancestral": "DPM++ 2S a",
    "dpmpp 3m sde": "DPM++ 3M SDE",
    "dpmpp sde": "DPM++ SDE",
    "ddim cfgpp": "DDIM CFG++",
    "euler ancestral": "Euler a",
    "lmsd": "LMS",
    "uni pc": "UniPC",
}
"""Our names by folded name. Those listed here come from k-diffusion, ComfyUI, InvokeAI and SD.Next."""
_UPSCALERS = {name.casefold(): name for name in UPSCALERS} | {
    "latent bicubic antialias": "Latent (bicubic antialiased)"
}


def sampler_and_schedule(sampler: str | None, schedule_type: str | None) -> tuple[str | None, str | None]:
    """Return our names of both. A schedule type at the end of the sampler's name wins, as in `DPM++ 2M Karras`."""
    if sampler is not None and _folded(sampler) not in _SAMPLERS:
        for suffix in sorted(_SCHEDULES, key=len, reverse=True):
            if _folded(sampler).endswith(f" {suffix}"):
                sampler, schedule_type = sampler[: -len(suffix) - 1], suffix
                break
    return _own_name(_SAMPLERS, sampler), _own_name(_SCHEDULES, schedule_type)


def upscaler(name: str | None) -> str | None:
    """Return our name of an upscaler."""
    return _own_name(_UPSCALERS, name)


def _folded(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split()).removeprefix("k ").removesuffix(" gpu")


def _own_name(names: Mapping[str, str], name: str | None) -> str | None:
    """Return our name. Keep an unknown one. Return None for "Use same ..." and CivitAI's "Undefined"."""
    if name is None or name.startswith("Use same"):
        return None
    return names.get(_folded(name), None if name == "Undefined" else name)

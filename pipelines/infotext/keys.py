"""Keys of generation data: which setting each key stands for, and which other keys do not change the picture.

A key in none of these tables may ask for something that is not supported, so a strict request is refused.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from pipelines.ask.table import BY_KEY, PAIRS
from pipelines.infotext.syntax import DEFAULTS, OLD_BEHAVIOUR

FACTS = {
    "Model hash": "model_hash",
    "Model": "model",
    "VAE hash": "vae_hash",
    "VAE": "vae",
    "Version": "version",
    "Lora hashes": "lora_hashes",
    "TI hashes": "ti_hashes",
    "LoRA networks": "networks",
    "Hypernet hash": "hypernetwork_hash",
}
"""Keys that describe what a picture was made with -> the attribute of `GenerationData`."""

_OTHER_NAMES = {
    "base model": "Model",
    "base model hash": "Model hash",
    "cfg": "CFG scale",
    "cfgscale": "CFG scale",
    "checkpoint": "Model",
    "clipskip": "Clip skip",
    "denoise strength": "Denoising strength",
    "eta noise seed delta": "ENSD",
    "guidance scale": "CFG scale",
    "hires scale": "Hires upscale",  # SD.Next
    "img2img fix steps": "Exact steps",
    "ksampler": "Sampler",
    "model name": "Model",
    "module 1": "VAE",  # Forge
    "negative guidance minimum sigma": "NGMS",
    "negativeprompt": "Negative prompt",
    "resolution": "Size",
    "sampler name": "Sampler",
    "sampling method": "Sampler",
    "sampling steps": "Steps",
    "schedule": "Schedule type",
    "scheduler": "Schedule type",
    "stable diffusion model": "Model",  # Easy Diffusion
    "subseed": "Variation seed",
    "subseed strength": "Variation seed strength",
    "vae model": "VAE",
    "variation strength": "Variation seed strength",
}
"""Folded keys of other programs -> ours. Our own keys match in any case, too."""


def folded(key: str) -> str:
    """Return the key in lower case with single spaces between its words."""
    return " ".join(key.casefold().replace("_", " ").split())


NAMES = {folded(key): key for key in (*BY_KEY, *PAIRS, *FACTS)} | _OTHER_NAMES
"""Every folded key that is understood -> our key."""
SETTING_KEYS = frozenset((*BY_KEY, *PAIRS))


def own_key(key: str) -> str | None:
    """Return our key for a key that is understood, or None."""
    return NAMES.get(folded(key))


CONTROL = re.compile(r"ControlNet \d+")
"""Keys of WebUI's ControlNet extension, one for each unit."""

_HARMLESS = frozenset(
    {folded(key) for key, *_ in OLD_BEHAVIOUR}
    | {"template", "negative template", "wildcard prompt", "wildcard negative prompt", "styles applied", "comment"}
    | {"user", "author", "artist", "software", "source", "app", "backend", "pipeline", "file includes", "file name"}
    | {"time taken", "generation time", "created date", "creation time", "date", "time", "peak memory"}
    | {"aesthetic score", "rating", "nsfw", "url", "site", "title", "license", "copyright"}
    | {"torch active/reserved", "sys vram", "image saved", "gpu", "device", "python", "torch"}
    | {"batch", "batch size", "batch pos", "batch index", "batch count", "index", "first pass size", "image id"}
    | {"operations", "second pass", "hires force", "hires size", "width", "height", "image cfg scale"}
    | {"hypernet", "hypernet strength", "cache fp16 weight for lora", "civitai metadata", "metadata generator version"}
)
"""Folded keys that never affect the picture: they describe the program, or repeat what other keys say."""
_HARMLESS_ENDS = (" version",)
"""Endings of folded keys that never affect the picture. An extension's other keys say what it did."""

_NEUTRAL: dict[str, tuple[str, ...]] = {folded(key): (str(value),) for key, value in DEFAULTS.items()} | {
    "beta schedule alpha": ("0.6",),
    "beta schedule beta": ("0.6",),
    "cfg end": ("1",),
    "cfg start": ("0",),
    "denoise": ("1",),  # ComfyUI's savers
    "diffusion in low bits": ("Automatic", "Automatic (fp16 LoRA)"),  # Forge
    "guidance end": ("1",),
    "guidance start": ("0",),
    "hires mode": ("0", "1"),  # SD.Next: none and fixed
    "hires module 1": ("Use same choices",),  # Forge
    "mask weight": ("1",),
    "parser": ("native", "a1111", "full parser"),  # SD.Next: they weigh as WebUI does
    "resize scale": ("1",),
    "sampler dynamic shift": ("false",),
    "sampler options": ("",),
    "te": ("default", "automatic"),  # SD.Next
    "unet": ("default", "automatic"),
    "weight dtype": ("default",),
}
"""Values that have no effect, by folded key."""

_NONE = frozenset(("none", "off", "disable", "disabled", "", "[]", "{}"))
"""Values that mean "not used" for any key."""
_OFF = frozenset(("false", "0", "no"))
"""Values that turn off a switch, or the strength of something added. For other keys 0 and False may be a choice."""
_SWITCH = re.compile(
    r"(tiling|restore faces|face restoration|color correction|refine|refiner|hypernet|script|hires fix|seamless"
    r"|tome|todo|token merging|pag|perturbed|sag|self attention guidance|freeu|hypertile|detailer|adetailer"
    r"|controlnet|cfg rescale|dynamic thresholding|animatediff|regional prompter|rp|kohya|sd upscale|ultimate sd"
    r"|downcast|pad conds|skip early cfg|ngms|old prompt editing|latent couple|cutoff|negpip|fp8)\b.*"
    r"|.* ?enabled?"
)
"""Folded keys of optional features that False or 0 turns off."""

_AFTERWARDS = re.compile(r"postprocess\b.*")
"""Folded keys that describe processing of the finished picture."""


def asks_for_nothing(key: str, value: str, fields: dict[str, str]) -> bool:
    """Return whether a key that is not a setting has no effect on the picture. `fields` are all of the block's."""
    name, said = folded(key), value.casefold().strip()
    if name in _HARMLESS or name.endswith(_HARMLESS_ENDS) or said in _NONE:
        return True
    if name in _NEUTRAL:
        return any(same_value(said, neutral) for neutral in _NEUTRAL[name])
    if name == "hires cfg scale":  # Forge and SD.Next always write it
        return same_value(said, fields.get("CFG scale", ""))
    return _SWITCH.fullmatch(name) is not None and (said in _OFF or same_value(said, "0"))


def done_afterwards(key: str) -> bool:
    """Return whether a key describes processing of the finished picture, which is left out here."""
    return _AFTERWARDS.fullmatch(folded(key)) is not None


def same_value(first: str, second: str) -> bool:
    """Return whether two values are the same number, or the same text except for case and spaces."""
    try:
        return float(first) == float(second)
    except ValueError:
        return " ".join(first.casefold().split()) == " ".join(second.casefold().split())


def first_said(said: Mapping[str, Any], *keys: str) -> str:
    """Return the first of these values that is not empty, as text."""
    return next((str(said[key]) for key in keys if said.get(key)), "")


def as_key(name: str) -> str:
    """Turn a JSON name into a key that a block can contain: two or more letters, digits, spaces, - and /."""
    key = " ".join(re.sub(r"[^\w\-/]+|_", " ", name).split())
    return key if len(key) > 1 and key[0].isalnum() else f"key {key}".strip()


def as_text(value: object) -> str:
    """Turn a JSON value into text: an object's name, the first of a list of prompts, "" for null, false and empty."""
    if value is None or value is False or value in ([], {}):
        return ""
    if isinstance(value, dict):
        return first_said(value, "model_name", "name", "key") or _dumped(value)
    if isinstance(value, list):
        first = value[0]
        return (first_said(first, "prompt") if isinstance(first, dict) else "") or _dumped(value)
    return str(value)


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)

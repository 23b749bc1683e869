"""Keys of generation data: which setting each one is, and which of the others change nothing in the picture.

What stands in none of these tables asks for something that is not done here: a strict request is then refused.
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
"""Keys that tell what made a picture, instead of setting something: the attribute of `GenerationData`."""

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
"""Keys of other programs, folded. Our own match in any case, too."""


def folded(key: str) -> str:
    """Return the key in lower case with single spaces between its words."""
    return " ".join(key.casefold().replace("_", " ").split())


NAMES = {folded(key): key for key in (*BY_KEY, *PAIRS, *FACTS)} | _OTHER_NAMES
"""Our key by every folded key that is understood."""
SETTING_KEYS = frozenset((*BY_KEY, *PAIRS))


def own_key(key: str) -> str | None:
    """Return our key for a key that is understood, or None."""
    return NAMES.get(folded(key))


CONTROL = re.compile(r"ControlNet \d+")
"""Keys of WebUI's extension for ControlNets, one for each unit."""

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
"""Folded keys that ask for nothing, whatever their value: they tell of the program, or repeat what others say."""
_HARMLESS_ENDS = (" version",)
"""Ends of folded keys that ask for nothing: the other keys of an extension are what counts."""

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
"""Values that ask for nothing, by folded key."""

_NONE = frozenset(("none", "off", "disable", "disabled", "", "[]", "{}"))
"""Values that say of anything that it is not there."""
_OFF = frozenset(("false", "0", "no"))
"""Values that turn a switch or the strength of an addition off. For other keys 0 and False may be a choice."""
_SWITCH = re.compile(
    r"(tiling|restore faces|face restoration|color correction|refine|refiner|hypernet|script|hires fix|seamless"
    r"|tome|todo|token merging|pag|perturbed|sag|self attention guidance|freeu|hypertile|detailer|adetailer"
    r"|controlnet|cfg rescale|dynamic thresholding|animatediff|regional prompter|rp|kohya|sd upscale|ultimate sd"
    r"|downcast|pad conds|skip early cfg|ngms|old prompt editing|latent couple|cutoff|negpip|fp8)\b.*"
    r"|.* ?enabled?"
)
"""Folded keys of things that are added to a picture, and that False or 0 leaves out."""

_AFTERWARDS = re.compile(r"postprocess\b.*")
"""Folded keys of what was done to a finished picture."""


def asks_for_nothing(key: str, value: str, fields: dict[str, str]) -> bool:
    """Return whether a key that is no setting has no effect on the picture. `fields` are all of the block."""
    name, said = folded(key), value.casefold().strip()
    if name in _HARMLESS or name.endswith(_HARMLESS_ENDS) or said in _NONE:
        return True
    if name in _NEUTRAL:
        return any(same_value(said, neutral) for neutral in _NEUTRAL[name])
    if name == "hires cfg scale":  # Forge and SD.Next write it always
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
    """Return a name in JSON as a key that a block can hold: two or more letters, digits, spaces, - and /."""
    key = " ".join(re.sub(r"[^\w\-/]+|_", " ", name).split())
    return key if len(key) > 1 and key[0].isalnum() else f"key {key}".strip()


def as_text(value: object) -> str:
    """Turn a value in JSON into text: an object's name, the first of a list of prompts, "" for what says nothing."""
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

"""Which family a LoRA, ControlNet or adapter was made for, judging by the width of its layers' text input."""

import re
from collections.abc import Mapping
from pathlib import Path

from pipelines.errors import ModelError
from pipelines.families.detection import FAMILIES, Shaped
from pipelines.families.family import Family

CONTEXTS = {family.context: family.name for family in reversed(tuple(FAMILIES.values()))}
"""Families by the width of the prompt's tokens. If families share a width, the first one is named."""
_OF_TEXT = re.compile(r"(attn2\W?\w*to_[kv]|to_[kv]_ip|encoder_layers_\d+_self_attn_[qkv]|self_attn\.[qkv]_proj)")
"""Layers whose input has the width of the prompt's tokens."""
_RESULT = re.compile(r"up\b|lora_B|_up|hada_w\d_a|lokr|bias|alpha|magnitude|dora")
"""Parts of such layers whose last dimension is not this width."""
_OF_SDXL = ("lora_te2_", "text_encoder_2.")
"""Prefixes of a second text encoder."""


def made_for(tensors: Mapping[str, Shaped]) -> str | None:
    """Return the family that a file was made for; None if its names and shapes do not show it."""
    if any(name.startswith(_OF_SDXL) for name in tensors):
        return CONTEXTS[2048]
    of_text: str | None = None
    for name, tensor in tensors.items():
        if _OF_TEXT.search(name) and not _RESULT.search(name) and len(tensor.shape) >= 2:
            family = CONTEXTS.get(tensor.shape[1])
            if "encoder_layers" not in name and "self_attn" not in name:
                return family  # the UNet tells more: SDXL's first text encoder is that of Stable Diffusion 1.x
            of_text = of_text or family
    return of_text


def check_made_for(path: Path, tensors: Mapping[str, Shaped], family: Family) -> None:
    """Raise ModelError for a file that was made for another family."""
    theirs, here = made_for(tensors), CONTEXTS[family.context]
    if theirs not in (None, here):
        raise ModelError(f"{path}: made for {theirs}, but the model here is {family.name}. Give one made for {here}.")

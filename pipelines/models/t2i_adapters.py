"""T2I adapter files -> networks that compute features of a map once for a whole pass (Mou et al. 2023,
https://arxiv.org/abs/2302.08453)."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.models.adapter import T2IAdapter
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from pipelines.errors import ModelError
from pipelines.families.family import Family
from pipelines.models.network import built_of, fill
from pipelines.runtime.device import Device

TENSORS_MAX = 300
"""Limit for an adapter's file. More tensors would only cost time."""
PREFIX = "adapter."
"""The prefix of diffusers' names."""
FULL_FIRST, LIGHT_FIRST = "conv_in.weight", "body.0.in_conv.weight"
"""The first layer of a full adapter and of a light one."""
SCALE, SDXL_SCALE = 8, 16
"""Pixels of the map, in width and height, that become one in an adapter for Stable Diffusion 1.x and one for SDXL."""
COLOURS = (1, 3)
"""Possible numbers of a map's channels: grey, or red, green and blue."""


def build_t2i_adapter(
    path: Path, tensors: Mapping[str, Tensor], unet: UNet2DConditionModel, device: Device, family: Family
) -> T2IAdapter:
    """Build the adapter from a file's tensors, which have their authors' names or diffusers'. Raises ModelError."""
    if len(tensors) > TENSORS_MAX:
        raise ModelError(f"{path}: holds {len(tensors)} tensors, but a T2I adapter has about 40.")
    plain = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    levels, light = tuple(unet.config["block_out_channels"]), LIGHT_FIRST in plain
    large = family.sizes and not light
    levels = (*levels, levels[-1]) if large else levels  # of SDXL's adapters, the last one is for the middle
    if light and levels[-1] != levels[-2]:
        raise ModelError(f"{path}: a light T2I adapter needs a UNet whose last two levels are equally wide.")
    named = _by_diffusers_names(plain, light, len(levels))
    colours = _colours(path, plain.get(LIGHT_FIRST if light else FULL_FIRST), family)
    with built_of(path, "T2I adapter", tensors), torch.device("meta"):
        network = T2IAdapter(
            in_channels=colours,
            # in a light adapter the last two levels are alike, and diffusers adds the last one itself
            channels=levels[:-1] if light else levels,
            num_res_blocks=len({name.split(".")[3] for name in named if name.startswith("body.0.resnets.")}),
            downscale_factor=SDXL_SCALE if large else SCALE,
            adapter_type="light_adapter" if light else "full_adapter_xl" if large else "full_adapter",
        )
    return fill(path, network, {f"{PREFIX}{name}": tensor for name, tensor in named.items()}, device).eval()


def _colours(path: Path, first: Tensor | None, family: Family) -> int:
    """Return the number of the map's channels, judging by the first layer. Raises ModelError for other families."""
    if first is None or first.dim() != 4:
        raise ModelError(f"{path}: its T2I adapter lacks {FULL_FIRST}. The file is incomplete or malformed.")
    channels = first.shape[1]
    for name, scale in (("SDXL", SDXL_SCALE), ("Stable Diffusion 1.x", SCALE)):
        if channels in [count * scale**2 for count in COLOURS]:
            if (name == "SDXL") != bool(family.sizes):
                raise ModelError(f"{path}: a T2I adapter for {name}. Give one that was made for {family.name}.")
            return channels // scale**2
    raise ModelError(f"{path}: an unknown kind of T2I adapter: its first layer takes {channels} channels.")


def _by_diffusers_names(tensors: Mapping[str, Tensor], light: bool, levels: int) -> Mapping[str, Tensor]:
    """Return the tensors by diffusers' names, in which an adapter's blocks are numbered within each level."""
    if any(".resnets." in name for name in tensors):
        return tensors
    if light:
        return {re.sub(r"^(body\.\d+)\.body\.", r"\1.resnets.", name): tensor for name, tensor in tensors.items()}
    found = [re.fullmatch(r"body\.(\d+)\.(.*)", name) for name in tensors]
    blocks = max(1, len({match[1] for match in found if match}) // levels)
    named = {}
    for match, (name, tensor) in zip(found, tensors.items(), strict=True):
        level, block = divmod(int(match[1]), blocks) if match else (0, 0)
        if match is None:
            named[name] = tensor
        elif match[2].startswith("in_conv."):
            named[f"body.{level}.{match[2]}"] = tensor
        else:
            named[f"body.{level}.resnets.{block}.{match[2]}"] = tensor
    return named

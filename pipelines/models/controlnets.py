"""ControlNet files -> networks: a copy of the UNet's encoding half that sees a map (Zhang et al. 2023,
https://arxiv.org/abs/2302.05543).
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from torch import Tensor

from pipelines.ask.networks import ExtraFile
from pipelines.errors import ModelError
from pipelines.families.layouts import control_layout
from pipelines.models.checkpoint import is_safetensors, kind_of, map_tensors
from pipelines.models.network import built_of, fill
from pipelines.models.unet import fit_any_norm
from pipelines.runtime.device import Device

TENSORS_MAX = 2000
"""In a ControlNet's file. More could only cost time."""
PREFIXES = {"control_model.": "control_model.time_embed.0.weight", "": "time_embed.0.weight"}
"""What LDM's names begin with in the two forms that are published, and the tensor that tells the form."""
DIFFUSERS = "time_embedding.linear_1.weight"
"""The tensor that tells diffusers' names."""
SHARED = ("block_out_channels", "down_block_types", "layers_per_block", "cross_attention_dim", "attention_head_dim")
"""What a ControlNet's configuration has in common with its UNet's."""


class ControlNets:
    """The ControlNets of one prediction, kept for the next one as far as it asks for the same."""

    def __init__(self, unet: Mapping[str, Any], device: Device) -> None:
        """`unet` is the configuration of the UNet that they guide."""
        self._unet, self._device = unet, device
        self._loaded: dict[ExtraFile, ControlNetModel] = {}

    def __getitem__(self, file: ExtraFile) -> ControlNetModel:
        return self._loaded[file]

    @property
    def networks(self) -> Collection[ControlNetModel]:
        return self._loaded.values()

    def load_only(self, files: Iterable[ExtraFile]) -> None:
        """Load these, keep those that are loaded already and drop all others.

        Raises ModelError for a file that does not fit the UNet.
        """
        wanted = dict.fromkeys(files)
        self._loaded = {file: network for file, network in self._loaded.items() if file in wanted}
        for file in wanted:
            if file not in self._loaded:
                with file.blamed():
                    self._loaded[file] = load_control(file.path, self._unet, self._device)


def load_control(path: Path, unet: Mapping[str, Any], device: Device) -> ControlNetModel:
    """Return the ControlNet of a safetensors file with LDM's or diffusers' names. Raises ModelError."""
    if not is_safetensors(path):
        raise ModelError(f"{path}: a pickle. ControlNets are read as .safetensors only: give that version of it.")
    tensors = map_tensors(path)
    if len(tensors) > TENSORS_MAX:
        raise ModelError(f"{path}: holds {len(tensors)} tensors, and a ControlNet of its family has about 340.")
    if "difference" in tensors:
        raise ModelError(f"{path}: holds only differences to another model. Give the whole ControlNet.")
    _check_is_control(path, tensors)
    config = {name: unet[name] for name in SHARED}
    with built_of(path, "ControlNet", tensors), torch.device("meta"):
        network = ControlNetModel(**config)
    fit_any_norm(network)
    if DIFFUSERS not in tensors:
        prefix = next(prefix for prefix, first in PREFIXES.items() if first in tensors)
        tensors = control_layout(len(config["block_out_channels"])).tensors_to_diffusers(tensors, prefix)
    return fill(path, network, tensors, device).eval()


def _check_is_control(path: Path, tensors: Mapping[str, Tensor]) -> None:
    form_known = any(name in tensors for name in (*PREFIXES.values(), DIFFUSERS))
    if form_known and any("zero_convs" in name or "controlnet_" in name for name in tensors):
        return
    kind = kind_of(tensors)
    what = f"{kind.what}, and no ControlNet" if kind and kind.what != "a ControlNet" else "no ControlNet"
    raise ModelError(f"{path}: {what}. Give one that was made for Stable Diffusion 1.x.")

"""Small ControlNets for the embedded model, made where a test needs one."""

import re
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from diffusers.models.controlnets.controlnet import ControlNetModel
from safetensors.torch import save_file
from torch import Tensor

from pastel_tiny.pack import unet_key
from pipelines.extras import ExtraFile


def random_control(unet: Any, seed: int = 0) -> dict[str, Tensor]:
    """A ControlNet that is a copy of the UNet and whose other layers are random, by diffusers' names."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        control = ControlNetModel.from_unet(unet)
        for part in (*control.controlnet_down_blocks, control.controlnet_mid_block):
            torch.nn.init.normal_(part.weight, std=0.05)
    return control.state_dict()


def by_ldm_names(tensors: dict[str, Tensor], prefix: str = "control_model.") -> dict[str, Tensor]:
    """The same as its authors published it."""
    return {prefix + _ldm_name(name): tensor for name, tensor in tensors.items()}


def _ldm_name(name: str) -> str:
    if name in (layers := DIFFUSERS_TO_LDM_MAPPING["controlnet"]["layers"]):
        return str(layers[name])
    if found := re.fullmatch(r"controlnet_cond_embedding\.blocks\.(\d)\.(.*)", name):
        return f"input_hint_block.{2 * int(found[1]) + 2}.{found[2]}"
    name = re.sub(r"^controlnet_down_blocks\.(\d+)\.", r"zero_convs.\1.0.", name)
    return unet_key(name.replace("controlnet_mid_block.", "middle_block_out.0."))


def write(path: Path, tensors: dict[str, Tensor]) -> ExtraFile:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return ExtraFile.at(path)

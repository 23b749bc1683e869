"""Small ControlNets for the embedded model, made where a test needs one."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from safetensors.torch import save_file
from torch import Tensor

from pipelines.ask.networks import ExtraFile
from pipelines.families.layouts import control_layout


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
    return control_layout(4).tensors_to_ldm(tensors, prefix)


def write(path: Path, tensors: dict[str, Tensor]) -> ExtraFile:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return ExtraFile.at(path)

"""Small control networks for the embedded model, made where a test needs one."""

import re
from pathlib import Path
from typing import Any

import torch
from diffusers.models.adapter import T2IAdapter
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


def random_control_lora(unet: Any, rank: int = 4) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A Control-LoRA as its authors publish them, and by diffusers' names the ControlNet that it makes of the UNet."""
    own, whole = unet.state_dict(), random_control(unet)
    small: dict[str, Tensor] = {"lora_controlnet": torch.zeros(0)}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, weight in whole.items():
            layer = name.removesuffix(".weight")
            if name not in own or weight.dim() == 1:
                small |= control_layout(4).tensors_to_ldm({name: weight})
                continue
            up, down = torch.randn(len(weight), rank) * 0.1, torch.randn(rank, weight[0].numel()) * 0.1
            ldm = control_layout(4).to_ldm(layer)
            pixels = (1, 1) if weight.dim() == 4 else ()
            small |= {f"{ldm}.up": up.reshape(*up.shape, *pixels), f"{ldm}.down": down.reshape(rank, *weight.shape[1:])}
            whole[name] = weight + (up @ down).reshape(weight.shape)
    return small, whole


def random_t2i(unet: Any, kind: str = "full_adapter", colours: int = 3, seed: int = 0) -> T2IAdapter:
    """A T2I adapter that fits the UNet."""
    channels = list(unet.config.block_out_channels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return T2IAdapter(colours, channels[:-1] if kind == "light_adapter" else channels, 2, adapter_type=kind)


def by_authors_names(adapter: T2IAdapter) -> dict[str, Tensor]:
    """The adapter as its authors published it: a full one's blocks are counted through, two a level."""
    light = adapter.config["adapter_type"] == "light_adapter"
    named = {}
    for name, tensor in adapter.state_dict().items():
        name = name.removeprefix("adapter.")
        if light:
            name = name.replace(".resnets.", ".body.")
        elif match := re.fullmatch(r"body\.(\d)\.(?:resnets\.(\d)\.)?(.+)", name):
            name = f"body.{2 * int(match[1]) + int(match[2] or 0)}.{match[3]}"
        named[name] = tensor
    return named


def write(path: Path, tensors: dict[str, Tensor]) -> ExtraFile:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return ExtraFile.at(path)

"""Small control networks for the embedded model."""

import re
from pathlib import Path
from typing import Any

import torch
from diffusers.models.adapter import T2IAdapter
from diffusers.models.controlnets.controlnet import ControlNetModel
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

from pipelines.ask.networks import ExtraFile
from pipelines.families.layouts import control_layout


def random_control(unet: Any, seed: int = 0) -> dict[str, Tensor]:
    """A ControlNet that is a copy of the UNet and whose other layers are random, by diffusers' names."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        control = ControlNetModel.from_unet(unet)
        for part in (*control.controlnet_down_blocks, control.controlnet_mid_block):
            torch.nn.init.normal_(part.weight, std=0.05)
        torch.nn.init.normal_(control.controlnet_cond_embedding.conv_out.weight, std=1)  # else no picture has an effect
    return control.state_dict()


def by_ldm_names(tensors: dict[str, Tensor], prefix: str = "control_model.", levels: int = 4) -> dict[str, Tensor]:
    """The same as its authors published it."""
    return control_layout(levels).tensors_to_ldm(tensors, prefix)


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


WIDTH, EMBEDDING = 64, 24
"""Of the small image encoder: its layers', and its embedding's."""


def random_image_encoder() -> CLIPVisionModelWithProjection:
    """A small image encoder of ViT-H's form, for pictures of 32 px."""
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=16,
        image_size=32,
        patch_size=8,
        projection_dim=EMBEDDING,
        hidden_act="gelu",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: CLIPVisionModelWithProjection = CLIPVisionModelWithProjection(config).eval()
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1 or "embedding" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    return network


def random_ip_adapter(unet: Any, plus: bool = False) -> dict[str, Tensor]:
    """An IP-Adapter that fits the UNet and the small image encoder, by its authors' names."""
    context = unet.config.cross_attention_dim
    widths = [module.to_k.out_features for name, module in unet.named_modules() if name.endswith("attn2")]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = {
            f"ip_adapter.{2 * place + 1}.to_{part}_ip.weight": torch.randn(width, context) * 0.3
            for place, width in enumerate(widths)
            for part in "kv"
        }
        projection = {
            "proj.weight": (4 * context, EMBEDDING),
            "proj.bias": (4 * context,),
            "norm.weight": (context,),
            "norm.bias": (context,),
        }
        return tensors | {f"image_proj.{n}": torch.randn(s) for n, s in (PLUS if plus else projection).items()}


HIDDEN = 128
LAYER: dict[str, tuple[int, ...]] = {
    "0.norm1.weight": (HIDDEN,),
    "0.norm1.bias": (HIDDEN,),
    "0.norm2.weight": (HIDDEN,),
    "0.norm2.bias": (HIDDEN,),
    "0.to_q.weight": (128, HIDDEN),
    "0.to_kv.weight": (256, HIDDEN),
    "0.to_out.weight": (HIDDEN, 128),
    "1.0.weight": (HIDDEN,),
    "1.0.bias": (HIDDEN,),
    "1.1.weight": (4 * HIDDEN, HIDDEN),
    "1.3.weight": (HIDDEN, 4 * HIDDEN),
}
PLUS: dict[str, tuple[int, ...]] = {
    "latents": (1, 6, HIDDEN),
    "proj_in.weight": (HIDDEN, WIDTH),
    "proj_in.bias": (HIDDEN,),
    "proj_out.weight": (64, HIDDEN),
    "proj_out.bias": (64,),
    "norm_out.weight": (64,),
    "norm_out.bias": (64,),
    **{f"layers.{layer}.{name}": shape for layer in range(4) for name, shape in LAYER.items()},
}
"""Shapes of a resampler by its authors' names, with four layers as in the published files."""


def write(path: Path, tensors: dict[str, Tensor]) -> ExtraFile:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return ExtraFile.at(path)

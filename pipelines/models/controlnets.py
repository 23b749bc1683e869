"""ControlNet files -> networks: a copy of the UNet's encoder that sees a map (Zhang et al. 2023,
https://arxiv.org/abs/2302.05543).

A Control-LoRA (https://huggingface.co/stabilityai/control-lora) is a ControlNet whose layers are low-rank products that
are added to the UNet's own weights. Weights that equal the UNet's are not in its file at all.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from pipelines.errors import ModelError
from pipelines.families.family import Family
from pipelines.families.layouts import ADDED, CLASSES, control_layout, vector_layer
from pipelines.models.changes import RANK_MAX
from pipelines.models.checkpoint import kind_of
from pipelines.models.network import adopt, built_of, check_weights, fill
from pipelines.models.unet import fit_any_norm, widen_heads
from pipelines.runtime.device import Device

TENSORS_MAX = 2000
"""Limit for a ControlNet's file. More tensors would only cost time."""
PREFIXES = {"control_model.": "control_model.time_embed.0.", "": "time_embed.0."}
"""The prefixes of LDM's names in the two published forms, and the layer by which each is recognised."""
DIFFUSERS = "time_embedding.linear_1."
"""The layer by which diffusers' names are recognised."""
OF_SDXL = ("label_emb.", "control_model.label_emb.", ADDED)
"""Layers for the vector of sizes."""
LORA_MARKER = "lora_controlnet"
"""An empty tensor by which Control-LoRAs are recognised."""
DECODER = ("up_blocks.", "conv_norm_out.", "conv_out.")
"""The layers of a UNet that a ControlNet has no copy of."""
SHARED = (
    "block_out_channels",
    "transformer_layers_per_block",
    "down_block_types",
    "layers_per_block",
    "cross_attention_dim",
    "attention_head_dim",
    "use_linear_projection",
)
"""The parts of a ControlNet's configuration that equal its UNet's."""
VECTOR = ("class_embed_type", "projection_class_embeddings_input_dim")
"""The same for ControlNets whose condition has a vector, as for SDXL."""


def build_controlnet(
    path: Path, tensors: Mapping[str, Tensor], unet: UNet2DConditionModel, device: Device, family: Family
) -> ControlNetModel:
    """Build the ControlNet from a file's tensors, which have LDM's or diffusers' names.

    `unet` is the UNet that it guides, without LoRAs. Raises ModelError.
    """
    if len(tensors) > TENSORS_MAX:
        raise ModelError(f"{path}: holds {len(tensors)} tensors, but a ControlNet of its family has about 340.")
    if "difference" in tensors:
        raise ModelError(f"{path}: has only differences to another model. Give the whole ControlNet.")
    _check_is_control(path, tensors, family)
    low_rank = LORA_MARKER in tensors
    named = _by_diffusers_names(tensors, len(unet.config["block_out_channels"]))
    own = unet.state_dict() if low_rank else {}
    vector = any(name.startswith(CLASSES) for name in named) or (low_rank and unet.class_embedding is not None)
    with built_of(path, "ControlNet", {**own, **named}), torch.device("meta"):
        network = ControlNetModel(**{name: unet.config[name] for name in (*SHARED, *(VECTOR if vector else ()))})
    fit_any_norm(network)
    widen_heads(network, device.place)
    if not low_rank:
        return fill(path, network, named, device).eval()
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    return adopt(path, network, _joined(path, named, own, wanted, device), device, mapped=False).eval()


def values_of(tensors: Mapping[str, Tensor], unet: UNet2DConditionModel) -> int:
    """Return how many values the network of a file has, nearly. A Control-LoRA's products are added to copies of the
    UNet's weights."""
    if LORA_MARKER not in tensors:
        return sum(each.numel() for each in tensors.values() if each.is_floating_point())
    own = sum(each.numel() for name, each in tensors.items() if not name.endswith((".up", ".down")))
    return own + sum(each.numel() for name, each in unet.named_parameters() if not name.startswith(DECODER))


def _check_is_control(path: Path, tensors: Mapping[str, Tensor], family: Family) -> None:
    if not family.sizes and any(name.startswith(OF_SDXL) for name in tensors):
        raise ModelError(f"{path}: a ControlNet for SDXL. Give one that was made for {family.name}.")
    form_known = any(name.startswith((*PREFIXES.values(), DIFFUSERS)) for name in tensors)
    if form_known and any("zero_convs" in name or "controlnet_" in name for name in tensors):
        return
    kind = kind_of(tensors)
    what = f"{kind.what}, not a ControlNet" if kind and kind.what != "a ControlNet" else "not a ControlNet"
    raise ModelError(f"{path}: {what}. Give one that was made for {family.name}.")


def _by_diffusers_names(tensors: Mapping[str, Tensor], levels: int) -> Mapping[str, Tensor]:
    if any(name.startswith(DIFFUSERS) for name in tensors):
        return {vector_layer(name): tensor for name, tensor in tensors.items()}
    prefix = next(prefix for prefix, first in PREFIXES.items() if any(name.startswith(first) for name in tensors))
    return control_layout(levels).tensors_to_diffusers(tensors, prefix)


def _joined(
    path: Path,
    tensors: Mapping[str, Tensor],
    unet: Mapping[str, Tensor],
    wanted: Mapping[str, tuple[int, ...]],
    device: Device,
) -> dict[str, Tensor]:
    """Return the weights of a Control-LoRA's ControlNet: the file's, or the UNet's with the file's products added.

    `wanted` are the shapes of all weights by their names. Raises ModelError.
    """
    check_weights(path, {name: tensor for name, tensor in tensors.items() if name != LORA_MARKER})
    joined = {}
    for name, shape in wanted.items():
        if name in tensors:
            joined[name] = tensors[name]
        elif name in unet:
            # an inpainting UNet has more channels than the latents, but a ControlNet takes only the latents
            own = unet[name][:, : shape[1]] if name == "conv_in.weight" else unet[name]
            joined[name] = _added(path, name, own, tensors).to(device.dtype)
    return joined


def _added(path: Path, name: str, own: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return a copy of the UNet's own weight with the file's product `up @ down`, if there is one, in float32."""
    layer = name.removesuffix(".weight")
    parts = [tensors[f"{layer}.{part}"] for part in ("up", "down") if f"{layer}.{part}" in tensors]
    if not parts:
        return own.clone()
    if len(parts) == 1 or not all(part.dim() and part.numel() for part in parts):
        raise ModelError(f"{path}: lacks half of its product for {layer}. The file is incomplete or malformed.")
    up, down = (part.flatten(1) if part.dim() > 1 else part[:, None] for part in parts)
    if up.shape[1] != down.shape[0] or len(down) > RANK_MAX or len(up) * down.shape[1] != own.numel():
        shapes = f"{tuple(up.shape)} by {tuple(down.shape)}"
        raise ModelError(f"{path}: its product for {layer} ({shapes}) does not fit the UNet's {tuple(own.shape)}.")
    product = up.to(own.device).float() @ down.to(own.device).float()
    return own.float() + product.reshape(own.shape)

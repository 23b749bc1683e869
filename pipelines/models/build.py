"""A single file's tensors -> networks. Shapes are read from the tensors, not from a fixed configuration.

Networks are built on the meta device and use the file's tensors directly, so that nothing is initialised only to be
overwritten, and nothing is copied twice.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

from pipelines.ask.prompt import END, START
from pipelines.errors import ModelError
from pipelines.families.detection import check_channels
from pipelines.families.family import Family, TextTower
from pipelines.families.layouts import LAYERS, UNET_PREFIX, VAE_PREFIX, unet_layout, vae_layout
from pipelines.models.network import built_of, fill
from pipelines.runtime.device import Device

log = logging.getLogger(__name__)

HEAD_CHANNELS = 64
"""Channels per head in UNets whose number of heads grows with the width of the layers."""
TOKENS = "embeddings.token_embedding.weight"
POSITIONS = "embeddings.position_ids"
PROJECTION = "text_projection.weight"
TextNetwork: TypeAlias = CLIPTextModel | CLIPTextModelWithProjection


def build_unet(path: Path, tensors: Mapping[str, Tensor], family: Family, device: Device) -> UNet2DConditionModel:
    """Build the UNet from LDM tensors (`model.diffusion_model.*`). Raises ModelError."""
    config = unet_config(path, tensors, family)
    with built_of(path, "UNet", tensors), torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    layout = unet_layout(config["down_block_types"])
    return fill(path, unet, layout.tensors_to_diffusers(tensors, UNET_PREFIX), device)


def build_vae(path: Path, tensors: Mapping[str, Tensor], device: Device) -> AutoencoderKL:
    """Build the VAE from LDM tensors (`first_stage_model.*`). Raises ModelError."""
    config = vae_config(path, tensors)
    with built_of(path, "VAE", tensors), torch.device("meta"):
        vae = AutoencoderKL(**config)
    layout = vae_layout(len(config["block_out_channels"]))
    return fill(path, vae, layout.tensors_to_diffusers(tensors, VAE_PREFIX), device)


def build_text_encoder(path: Path, tensors: Mapping[str, Tensor], tower: TextTower, device: Device) -> TextNetwork:
    """Build CLIP's text model from tensors without a prefix. Raises ModelError."""
    config = text_config(path, tensors, tower)
    with built_of(path, "text encoder", tensors), torch.device("meta"):
        network = (CLIPTextModelWithProjection if tower.pooled else CLIPTextModel)(config)
    # A buffer, not a weight: because of the meta device it must be made by hand.
    positions = _positions(path, tensors, config.max_position_embeddings)[None]
    text_model(network).embeddings.position_ids = positions
    if tower.pooled:
        tensors = {name if name == PROJECTION else f"text_model.{name}": tensor for name, tensor in tensors.items()}
    return fill(path, network, tensors, device)


def text_model(network: TextNetwork) -> CLIPTextModel:
    """Return the text model without its projection."""
    return network.text_model if isinstance(network, CLIPTextModelWithProjection) else network


def _positions(path: Path, tensors: Mapping[str, Tensor], count: int) -> Tensor:
    """Return the position of each token in a chunk: 0, 1, 2 and so on, unless the file says otherwise.

    In some files merging tools have added and rounded these numbers. WebUI 1.10.1 uses them as they are, truncated to
    whole numbers, so that a token may get its neighbour's position. We do the same and log a warning.
    """
    right, told = torch.arange(count), tensors.get(POSITIONS)
    if told is None:
        return right
    given = told.flatten().double()
    if torch.equal(given, right.double()):
        return right
    whole = given.to(torch.int64)
    wrong = [f"{at} is {value:g}" for at, value in enumerate(given.tolist()) if at >= count or whole[at] != at]
    if len(whole) != count or not bool(((whole >= 0) & (whole < count)).all()):
        log.warning("%s: its text encoder's position_ids are unusable; 0 to %d are used.", path.name, count - 1)
        return right
    if wrong:
        log.warning(
            "%s: its text encoder's position_ids are broken (%s). Pictures are drawn with them, as in WebUI.",
            path.name,
            ", ".join(wrong[:5]),
        )
    return whole


def check_widths(path: Path, unet: Mapping[str, Any], widths: Iterable[int]) -> None:
    """Raise ModelError if the UNet (its configuration) was made for other text encoders, which have these widths."""
    if unet["cross_attention_dim"] != sum(widths):
        raise ModelError(f"{path}: its UNet was made for another text encoder. The file was assembled incorrectly.")


def unet_config(path: Path, tensors: Mapping[str, Tensor], family: Family) -> dict[str, Any]:
    """Return the diffusers configuration of a UNet with these LDM tensors. Raises ModelError."""
    in_channels = shape_of(path, tensors, UNET_PREFIX + "input_blocks.0.0.weight", 4)[1]
    check_channels(path, family, in_channels)
    blocks = LAYERS + 1  # per level: the residual blocks and the downsampling
    levels = (count_of(tensors, UNET_PREFIX + "input_blocks.") + LAYERS) // blocks
    firsts = [f"{UNET_PREFIX}input_blocks.{1 + blocks * level}" for level in range(levels)]
    widths = tuple(shape_of(path, tensors, f"{first}.0.out_layers.3.weight", 4)[0] for first in firsts)
    depths, middle = _transformer_depths(path, tensors, firsts)
    attention = next(f"{first}.1." for first, depth in zip(firsts, depths, strict=True) if depth)
    return {
        "in_channels": in_channels,
        "out_channels": 4,
        "block_out_channels": widths,
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        "up_block_types": tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)),
        "layers_per_block": LAYERS,
        "transformer_layers_per_block": tuple(depth or middle for depth in depths),
        # diffusers' name for the number of heads
        "attention_head_dim": family.unet_heads or tuple(max(1, width // HEAD_CHANNELS) for width in widths),
        "cross_attention_dim": shape_of(path, tensors, f"{attention}transformer_blocks.0.attn2.to_k.weight", 2)[1],
        **_vector_config(path, tensors),
        "use_linear_projection": tensors[f"{attention}proj_in.weight"].dim() == 2,
    }


def _transformer_depths(path: Path, tensors: Mapping[str, Tensor], firsts: Sequence[str]) -> tuple[list[int], int]:
    """Return how many transformer blocks an attention has on each level, 0 without one, and in the middle.

    `firsts` are the names of the levels' first blocks. Raises ModelError for a form that diffusers cannot build.
    """
    *depths, middle = (
        count_of(tensors, f"{block}.1.transformer_blocks.") for block in (*firsts, f"{UNET_PREFIX}middle_block")
    )
    if not any(depths) or not middle or depths[-1] not in (0, middle):
        told = f"{depths} transformer blocks by level, {middle} in the middle"
        raise ModelError(f"{path}: a UNet of an unknown form, such as SSD-1B's ({told}). Give another model.")
    return depths, middle


def _vector_config(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the configuration of the layers for a condition's vector, if the UNet has them."""
    label = f"{UNET_PREFIX}label_emb.0.0.weight"
    if label not in tensors:
        return {}
    width = shape_of(path, tensors, label, 2)[1]
    return {"class_embed_type": "projection", "projection_class_embeddings_input_dim": width}


def vae_config(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the diffusers configuration of a VAE with these LDM tensors. Raises ModelError."""
    levels = count_of(tensors, VAE_PREFIX + "encoder.down.")
    channels = [
        shape_of(path, tensors, f"{VAE_PREFIX}encoder.down.{level}.block.0.conv1.weight", 4)[0]
        for level in range(levels)
    ]
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": tuple(channels),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": LAYERS,
    }


def text_config(path: Path, tensors: Mapping[str, Tensor], tower: TextTower) -> CLIPTextConfig:
    """Return the configuration of CLIP's text model. Heads are 64 wide; the tests' small models have four heads."""
    vocabulary, width = shape_of(path, tensors, TOKENS, 2)
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shape_of(path, tensors, "encoder.layers.0.mlp.fc1.weight", 2)[0],
        num_hidden_layers=count_of(tensors, "encoder.layers."),
        num_attention_heads=width // 64 if width >= 512 else 4,
        max_position_embeddings=shape_of(path, tensors, "embeddings.position_embedding.weight", 2)[0],
        hidden_act=tower.activation,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=END,
        projection_dim=shape_of(path, tensors, PROJECTION, 2)[0] if tower.pooled else 0,
    )


def shape_of(path: Path, tensors: Mapping[str, Tensor], name: str, dimensions: int) -> torch.Size:
    """Return the shape of a tensor. Raises ModelError if it is missing or has a different number of dimensions."""
    if name not in tensors:
        raise ModelError(f"{path}: lacks {name}. The file is incomplete or has another layout.")
    shape = tensors[name].shape
    if len(shape) != dimensions or 0 in shape:
        raise ModelError(f"{path}: {name} has the shape {tuple(shape)}, which no Stable Diffusion model has.")
    return shape


def count_of(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Return how many different numbers follow `prefix` in the tensors' names."""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}
    return len(numbers)

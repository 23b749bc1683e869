"""Small models of SDXL and its refiner with random weights."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType

import torch
from diffusers import DDIMScheduler
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from pipelines.families.detection import FAMILIES
from pipelines.families.family import Family
from pipelines.families.sdxl import REFINER, SDXL
from pipelines.models.export import checkpoint_weights

WIDTH_L, WIDTH_G = 32, 64
LAYERS = 3
"""Of each text encoder: the last one but one is used."""
WIDTHS = {SDXL.name: (32, 64, 64), REFINER.name: (32, 64, 64, 64)}
BLOCKS = {SDXL.name: (1, 1, 2), REFINER.name: (2, 2, 2, 2)}
"""Transformer blocks of the UNet by level."""


@cache  # they take longer to make than to write
def networks(name: str = SDXL.name, channels: int = 4, seed: int = 0) -> Mapping[str, nn.Module]:
    """Return the networks of a model of the family by their folders' names, as diffusers makes them. Nobody changes
    them."""
    family = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made: dict[str, nn.Module] = {"text_encoder_2": CLIPTextModelWithProjection(_text(WIDTH_G, "gelu"))}
        if family is SDXL:
            made["text_encoder"] = CLIPTextModel(_text(WIDTH_L, "quick_gelu"))
        widths = WIDTHS[family.name]
        attends = (False, True, True, False)[: len(widths)]
        made["unet"] = UNet2DConditionModel(
            in_channels=channels,
            block_out_channels=widths,
            down_block_types=tuple("CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends),
            up_block_types=tuple("CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)),
            transformer_layers_per_block=BLOCKS[family.name],
            attention_head_dim=tuple(max(1, width // 64) for width in widths),
            cross_attention_dim=WIDTH_G + (WIDTH_L if family is SDXL else 0),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=WIDTH_G + 256 * len(family.sizes),
        )
        made["vae"] = AutoencoderKL(
            block_out_channels=(32, 32, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
    return MappingProxyType({name: network.eval() for name, network in made.items()})


def _text(width: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=64,
        projection_dim=width,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        hidden_act=activation,
        bos_token_id=49406,
        eos_token_id=49407,
    )


def single_file(path: Path, parts: Mapping[str, nn.Module], family: Family = SDXL, **more: Tensor) -> Path:
    """Write the networks as a single file by SGM's names, with more tensors beside them."""
    texts = [parts[tower.folder] for tower in family.texts if tower.folder in parts]
    towers = [tower for tower in family.texts if tower.folder in parts]
    tensors = checkpoint_weights(replace(family, texts=tuple(towers)), parts["unet"], parts["vae"], texts)
    save_file({name: tensor.contiguous().clone() for name, tensor in {**tensors, **more}.items()}, path)
    return path


def folder(path: Path, parts: Mapping[str, nn.Module], **scheduler: object) -> Path:
    """Write the networks as a diffusers folder."""
    for name, network in parts.items():
        network.save_pretrained(path / name)
    DDIMScheduler(**scheduler).save_pretrained(path / "scheduler")
    return path

"""Small models of Stable Diffusion 2.x's families with random weights."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    BitConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    DPTConfig,
    DPTForDepthEstimation,
)

from pipelines.families.layouts import (
    UNET_PREFIX,
    VAE_PREFIX,
    image_tower_layout,
    openclip_layout,
    unet_layout,
    vae_layout,
)
from pipelines.families.sd2 import OPENCLIP_H
from pipelines.models.depth import DEPTH_PREFIX
from pipelines.models.image_prompt import IMAGE_PREFIX

WIDTH = 32
"""Of text and of the picture's embedding."""
TEXT_LAYERS = OPENCLIP_H.layers
V_BIAS, NOISE_BIAS = -2.0, 0.5
"""Of the UNet's last layer: what the probe takes for v, and for noise."""


@cache  # they take longer to make than to write
def networks(channels: int = 4, vector: int = 0, v: bool = False, seed: int = 0) -> Mapping[str, nn.Module]:
    """Return the networks of a model by their folders' names, which nobody changes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text = CLIPTextConfig(
            vocab_size=49408,
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=4,
            hidden_act="gelu",
            bos_token_id=49406,
            eos_token_id=49407,
        )
        extra: dict[str, Any] = {}
        if vector:
            extra = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": vector}
        unet = UNet2DConditionModel(
            in_channels=channels,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=(1, 1),
            use_linear_projection=True,
            **extra,
        )
        nn.init.constant_(unet.conv_out.bias, V_BIAS if v else NOISE_BIAS)
        vae = AutoencoderKL(
            block_out_channels=(32, 32, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        found: dict[str, nn.Module] = {"unet": unet, "vae": vae, "text_encoder": CLIPTextModel(text)}
        if vector:
            found["image_encoder"] = CLIPVisionModelWithProjection(
                CLIPVisionConfig(
                    hidden_size=64,
                    intermediate_size=64,
                    projection_dim=vector // 2,
                    num_hidden_layers=1,
                    num_attention_heads=1,
                    image_size=56,
                    patch_size=28,
                    hidden_act="gelu",
                )
            )
        if channels == 5:
            found["depth_estimator"] = _depth_estimator()
    return MappingProxyType({name: network.eval() for name, network in found.items()})


def _depth_estimator() -> DPTForDepthEstimation:
    backbone = BitConfig(
        embedding_size=64,
        hidden_sizes=[128, 128, 128],
        depths=[1, 1, 1],
        layer_type="bottleneck",
        global_padding="same",
        embedding_dynamic_padding=True,
        out_features=["stage1", "stage2", "stage3"],
    )
    network = DPTForDepthEstimation(
        DPTConfig(
            is_hybrid=True,
            backbone_config=backbone,
            backbone_featmap_shape=[1, 128, 24, 24],
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=1,
            intermediate_size=64,
            layer_norm_eps=1e-6,
            image_size=384,
            patch_size=16,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[128, 128, 64, 64],
            neck_ignore_stages=[0, 1],
            readout_type="project",
            reassemble_factors=[1, 1, 1, 0.5],
            fusion_hidden_size=64,
        )
    )
    for name, weight in network.named_parameters():
        if "norm" not in name:
            nn.init.normal_(weight, std=0.1)
    return network


def single_file(
    path: Path, parts: Mapping[str, nn.Module], metadata: Mapping[str, str] | None = None, **more: Tensor
) -> Path:
    """Write the networks as a single file by LDM's names, with more tensors beside them."""
    unet, vae, text = (parts[name] for name in ("unet", "vae", "text_encoder"))
    tensors = unet_layout(unet.config.down_block_types).tensors_to_ldm(unet.state_dict(), UNET_PREFIX)
    tensors |= vae_layout(4).tensors_to_ldm(vae.state_dict(), VAE_PREFIX)
    prefix = "cond_stage_model.model."
    own = openclip_layout(TEXT_LAYERS).tensors_to_ldm(text.state_dict(), prefix)
    first, last = f"{prefix}transformer.resblocks.0.", f"{prefix}transformer.resblocks.{TEXT_LAYERS}."
    unused = {name.replace(first, last): torch.zeros_like(each) for name, each in own.items() if name.startswith(first)}
    tensors |= own | unused
    if tower := parts.get("image_encoder"):
        shown = image_tower_layout(1).tensors_to_ldm(tower.state_dict(), IMAGE_PREFIX)
        shown[f"{IMAGE_PREFIX}proj"] = shown[f"{IMAGE_PREFIX}proj"].T
        tensors |= shown | {"embedder.model.ln_final.weight": torch.ones(WIDTH)}
    if estimator := parts.get("depth_estimator"):
        tensors |= {f"{DEPTH_PREFIX}{name}": each for name, each in midas(estimator.state_dict()).items()}
    whole = {name: tensor.contiguous().clone() for name, tensor in {**tensors, **more}.items()}
    save_file(whole, path, {"format": "pt", **(metadata or {})})
    return path


def folder(path: Path, parts: Mapping[str, nn.Module], **scheduler: object) -> Path:
    """Write the networks as a diffusers folder."""
    for name, network in parts.items():
        network.save_pretrained(path / name)
    DDIMScheduler(**scheduler).save_pretrained(path / "scheduler")
    if "image_encoder" in parts:
        (path / "image_normalizer").mkdir()
        width = parts["image_encoder"].config.projection_dim
        statistics = {"mean": torch.zeros(1, width), "std": torch.ones(1, width)}
        save_file(statistics, path / "image_normalizer" / "diffusion_pytorch_model.safetensors")
    return path


MIDAS = (
    (r"dpt\.embeddings\.backbone\.bit\.embedder\.(norm|convolution)", r"pretrained.model.patch_embed.backbone.stem.\1"),
    (r"stem\.convolution", "stem.conv"),
    (
        r"dpt\.embeddings\.backbone\.bit\.encoder\.stages\.(\d+)\.layers\.(\d+)",
        r"pretrained.model.patch_embed.backbone.stages.\1.blocks.\2",
    ),
    (r"dpt\.embeddings\.cls_token", "pretrained.model.cls_token"),
    (r"dpt\.embeddings\.position_embeddings", "pretrained.model.pos_embed"),
    (r"dpt\.embeddings\.projection", "pretrained.model.patch_embed.proj"),
    (r"dpt\.layernorm", "pretrained.model.norm"),
    (r"dpt\.encoder\.layer\.(\d+)\.layernorm_before", r"pretrained.model.blocks.\1.norm1"),
    (r"dpt\.encoder\.layer\.(\d+)\.layernorm_after", r"pretrained.model.blocks.\1.norm2"),
    (r"dpt\.encoder\.layer\.(\d+)\.attention\.output\.dense", r"pretrained.model.blocks.\1.attn.proj"),
    (r"dpt\.encoder\.layer\.(\d+)\.intermediate\.dense", r"pretrained.model.blocks.\1.mlp.fc1"),
    (r"dpt\.encoder\.layer\.(\d+)\.output\.dense", r"pretrained.model.blocks.\1.mlp.fc2"),
    (r"head\.head\.", "scratch.output_conv."),
    (r"neck\.reassemble_stage\.readout_projects\.2\.0", "pretrained.act_postprocess3.0.project.0"),
    (r"neck\.reassemble_stage\.readout_projects\.3\.0", "pretrained.act_postprocess4.0.project.0"),
    (r"neck\.reassemble_stage\.layers\.2\.projection", "pretrained.act_postprocess3.3"),
    (r"neck\.reassemble_stage\.layers\.3\.projection", "pretrained.act_postprocess4.3"),
    (r"neck\.reassemble_stage\.layers\.3\.resize", "pretrained.act_postprocess4.4"),
    *((rf"neck\.convs\.{k}\.", f"scratch.layer{k + 1}_rn.") for k in range(4)),
    *((rf"neck\.fusion_stage\.layers\.{k}\.projection", f"scratch.refinenet{4 - k}.out_conv") for k in range(4)),
    *(
        (
            rf"neck\.fusion_stage\.layers\.{k}\.residual_layer(\d)\.convolution(\d)",
            rf"scratch.refinenet{4 - k}.resConfUnit\1.conv\2",
        )
        for k in range(4)
    ),
)
"""transformers' names of DPT-hybrid -> MiDaS's, which single files have."""


def midas(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return DPT-hybrid's tensors by MiDaS's names."""
    named = {}
    for name, tensor in tensors.items():
        if ".attention.attention." in name:
            if ".query." in name:
                third = [tensors[name.replace(".query.", f".{part}.")] for part in ("query", "key", "value")]
                block, kind = re.findall(r"layer\.(\d+)\..*\.(\w+)$", name)[0]
                named[f"pretrained.model.blocks.{block}.attn.qkv.{kind}"] = torch.cat(third)
            continue
        for pattern, theirs in MIDAS:
            name = re.sub(pattern, theirs, name)
        named[name] = tensor
    return named

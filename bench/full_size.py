"""Full-size models with random weights, which are enough to measure speed without a download.

They are not committed. Each is made once, in the cache folder, as a single file. The configuration files that diffusers
reads are those of Stable Diffusion 1.5.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

from pipelines.ask.identity import TOKENIZER
from pipelines.families.family import Family
from pipelines.families.sd1 import SD1
from pipelines.families.sdxl import REFINER, SDXL
from pipelines.models.export import checkpoint_weights
from weights_script.fetch import cache_folder


@dataclass(frozen=True)
class Form:
    """A published model's shapes: the arguments of diffusers' and transformers' networks."""

    family: Family
    unet: dict[str, Any]
    texts: tuple[dict[str, Any], ...]
    """Its text encoders, in the family's order."""


VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
MARKS = {"bos_token_id": 49406, "eos_token_id": 49407}
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    **MARKS,
}
OPENCLIP_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    **MARKS,
}
SMALL: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
WITHOUT, WITH = "DownBlock2D", "CrossAttnDownBlock2D"
LARGE = {"sample_size": 128, "use_linear_projection": True, "class_embed_type": "projection"}
FORMS = {
    "sd15": Form(SD1, {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}, (CLIP_L,)),
    "sdxl": Form(
        SDXL,
        LARGE
        | {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": (WITHOUT, WITH, WITH),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "projection_class_embeddings_input_dim": 2816,
        },
        (CLIP_L, OPENCLIP_G),
    ),
    "sdxl-refiner": Form(
        REFINER,
        LARGE
        | {
            "block_out_channels": (384, 768, 1536, 1536),
            "down_block_types": (WITHOUT, WITH, WITH, WITHOUT),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": 4,
            "attention_head_dim": (6, 12, 24, 24),
            "cross_attention_dim": 1280,
            "projection_class_embeddings_input_dim": 2560,
        },
        (OPENCLIP_G,),
    ),
    "sdxl-small": Form(
        SDXL,
        LARGE
        | {
            "block_out_channels": (64, 128, 256),
            "down_block_types": (WITHOUT, WITH, WITH),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 4),
            "attention_head_dim": (1, 2, 4),
            "cross_attention_dim": 256,
            "projection_class_embeddings_input_dim": 128 + 6 * 256,
        },
        (CLIP_L | SMALL, OPENCLIP_G | SMALL | {"projection_dim": 128}),
    ),
}
"""Models by name, as they were published. The small one is SDXL for a CPU, with the same kinds of blocks."""
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
PARTS = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
}


def checkpoint(form: str = "sd15") -> Path:
    """Return the single file of a form (fp16; 2.1 GB of sd15, 6.9 GB of sdxl), making it at the first call."""
    path = _folder() / f"{form}-random.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"Making {path} (once).", flush=True)
        part = path.with_suffix(".part")
        save_file(_weights(form), part, {"format": "pt"})
        part.rename(path)
    return path


def configuration() -> Path:
    """Return a diffusers folder without weights, where `from_single_file` looks up classes and shapes."""
    folder = _folder() / "configuration"
    networks = meta_networks()
    files = {
        "model_index.json": {"_class_name": "StableDiffusionPipeline"}
        | PARTS
        | {"safety_checker": [None, None], "feature_extractor": [None, None]},
        "unet/config.json": dict(networks["unet"].config),
        "vae/config.json": dict(networks["vae"].config),
        "text_encoder/config.json": networks["text"].config.to_dict(),
        "scheduler/scheduler_config.json": SCHEDULER | {"_class_name": "DPMSolverMultistepScheduler"},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "tokenizer").mkdir(exist_ok=True)
    for file in TOKENIZER.iterdir():
        copyfile(file, folder / "tokenizer" / file.name)
    return folder


def _folder() -> Path:
    return cache_folder() / "bench"


def meta_networks(form: str = "sd15") -> dict[str, Any]:
    """Return a form's networks without weights: its UNet, VAE, and text encoders (text, text_2)."""
    known = FORMS[form]
    with torch.device("meta"):
        texts = [
            (CLIPTextModelWithProjection if tower.pooled else CLIPTextModel)(CLIPTextConfig(**config))
            for tower, config in zip(known.family.texts, known.texts, strict=True)
        ]
        named = {"text" if place == 0 else f"text_{place + 1}": network for place, network in enumerate(texts)}
        return {"unet": UNet2DConditionModel(**known.unet), "vae": AutoencoderKL(**VAE), **named}


def _weights(form: str) -> dict[str, Tensor]:
    """Return small random values under LDM's names, so that activations stay finite through every layer."""
    networks = {name: _filled(network) for name, network in meta_networks(form).items()}
    texts = [network for name, network in networks.items() if name.startswith("text")]
    tensors = checkpoint_weights(FORMS[form].family, networks["unet"], networks["vae"], texts)
    return {name: value.contiguous() for name, value in tensors.items()}


def _filled(network: nn.Module) -> nn.Module:
    """Fill the meta network with fp16 values: ones for norms, a deviation of 0.02 for the rest."""
    generator = torch.Generator().manual_seed(0)

    def value(name: str, meta: Tensor) -> Tensor:
        if "norm" in name and name.endswith("weight"):
            return torch.ones(meta.shape, dtype=torch.float16)
        return torch.empty(meta.shape, dtype=torch.float16).normal_(0, 0.02, generator=generator)

    network.load_state_dict({name: value(name, meta) for name, meta in network.state_dict().items()}, assign=True)
    return network

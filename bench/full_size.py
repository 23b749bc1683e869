"""A full-size Stable Diffusion 1.5 with random weights, which is enough to measure speed without a download.

It is not committed. It is made once, in the cache folder, as a single file with the configuration files that diffusers
reads.
"""

import json
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from pastel_tiny.pack import unet_weights, vae_weights
from pipelines.ask.identity import TOKENIZER
from pipelines.families.layouts import UNET_PREFIX, VAE_PREFIX
from pipelines.families.sd1 import SD1
from weights_script.fetch import cache_folder

UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
PARTS = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
}


def checkpoint() -> Path:
    """Return the single file (fp16, LDM layout, 2.1 GB), making it at the first call."""
    path = _folder() / "sd15-random.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"Making {path} (2.1 GB, once).", flush=True)
        part = path.with_suffix(".part")
        save_file(_weights(), part, {"format": "pt"})
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


def meta_networks() -> dict[str, Any]:
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel(**UNET),
            "vae": AutoencoderKL(**VAE),
            "text": CLIPTextModel(CLIPTextConfig(**TEXT)),
        }


def _weights() -> dict[str, Tensor]:
    """Return small random values under LDM's names, so that activations stay finite through every layer."""
    networks = {name: _filled(network) for name, network in meta_networks().items()}
    unet, vae = unet_weights(networks["unet"], UNET_PREFIX), vae_weights(networks["vae"], VAE_PREFIX)
    text = {
        f"{SD1.texts[0].prefix}text_model.{name.removeprefix('text_model.')}": value
        for name, value in networks["text"].state_dict().items()
    }
    return {name: value.contiguous() for name, value in (unet | vae | text).items()}


def _filled(network: nn.Module) -> nn.Module:
    """Fill the meta network with fp16 values: ones for norms, a deviation of 0.02 for the rest."""
    generator = torch.Generator().manual_seed(0)

    def value(name: str, meta: Tensor) -> Tensor:
        if "norm" in name and name.endswith("weight"):
            return torch.ones(meta.shape, dtype=torch.float16)
        return torch.empty(meta.shape, dtype=torch.float16).normal_(0, 0.02, generator=generator)

    network.load_state_dict({name: value(name, meta) for name, meta in network.state_dict().items()}, assign=True)
    return network

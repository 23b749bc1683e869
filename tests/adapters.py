"""Small random LoRAs for the embedded model."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipelines.ask.networks import ExtraFile, Extras, LoraTag
from pipelines.models.lora import LoraUse

LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "mid_block.resnets.0.conv1"
TEXT = "encoder.layers.0.mlp.fc1"
RANK = 2


def parts(shape: torch.Size, seed: int = 0) -> tuple[Tensor, Tensor]:
    """up and down for a weight of this shape."""
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(shape[0], RANK, *[1] * (len(shape) - 2), generator=generator)
    return up, torch.randn(RANK, *shape[1:], generator=generator)


def kohya(unet: torch.nn.Module, text: torch.nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """A LoRA of one attention layer, one convolution and one layer of the text encoder, by Kohya's names."""
    tensors: dict[str, Tensor] = {}
    for prefix, network, name in (
        ("lora_unet_", unet, LINEAR),
        ("lora_unet_", unet, CONV),
        ("lora_te_text_model_", text, TEXT),
    ):
        up, down = parts(network.get_submodule(name).weight.shape, seed)  # type: ignore[union-attr, arg-type]
        key = prefix + name.replace(".", "_")
        tensors |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(1.0)}
    return tensors


def write(path: Path, tensors: dict[str, Tensor], **metadata: str) -> ExtraFile:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata or None)
    return ExtraFile.at(path)


def use(file: ExtraFile, te: float = 1, unet: float = 1, rank: int | None = None) -> LoraUse:
    return LoraUse(file, LoraTag(file.path.stem, te, unet, rank))


def extras(*files: ExtraFile) -> Extras:
    return Extras(loras={file.path.stem: file for file in files})

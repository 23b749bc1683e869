"""CLIP's image encoder, through which IP-Adapters see a picture, and how a picture is prepared for CLIP."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

from pipelines.errors import ModelError
from pipelines.models.checkpoint import IMAGE_ENCODER, kind_of, map_tensors
from pipelines.models.network import built_of, fill
from pipelines.runtime.device import Device

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
HEADS = 16
"""Heads in every layer of ViT-H. The weights do not show this number."""
TENSORS_MAX = 2000
"""Limit for an image encoder's file. More tensors would only cost time."""
PREFIX = "vision_model."


def clip_input(picture: Image.Image, size: int) -> Tensor:
    """Prepare an RGB picture for CLIP, (1, 3, size, size): scale, crop the middle, normalise."""
    shorter = min(picture.size)
    width, height = (side * size // shorter for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    scaled = picture.resize((width, height), Image.Resampling.BICUBIC)
    cropped = scaled.crop((left, top, left + size, top + size))
    values = torch.frombuffer(bytearray(cropped.tobytes()), dtype=torch.uint8).view(size, size, 3).float() / 255
    return ((values - torch.tensor(MEAN)) / torch.tensor(DEVIATION)).permute(2, 0, 1)[None]


@dataclass(frozen=True)
class ImageEncoder:
    """An image encoder on its device."""

    network: CLIPVisionModelWithProjection

    def embedding(self, picture: Image.Image | None) -> Tensor:
        """Return the embedding (1, k) of an RGB picture. None: zeros."""
        if picture is None:
            config = self.network.config
            return torch.zeros(1, config.projection_dim, device=self.network.device, dtype=self.network.dtype)
        embedding: Tensor = self.network(self._input(picture)).image_embeds
        return embedding

    def patches(self, picture: Image.Image | None) -> Tensor:
        """Return the second-to-last layer's output for a picture's patches, (1, n, width). None: for a zero input."""
        size = self.network.config.image_size
        shown = self._input(picture) if picture else self._on_device(torch.zeros(1, 3, size, size))
        states: Tensor = self.network(shown, output_hidden_states=True).hidden_states[-2]
        return states

    def _input(self, picture: Image.Image) -> Tensor:
        return self._on_device(clip_input(picture, self.network.config.image_size))

    def _on_device(self, shown: Tensor) -> Tensor:
        return shown.to(self.network.device, self.network.dtype)


def load_image_encoder(path: Path, device: Device) -> ImageEncoder:
    """Load the image encoder of a file in transformers' format. Raises ModelError."""
    tensors = map_tensors(path)
    if (kind := kind_of(tensors)) is not IMAGE_ENCODER or "visual_projection.weight" not in tensors:
        what = f"{kind.what}, not an" if kind and kind is not IMAGE_ENCODER else "not a complete"
        raise ModelError(f"{path}: {what} image encoder of CLIP. Give CLIP ViT-H in transformers' format.")
    if len(tensors) > TENSORS_MAX:
        raise ModelError(f"{path}: holds {len(tensors)} tensors, but CLIP ViT-H has about 520.")
    with built_of(path, "image encoder", tensors), torch.device("meta"):
        network = CLIPVisionModelWithProjection(_config(tensors))
    embeddings = network.vision_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]  # a buffer, not a weight
    return ImageEncoder(fill(path, network, tensors, device).eval())


def _config(tensors: Mapping[str, Tensor]) -> CLIPVisionConfig:
    """Return the configuration of a network with these tensors. Raises KeyError if one is missing."""
    width, _, patch, _ = tensors[f"{PREFIX}embeddings.patch_embedding.weight"].shape
    positions = len(tensors[f"{PREFIX}embeddings.position_embedding.weight"])
    layers = f"{PREFIX}encoder.layers."
    options: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": len(tensors[f"{layers}0.mlp.fc1.weight"]),
        "num_hidden_layers": len({name.removeprefix(layers).split(".")[0] for name in tensors if layers in name}),
        "num_attention_heads": HEADS,
        "image_size": round((positions - 1) ** 0.5) * patch,
        "patch_size": patch,
        "projection_dim": len(tensors["visual_projection.weight"]),
        "hidden_act": "gelu",
    }
    return CLIPVisionConfig(**options)

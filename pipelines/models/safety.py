"""Checks each picture for explicit content. A flagged picture is left out and logged; none is blackened.

The network and its thresholds are CompVis' safety checker (described in https://arxiv.org/abs/2210.04610). It compares
a picture's CLIP embedding with 17 fixed concepts, more strictly if one of three other concepts is near. The weights are
optional; without them there is no checker, and setup says so.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import (
    StableDiffusionSafetyChecker,
)
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers.models.clip.configuration_clip import CLIPConfig

from pipelines.errors import ModelError, in_one_line
from pipelines.images.reading import Pixels
from pipelines.models.checkpoint import map_tensors
from pipelines.models.folders import read_config
from pipelines.models.image_encoder import clip_input
from pipelines.models.network import built_of, fill
from pipelines.runtime.device import Device

STRICTER = 0.01
"""Added to every concept's score when a special-care concept is near."""


@dataclass(frozen=True)
class Verdict:
    """The result for one picture. `score` is how far the nearest concept is above its threshold; above 0 is flagged."""

    score: float

    @property
    def flagged(self) -> bool:
        return self.score > 0


class SafetyChecker:
    """The checker's network on its device."""

    def __init__(self, network: StableDiffusionSafetyChecker) -> None:
        self._network = network

    @torch.inference_mode()
    def check(self, pixels: Pixels) -> Verdict:
        """Return the verdict on one picture (height, width, 3)."""
        network = self._network
        image = self.prepared(pixels).to(network.device, network.dtype)
        embedding = network.visual_projection(network.vision_model(image).pooler_output)
        special = _scores(embedding, network.special_care_embeds, network.special_care_embeds_weights)
        concepts = _scores(embedding, network.concept_embeds, network.concept_embeds_weights)
        return Verdict(float(concepts.max()) + (STRICTER if bool((special > 0).any()) else 0.0))

    def prepared(self, pixels: Pixels) -> Tensor:
        """Return a picture as the network sees it, (1, 3, side, side)."""
        size = int(self._network.config.vision_config.image_size)
        return clip_input(Image.fromarray(pixels), size)


def load_safety_checker(folder: Path | None, device: Device) -> SafetyChecker | None:
    """Load the checker from a diffusers folder (config.json, model.safetensors). Return None if there is no folder.

    Raises ModelError if the folder is incomplete.
    """
    if folder is None:
        return None
    path = folder / "model.safetensors"
    try:
        config = CLIPConfig.from_dict(read_config(folder / "config.json"))
    except Exception as error:  # transformers raises many kinds for another network's configuration
        raise ModelError(f"{folder}: not a safety checker's folder ({in_one_line(error)}).") from error
    # Names in published files have one more level than those of transformers' present model.
    published = map_tensors(path)
    tensors = {name.replace("vision_model.vision_model.", "vision_model."): value for name, value in published.items()}
    with built_of(path, "network", tensors), torch.device("meta"):
        network = StableDiffusionSafetyChecker(config)
    embeddings = network.vision_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
    return SafetyChecker(fill(path, network, tensors, device).eval())


def _scores(embedding: Tensor, concepts: Tensor, thresholds: Tensor) -> Tensor:
    """Return the cosine similarity to every concept minus its threshold, rounded to three digits as published."""
    similarity = F.cosine_similarity(embedding.float(), concepts.float())
    return ((similarity - thresholds.float()) * 1000).round() / 1000

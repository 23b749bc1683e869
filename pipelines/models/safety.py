"""A verdict per picture on explicit content. A flagged picture is left out and said; none is ever blackened.

The network and its thresholds are CompVis' safety checker (described in https://arxiv.org/abs/2210.04610): a picture's
CLIP embedding is compared with 17 fixed concepts, more strictly if one of three further ones is near. Its weights are
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
    """`score` is the nearest concept's distance past its threshold; above 0 the picture is flagged."""

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
        """The verdict on one picture (height, width, 3)."""
        network = self._network
        image = self._prepare(pixels).to(network.device, network.dtype)
        embedding = network.visual_projection(network.vision_model(image).pooler_output)
        special = _scores(embedding, network.special_care_embeds, network.special_care_embeds_weights)
        concepts = _scores(embedding, network.concept_embeds, network.concept_embeds_weights)
        return Verdict(float(concepts.max()) + (STRICTER if bool((special > 0).any()) else 0.0))

    def _prepare(self, pixels: Pixels) -> Tensor:
        size = int(self._network.config.vision_config.image_size)
        return clip_input(Image.fromarray(pixels), size)


def load_safety_checker(folder: Path | None, device: Device) -> SafetyChecker | None:
    """The checker of a diffusers folder (config.json, model.safetensors); None where no folder is given.

    Raises ModelError when the folder is not whole.
    """
    if folder is None:
        return None
    path = folder / "model.safetensors"
    try:
        config = CLIPConfig.from_dict(read_config(folder / "config.json"))
    except Exception as error:  # transformers raises many kinds at a configuration of another network
        raise ModelError(f"{folder}: not a safety checker's folder ({in_one_line(error)}).") from error
    # Published files have one more level of names than transformers' present model.
    published = map_tensors(path)
    tensors = {name.replace("vision_model.vision_model.", "vision_model."): value for name, value in published.items()}
    with built_of(path, "network", tensors), torch.device("meta"):
        network = StableDiffusionSafetyChecker(config)
    embeddings = network.vision_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
    return SafetyChecker(fill(path, network, tensors, device).eval())


def _scores(embedding: Tensor, concepts: Tensor, thresholds: Tensor) -> Tensor:
    """Cosine similarity to every concept, less its threshold, to three digits as published."""
    similarity = F.cosine_similarity(embedding.float(), concepts.float())
    return ((similarity - thresholds.float()) * 1000).round() / 1000

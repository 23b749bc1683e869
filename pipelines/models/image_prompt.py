"""What an unCLIP model draws by beside its prompt: a picture's CLIP embedding, with noise over it.

Ramesh et al. 2022 (https://arxiv.org/abs/2204.06125); the noise as in Stable unCLIP 2.1. A picture is given to the
image tower as WebUI gives it: squeezed to a square, bicubic with antialiasing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that CLIP was trained with."""
LEVELS = 1000
"""Levels of noise, from none to all."""


@dataclass(frozen=True)
class Spread:
    """The mean and the deviation of the embeddings that a model was trained with, (width,) each."""

    mean: Tensor
    deviation: Tensor


class ImagePrompt(nn.Module):
    """The image tower of an unCLIP model, and the noise over its embeddings."""

    def __init__(self, tower: CLIPVisionModelWithProjection, spread: Spread) -> None:
        super().__init__()
        self._tower, self._spread = tower, spread
        self._noise = DDPMScheduler(num_train_timesteps=LEVELS, beta_schedule="squaredcos_cap_v2")

    @property
    def width(self) -> int:
        """How many values a vector has."""
        return 2 * int(self._tower.config.projection_dim)

    @torch.inference_mode()
    def vectors(self, picture: Tensor, level: int, seeds: Sequence[int]) -> Tensor:
        """Return a vector for each seed, (B, 2 * width): the embedding of the picture (3, H, W) in [0, 1] with noise of
        this level over it, and the level. Each image's noise has its own seed, so that it is the same in any batch."""
        weight = self._tower.visual_projection.weight
        embedding = self._tower(self._prepared(picture).to(weight)).image_embeds.float()
        mean, deviation = (value.to(embedding) for value in (self._spread.mean, self._spread.deviation))
        width = embedding.shape[1]
        noise = torch.stack([torch.randn(width, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        levels = torch.tensor([level])
        noised = self._noise.add_noise((embedding - mean) / deviation, noise.to(embedding), levels)
        told = get_timestep_embedding(levels, width, flip_sin_to_cos=True, downscale_freq_shift=0).to(embedding)
        return torch.cat([noised * deviation + mean, told.expand(len(seeds), -1)], dim=1)

    def _prepared(self, picture: Tensor) -> Tensor:
        """Return (1, 3, side, side) as the tower takes it."""
        side = self._tower.config.image_size
        small = F.interpolate(picture[None], size=(side, side), mode="bicubic", antialias=True)
        return (small - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)

"""The second prompt of an unCLIP model: a picture's CLIP embedding with added noise.

Ramesh et al. 2022 (https://arxiv.org/abs/2204.06125), with noise as in Stable unCLIP 2.1. A picture is prepared for the
image tower as in WebUI: squeezed to a square, bicubic, and blurred first where it shrinks.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

from pipelines.errors import ModelError
from pipelines.families.layouts import image_tower_layout
from pipelines.models.build import HEAD_CHANNELS, count_of, shape_of
from pipelines.models.checkpoint import check_finite, map_tensors, weight_file
from pipelines.models.folders import from_subfolder
from pipelines.models.image_encoder import DEVIATION, MEAN
from pipelines.models.network import built_of, fill
from pipelines.runtime.device import Device

log = logging.getLogger(__name__)

IMAGE_PREFIX, AUGMENTOR_PREFIX = "embedder.model.visual.", "noise_augmentor."
"""Prefixes of an unCLIP model's image tower, and of the statistics of its embeddings."""
QUICK_WIDTH = 1024
"""The width of OpenAI's ViT-L/14, which uses a different activation than OpenCLIP."""
VIT_L_EMBEDDING = 768
IMAGE_HEAD_CHANNELS = {1280: 80}
"""Channels per head, by width, if they are not the usual number: those of ViT-H/14."""
SIGMA_MIN = 0.001
"""The blur along an axis that does not shrink: none."""
LEVELS = 1000
"""Number of noise levels, from no noise to only noise."""


@dataclass(frozen=True)
class Spread:
    """The mean and the standard deviation of the embeddings that a model was trained with, (width,) each."""

    mean: Tensor
    deviation: Tensor
    known: bool = True
    """Whether they are the model's own. Noise cannot be added to its embeddings without them."""


class ImagePrompt(nn.Module):
    """The image tower of an unCLIP model, and the noise added to its embeddings."""

    def __init__(self, tower: CLIPVisionModelWithProjection, spread: Spread) -> None:
        super().__init__()
        self.tower, self._spread = tower, spread
        self._noise = DDPMScheduler(num_train_timesteps=LEVELS, beta_schedule="squaredcos_cap_v2")

    @property
    def width(self) -> int:
        """How many values a vector has."""
        return 2 * int(self.tower.config.projection_dim)

    @property
    def takes_noise(self) -> bool:
        """Whether noise levels above 0 mean anything."""
        return self._spread.known

    @torch.inference_mode()
    def vectors(self, pictures: Tensor, level: int, noise: Tensor) -> Tensor:
        """Return a vector for each row of noise (B, width), (B, 2 * width), for pictures (B or 1, 3, H, W) in [0, 1].

        It consists of the picture's embedding with noise of this level, and the level's embedding.
        """
        weight = self.tower.visual_projection.weight
        seen = prepared(pictures, self.tower.config.image_size)
        embedding = self.tower(seen.to(weight)).image_embeds.float()
        mean, deviation = (value.to(embedding) for value in (self._spread.mean, self._spread.deviation))
        width = embedding.shape[1]
        levels = torch.tensor([level])
        noised = self._noise.add_noise((embedding - mean) / deviation, noise.to(embedding), levels)
        told = get_timestep_embedding(levels, width, flip_sin_to_cos=True, downscale_freq_shift=0).to(embedding)
        return torch.cat([noised * deviation + mean, told.expand(len(noise), -1)], dim=1)


def prepared(pictures: Tensor, side: int) -> Tensor:
    """Prepare pictures (N, 3, H, W) in [0, 1] for an image tower that sees squares of this side: (N, 3, side, side)."""
    small = F.interpolate(blurred(pictures, side), size=(side, side), mode="bicubic", align_corners=True)
    return (small - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)


def blurred(pictures: Tensor, side: int) -> Tensor:
    """Blur pictures (B, 3, H, W) before they shrink to a square of this side. Return others as they are.

    The rule is kornia's, which WebUI resizes with: a Gaussian along each axis, as wide as that axis shrinks.
    """
    lengths = pictures.shape[:1:-1]  # width and height
    if max(lengths) <= side:
        return pictures
    import cv2  # half a second that starts can do without

    across, down = (max((length / side - 1) / 2, SIGMA_MIN) for length in lengths)
    size = tuple(int(max(4 * sigma, 3)) // 2 * 2 + 1 for sigma in (across, down))
    rows = np.ascontiguousarray(pictures.permute(0, 2, 3, 1).numpy())
    soft = [cv2.GaussianBlur(each, size, across, sigmaY=down, borderType=cv2.BORDER_REFLECT_101) for each in rows]
    return torch.from_numpy(np.stack(soft)).permute(0, 3, 1, 2)


def build_image_prompt(path: Path, tensors: Mapping[str, Tensor], device: Device) -> ImagePrompt | None:
    """Build an unCLIP model's image tower from its LDM tensors. Return None if there is none. Raises ModelError."""
    tower = {
        name.removeprefix(IMAGE_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(IMAGE_PREFIX)
    }
    if not tower:
        return None
    config = image_tower_config(path, tower)
    with built_of(path, "image tower", tower), torch.device("meta"):
        network = CLIPVisionModelWithProjection(config)
    embeddings = network.vision_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
    theirs = image_tower_layout(config.num_hidden_layers).tensors_to_diffusers(tower)
    theirs["visual_projection.weight"] = theirs["visual_projection.weight"].T.contiguous()
    statistics = {name.removeprefix(AUGMENTOR_PREFIX): tensor for name, tensor in tensors.items()}
    spread = _spread(path, statistics, ("data_mean", "data_std"), config.projection_dim)
    return ImagePrompt(fill(path, network, theirs, device).eval(), spread)


def image_prompt_of_folder(path: Path, device: Device) -> ImagePrompt:
    """Load the image tower of an unCLIP model's diffusers folder. Raises ModelError."""
    if not (path / "image_encoder").is_dir():
        raise ModelError(f"{path}: Stable unCLIP needs its image encoder (the folder image_encoder), which is missing.")
    tower = from_subfolder(CLIPVisionModelWithProjection, path / "image_encoder", device)
    file = weight_file(path / "image_normalizer")
    statistics = map_tensors(file) if file else {}
    spread = _spread(path, statistics, ("mean", "std"), tower.config.projection_dim)
    return ImagePrompt(tower.eval(), spread)


def _spread(path: Path, tensors: Mapping[str, Tensor], names: tuple[str, str], width: int) -> Spread:
    """Return the mean and the standard deviation of a model's embeddings, by the names of their tensors.

    Single files may lack them: embeddings of ViT-H were not normalised, and the numbers for ViT-L are in a separate
    file. Raises ModelError for tensors that are not such statistics.
    """
    found = []
    for name, unsaid in zip(names, (torch.zeros(width), torch.ones(width)), strict=True):
        tensor = tensors.get(name, unsaid)
        if tensor.numel() != width or not tensor.is_floating_point():
            raise ModelError(
                f"{path}: {name} does not hold the statistics of its embeddings ({width} numbers). The file is broken."
            )
        found.append(tensor.flatten().float())
    known = width != VIT_L_EMBEDDING or names[0] in tensors
    if not known:
        log.warning("%s lacks the statistics of its embeddings: it takes only image noise level 0.", path.name)
    check_finite(path, dict(zip(names, found, strict=True)))
    mean, deviation = found
    return Spread(mean, deviation, known)


def image_tower_config(path: Path, tensors: Mapping[str, Tensor]) -> CLIPVisionConfig:
    """Return the configuration of an image tower with OpenCLIP's tensors (`visual.*` without that prefix)."""
    width, _, patch, _ = shape_of(path, tensors, "conv1.weight", 4)
    patches = shape_of(path, tensors, "positional_embedding", 2)[0] - 1
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=shape_of(path, tensors, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        projection_dim=shape_of(path, tensors, "proj", 2)[1],
        num_hidden_layers=count_of(tensors, "transformer.resblocks."),
        num_attention_heads=max(1, width // IMAGE_HEAD_CHANNELS.get(width, HEAD_CHANNELS)),
        image_size=patch * math.isqrt(patches),
        patch_size=patch,
        hidden_act="quick_gelu" if width == QUICK_WIDTH else "gelu",
    )

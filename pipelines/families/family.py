"""A family of models as data: how it differs from the others. docs/architecture.md has the recipe for a new one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.families.noise_schedule import NoiseSchedule
from pipelines.families.prediction import Prediction, VPrediction

LATENT_CHANNELS = 4
DEPTH_CHANNELS = 5
"""The latents and a depth map."""
INPAINTING_CHANNELS = 9
"""The latents, the mask, and the latents of the picture without its masked part."""


@dataclass(frozen=True, kw_only=True)
class TextTower:
    """One text encoder of a family, and its names in files."""

    prefix: str
    """The prefix of its tensors in a single file."""
    folder: str
    """Its subfolder in a diffusers folder."""
    activation: str
    """The activation of its feed-forward layers, by transformers' name."""
    lora_prefixes: tuple[str, ...]
    """Prefixes of its layers in LoRA files, with dots written as underscores."""
    openclip: bool = False
    """Whether it is an OpenCLIP model. Single files then have OpenCLIP's layout. The layer to use is fixed, whatever
    the clip skip, and tokens after a text's end token are 0."""
    layers: int = 0
    """The number of layers that are used of an OpenCLIP model. Its single files have one more, unless diffusers' own
    converter wrote them."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of models. A model consists of this description and its weights."""

    name: str
    text: TextTower
    prediction: Prediction
    """What the UNet predicts unless its file says otherwise."""
    noise: NoiseSchedule
    channels: tuple[int, ...]
    """Numbers of input channels that a UNet may have: 4 latents, and 5 more for inpainting."""
    unet_heads: int | None
    """Attention heads of every UNet layer, which cannot be read from the tensors. None: each is 64 channels wide."""
    context: int
    """The width of the prompt's tokens in the UNet's cross-attention, in models of the published size."""
    latent_scale: float
    """The factor that the VAE's latents are multiplied by."""
    probed: bool = False
    """Whether a UNet is probed (noise or v) if its file does not say what it predicts."""
    own_alphas: bool = False
    """Whether the cumulative alphas in a single file are used instead of the family's."""
    settings: Mapping[str, Any]
    """Defaults for requests, mainly width and height."""
    v_settings: Mapping[str, Any] = field(default_factory=dict)
    """Defaults that differ for v-prediction models."""

    def settings_for(self, prediction: Prediction) -> dict[str, Any]:
        """Return the defaults for requests to a model with this prediction."""
        return {**self.settings, **(self.v_settings if isinstance(prediction, VPrediction) else {})}

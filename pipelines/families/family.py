"""A family of models as data: what sets it apart from the others. docs/architecture.md has the recipe for a new one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.families.noise_schedule import NoiseSchedule
from pipelines.families.prediction import Prediction, VPrediction

LATENT_CHANNELS = 4
DEPTH_CHANNELS = 5
"""The latents and a depth map."""
INPAINTING_CHANNELS = 9
"""The latents, the mask, and the latents of the picture without what is masked."""


@dataclass(frozen=True, kw_only=True)
class TextTower:
    """One text encoder of a family, and what files call it."""

    prefix: str
    """What its tensors' names begin with in a single file."""
    folder: str
    """Its folder in a diffusers folder."""
    activation: str
    """Of its feed-forward layers, by transformers' name."""
    lora_prefixes: tuple[str, ...]
    """What the names of its layers begin with in LoRA files, dots written as underscores."""
    openclip: bool = False
    """Whether it is an OpenCLIP model. Single files have those in a layout of their own, with a last layer that nothing
    uses; the layer that is used is fixed, whatever the clip skip; and what follows a text's end token is 0."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of models. A model is this description and its weights."""

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
    """Width of what the UNet gets of a prompt, in models of the published size."""
    latent_scale: float
    """The VAE's latents are multiplied by this."""
    probed: bool = False
    """Whether a file that says nothing of its prediction is asked: the UNet's output tells noise from v."""
    own_alphas: bool = False
    """Whether the cumulative alphas in a single file count, instead of the family's."""
    settings: Mapping[str, Any]
    """What a request takes that does not say otherwise, width and height above all."""
    v_settings: Mapping[str, Any] = field(default_factory=dict)
    """What differs for models of v."""

    def settings_for(self, prediction: Prediction) -> dict[str, Any]:
        """Return what a request to a model takes that does not say otherwise."""
        return {**self.settings, **(self.v_settings if isinstance(prediction, VPrediction) else {})}

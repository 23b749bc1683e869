"""A family of models as data: how it differs from the others. docs/architecture.md has the recipe for a new one."""

from collections.abc import Mapping, Sequence
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
    """Whether it is an OpenCLIP model. Single files then have OpenCLIP's layout, and tokens after a text's end token
    are 0."""
    layers: int = 0
    """The number of layers that are used of an OpenCLIP model. Single files of ViT-H have one more, unless diffusers'
    own converter wrote them."""
    clip_skip: int | None = None
    """The clip skip that is always used; None: the request's."""
    final_norm: bool = True
    """Whether the chosen layer's output goes through the final layer norm."""
    pooled: bool = False
    """Whether a text's pooled output becomes a part of the condition's vector."""
    embedding: str = ""
    """The name of this encoder's vectors in embeddings for several encoders."""


@dataclass(frozen=True, kw_only=True)
class Framing:
    """What models with size conditioning are told about a picture, in pixels of the training pictures."""

    width: int
    height: int
    top: int = 0
    left: int = 0
    score: float = 6
    """How beautiful the picture shall be, from 0 to 10."""
    negative_score: float = 2.5
    """The same for the negative prompt."""

    def numbers(self, names: Sequence[str], negative: bool) -> list[float]:
        """Return the numbers with these names, for the prompt or for the negative prompt."""
        return [self.negative_score if negative and name == "score" else getattr(self, name) for name in names]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of models. A model consists of this description and its weights."""

    name: str
    texts: tuple[TextTower, ...]
    """Its text encoders. The UNet sees their outputs side by side."""
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
    smallest: int = 0
    """The side in pixels below which its pictures become poor."""
    sizes: tuple[str, ...] = ()
    """Numbers about a picture that follow the pooled text in the condition's vector, as attributes of `Framing`
    (Podell et al. 2023, https://arxiv.org/abs/2307.01952, section 2.2)."""
    rounds_mask: bool = False
    """Whether an inpainting UNet always sees a mask without grey. For such a family WebUI writes the mask's weight only
    for passes that start from a picture."""
    zero_negative: bool = False
    """Whether an empty negative prompt is zeros, instead of an encoded empty text."""
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

"""sd-x2-latent-upscaler as a hires upscaler: a diffusion model that doubles the size of latents.

It takes 20 Euler steps over its own noise schedule, with the draft's latents as extra input channels. It ignores the
prompt (guidance 0). The network is diffusers' K-UNet, preconditioned as in Karras et al. 2022, table 1
(https://arxiv.org/abs/2206.00364).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import Tensor
from torch.nn import functional as F
from transformers.models.clip.modeling_clip import CLIPTextModel

from pipelines.ask.prompt import END, START
from pipelines.errors import ModelError
from pipelines.models.folders import folder_errors, from_subfolder, read_config
from pipelines.runtime.device import Device
from pipelines.sampling.noise import Noise

STEPS = 20
SCALE = 2
NOISE_LEVELS = 64
"""In the condition, this many ones followed by as many zeros say that no noise was added to the draft."""


@dataclass(frozen=True, kw_only=True)
class LatentUpscaler:
    """The loaded network and its constant inputs."""

    unet: UNet2DConditionModel
    context: Tensor
    """(1, tokens, width): the empty prompt."""
    condition: Tensor
    """(1, 128 + width): no noise, and the empty prompt as a whole."""
    sigmas: Sequence[float]
    spread: float
    """The standard deviation of the noise that it starts from."""

    def steps(self, latents: Tensor, noise: Noise) -> Iterator[Tensor]:
        """Enlarge latents (B, 4, h, w) with noise for (B, 4, 2h, 2w). Yield the enlarged latents after every step."""
        height, width = (SCALE * side for side in latents.shape[2:])
        # sides must be divisible at every level of the network; the margins are cut off again
        whole = 2 ** (len(self.unet.config.block_out_channels) - 1)
        margins = 0, -width % whole, 0, -height % whole
        draft = F.pad(F.interpolate(latents, scale_factor=SCALE, mode="nearest"), margins, mode="replicate")
        noise.initial()  # skip these numbers: the hires pass starts with them, from the same seeds
        x = F.pad(noise.draw(), margins, mode="reflect") * self.spread
        context, condition = (each.expand(len(x), *each.shape[1:]) for each in (self.context, self.condition))

        for sigma, following in pairwise(self.sigmas):
            scale = (sigma**2 + 1) ** -0.5
            images = torch.cat([x * scale, draft], dim=1).to(self.unet.dtype)
            time = torch.full((), math.log(sigma) / 4, device=x.device)
            output = self.unet(images, time, context, timestep_cond=condition, return_dict=False)[0]
            # the fifth channel is a variance, which is not used
            denoised = x * scale**2 + output[:, :4].float() * (sigma * scale)
            x = denoised.lerp(x, following / sigma)
            yield x[:, :, :height, :width]


@torch.no_grad()
def load_latent_upscaler(folder: Path, device: Device) -> LatentUpscaler:
    """Load a diffusers folder. Raises ModelError if it cannot be read or has another kind of model."""
    unet: UNet2DConditionModel = from_subfolder(UNet2DConditionModel, folder / "unet", device)
    scheduler = read_config(folder / "scheduler" / "scheduler_config.json")
    if unet.config.in_channels != 8 or not unet.config.time_cond_proj_dim:
        raise ModelError(f"{folder}: its UNet is not a latent upscaler's, which takes 8 channels and a condition.")
    if scheduler.get("prediction_type") not in ("sample", "original_sample"):
        raise ModelError(f"{folder}: a latent upscaler's scheduler has the prediction type original_sample.")
    with folder_errors(folder):
        levels = EulerDiscreteScheduler.from_config(scheduler)
        levels.set_timesteps(STEPS)
    text: CLIPTextModel = from_subfolder(CLIPTextModel, folder / "text_encoder", device)
    tokens = torch.full((1, text.config.max_position_embeddings), END, device=device.place)  # END is also the padding
    tokens[:, 0] = START
    told = text(tokens, output_hidden_states=True)
    levels_told = torch.cat([torch.ones(1, NOISE_LEVELS), torch.zeros(1, NOISE_LEVELS)], dim=1)
    return LatentUpscaler(
        unet=unet.eval(),
        context=told.hidden_states[-1],
        condition=torch.cat([levels_told.to(told.pooler_output), told.pooler_output], dim=1),
        sigmas=levels.sigmas.tolist(),
        spread=float(levels.init_noise_sigma),
    )

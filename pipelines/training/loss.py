"""The loss of one batch: how well the UNet predicts the noise, or v, in noisy latents. diffusers does the arithmetic.

Latents are (B, 4, h, w) in float32, timesteps (B,).
"""

from dataclasses import dataclass

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

from pipelines.families.noise_schedule import NoiseSchedule
from pipelines.families.prediction import Prediction, VPrediction

SNR_MIN = 1e-8
"""With zero terminal SNR the last timestep has a ratio of almost 0, by which the weights must not be divided."""


@dataclass(frozen=True)
class Noisy:
    """Latents with noise, and what the UNet shall predict for them."""

    latents: Tensor
    times: Tensor
    target: Tensor


class Loss:
    """Adds noise and compares predictions, in the way that the model was trained."""

    def __init__(self, schedule: NoiseSchedule, prediction: Prediction, min_snr_gamma: float, offset: float) -> None:
        """Use the model's own schedule and prediction. `offset` is the amount of offset noise; a gamma of 0 turns off
        min-SNR weighting."""
        self._scheduler = DDPMScheduler(num_train_timesteps=len(schedule.alphas))
        self._scheduler.alphas_cumprod = torch.tensor(schedule.alphas)
        self._predicts_v = isinstance(prediction, VPrediction)
        self._gamma, self._offset = min_snr_gamma, offset

    def noisy(self, latents: Tensor, seed: int) -> Noisy:
        """Add noise at random timesteps. The seed decides both, whatever the device.

        Offset noise (https://www.crosslabs.org/blog/diffusion-with-offset-noise) also shifts whole pictures, so that
        very dark and very bright ones are learned.
        """
        generator = torch.Generator("cpu").manual_seed(seed)
        noise = torch.randn(latents.shape, generator=generator, device="cpu")
        if self._offset:
            noise += self._offset * torch.randn((*latents.shape[:2], 1, 1), generator=generator, device="cpu")
        steps = len(self._scheduler.alphas_cumprod)
        times = torch.randint(0, steps, (len(latents),), generator=generator, device="cpu").to(latents.device)
        noise = noise.to(latents.device)
        target = self._scheduler.get_velocity(latents, noise, times) if self._predicts_v else noise
        return Noisy(self._scheduler.add_noise(latents, noise, times), times, target)

    def weights(self, times: Tensor) -> Tensor:
        """Return each timestep's weight (B,): min-SNR (Hang et al. 2023, https://arxiv.org/abs/2303.09556).

        Predicting v already weighs the picture's error by SNR + 1.
        """
        if not self._gamma:
            return torch.ones_like(times, dtype=torch.float32)
        ratio = compute_snr(self._scheduler, times).clamp(min=SNR_MIN)
        return ratio.clamp(max=self._gamma) / (ratio + 1 if self._predicts_v else ratio)

    def __call__(self, predicted: Tensor, noisy: Noisy) -> Tensor:
        """Return the weighted mean square error."""
        errors = (predicted.float() - noisy.target).square().mean((1, 2, 3))
        return (errors * self.weights(noisy.times)).mean()

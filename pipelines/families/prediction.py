"""What a UNet's output means: the noise in its input, or the velocity v between noise and picture.

Samplers need denoised latents or the noise. Guidance works on the raw output, which is converted once, here. Functions
that take `sigma` use k-diffusion's variance-exploding form, x = picture + sigma * noise. Functions that take `alpha`
use the variance-preserving form, x = sqrt(alpha) * picture + sqrt(1 - alpha) * noise. All tensors are (B, 4, h, w) in
float32.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Prediction(Protocol):
    """A parameterisation of the UNet."""

    def denoised(self, x: Tensor, sigma: float, output: Tensor) -> Tensor:
        """Return the denoised latents."""
        ...

    def output(self, x: Tensor, sigma: float, denoised: Tensor) -> Tensor:
        """Return the output that gives these denoised latents: the inverse of `denoised`."""
        ...

    def noise(self, x: Tensor, alpha: float, output: Tensor) -> Tensor:
        """Return the noise in a variance-preserving x."""
        ...


@dataclass(frozen=True)
class NoisePrediction:
    """The output is the noise (Ho et al. 2020, https://arxiv.org/abs/2006.11239)."""

    def denoised(self, x: Tensor, sigma: float, output: Tensor) -> Tensor:
        """Return x - sigma * noise."""
        return x.sub(output, alpha=sigma)

    def output(self, x: Tensor, sigma: float, denoised: Tensor) -> Tensor:
        """Return (x - denoised) / sigma."""
        return (x - denoised) / sigma

    def noise(self, x: Tensor, alpha: float, output: Tensor) -> Tensor:
        """Return the output unchanged."""
        return output


@dataclass(frozen=True)
class VPrediction:
    """The output is v = sqrt(alpha) * noise - sqrt(1 - alpha) * picture (Salimans and Ho 2022, appendix D,
    https://arxiv.org/abs/2202.00512)."""

    def denoised(self, x: Tensor, sigma: float, output: Tensor) -> Tensor:
        """Return x / (sigma^2 + 1) - v * sigma / sqrt(sigma^2 + 1)."""
        variance = sigma**2 + 1
        return (x / variance).sub(output, alpha=sigma / math.sqrt(variance))

    def output(self, x: Tensor, sigma: float, denoised: Tensor) -> Tensor:
        """Solve `denoised` for v."""
        variance = sigma**2 + 1
        return (x / variance - denoised) * (math.sqrt(variance) / sigma)

    def noise(self, x: Tensor, alpha: float, output: Tensor) -> Tensor:
        """Return sqrt(alpha) * v + sqrt(1 - alpha) * x."""
        return (x * math.sqrt(1 - alpha)).add(output, alpha=math.sqrt(alpha))


PREDICTIONS: Mapping[str, Prediction] = {"epsilon": NoisePrediction(), "v_prediction": VPrediction()}
"""Predictions by their names in diffusers' scheduler configurations."""

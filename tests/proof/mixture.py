"""A denoiser with an exact answer: pixels drawn independently from a mixture of two normal distributions.

With noise of deviation s added, the mixture has the same means and wider normals, so the best denoiser has a closed
form, which is not linear. As the pixels are single numbers, the probability-flow equation keeps the order of all values
and so their quantiles: a noisy value ends where the clean distribution has the same quantile.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from pipelines.families.sd1 import SD1
from pipelines.sampling.samplers import Denoiser

NOISE = SD1.noise
LOG_ALPHAS = np.log(NOISE.alphas)


def sigma_of(t: float) -> float:
    """Noise level of a timestep, between two of them linear in the logarithm of the cumulative alpha, as in UniPC."""
    alpha = math.exp(np.interp(t, np.arange(len(NOISE.alphas)), LOG_ALPHAS))
    return math.sqrt((1 - alpha) / alpha)


class Mixture:
    """The distribution, and the denoiser (`pipelines.sampling.samplers.Denoiser`) that is the best one for it.

    Where `eps` is asked for an unconditional prediction, it is that of the mixture `unconditional`.
    """

    noise = NOISE

    def __init__(
        self,
        weights: Sequence[float] = (0.4, 0.6),
        means: Sequence[float] = (-1.0, 0.8),
        deviations: Sequence[float] = (0.6, 0.4),
        unconditional: "Mixture | None" = None,
    ) -> None:
        self.weights, self.means, self.deviations = weights, means, deviations
        self.unconditional = unconditional or self
        self.calls = 0

    def __call__(self, x: Tensor, sigma: float, t: float | None = None) -> Tensor:
        """The mean of what x can have been before noise of deviation sigma was added."""
        self.calls += 1
        variances = [deviation**2 for deviation in self.deviations]
        likelihoods, denoised = [], []
        for weight, mean, variance in zip(self.weights, self.means, variances, strict=True):
            total = variance + sigma**2
            likelihoods.append(math.log(weight / math.sqrt(total)) - (x - mean) ** 2 / (2 * total))
            denoised.append((variance * x + sigma**2 * mean) / total)
        shares = torch.stack(likelihoods).softmax(0)
        return (shares * torch.stack(denoised)).sum(0)

    def eps(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        sigma = sigma_of(t)
        noisy = x * math.sqrt(1 + sigma**2)
        guided, unconditional = ((noisy - model(noisy, sigma)) / sigma for model in (self, self.unconditional))
        return guided, unconditional

    def cdf(self, x: np.ndarray, sigma: float = 0.0) -> np.ndarray:
        """Share of the noisy values that are below x."""
        normals = zip(self.weights, self.means, self.deviations, strict=True)
        return sum(weight * ndtr((x - mean) / math.hypot(deviation, sigma)) for weight, mean, deviation in normals)

    def carried(self, x: np.ndarray, sigma: float, end: float) -> np.ndarray:
        """Where the probability-flow equation leads x from the noise level sigma to the level end, by bisection."""
        share, low, high = self.cdf(x, sigma), np.full_like(x, -100.0), np.full_like(x, 100.0)
        for _ in range(70):
            middle = (low + high) / 2
            below = self.cdf(middle, end) < share
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2


class Scaled:
    """A denoiser whose answers are too large by a factor: what a wrong coefficient in a sampler comes to."""

    def __init__(self, model: Denoiser, factor: float) -> None:
        self.model, self.factor, self.noise = model, factor, model.noise

    def __call__(self, x: Tensor, sigma: float, t: float | None = None) -> Tensor:
        return self.model(x, sigma) * self.factor

    def eps(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        guided, unconditional = self.model.eps(x, t)
        return guided * self.factor, unconditional * self.factor

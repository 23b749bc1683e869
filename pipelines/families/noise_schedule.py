"""The noise schedule of a model's training: the cumulative alpha and the noise level of every timestep."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

LAST_ALPHA = 4.8973451890853435e-08
"""WebUI's last cumulative alpha with zero terminal SNR. Exactly 0 would be an infinite noise level."""


@dataclass(frozen=True)
class NoiseSchedule:
    """Timesteps and noise levels of a model, which the samplers see as `model.noise`.

    Numbers have single precision but are stored as Python floats, so that no sampling step waits for a tensor.
    """

    alphas: tuple[float, ...]
    """Cumulative alpha of every timestep, falling from almost 1 to almost 0."""
    aligned: tuple[float, ...] = ()
    """The noise levels for ten steps that "Align Your Steps" (Sabour et al. 2024) found for models of this family."""
    half: bool = False
    """Whether everything derived from the alphas is computed in half precision."""

    def _exact(self, values: Sequence[float]) -> Tensor:
        """Return the values as a tensor in the schedule's precision."""
        return torch.tensor(values, dtype=torch.float16 if self.half else torch.float32)

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        """The noise level of every timestep in the variance-exploding form, ascending."""
        alphas = self._exact(self.alphas)
        return tuple((((1 - alphas) / alphas) ** 0.5).tolist())

    @cached_property
    def log_sigmas(self) -> tuple[float, ...]:
        """The logarithm of every noise level."""
        return tuple(self._exact(self.sigmas).log().tolist())

    @cached_property
    def log_alphas(self) -> tuple[float, ...]:
        """The logarithm of every cumulative alpha."""
        return tuple(self._exact(self.alphas).log().tolist() if self.half else map(math.log, self.alphas))

    def noise_share(self, t: int) -> float:
        """Return the share of noise in a variance-preserving x at a timestep: sqrt(1 - alpha)."""
        return (1 - self._exact([self.alphas[t]])).sqrt().item() if self.half else math.sqrt(1 - self.alphas[t])

    def picture_share(self, t: int) -> float:
        """Return the share of the picture in a variance-preserving x at a timestep: sqrt(alpha)."""
        return self._exact([self.alphas[t]]).sqrt().item() if self.half else math.sqrt(self.alphas[t])

    def t_of(self, sigma: float) -> float:
        """Return the fractional timestep of a noise level > 0.

        It is linear in log sigma between the table's entries. Levels outside the table get its first or last timestep.
        """
        log_sigma, logs = math.log(sigma), self.log_sigmas
        low = min(max(bisect_right(logs, log_sigma) - 1, 0), len(logs) - 2)
        weight = (log_sigma - logs[low]) / (logs[low + 1] - logs[low])
        return low + min(max(weight, 0.0), 1.0)

    def sigma_of(self, t: float) -> float:
        """Return the noise level of the timestep nearest to `t`."""
        return self.sigmas[round(t)]

    def nearest(self, sigma: float) -> int:
        """Return the timestep with the nearest noise level. If two are equally near, return the lower one."""
        above = bisect_left(self.sigmas, sigma, hi=len(self.sigmas) - 1)
        below = max(above - 1, 0)
        return below if sigma - self.sigmas[below] <= self.sigmas[above] - sigma else above

    def every(self, stride: int) -> "NoiseSchedule":
        """Return a schedule of every `stride`-th timestep, the last one included, in single precision."""
        return replace(self, alphas=self.alphas[stride - 1 :: stride], half=False)

    def downcast(self) -> "NoiseSchedule":
        """Return the schedule rounded to half precision. Its noise levels are then computed in half precision, too.

        WebUI did this before 1.8, and WebUI 1.10.1 does it on request (its pull request 14145).
        """
        return replace(self, alphas=tuple(torch.tensor(self.alphas).half().tolist()), half=True)

    def zero_terminal_snr(self) -> "NoiseSchedule":
        """Return the schedule rescaled to end in pure noise (Lin et al. 2023, https://arxiv.org/abs/2305.08891).

        A schedule that already does is returned unchanged. The result is computed in single precision.
        """
        if self.alphas[-1] <= _LAST:
            return self
        roots = torch.tensor(self.alphas).sqrt()
        first, last = roots[0].clone(), roots[-1].clone()
        roots = (roots - last) * (first / (first - last))
        alphas: list[float] = (roots**2).tolist()
        return replace(self, alphas=(*alphas[:-1], _LAST), half=False)


_LAST: float = torch.tensor(LAST_ALPHA).item()


def scaled_linear(start: float, end: float, aligned: Sequence[float]) -> NoiseSchedule:
    """Return a schedule of 1000 timesteps whose betas have evenly spaced square roots, as in latent diffusion."""
    betas: Tensor = torch.linspace(start**0.5, end**0.5, 1000, dtype=torch.float64) ** 2
    return NoiseSchedule(tuple((1 - betas).cumprod(0).float().tolist()), tuple(aligned))

"""The UNet with classifier-free guidance as a denoiser D(x, sigma).

All sampling arithmetic stays in float32 outside; the UNet gets its own dtype. Guidance is `u + sum_i (c_i - u) w_i
scale` over the parts of an AND prompt (Liu et al. 2022, https://arxiv.org/abs/2206.01714). It acts on the UNet's raw
output, which the model's prediction then converts once. For one x and sigma that is the same as guiding the denoised
pictures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.ask.request import SkippedGuidance
from pipelines.models.model import Model
from pipelines.runtime.memory import with_fallback
from pipelines.runtime.unet_call import Condition, UNetCall
from pipelines.sampling.between import COMPUTED, Beginning, PassPrompts
from pipelines.sampling.control import Controls


@dataclass(frozen=True)
class LatentMask:
    """Which latents are drawn, (h, w) from 0 to 1, and the latents (B, 4, h, w) to keep everywhere else."""

    drawn: Tensor
    kept: Tensor

    def blend(self, latents: Tensor) -> Tensor:
        """Blend the drawn latents with those that are kept."""
        return latents * self.drawn + self.kept * (1 - self.drawn)


@dataclass(frozen=True)
class Stage:
    """The part of a pass that one model draws."""

    model: Model
    prompts: PassPrompts
    channels: Tensor | None = None
    """The UNet's input channels in addition to the latents, (B or 1, n, h, w); None if it has none."""
    vectors: Tensor | None = None
    """Vectors (B, k) for the prompt's rows, in addition to their tokens, if the model takes them. The negative prompt's
    rows get zeros."""
    starts_at: float = 0.0
    """The share of the model's timesteps, from 0 to 1, that must be done before this stage takes over."""
    by_calls: bool = False
    """Whether `starts_at` is a share of the pass's denoiser calls instead."""


ALWAYS = SkippedGuidance()
"""Settings with which no call skips guidance."""


@dataclass(frozen=True)
class Guidance:
    """How strongly to follow the prompt."""

    scale: float | Tensor
    """The guidance scale; (B, 1, 1, 1) if it differs between the images."""
    rescale: float = 0.0
    """How much of the contrast added by a high scale to remove, from 0 to 1."""
    skipped: SkippedGuidance = ALWAYS
    calls: int = 1
    """Denoiser calls of the whole pass, of which some may be skipped."""

    def skips(self, call: int, level: float) -> bool:
        """Return whether a call, counted from 0, leaves out the negative prompt.

        `level` is the call's sigma, or its timestep for timestep samplers, which is what WebUI compares there.
        """
        skipped = self.skipped
        if skipped.early and call / self.calls <= skipped.early:
            return True
        return level < skipped.minimum_sigma and (skipped.all_steps or call % 2 == 1)


class GuidedDenoiser:
    """The denoiser of one pass, which may switch models on the way.

    It counts its calls for prompt editing. Control networks use `step`, which the caller sets for each step. With a
    mask it draws only there. Everywhere else a sigma sampler gets the kept latents back, and a timestep sampler's UNet
    gets them as input.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        guidance: Guidance,
        rows: int,
        mask: LatentMask | None = None,
        controls: Controls | None = None,
        beginning: Beginning = COMPUTED,
    ) -> None:
        """Take the `stages` in the order of the pass. At most `rows` rows of a batch go through the UNet at once."""
        self._stage, *self._later = stages
        self.noise = self._stage.model.noise
        self._guidance = guidance
        self._rows = rows
        self._mask = mask
        self._controls = controls
        self._beginning = beginning
        self.calls = self.step = 0
        self.switched_at: int | None = None
        """The call, counted from 0, at which the current stage began; None for the first one."""
        self._begin_stage()

    def _begin_stage(self) -> None:
        self._stage.model.components.unet.take()
        own = self._stage.model.noise
        self._own_noise = None if own.alphas == self.noise.alphas else own
        self._dtype = self._stage.model.unet.network.dtype  # kept, as diffusers walks through 1000 modules to find it
        self._key: tuple[int, ...] = ()
        self._conditions: list[Condition] = []

    @property
    def model(self) -> Model:
        """The model of the current stage."""
        return self._stage.model

    def _advance(self, t: int) -> None:
        """Switch to the next stage once timestep t has reached it. Control networks fit the first stage alone."""
        while self._later and self._reached(self._later[0], t):
            self._stage, self._controls, self.switched_at = self._later.pop(0), None, self.calls
            self._begin_stage()

    def _reached(self, stage: Stage, t: int) -> bool:
        """Return whether a stage takes over at this call. WebUI compares timesteps in single precision."""
        if stage.by_calls:
            return self.calls / self._guidance.calls >= stage.starts_at
        trained = len(self.noise.alphas)
        return bool(np.float32((trained - 1 - t) / trained) >= np.float32(stage.starts_at))

    def __call__(self, x: Tensor, sigma: float, t: float | None = None) -> Tensor:
        """Denoise x (B, 4, h, w), whose noise has the standard deviation sigma; return the guided picture's latents.

        `t` is the timestep for the UNet; None: the fractional one that belongs to sigma.
        """
        self._advance(self.noise.nearest(sigma))
        if blended := self._beginning.pictures(self.calls):
            (denoised,) = blended
        else:
            scaled = x * (sigma**2 + 1) ** -0.5
            skip, own = self._guidance.skips(self.calls, sigma), self.noise.t_of(sigma) if t is None else t
            output, _ = self._guided(scaled, self._timestep(own, sigma), sigma, skip)
            denoised = self._stage.model.prediction.denoised(x, sigma, output)
            self._beginning.keep((denoised,))
        self.calls += 1
        return self._mask.blend(denoised) if self._mask else denoised

    def eps(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """Return the guided and the unconditional noise of a variance-preserving x (B, 4, h, w) at a timestep."""
        self._advance(int(t))
        x = self._mask.blend(x) if self._mask else x
        level = self.noise.noise_share(int(t))
        if blended := self._beginning.pictures(self.calls):
            guided, unconditional = ((x - picture) / level for picture in blended)
        else:
            skip, sigma = self._guidance.skips(self.calls, t), self.noise.sigma_of(t)
            prediction, alpha = self._stage.model.prediction, self.noise.alphas[int(t)]
            outputs = self._guided(x, self._timestep(t, sigma), sigma, skip)
            guided, unconditional = (prediction.noise(x, alpha, output) for output in outputs)
            self._beginning.keep(tuple(x.sub(noise, alpha=level) for noise in (guided, unconditional)))
        self.calls += 1
        return guided, unconditional

    def _timestep(self, t: float, sigma: float) -> float:
        """Return the timestep that the stage's model knows a noise level by. `t` is that of the pass's first model.

        The sampler keeps the first model's levels, as in WebUI. There SDXL models all have the same ones; here a file
        may declare others, such as zero terminal SNR.
        """
        return t if self._own_noise is None else self._own_noise.t_of(sigma)

    def _guided(self, x: Tensor, t: float, sigma: float, skip: bool) -> tuple[Tensor, Tensor]:
        """Return the guided and the unconditional output for a variance-preserving x at the noise level sigma.

        With `skip` the negative prompt is not computed. The first part of the prompt takes its place and the scale is
        1, so that without AND the output is the prompt's.
        """
        conditions = self._conditions_for(len(x), skip)
        weights = self._stage.prompts.weights
        conditional_rows = len(weights) * len(x)
        outputs = list(self._predict(x, t, conditions[0], conditional_rows))
        if skip:
            return _combined(outputs, weights, outputs[0], 1), outputs[0]
        for condition in conditions[1:]:
            outputs += self._predict(x, t, condition, 0)
        *conditional, unconditional = outputs
        guided = _combined(conditional, weights, unconditional, self._guidance.scale)
        if self._guidance.rescale:
            plain = _combined(conditional, weights, unconditional, 1)
            guided = self._rescaled(guided, plain, x * (sigma**2 + 1) ** 0.5, sigma)
        return guided, unconditional

    def _rescaled(self, guided: Tensor, plain: Tensor, x: Tensor, sigma: float) -> Tensor:
        """Return the output with the spread of its denoised latents moved towards that without guidance.

        Guidance exaggerates the spread of the latents. Rescaling the predicted noise instead would leave noise in them.
        """
        prediction = self._stage.model.prediction
        denoised, wanted = (prediction.denoised(x, sigma, output) for output in (guided, plain))
        ratio = wanted.std((1, 2, 3), keepdim=True) / denoised.std((1, 2, 3), keepdim=True)
        rescaled = denoised * torch.lerp(torch.ones_like(ratio), ratio, self._guidance.rescale)
        return prediction.output(x, sigma, rescaled)

    def _conditions_for(self, images: int, skip: bool) -> list[Condition]:
        """Return conditions of (prompts * images) rows, the negative prompt's last. With `skip` it is left out.

        There is one batch, or two if the prompts have different numbers of chunks. They are rebuilt only when prompt
        editing or a skip changes them.
        """
        prompts, calls = self._stage.prompts, self.calls
        key = (skip, *prompts.places(calls))
        if key != self._key:
            positive, negative = prompts.for_images(calls, images)
            together = positive.tokens.shape[1] == negative.tokens.shape[1]
            vectors = self._stage.vectors
            ready = [self._ready(positive, vectors)]
            if not skip:
                none = None if vectors is None else torch.zeros_like(vectors)
                ready.append(self._ready(negative, none))
            self._conditions = [Condition.cat(ready)] if together else ready
            self._key = key
        return self._conditions

    def _ready(self, condition: Condition, vectors: Tensor | None) -> Condition:
        """Return the condition in the UNet's dtype, with the vectors of the images, which each of its parts repeats."""
        rows = condition.map(lambda rows: rows.to(self._dtype))
        if vectors is None:
            return rows
        return Condition(rows.tokens, vectors.to(self._dtype).repeat(len(condition) // len(vectors), 1))

    def _predict(self, x: Tensor, t: float, condition: Condition, conditional: int) -> tuple[Tensor, ...]:
        """Return the UNet's output (B, 4, h, w) for every B rows of the condition, with as many rows at once as fit.

        The first `conditional` rows are the prompt's.
        """
        time = torch.full((), t, dtype=torch.float32, device=x.device)
        prompts = len(condition) // len(x)
        channels = self._stage.channels
        if channels is not None:
            x = torch.cat([x, channels.expand(len(x), -1, -1, -1)], dim=1)
        call = UNetCall(torch.cat([x.to(self._dtype)] * prompts), time, condition)

        def one_by_one() -> Tensor:
            self._rows = 1  # more would fail again at every step
            return self._in_parts(call, conditional)

        told = "the rest of this pass computes one row of the batch at a time"
        output = with_fallback(lambda: self._in_parts(call, conditional), one_by_one, told)
        return output.float().chunk(prompts)

    def _in_parts(self, call: UNetCall, conditional: int) -> Tensor:
        """Compute a call in parts of at most `self._rows` rows."""
        total = len(call.images)
        if total <= self._rows:
            return self._compute(call, conditional)
        parts = math.ceil(total / self._rows)
        rows = math.ceil(total / parts)  # of equal size: a last call of one row would run uncompiled
        outputs = [self._compute(part, conditional - k * rows) for k, part in enumerate(call.split(rows))]
        return torch.cat(outputs)

    def _compute(self, call: UNetCall, conditional: int) -> Tensor:
        if self._controls:
            rows = min(max(conditional, 0), len(call.images))
            call = self._controls.guide(call, self.step, rows)
        return self._stage.model.unet(call)


def _combined(
    conditional: Sequence[Tensor],
    weights: Sequence[float | Tensor],
    unconditional: Tensor,
    scale: float | Tensor,
) -> Tensor:
    """Combine the outputs of a prompt's parts, guided away from the unconditional output.

    Weights and scale are numbers, or (B, 1, 1, 1) if they differ between the images.
    """
    guided = unconditional
    for part, weight in zip(conditional, weights, strict=True):
        factor = weight * scale
        if isinstance(factor, Tensor):
            guided = guided + (part - unconditional) * factor
        else:
            guided = torch.add(guided, part - unconditional, alpha=factor)
    return guided

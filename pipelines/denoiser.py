"""The UNet with classifier-free guidance as a denoiser D(x, sigma).

All sampling arithmetic stays in float32 outside; the UNet gets its own dtype. Guidance is `u + sum_i (c_i - u) w_i
scale` over the parts of an AND prompt (Liu et al. 2022, https://arxiv.org/abs/2206.01714), computed on the noise
prediction: for one x and sigma that is the same as on the denoised picture.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from pipelines.conditioning import Prompts
from pipelines.control import Controls
from pipelines.graphs import GraphedUNet
from pipelines.memory import thriftily
from pipelines.parts import SHORT_SECONDS, at_once
from pipelines.schedules import SIGMAS, sigma_to_t


@dataclass(frozen=True)
class LatentMask:
    """Where latents are drawn, (h, w) from 0 to 1, and the latents (B, 4, h, w) that are kept elsewhere."""

    drawn: Tensor
    kept: Tensor

    def blend(self, latents: Tensor) -> Tensor:
        """The latents where they are drawn, over those that are kept."""
        return latents * self.drawn + self.kept * (1 - self.drawn)


class GuidedDenoiser:
    """The denoiser of one pass. It counts its calls, which is what prompt editing goes by; `step`, which ControlNets go
    by, is set by whoever walks the steps.

    With a `mask` it draws only there. Elsewhere the kept latents are what a sigma sampler gets back, and what the UNet
    of a timestep sampler is shown. `channels` (1, n, h, w) are those that the UNet takes beside the latents.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel | GraphedUNet,
        prompts: Prompts,
        guidance_scale: float,
        guidance_rescale: float,
        rows: int,
        mask: LatentMask | None = None,
        channels: Tensor | None = None,
        controls: Controls | None = None,
    ) -> None:
        """`rows` of the batch go through the UNet at once."""
        self._unet, self._dtype = unet, unet.dtype  # which diffusers finds by walking through a thousand modules
        self._mask = mask
        self._channels = channels
        self._controls = controls
        self._prompts = prompts
        self._scale = guidance_scale
        self._rescale = guidance_rescale
        self.calls = self.step = 0
        self._short = False
        self._rows = rows
        self._key: tuple[int, ...] = ()
        self._contexts: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: float, t: float | None = None) -> Tensor:
        """x (B, 4, h, w) with noise of deviation sigma -> the denoised latents, guided.

        `t` is the timestep to tell the UNet; None: the fractional one that belongs to sigma.
        """
        scaled = x * (sigma**2 + 1) ** -0.5
        eps, _ = self._eps(scaled, sigma_to_t(sigma) if t is None else t, sigma)
        denoised = x.sub(eps, alpha=sigma)
        return self._mask.blend(denoised) if self._mask else denoised

    def eps(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """Variance-preserving x (B, 4, h, w) at a timestep -> guided and unconditional noise prediction."""
        return self._eps(self._mask.blend(x) if self._mask else x, t, SIGMAS[round(t)])

    def _eps(self, x: Tensor, t: float, sigma: float) -> tuple[Tensor, Tensor]:
        contexts = self._contexts_for(x.shape[0])
        self.calls += 1
        count = len(self._prompts.positive.weights) * len(x)
        *conditional, unconditional = (
            row
            for place, context in enumerate(contexts)
            for row in self._predict(x, t, context, conditional=count if place == 0 else 0)
        )
        guided = self._guided(conditional, unconditional, self._scale)
        if self._rescale:
            guided = self._rescaled(guided, self._guided(conditional, unconditional, 1), x, sigma)
        return guided, unconditional

    def _guided(self, conditional: list[Tensor], unconditional: Tensor, scale: float) -> Tensor:
        guided = unconditional
        for part, weight in zip(conditional, self._prompts.positive.weights, strict=True):
            guided = torch.add(guided, part - unconditional, alpha=weight * scale)
        return guided

    def _rescaled(self, guided: Tensor, plain: Tensor, x: Tensor, sigma: float) -> Tensor:
        """The guided noise whose denoised latents are, by the rescale's share, spread as those without guidance.

        It is the latents' spread that guidance exaggerates; the noise's own must stay, or some of it is left in them.
        """
        noisy = x * (sigma**2 + 1) ** 0.5
        denoised, wanted = (noisy.sub(eps, alpha=sigma) for eps in (guided, plain))
        ratio = wanted.std((1, 2, 3), keepdim=True) / denoised.std((1, 2, 3), keepdim=True)
        return (noisy - denoised * torch.lerp(torch.ones_like(ratio), ratio, self._rescale)) / sigma

    def _contexts_for(self, images: int) -> list[Tensor]:
        """Embeddings (rows * images, tokens, width), the negative prompt's last: one batch, or two where chunk counts
        differ. They are made anew only where prompt editing changes them, which a pass mostly never does."""
        key = self._prompts.places(self.calls)
        if key != self._key:
            positive, negative = self._prompts.at(self.calls)
            together = positive.shape[1] == negative.shape[1]
            batches = [torch.cat([positive, negative])] if together else [positive, negative]
            self._contexts = [batch.to(self._dtype).repeat_interleave(images, dim=0) for batch in batches]
            self._key = key
        return self._contexts

    def _predict(self, x: Tensor, t: float, contexts: Tensor, conditional: int) -> tuple[Tensor, ...]:
        """The noise (B, 4, h, w) for every B of the contexts (rows, tokens, width), as many rows at once as fit.

        The first `conditional` rows are the prompt's.
        """
        time = torch.full((), t, dtype=torch.float32, device=x.device)
        prompts = len(contexts) // len(x)
        if self._channels is not None:
            x = torch.cat([x, self._channels.expand(len(x), -1, -1, -1)], dim=1)
        images = torch.cat([x.to(self._dtype)] * prompts)

        def parts() -> Tensor:
            if len(images) <= self._rows:
                return self._call(images, time, contexts, conditional)
            calls = math.ceil(len(images) / self._rows)
            rows = math.ceil(len(images) / calls)  # evenly: a last call of one row would run uncompiled
            starts = range(0, len(images), rows)
            split = zip(images.split(rows), contexts.split(rows), starts, strict=True)
            return torch.cat([self._call(few, time, each, conditional - start) for few, each, start in split])

        def one_by_one() -> Tensor:
            self._rows = 1  # more would fail again at every step
            return parts()

        noise = thriftily(parts, one_by_one, "the rest of this pass takes one row of the batch at a time")
        return noise.float().chunk(prompts)

    def _call(self, images: Tensor, time: Tensor, contexts: Tensor, conditional: int) -> Tensor:
        residuals = {}
        if self._controls:
            rows = min(max(conditional, 0), len(images))
            residuals = self._controls.residuals(images, time, contexts, self.step, rows)
        started = perf_counter()
        with at_once() if self._short else nullcontext():
            noise: Tensor = self._unet(images, time, encoder_hidden_states=contexts, return_dict=False, **residuals)[0]
        self._short = images.device.type == "cpu" and perf_counter() - started < SHORT_SECONDS
        return noise

"""Latents <-> pixels. Decoded pictures that are not finite are detected."""

from collections.abc import Callable
from typing import TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from pipelines.errors import NonFiniteError
from pipelines.images.reading import Pixels
from pipelines.runtime.memory import with_fallback

TILE = 512
"""Side of the VAE's tiles in pixels. They are used if a whole picture does not fit into memory."""
Result = TypeVar("Result")


class Decoding:
    """A picture that is being decoded. On a GPU the work and the copy to the host are queued, and `pixels` waits."""

    def __init__(self, picture: Tensor, finite: Tensor, again: Callable[[], "Decoding"] | None) -> None:
        """Take uint8 (H, W, 3) and a boolean, both on the device. `again` decodes once more if it is not finite."""
        self._picture, self._finite = _to_host(picture), _to_host(finite)
        self._copied = torch.cuda.Event() if picture.is_cuda else None
        if self._copied:
            self._copied.record()
        self._again = again

    def pixels(self) -> Pixels:
        """Return the picture. Raises NonFiniteError instead of returning a black one."""
        if self._copied:
            self._copied.synchronize()
        if bool(self._finite):
            return self._picture.numpy()
        if self._again is None:
            raise NonFiniteError(
                "The picture came out as NaN. Lower guidance_scale, denoising_strength or the weights in the prompt; "
                "if it happens with every request, the checkpoint or its VAE is broken."
            )
        return self._again().pixels()


def _to_host(tensor: Tensor) -> Tensor:
    """Start a copy to the host's memory, which is valid once the device's queue is done. Pinned memory allows this."""
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda).copy_(tensor, non_blocking=True)


class VAE:
    """An AutoencoderKL with its latent scale. Like WebUI, it decodes one image at a time."""

    def __init__(self, network: AutoencoderKL, scale: float, take: Callable[[], None] = lambda: None) -> None:
        """`take` brings the network to its device, from which it may have been moved."""
        self.network = network
        self.scale = scale
        self._take = take

    def decode(self, latent: Tensor) -> Pixels:
        """Decode a latent (4, h, w) to pixels (8h, 8w, 3), truncated to 8 bits as in WebUI. Raises NonFiniteError."""
        return self.begin(latent).pixels()

    def begin(self, latent: Tensor) -> Decoding:
        """Start decoding a latent (4, h, w).

        Half precision can overflow inside the decoder. The latent is then decoded again in float32.
        """
        self._take()
        half = self.network.dtype != torch.float32
        return self._begin(latent, (lambda: self._in_float32(latent)) if half else None)

    def picture(self, latent: Tensor) -> Tensor:
        """Decode a latent (4, h, w) to (3, 8h, 8w), mostly in [0, 1], without rounding. Raises NonFiniteError."""
        self._take()
        scaled = (latent / self.scale)[None].to(self.network.dtype)
        image: Tensor = self._whole_or_tiled(lambda: self.network.decode(scaled)).sample[0].float()
        if not image.isfinite().all():
            return torch.from_numpy(self.decode(latent)).permute(2, 0, 1) / 255  # this tries float32, or tells why not
        return (image + 1) / 2

    def encode(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Encode pixels (3, H, W) in [0, 1] to a scaled latent (4, H/8, W/8), sampled with the given noise."""
        mean, deviation = self._moments(pixels)
        return (mean + deviation * noise.to(mean.device, non_blocking=True)) * self.scale

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pixels (3, H, W) in [0, 1] to the mean and the deviation of their scaled latents, (4, H/8, W/8)."""
        mean, deviation = self._moments(pixels)
        return mean * self.scale, deviation * self.scale

    def _moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self._take()
        image = (pixels * 2 - 1)[None].to(self.network.device, self.network.dtype, non_blocking=True)
        posterior = self._whole_or_tiled(lambda: self.network.encode(image)).latent_dist
        return posterior.mean[0].float(), posterior.std[0].float()

    def _begin(self, latent: Tensor, again: Callable[[], Decoding] | None) -> Decoding:
        scaled = (latent / self.scale)[None].to(self.network.dtype)
        image = self._whole_or_tiled(lambda: self.network.decode(scaled)).sample[0].float()
        pixels = ((image + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8)  # truncates, as WebUI does
        return Decoding(pixels.permute(1, 2, 0).contiguous(), image.isfinite().all(), again)

    def _whole_or_tiled(self, work: Callable[[], Result]) -> Result:
        """Run the work on the whole picture or, if memory runs out, in overlapping tiles, whose seams may show."""

        def in_tiles() -> Result:
            self.network.tile_sample_min_size, self.network.tile_latent_min_size = TILE, TILE // 8
            try:
                self.network.enable_tiling()
                return work()
            finally:
                self.network.disable_tiling()

        return with_fallback(work, in_tiles, f"the VAE works in tiles of {TILE} px, whose seams may show")

    def _in_float32(self, latent: Tensor) -> Decoding:
        dtype = self.network.dtype
        try:
            nn.Module.to(self.network, torch.float32)  # diffusers' own warns
            return self._begin(latent, None)
        finally:  # also if memory ran out halfway
            nn.Module.to(self.network, dtype)

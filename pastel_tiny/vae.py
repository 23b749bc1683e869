"""Phase 2, the autoencoder, and phase 4, the better decoder."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from pastel_tiny.dataset import TEST_SEED, halve, painted, tensor
from pastel_tiny.networks import build_vae, compile_blocks, half_precision
from pastel_tiny.progress import Log, load
from pastel_tiny.session import Session, resume

BATCH, CROP = 4, 64
"""The batch suits a CPU; a GPU takes `times` as many."""


def crops(pictures: NDArray[np.uint8], small: NDArray[np.uint8], rng: np.random.Generator, times: int) -> Tensor:
    """Return random squares, three quarters of them from the 128 px pictures; half are mirrored."""
    squares = []
    for _ in range(BATCH * times):
        source = small if rng.random() < 0.75 else pictures
        picture = source[rng.integers(len(source))]
        y, x = (8 * rng.integers((side - CROP) // 8 + 1) for side in picture.shape[:2])
        square = picture[y : y + CROP, x : x + CROP]
        squares.append(square[:, ::-1] if rng.random() < 0.5 else square)
    return tensor(np.stack(squares))


def _edges(batch: Tensor) -> Tensor:
    return torch.cat(
        [(batch[..., 1:] - batch[..., :-1]).flatten(1), (batch[..., 1:, :] - batch[..., :-1, :]).flatten(1)], 1
    )


def _chroma(batch: Tensor) -> Tensor:
    red, green, blue = batch.unbind(1)
    return torch.stack([red - green, blue - (red + green) / 2], 1)


def _saturation(batch: Tensor) -> Tensor:
    return batch.amax(1) - batch.amin(1)


def loss(output: Tensor, target: Tensor, better: bool = False) -> Tensor:
    """Return the loss: pixels, edges against blur, and colour differences at full and low resolution against tints.

    The better decoder is also penalised for paleness: wrong saturation costs more.
    """
    pixels = F.l1_loss(output, target) + 2 * F.mse_loss(output, target)
    edges = F.l1_loss(_edges(output), _edges(target))
    error = _chroma(output) - _chroma(target)
    colours = 0.5 * error.abs().mean() + F.avg_pool2d(error, 8).abs().mean()
    paleness = F.l1_loss(_saturation(output), _saturation(target)) if better else torch.zeros(())
    return pixels + edges + colours + 20 * paleness


def _spikes(latents: Tensor) -> Tensor:
    """Return how far the tails of the latents' channels are from normal: the logarithm of their kurtosis / 3.

    Without this, the encoder learns to store the picture's overall brightness in one huge value (ten standard
    deviations) at one place, since the group norms spread such a value everywhere. A UNet that misses it makes black
    nights and pale squares, and an upscaler of latents blurs it.
    """
    deviation = latents - latents.mean((0, 2, 3), keepdim=True)
    kurtosis = deviation.pow(4).mean((0, 2, 3)) / deviation.square().mean((0, 2, 3)).square()
    return (kurtosis / 3).log().relu().mean()


def _reconstruct(vae: AutoencoderKL, batch: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    mean = vae.encode(batch).latent_dist.mean
    # a decoder that has seen slightly wrong latents tolerates the UNet's small errors
    return vae.decode(mean + noise * torch.randn_like(mean)).sample, mean


def psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Return the mean signal-to-noise ratio of reconstructed pictures in dB."""
    with torch.inference_mode(), half_precision():
        output = vae.decode(vae.encode(pictures).latent_dist.mean).sample.float().clamp(-1, 1)
    return float((10 * torch.log10(4 / (output - pictures).square().mean((1, 2, 3)))).mean())


def unseen_pictures(folder: Path, count: int = 64) -> Tensor:
    """Return unseen 128 px scenes."""
    return tensor(halve(np.asarray(painted(folder / "test.npy", TEST_SEED, count, (256, 256)))))


def _session(folder: Path, minutes: float, better: bool) -> Session[AutoencoderKL]:
    """Return the phase's session; the better decoder starts from the stock one, and its encoder never changes."""
    vae = build_vae().to(memory_format=torch.channels_last)
    if better:
        stock = load(folder / "vae.pt")
        assert stock is not None, "the stock autoencoder must be trained first"
        vae.load_state_dict(stock["average"])
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    trained = [weight for weight in vae.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-3, (0.9, 0.98), weight_decay=1e-3)
    return resume(folder / ("better.pt" if better else "vae.pt"), vae, optimizer, minutes)


def train(folder: Path, pictures: NDArray[np.uint8], minutes: float, times: int, better: bool = False) -> None:
    """Train the autoencoder for `minutes`, or with `better` only its decoder, from the finished stock one."""
    name, seed = ("better", 2) if better else ("vae", 1)
    torch.manual_seed(seed)
    run = _session(folder, minutes, better)
    if run.clock.done >= 1:
        return
    rng = np.random.default_rng(seed + run.step)
    small, log = halve(np.asarray(pictures)), Log(folder / f"{name}.csv")
    compile_blocks(run.network)
    saved = run.clock.elapsed
    while run.clock.done < 1:
        log.add(run.step, run.clock, {"loss": step(run, crops(pictures, small, rng, times), better)})
        if run.clock.elapsed - saved > 240 or run.clock.done >= 1:
            saved = run.clock.elapsed
            run.save(folder / f"{name}.pt")
            _report(folder, name, run)


def step(run: Session[AutoencoderKL], batch: Tensor, better: bool) -> float:
    """Take one optimizer step and return the loss."""
    with half_precision():
        output, mean = _reconstruct(run.network, batch, 0.02)
    error = loss(output.float(), batch, better)
    # a slight pull towards zero and towards normal tails keeps the latents easy to model
    total = error + 1e-4 * mean.float().square().mean() + 0.05 * _spikes(mean.float())
    run.descend(total, 4e-4)
    return float(error.detach())


def _report(folder: Path, name: str, run: Session[AutoencoderKL]) -> None:
    """Measure the averaged weights on unseen pictures."""
    probe = build_vae().to(memory_format=torch.channels_last)
    probe.load_state_dict(run.average.weights)
    quality = psnr(probe, unseen_pictures(folder))
    Log(folder / f"{name}_psnr.csv").write({"step": run.step, "psnr": quality})

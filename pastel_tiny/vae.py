"""Phase 2, the autoencoder, and phase 4, the better decoder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from pastel_tiny.dataset import TEST_SEED, halve, painted, tensor
from pastel_tiny.networks import Average, build_vae, compile_blocks
from pastel_tiny.progress import Clock, Log, load, save

BATCH, CROP = 4, 64


def crops(pictures: NDArray[np.uint8], small: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """Random squares, three quarters of them from the 128 px pictures; half are mirrored."""
    squares = []
    for _ in range(BATCH):
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


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Pixels, edges against blur, and colour differences at full and at low resolution against tints."""
    pixels = F.l1_loss(output, target) + 2 * F.mse_loss(output, target)
    edges = F.l1_loss(_edges(output), _edges(target))
    error = _chroma(output) - _chroma(target)
    return pixels + edges + 0.5 * error.abs().mean() + F.avg_pool2d(error, 8).abs().mean()


def _reconstruct(vae: AutoencoderKL, batch: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    mean = vae.encode(batch).latent_dist.mean
    # a decoder that has seen slightly wrong latents forgives the UNet's small errors
    return vae.decode(mean + noise * torch.randn_like(mean)).sample, mean


def psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Mean signal-to-noise ratio of reconstructed pictures in dB."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        output = vae.decode(vae.encode(pictures).latent_dist.mean).sample.float().clamp(-1, 1)
    return float((10 * torch.log10(4 / (output - pictures).square().mean((1, 2, 3)))).mean())


def unseen_pictures(folder: Path, count: int = 64) -> Tensor:
    """Unseen 128 px scenes."""
    return tensor(halve(np.asarray(painted(folder / "test.npy", TEST_SEED, count, (256, 256)))))


@dataclass
class Session:
    """A phase in progress: what a checkpoint must hold to go on."""

    vae: AutoencoderKL
    average: Average
    optimizer: torch.optim.Optimizer
    clock: Clock
    step: int

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        state = {"network": self.vae.state_dict(), "average": self.average.weights}
        save(path, state | {"optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": self.clock.elapsed})


def _session(folder: Path, minutes: float, better: bool) -> Session:
    """Begin a phase, or take it up where its last checkpoint was; the better decoder begins as the stock one."""
    state = load(folder / ("better.pt" if better else "vae.pt"))
    vae = build_vae().to(memory_format=torch.channels_last)
    if better:
        stock = load(folder / "vae.pt")
        assert stock is not None, "the stock autoencoder comes first"
        vae.load_state_dict(stock["average"])
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    average = Average(vae, 0.998)
    trained = [weight for weight in vae.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-3, (0.9, 0.98), weight_decay=1e-3)
    if state is None:
        return Session(vae, average, optimizer, Clock(minutes), 0)
    vae.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    average.weights, average.steps = state["average"], state["step"]
    return Session(vae, average, optimizer, Clock(minutes, state["seconds"]), state["step"])


def train(folder: Path, pictures: NDArray[np.uint8], minutes: float, better: bool = False) -> None:
    """Train the autoencoder for a time, or with `better` only its decoder, from the finished stock one."""
    name, seed = ("better", 2) if better else ("vae", 1)
    torch.manual_seed(seed)
    run = _session(folder, minutes, better)
    if run.clock.done >= 1:
        return
    rng = np.random.default_rng(seed + run.step)
    small, log = halve(np.asarray(pictures)), Log(folder / f"{name}.csv")
    compile_blocks(run.vae)
    saved = run.clock.elapsed
    while run.clock.done < 1:
        log.add(run.step, run.clock, {"loss": _step(run, crops(pictures, small, rng))})
        if run.clock.elapsed - saved > 240 or run.clock.done >= 1:
            saved = run.clock.elapsed
            run.save(folder / f"{name}.pt")
            _report(folder, name, run)


def _step(run: Session, batch: Tensor) -> float:
    """One step of the optimizer; gives the loss."""
    with torch.autocast("cpu", torch.bfloat16):
        output, mean = _reconstruct(run.vae, batch, 0.02)
    error = loss(output.float(), batch)
    # a light pull towards zero keeps the latents easy to model
    total = error + 1e-4 * mean.float().square().mean()
    run.optimizer.param_groups[0]["lr"] = run.clock.rate(4e-4, run.step)
    run.optimizer.zero_grad()
    total.backward()
    torch.nn.utils.clip_grad_norm_(run.vae.parameters(), 1.0)
    run.optimizer.step()
    run.average.update(run.vae)
    run.step += 1
    return float(error.detach())


def _report(folder: Path, name: str, run: Session) -> None:
    """Measure the averaged weights on unseen pictures."""
    probe = build_vae().to(memory_format=torch.channels_last)
    probe.load_state_dict(run.average.weights)
    quality = psnr(probe, unseen_pictures(folder))
    Log(folder / f"{name}_psnr.csv").write({"step": run.step, "psnr": quality})

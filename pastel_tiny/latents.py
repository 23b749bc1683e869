"""Latents of zero mean and unit variance for the UNet, and pictures encoded once."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from pastel_tiny.dataset import Chunk, tensor
from pastel_tiny.networks import LATENT_SCALE, build_vae, half_precision, here
from pastel_tiny.progress import load, save
from pastel_tiny.vae import unseen_pictures


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each latent channel of the trained autoencoder."""

    mean: Tensor
    deviation: Tensor


def trained(folder: Path, name: str) -> AutoencoderKL:
    """Return the averaged autoencoder of a phase ("vae", "calm" or "better"), not yet folded."""
    state = load(folder / f"{name}.pt")
    assert state is not None, f"{name} is not trained yet"
    vae = build_vae().eval().to(memory_format=torch.channels_last)
    vae.load_state_dict(state["average"])
    return vae


def statistics(folder: Path) -> Statistics:
    """Return the latents' statistics over unseen pictures. Measure them once: the UNet's training depends on them."""
    path = folder / "statistics.pt"
    state = load(path)
    if state is None:
        with torch.inference_mode():
            latents = trained(folder, "vae").encode(unseen_pictures(folder)).latent_dist.mean
        state = {"mean": latents.mean((0, 2, 3)).clone(), "deviation": latents.std((0, 2, 3)).clone()}
        save(path, state)
    return Statistics(here(state["mean"]), here(state["deviation"]))


@torch.no_grad()
def folded(folder: Path, name: str = "calm") -> AutoencoderKL:
    """Return the autoencoder with the statistics folded into its 1 x 1 convolutions: its latents times 0.18215 have
    unit variance."""
    vae, known = trained(folder, name), statistics(folder)
    spread = known.deviation * LATENT_SCALE
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] /= spread[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - known.mean) / spread
    quant.weight[4:], quant.bias[4:] = 0.0, -20.0  # training only used the mean, so the posterior has no width
    post.bias += post.weight[:, :, 0, 0] @ known.mean
    post.weight *= spread[None, :, None, None]
    return vae


def encoded(folder: Path, chunk: Chunk) -> Tensor:
    """Return a chunk's latents, as the UNet sees them."""
    path = folder / "latents" / f"{chunk.name}.pt"
    state = load(path)
    if state is not None:
        return state["latents"]
    vae, pictures, parts = folded(folder), chunk.pictures(folder), []
    with torch.no_grad(), half_precision():
        for start in range(0, len(pictures), 8):
            mean = vae.encode(tensor(pictures[start : start + 8])).latent_dist.mean
            parts.append((mean.float() * LATENT_SCALE).half().cpu())
    result = torch.cat(parts).contiguous().clone()
    save(path, {"latents": result})
    print(f"[encode] {chunk.name} {tuple(result.shape)}", flush=True)
    return result

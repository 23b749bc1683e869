"""Train a ControlNet with the embedded model's structure to follow Canny edges.

    python -m pastel_tiny.control --out DIR --to tests/data/controlnets

DIR is the folder of `pastel_tiny.train`. Its painted scenes, latents and contexts are read, and the training is kept
there.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

from pastel_tiny.contexts import blanks, described
from pastel_tiny.dataset import chunks
from pastel_tiny.latents import encoded
from pastel_tiny.networks import compile_blocks, fast_attention, here
from pastel_tiny.pack import write
from pastel_tiny.progress import Log
from pastel_tiny.session import resume
from pastel_tiny.text import Encoder
from pastel_tiny.unet import noise_error, weights
from pipelines.ask.identity import TOKENIZER
from pipelines.images.preprocess import canny
from pipelines.models.loader import load
from weights_script.resolve import resolve

BATCH, STEPS = 16, 840
SQUARES = 5
"""Chunks of scenes: enough for edges, which look much the same everywhere."""
SAVE_EVERY = 100
LEAST = 0.3
"""Signal-to-noise ratio below which the composition is decided, so that errors count more."""


class Scenes:
    """Painted scenes: latents, pictures and contexts of their captions, half of which are empty."""

    def __init__(self, folder: Path) -> None:
        encoder, self.rng = Encoder(folder, TOKENIZER), random.Random(11)
        self.blanks = blanks(folder, encoder)
        wanted = [chunk for chunk in chunks(SQUARES) if chunk.name.startswith("square")]
        self.chunks = [(encoded(folder, c), c.pictures(folder), described(folder, c, encoder)) for c in wanted]

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents, contexts and Canny maps (B, 3, H, W). What no caption says must be read from the edges."""
        rows, contexts, maps = [], [], []
        for _ in range(BATCH):
            latents, painted, texts = self.rng.choice(self.chunks)
            index = self.rng.randrange(len(latents))
            rows.append(latents[index])
            maps.append(canny(np.ascontiguousarray(painted[index]), 100, 200))
            contexts.append(self.rng.choice(texts[index]) if self.rng.random() < 0.5 else self.rng.choice(self.blanks))
        shown = torch.from_numpy(np.stack(maps)).permute(0, 3, 1, 2).float() / 255
        return here(torch.stack(rows)).float(), here(torch.stack(contexts)).float(), here(shown)


def loss_of(
    unet: UNet2DConditionModel, control: ControlNetModel, latents: Tensor, contexts: Tensor, maps: Tensor
) -> Tensor:
    """Return the weighted squared error of the noise that the frozen UNet predicts under control."""

    def led(noisy: Tensor, times: Tensor, contexts: Tensor) -> Any:
        down, mid = control(noisy, times, contexts, maps, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return unet(noisy, times, contexts, **residuals)

    times, noise = torch.randint(0, 1000, (len(latents),)), torch.randn_like(latents)
    return (weights(times, LEAST) * noise_error(led, latents, contexts, times, noise)).mean()


def train(folder: Path, target: Path, steps: int) -> None:
    """Train for `steps` beside the frozen embedded UNet, and write the averaged weights."""
    torch.manual_seed(7)
    unet = load(resolve(None, None).files).unet.network
    assert isinstance(unet, UNet2DConditionModel)
    control = ControlNetModel.from_unet(unet).requires_grad_(True)
    for network in (unet, control):
        fast_attention(network)
        network.to(memory_format=torch.channels_last)
        compile_blocks(network)
    scenes, log, checkpoint = Scenes(folder), Log(folder / "control.csv"), folder / "control.pt"
    optimizer = torch.optim.AdamW(control.parameters(), 1e-3, (0.9, 0.99), weight_decay=1e-2)
    run = resume(checkpoint, control, optimizer, steps)
    while run.done < 1:
        loss = loss_of(unet, control, *scenes.batch())
        run.descend(loss, 1e-3)
        log.add(run.step, {"loss": float(loss.detach())})
        if run.step % SAVE_EVERY == 0:
            run.save(checkpoint)
    write(target, run.average.weights, "pastel-tiny canny")
    checkpoint.unlink(missing_ok=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the training's folder")
    parser.add_argument("--to", type=Path, required=True, help="folder for canny-tiny.safetensors")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train(options.out, options.to / "canny-tiny.safetensors", options.steps)


if __name__ == "__main__":
    main()

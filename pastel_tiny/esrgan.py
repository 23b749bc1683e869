"""Train an upscaler with ESRGAN's structure (RRDBNet, 4 times) to draw sharply what was painted larger.

    python -m pastel_tiny.esrgan --to tests/data/upscalers --start EARLIER/4x-tiny.safetensors

It learns from scenes painted at four times the base size, by the mean absolute error and without an adversary. Soft
pictures are hard to beat a plain resize on. From nothing that takes more than 2,000 steps, so there is `--start`.
"""

import argparse
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from pastel_tiny.dataset import SIDE, halve, tensor
from pastel_tiny.measure import Pictures
from pastel_tiny.networks import identity
from pastel_tiny.pack import write
from pastel_tiny.progress import Log, rate
from pastel_tiny.render import render
from pastel_tiny.scenes import scene
from pipelines.upscalers.esrgan import torchvision_or_a_stand_in

NAME = "4x-tiny"
TRAIN_SEED, SCENES = 60_000_000, 160
SCALE, CROP, BATCH, STEPS = 4, 32, 4, 1500
"""Side of the crops that are enlarged, in pixels, and the number of crops per step."""


def train(target: Path, steps: int, start: Path | None = None) -> None:
    """Train for `steps`, and write the weights under the names of ESRGAN's own files.

    It begins as an earlier network if there is one. That learns at a lower rate, so that it keeps what it knows.
    """
    with torchvision_or_a_stand_in():
        from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet
    torch.manual_seed(15)
    rng = random.Random(15)
    network = RRDBNet(in_nc=3, out_nc=3, num_filters=16, num_blocks=1, scale=SCALE, plus=False)
    _start_smoothly(network)
    if start is not None:
        network.load_state_dict(load_file(start))
    peak = 2e-3 if start is None else 5e-4
    network.to(memory_format=torch.channels_last)
    large = np.stack([render(scene(TRAIN_SEED + k), 4 * SIDE, 4 * SIDE) for k in range(SCENES)])
    small = halve(halve(large))
    optimizer = torch.optim.Adam(network.parameters(), peak, (0.9, 0.99))
    log = Log(target.with_suffix(".csv"))
    for step in range(steps):
        inputs, targets = _crops(small, large, rng)
        # WebUI, and so this container, gives such networks blue, green, red
        loss = F.l1_loss(network(inputs.flip(1)), targets.flip(1))
        optimizer.param_groups[0]["lr"] = rate(peak, step / steps, step, 100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log.add(step, {"loss": float(loss.detach())})
    write(target, network.state_dict(), NAME)


@torch.no_grad()
def _start_smoothly(network: Any) -> None:
    """Start from a network that enlarges like a plain resize, so that training only has to sharpen; the structure has
    no skip around it."""
    for name, conv in network.named_modules():
        if isinstance(conv, nn.Conv2d) and "RDB" not in name:
            identity(conv, [(k, k, 0.0 if "sub" in name else 1.0) for k in range(3)])
    tent = torch.tensor([0.25, 0.5, 0.25])
    for layer, following in pairwise(network.model):
        if type(layer).__name__ == "Upsample":
            following.weight[range(3), range(3)] = torch.outer(tent, tent)


def _crops(small: Pictures, large: Pictures, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Return crops (B, 3, CROP, CROP) and the same at four times the size, in [0, 1]."""
    pairs = []
    for _ in range(BATCH):
        index, top, left = rng.randrange(len(small)), *(rng.randrange(small.shape[1] - CROP + 1) for _ in range(2))
        pairs.append(
            (_crop(small[index], top, left, CROP), _crop(large[index], SCALE * top, SCALE * left, SCALE * CROP))
        )
    inputs, targets = (tensor(np.stack(each)) / 2 + 0.5 for each in zip(*pairs, strict=True))
    return inputs, targets


def _crop(picture: Pictures, top: int, left: int, side: int) -> Pictures:
    return picture[top : top + side, left : left + side]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, help=f"where {NAME}.safetensors goes")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--start", type=Path, help="an earlier version's file, to begin with its weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    train(options.to / f"{NAME}.safetensors", options.steps, options.start)


if __name__ == "__main__":
    main()

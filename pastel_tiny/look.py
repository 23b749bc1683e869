"""Draw the standing prompts with the trained networks, to look at.

python -m pastel_tiny.look --out DIR --guidance 7 --vae better --to sheet.png
"""

import argparse
from pathlib import Path

import torch

from pastel_tiny.dataset import SIDE
from pastel_tiny.latents import folded
from pastel_tiny.sampler import PROMPTS, Look, Trained, sheet
from pastel_tiny.text import Encoder
from pastel_tiny.unet import averaged
from pipelines.ask.identity import TOKENIZER


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the training's folder")
    parser.add_argument("--to", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--guidance", type=float, default=7.0)
    parser.add_argument("--vae", choices=("calm", "better"), default="better")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, nargs=2, default=(SIDE, SIDE), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("prompts", nargs="*", default=PROMPTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    networks = Trained(averaged(options.out), folded(options.out, options.vae), Encoder(options.out, TOKENIZER))
    size = options.size[1] // 8, options.size[0] // 8
    sheet(options.to, networks, tuple(options.prompts), Look(options.guidance, size, options.seed))


if __name__ == "__main__":
    main()

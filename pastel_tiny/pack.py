"""Pack trained networks into the single-file layout of the original Stable Diffusion, in fp16.

python -m pastel_tiny.pack --out DIR --to weights_script/embedded
"""

import argparse
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from pastel_tiny.latents import folded
from pastel_tiny.progress import load
from pastel_tiny.unet import averaged
from pipelines.families.layouts import UNET_PREFIX, VAE_PREFIX
from pipelines.families.sd1 import SD1
from pipelines.models.export import unet_weights, vae_weights

COMMAND = "python -m pastel_tiny.train --out DIR && python -m pastel_tiny.pack --out DIR --to weights_script/embedded"


def text_weights(folder: Path) -> dict[str, Tensor]:
    """Return the text encoder's weights, whichever prefix this release of transformers saves them with."""
    state = load(folder / "text.pt")
    assert state is not None, "the text encoder is not trained yet"
    return {key.removeprefix("text_model."): value for key, value in state["network"].items()}


def write(path: Path, weights: dict[str, Tensor], name: str) -> None:
    """Write fp16 safetensors to a temporary file, then rename it."""
    halves = {key: value.detach().half().contiguous() for key, value in weights.items()}
    assert all(bool(torch.isfinite(value).all()) for value in halves.values())
    metadata = {"format": "pt", "modelspec.title": name, "modelspec.license": "MIT", "train_command": COMMAND}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(halves, part, metadata)
    part.chmod(0o644)  # safetensors makes files that only their owner can read
    os.replace(part, path)
    print(f"{path.name}: {path.stat().st_size:,} bytes")


def pack(folder: Path, target: Path) -> None:
    """Write the checkpoint and the better VAE (the stock one until it is trained)."""
    weights = unet_weights(averaged(folder), UNET_PREFIX) | vae_weights(folded(folder), VAE_PREFIX)
    weights |= {f"{SD1.texts[0].prefix}text_model.{key}": value for key, value in text_weights(folder).items()}
    write(target / "pastel-tiny.safetensors", weights, "pastel-tiny")
    better = folded(folder, "better" if (folder / "better.pt").exists() else "calm")
    write(target / "pastel-tiny-better.vae.safetensors", vae_weights(better), "pastel-tiny better VAE")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the training's folder")
    parser.add_argument("--to", type=Path, required=True, help="folder for the safetensors")
    arguments = parser.parse_args()
    pack(arguments.out, arguments.to)


if __name__ == "__main__":
    main()

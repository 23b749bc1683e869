"""Pack trained networks in the single-file layout of the original Stable Diffusion, in fp16.

python -m pastel_tiny.pack --out DIR --to weights_script/embedded
"""

import argparse
import os
import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from pastel_tiny.latents import folded
from pastel_tiny.progress import load
from pastel_tiny.unet import averaged

COMMAND = "python -m pastel_tiny.train --out DIR && python -m pastel_tiny.pack --out DIR --to weights_script/embedded"
NAMES = {
    "unet": (
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("conv_norm_out", "out.0"),
        ("conv_out", "out.2"),
        ("conv_in", "input_blocks.0.0"),
    ),
    "resnet": (
        ("norm1", "in_layers.0"),
        ("conv1", "in_layers.2"),
        ("norm2", "out_layers.0"),
        ("conv2", "out_layers.3"),
        ("time_emb_proj", "emb_layers.1"),
        ("conv_shortcut", "skip_connection"),
    ),
    "vae": (
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
        ("mid_block.attentions.0.", "mid.attn_1."),
        ("mid_block.resnets.0.", "mid.block_1."),
        ("mid_block.resnets.1.", "mid.block_2."),
    ),
    "attention": (
        ("group_norm.", "norm."),
        ("to_q.", "q."),
        ("to_k.", "k."),
        ("to_v.", "v."),
        ("to_out.0.", "proj_out."),
    ),
}


def _renamed(key: str, kind: str) -> str:
    for old, new in NAMES[kind]:
        key = key.replace(old, new)
    return key


def unet_key(key: str) -> str:
    """The original name of a diffusers UNet weight."""
    if found := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", key):
        side, block, kind, index, rest = found.groups()
        place = 3 * int(block) + int(index) + (side == "down")
        rest = _renamed(rest, "resnet") if kind == "resnets" else rest
        return f"{'input' if side == 'down' else 'output'}_blocks.{place}.{int(kind == 'attentions')}.{rest}"
    if found := re.match(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.*)", key):
        return f"input_blocks.{3 * int(found[1]) + 3}.0.op.{found[2]}"
    if found := re.match(r"up_blocks\.(\d)\.upsamplers\.0\.(.*)", key):
        # the innermost level has no attention, so its upsampler comes right after the residual block
        return f"output_blocks.{3 * int(found[1]) + 2}.{1 if found[1] == '0' else 2}.{found[2]}"
    if found := re.match(r"mid_block\.resnets\.(\d)\.(.*)", key):
        return f"middle_block.{2 * int(found[1])}.{_renamed(found[2], 'resnet')}"
    if key.startswith("mid_block.attentions.0."):
        return key.replace("mid_block.attentions.0.", "middle_block.1.")
    return _renamed(key, "unet")


def vae_key(key: str) -> str:
    """The original name of a diffusers autoencoder weight."""
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{3 - int(found[1])}.upsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda found: f"up.{3 - int(found[1])}.block", key)
    return _renamed(_renamed(key, "vae"), "attention") if "attentions" in key else _renamed(key, "vae")


def unet_weights(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The UNet under its original names, without prefix."""
    return {unet_key(key): value for key, value in unet.state_dict().items()}


def vae_weights(vae: AutoencoderKL) -> dict[str, Tensor]:
    """The autoencoder under its original names; its attention was made of 1 x 1 convolutions."""
    weights = {}
    for key, value in vae.state_dict().items():
        matrix = "attentions" in key and value.ndim == 2
        weights[vae_key(key)] = value[:, :, None, None] if matrix else value
    return weights


def text_weights(folder: Path) -> dict[str, Tensor]:
    """The text encoder's weights, whichever prefix this release of transformers saves them with."""
    state = load(folder / "text.pt")
    assert state is not None, "the text encoder is not trained yet"
    return {key.removeprefix("text_model."): value for key, value in state["network"].items()}


def write(path: Path, weights: dict[str, Tensor], name: str) -> None:
    """Write fp16 safetensors by rename."""
    halves = {key: value.detach().half().contiguous() for key, value in weights.items()}
    assert all(bool(torch.isfinite(value).all()) for value in halves.values())
    metadata = {"format": "pt", "modelspec.title": name, "modelspec.license": "MIT", "train_command": COMMAND}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(halves, part, metadata)
    part.chmod(0o644)  # safetensors creates files for their owner only
    os.replace(part, path)
    print(f"{path.name}: {path.stat().st_size:,} bytes")


def pack(folder: Path, target: Path) -> None:
    """Write the checkpoint, and the better VAE (until it is trained: the stock one)."""
    weights = {f"model.diffusion_model.{key}": value for key, value in unet_weights(averaged(folder)).items()}
    weights |= {f"first_stage_model.{key}": value for key, value in vae_weights(folded(folder)).items()}
    weights |= {f"cond_stage_model.transformer.text_model.{key}": value for key, value in text_weights(folder).items()}
    write(target / "pastel-tiny.safetensors", weights, "pastel-tiny")
    better = folded(folder, "better" if (folder / "better.pt").exists() else "vae")
    write(target / "pastel-tiny-better.vae.safetensors", vae_weights(better), "pastel-tiny better VAE")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the training's folder")
    parser.add_argument("--to", type=Path, required=True, help="where the safetensors go")
    arguments = parser.parse_args()
    pack(arguments.out, arguments.to)


if __name__ == "__main__":
    main()

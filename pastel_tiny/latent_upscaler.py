"""Train a latent upscaler with sd-x2-latent-upscaler's structure, for the embedded model's latents.

    python -m pastel_tiny.latent_upscaler --out DIR --to tests/data/upscalers/x2-tiny

DIR is the folder of `pastel_tiny.train`: its pictures of twice the base size are read; halved ones are encoded once and
kept there. The result is a diffusers folder.
"""

import argparse
import random
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from pastel_tiny.dataset import chunks
from pastel_tiny.latents import encoded
from pastel_tiny.networks import Average, half_precision, here
from pastel_tiny.progress import Log
from pastel_tiny.session import Session
from pipelines.ask.prompt import END, START
from pipelines.runtime.device import Device
from pipelines.upscalers.latent import NOISE_LEVELS, LatentUpscaler, load_latent_upscaler

WIDTH = 16
BATCH, SIDE, STEPS = 8, 24, 1300
"""Pictures per step, and the side of their crops, in latents of the larger size."""
SQUARES = 4
"""Chunks of squares; those of twice the size are stored beside them."""
SIGMAS = 0.03, 14.6


def build_unet() -> UNet2DConditionModel:
    """Return a fresh K-UNet: the original's blocks, but narrower and fewer."""
    return UNet2DConditionModel(
        in_channels=8,
        out_channels=5,
        act_fn="gelu",
        attention_head_dim=8,
        norm_num_groups=None,
        block_out_channels=(48, 48, 96, 96),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        time_cond_proj_dim=2 * NOISE_LEVELS + WIDTH,
        conv_in_kernel=1,
        conv_out_kernel=1,
        mid_block_type=None,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        down_block_types=("KDownBlock2D", *["KCrossAttnDownBlock2D"] * 3),
        up_block_types=(*["KCrossAttnUpBlock2D"] * 3, "KUpBlock2D"),
    )


def begin(target: Path) -> LatentUpscaler:
    """Write the folder with an untrained network, and load it as the container does.

    The text encoder only ever reads the empty prompt, so its table of words stays empty.
    """
    config = CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_attention_heads=2,
        num_hidden_layers=1,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=END,
    )
    text = CLIPTextModel(config)
    torch.nn.init.zeros_(text.get_input_embeddings().weight)
    text.half().save_pretrained(target / "text_encoder")
    schedule = EulerDiscreteScheduler(prediction_type="sample", beta_schedule="scaled_linear")
    schedule.save_pretrained(target / "scheduler")
    build_unet().half().save_pretrained(target / "unet")
    return load_latent_upscaler(target, Device(torch.device("cpu"), torch.float32))


def loss_of(upscaler: LatentUpscaler, small: Tensor, large: Tensor) -> Tensor:
    """Return the squared error of the network's output, at noise of any strength (Karras et al. 2022, equation 8).

    `small` are the latents of a picture, `large` (B, 4, 2h, 2w) those of the same picture at twice the size.
    """
    low, high = torch.tensor(SIGMAS).log()
    sigmas = (torch.rand(len(large), 1, 1, 1) * (high - low) + low).exp()
    scale = (sigmas**2 + 1) ** -0.5
    noisy = large + sigmas * torch.randn_like(large)
    images = torch.cat([noisy * scale, F.interpolate(small, scale_factor=2, mode="nearest")], 1)
    context, condition = (each.expand(len(large), *each.shape[1:]) for each in (upscaler.context, upscaler.condition))
    with half_precision():
        times = sigmas.flatten().log() / 4
        guess = upscaler.unet(images, times, context, timestep_cond=condition, return_dict=False)[0][:, :4]
    return (guess.float() - (large - noisy * scale**2) / (sigmas * scale)).square().mean()


class Pairs:
    """Latents of pictures at the base size and at twice that size."""

    def __init__(self, folder: Path) -> None:
        self.rng = random.Random(13)
        self.pairs = [
            (encoded(folder, replace(chunk, name=f"{chunk.name}_half", small=True)), encoded(folder, chunk))
            for chunk in chunks(SQUARES)
            if not chunk.small
        ]

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return crops (B, 4, 12, 12) and (B, 4, 24, 24) of the same places."""
        rows = []
        for _ in range(BATCH):
            small, large = self.rng.choice(self.pairs)
            index = self.rng.randrange(len(large))
            top, left = (self.rng.randrange((side - SIDE) // 2 + 1) for side in large.shape[2:])
            rows.append((_crop(small[index], top, left, SIDE // 2), _crop(large[index], 2 * top, 2 * left, SIDE)))
        small, large = (here(torch.stack(each)).float() for each in zip(*rows, strict=True))
        return small, large


def _crop(latents: Tensor, top: int, left: int, side: int) -> Tensor:
    return latents[:, top : top + side, left : left + side]


def train(folder: Path, target: Path, steps: int) -> None:
    """Train for `steps`, and write the averaged weights."""
    torch.manual_seed(9)
    upscaler, pairs, log = begin(target), Pairs(folder), Log(folder / "x2.csv")
    unet = upscaler.unet.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(unet.parameters(), 1e-3, (0.9, 0.99), weight_decay=1e-2)
    run = Session(unet, Average(unet, 0.998), optimizer, steps)  # too short to need resuming
    while run.done < 1:
        loss = loss_of(upscaler, *pairs.batch())
        run.descend(loss, 2e-3)
        log.add(run.step, {"loss": float(loss.detach())})
    unet.load_state_dict(run.average.weights)
    unet.half().save_pretrained(target / "unet")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the training's folder")
    parser.add_argument("--to", type=Path, required=True, help="the diffusers folder to write")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train(options.out, options.to, options.steps)


if __name__ == "__main__":
    main()

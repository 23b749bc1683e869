"""A small classifier that recognises what a picture shows, trained on drawn scenes: the measure of the embedded model.

    python -m pastel_tiny.judge --out DIR --vae VAE.safetensors --to tests/data

It never saw a picture of the UNet and plays no part in training one. It learns from drawn scenes as they are, blurred,
and as the autoencoder returns them, so that it judges what is drawn and not how sharp it is.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pastel_tiny.dataset import SHAPES, TEST_SEED, painted, tensor
from pastel_tiny.networks import half_precision
from pastel_tiny.progress import Log, rate
from pastel_tiny.scenes import (
    GROUND_COLOURS,
    HAIR_COLOURS,
    LIGHT_COLOURS,
    LIGHTS,
    SKY_COLOURS,
    SUBJECT_COLOURS,
    SUBJECTS,
    WEATHERS,
    Scene,
    scene,
)
from pipelines.models.loader import load_vae
from pipelines.runtime.device import Device

SEEN: dict[str, tuple[str, ...]] = {
    "sky": SKY_COLOURS,
    "night": ("", "night"),
    "ground": tuple(GROUND_COLOURS),
    "ground_colour": tuple(dict.fromkeys(word for words in GROUND_COLOURS.values() for word in words)),
    "light": LIGHTS,
    "light_colour": ("", *LIGHT_COLOURS),
    "subject": ("", *SUBJECTS),
    "subject_colour": ("", *SUBJECT_COLOURS),
    "hair": ("", *HAIR_COLOURS),
    "weather": WEATHERS,
}
"""Attribute -> the values that the judge can recognise."""
FILE = "judge.safetensors"
TRAIN_SEED, TRAIN_COUNT, TEST_COUNT, BATCH, STEPS = 20_000_000, 6000, 400, 64, 1500
SOFT = 4
"""One picture in so many is also seen after a pass through the autoencoder, which takes far longer than to draw it."""


class Judge(nn.Module):
    """Pictures of the base size (B, 3, 160, 160) in [-1, 1] -> scores of every value of every attribute."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 24), (24, 48), (48, 96), (96, 96), (96, 96)):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.mix = nn.Linear(2 * 96, 128)
        self.heads = nn.ModuleDict({name: nn.Linear(128, len(values)) for name, values in SEEN.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return scores by attribute: (B, values)."""
        found = F.silu(self.mix(self.features(pictures)))
        return {name: head(found) for name, head in self.heads.items()}

    def features(self, pictures: Tensor) -> Tensor:
        """Return what is in the pictures, regardless of its position: (B, 192)."""
        cells = self.body(pictures).flatten(2)
        return torch.cat([cells.mean(2), cells.amax(2)], 1)

    @torch.inference_mode()
    def see(self, pictures: NDArray[np.uint8]) -> list[dict[str, str]]:
        """Return what each of the pictures (B, 160, 160, 3) shows."""
        scores = self(tensor(pictures).contiguous())
        picks = {name: values.argmax(1).tolist() for name, values in scores.items()}
        return [{name: SEEN[name][picks[name][k]] for name in SEEN} for k in range(len(pictures))]


def load_judge(folder: Path) -> Judge:
    """Return the trained judge."""
    judge = Judge()
    judge.load_state_dict({name: value.float() for name, value in load_file(folder / FILE).items()})
    return judge.eval()


def shown(seed: int) -> Scene:
    """Return any scene; one in four has a pair that the embedded model is never trained on.

    A judge that never saw a blue heart recognises a drawn one only half of the time.
    """
    return scene(seed, held=seed % 4 == 0)


def truth(of: Scene) -> dict[str, str]:
    """Return what a scene shows, in the judge's words."""
    return {name: ("night" if of.night else "") if name == "night" else getattr(of, name) for name in SEEN}


def targets(first: int, count: int) -> dict[str, Tensor]:
    """Return class numbers of a run of scenes, by attribute."""
    truths = [truth(shown(first + k)) for k in range(count)]
    return {name: torch.tensor([values.index(each[name]) for each in truths]) for name, values in SEEN.items()}


@torch.inference_mode()
def reconstructed(vae: AutoencoderKL, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return pictures after a pass through the autoencoder."""
    parts = []
    for start in range(0, len(pictures), 16):
        with half_precision():
            output = vae.decode(vae.encode(tensor(pictures[start : start + 16])).latent_dist.mean).sample
        parts.append(((output.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def pictures_of(folder: Path, vae: AutoencoderKL, name: str, first: int, count: int) -> NDArray[np.uint8]:
    """Return drawn scenes, followed by the first of them as the autoencoder returns them; kept for the next run."""
    drawn = np.asarray(painted(folder / f"judge_{name}.npy", first, count, SHAPES[0], True, shown))
    path = folder / f"judge_{name}_vae.npy"
    if not path.exists():
        np.save(path, reconstructed(vae, drawn[: count // SOFT]))
    return np.concatenate([drawn, np.load(path)])


def augmented(batch: NDArray[np.uint8], rng: random.Random) -> Tensor:
    """Shift brightness, contrast, position and sharpness slightly. Pictures are not mirrored, because sides are
    attributes."""
    pictures = tensor(np.roll(batch, (rng.randint(-4, 4), rng.randint(-4, 4)), (1, 2))).contiguous()
    if rng.random() < 0.5:
        pictures = F.avg_pool2d(pictures, 3, 1, 1, count_include_pad=False)
    scale = 1 + 0.12 * torch.randn(len(batch), 1, 1, 1)
    return pictures * scale + 0.06 * torch.randn(len(batch), 1, 1, 1) + 0.06 * torch.randn_like(pictures)


def train(folder: Path, vae: AutoencoderKL, steps: int) -> Judge:
    """Train for `steps` and print the accuracy on scenes that were never trained on."""
    torch.manual_seed(9)
    rng, judge, log = random.Random(9), Judge(), Log(folder / "judge.csv")
    pictures, goal = pictures_of(folder, vae, "train", TRAIN_SEED, TRAIN_COUNT), targets(TRAIN_SEED, TRAIN_COUNT)
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=2e-2)
    for step in range(steps):
        rows = np.array(rng.sample(range(len(pictures)), BATCH))
        with half_precision():
            scores = judge(augmented(pictures[rows], rng))
        losses = [F.cross_entropy(scores[name].float(), goal[name][rows % TRAIN_COUNT]) for name in SEEN]
        error = torch.stack(losses).sum()
        optimizer.param_groups[0]["lr"] = rate(2e-3, step / steps, step, 100)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        log.add(step, {"loss": float(error.detach())})
    judge.eval()
    log.write({"step": steps, **accuracy(judge, pictures_of(folder, vae, "test", TEST_SEED, TEST_COUNT))})
    return judge


def accuracy(judge: Judge, pictures: NDArray[np.uint8]) -> dict[str, float]:
    """Return the share of test pictures judged right, by attribute; first drawn ones, then the same autoencoded."""
    seen = judge.see(pictures)
    truths = [truth(shown(TEST_SEED + k)) for k in (*range(TEST_COUNT), *range(TEST_COUNT // SOFT))]
    return {name: float(np.mean([a[name] == b[name] for a, b in zip(seen, truths, strict=True)])) for name in SEEN}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--vae", type=Path, required=True, help="autoencoder whose softness the judge learns to ignore")
    parser.add_argument("--to", type=Path, required=True, help=f"folder for {FILE}")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    vae = load_vae(options.vae, Device(torch.device("cpu"), torch.float32)).to(memory_format=torch.channels_last)
    judge = train(options.out, vae, options.steps)
    save_file({name: value.half().contiguous() for name, value in judge.state_dict().items()}, options.to / FILE)


if __name__ == "__main__":
    main()

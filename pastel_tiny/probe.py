"""Test whether pictures show what the judge was never taught, a snowman or a coral sky. Measures `pastel_tiny.adapt`.

    python -m pastel_tiny.probe --judge tests/data --pictures 24

The probe was fitted without any picture of the UNet, and noise meets neither measure.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pastel_tiny.adapt import AFTERGLOW, SNOWMAN, TEST_SEED, with_snowman
from pastel_tiny.dataset import SHAPES, SIDE, halve, tensor
from pastel_tiny.judge import Judge, load_judge
from pastel_tiny.measure import DRAFT, Pictures, drawn
from pastel_tiny.palette import colour
from pastel_tiny.render import render
from pastel_tiny.scenes import Scene, scene
from pipelines.ask.networks import Extras, in_folders
from pipelines.models.loader import load
from weights_script.resolve import resolve

TRAINED, RIDGE = 120, 10.0
WITH_SNOWMAN = (
    "a snowman on the green hills under a blue sky",
    "a snowman in the snow under a pink sky",
    "a snowman before the purple mountains under an orange sky",
)
WITH_AFTERGLOW = (
    "a white house on the green hills under an afterglow sky",
    "a boat on the blue sea, afterglow sky",
    "a tree in the yellow desert under an afterglow sky",
)

NEAREST_WORDS = ("coral", "pink", "orange")
"""What one could say instead: its name, which means nothing to the model, and the colours on either side of it."""


def drawings(scenes: Sequence[Scene]) -> Pictures:
    """Return the scenes as they are drawn: (B, 160, 160, 3)."""
    return np.concatenate([halve(render(each, *SHAPES[0])[None]) for each in scenes])


def noise(count: int, seed: int) -> Pictures:
    """Return pictures of noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


class Probe:
    """Tells drawn snowmen from everything else with another read-out of the judge's features: a ridge regression."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        without = np.concatenate([drawings([scene(TEST_SEED + k) for k in range(TRAINED)]), noise(TRAINED // 6, 0)])
        features = torch.cat([self._features(snowmen(TEST_SEED, TRAINED)), self._features(without)])
        goal = torch.cat([torch.ones(TRAINED), -torch.ones(len(without))])
        self.weights = torch.linalg.solve(
            features.T @ features + RIDGE * torch.eye(features.shape[1]), features.T @ goal
        )

    def share(self, pictures: Pictures) -> float:
        """Return the share of the pictures that show a snowman."""
        return float((self._features(pictures) @ self.weights > 0).float().mean())

    @torch.inference_mode()
    def _features(self, pictures: Pictures) -> Tensor:
        found = self.judge.features(tensor(pictures).contiguous())
        return torch.cat([found, torch.ones(len(found), 1)], 1)


def snowmen(first: int, count: int) -> Pictures:
    """Return drawn scenes with a snowman."""
    return drawings([with_snowman(first + k) for k in range(count)])


def skies(pictures: Pictures) -> NDArray[np.float64]:
    """Return the median colour of each picture's top: (B, 3) in [0, 1]."""
    return np.median(pictures[:, :16].reshape(len(pictures), -1, 3), 1) / 255


def from_coral(pictures: Pictures) -> float:
    """Return the mean distance of the skies' colours from coral, in the colour cube of side 1."""
    return float(np.linalg.norm(skies(pictures) - np.array(colour("coral")), axis=1).mean())


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path, required=True, help="folder with the judge, loras and embeddings")
    parser.add_argument("--pictures", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(1)
    networks, probe = load(resolve(None, None).files), Probe(load_judge(options.judge))
    extras = in_folders(options.judge / "loras", options.judge / "embeddings")

    def pictures(prompts: Sequence[str], extras: Extras, ending: str = "", negative: str = "") -> NDArray[np.uint8]:
        asked = [f"{prompts[k % len(prompts)]}{ending}" for k in range(options.pictures)]
        return np.stack(list(drawn(networks, asked, replace(DRAFT, negative_prompt=negative, extras=extras))))

    others = drawings([scene(TEST_SEED + 5000 + k) for k in range(200)])
    print(
        f"unseen drawings: snowmen {probe.share(snowmen(TEST_SEED + 5000, 200)):.1%}, others {probe.share(others):.1%}"
    )
    for weight in (0, 0.5, 1):
        found = probe.share(pictures(WITH_SNOWMAN, extras, f" <lora:{SNOWMAN}:{weight:g}>"))
        print(f"snowmen with the LoRA at {weight:g}: {found:.0%}")
    for word in (AFTERGLOW, *NEAREST_WORDS):
        prompts = [prompt.replace(AFTERGLOW, word) for prompt in WITH_AFTERGLOW]
        print(f"from coral, a sky that is called {word}: {from_coral(pictures(prompts, extras)):.3f}")


if __name__ == "__main__":
    main()

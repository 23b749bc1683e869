"""The pictures for training: painted once at twice the base size, stored as bytes, and averaged down where needed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pastel_tiny.networks import here
from pastel_tiny.render import render
from pastel_tiny.scenes import Scene, scene

TEST_SEED = 10_000_000  # scenes from here on are never trained on
SIDE = 160
"""The base size in pixels."""
# The shapes of the first pass (square, 3:2, 2:3), painted at twice the size; pictures of one shape are stored together.
SHAPES = ((2 * SIDE, 2 * SIDE), (3 * SIDE, 2 * SIDE), (2 * SIDE, 3 * SIDE))


def halve(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Average 2 x 2 pixels, which gives the smaller picture of the same painting."""
    batch, height, width, _ = pictures.shape
    blocks = pictures.reshape(batch, height // 2, 2, width // 2, 2, 3)
    return blocks.mean((2, 4), dtype=np.float32).round().astype(np.uint8)


def tensor(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """Convert bytes to a batch in [-1, 1], in the memory layout that the CPU's bf16 convolutions prefer."""
    batch = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return here(batch.contiguous(memory_format=torch.channels_last))


def painted(
    path: Path,
    first: int,
    count: int,
    shape: tuple[int, int],
    small: bool = False,
    shown: Callable[[int], Scene] = scene,
) -> NDArray[np.uint8]:
    """Return the pictures of `count` seeds from `first` on, halved if `small`. Paint them, or read an earlier run's."""
    width, height = shape
    if path.exists():
        return np.load(path, mmap_mode="r")
    path.parent.mkdir(parents=True, exist_ok=True)
    share = 2 if small else 1
    pictures = np.empty((count, height // share, width // share, 3), np.uint8)
    for index in range(count):
        picture = render(shown(first + index), width, height)
        pictures[index] = halve(picture[None])[0] if small else picture
        if index % 1000 == 0:
            print(f"[paint] {path.stem} {index}/{count}", flush=True)
    part = path.with_suffix(".part.npy")
    np.save(part, pictures)
    part.rename(path)
    return np.load(path, mmap_mode="r")


@dataclass(frozen=True)
class Chunk:
    """A run of scenes of one shape that are painted, and later encoded, together."""

    name: str
    first: int
    count: int
    shape: tuple[int, int]
    small: bool

    def pictures(self, folder: Path) -> NDArray[np.uint8]:
        """Return the chunk's pictures."""
        return painted(folder / f"{self.name}.npy", self.first, self.count, self.shape, self.small)


SQUARES, REST = 1000, 400
"""Scenes of a chunk of squares, and of a chunk of another shape or size."""
OTHERS = {
    "large0": (0, 2000, SHAPES[0], False),
    "wide0": (1, 2000, SHAPES[1], True),
    "tall0": (1, 4000, SHAPES[2], True),
    "large_wide0": (2, 2000, SHAPES[1], False),
    "large_tall0": (2, 4000, SHAPES[2], False),
}
"""The other shapes, each paired with a chunk of squares: its index, offset of the first scene, shape, halved or not."""


def chunks(squares: int) -> list[Chunk]:
    """Return what the UNet learns from: mostly squares of the base size, some 3:2 and 2:3, and all three at twice the
    size for highres fix."""
    result: list[Chunk] = []
    for index in range(squares):
        first = 100_000 + 10_000 * index
        result.append(Chunk(f"square{index}", first, SQUARES, SHAPES[0], True))
        result += [
            Chunk(name, first + offset, REST, shape, small)
            for name, (beside, offset, shape, small) in OTHERS.items()
            if beside == index
        ]
    return result

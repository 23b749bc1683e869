"""Frames between drawn ones, computed by FILM (Reda et al. 2022, https://arxiv.org/abs/2202.04901).

The network is a TorchScript program, which could do harm. So only the file with the manifest's SHA-256 is ever loaded,
and it is hashed from the same bytes that are loaded. Frames are never mixed in its place.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipelines.errors import ModelError, in_one_line
from pipelines.images.reading import Pixels
from pipelines.runtime.device import Device

MULTIPLE = 64
"""The network halves its input six times."""

Save = Callable[[Pixels, int], Path]
"""Writes a computed frame, by its number, and returns its file."""


@dataclass(frozen=True)
class Interpolator:
    """The network: two pictures (1, 3, H, W) from 0 to 1 and the time (1, 1) between them -> the picture there."""

    network: Callable[[Tensor, Tensor, Tensor], Tensor]
    device: Device

    @torch.inference_mode()
    def middle(self, start: Pixels, end: Pixels) -> Pixels:
        """Return the picture half-way between two of the same size, uint8 (H, W, 3)."""
        half = torch.full((1, 1), 0.5, dtype=self.device.dtype, device=self.device.place)
        between = self.network(self._tensor(start), self._tensor(end), half)
        height, width = start.shape[:2]
        pixels = between[0, :, :height, :width].float().clamp(0, 1).mul(255).round().to(torch.uint8)
        return pixels.permute(1, 2, 0).cpu().numpy()

    def between(self, start: Pixels, end: Pixels, count: int) -> list[Pixels]:
        """Return `count` pictures between two, by halves: the network was trained for the middle."""
        if count == 0:
            return []
        before = (count - 1) // 2
        middle = self.middle(start, end)
        return [*self.between(start, middle, before), middle, *self.between(middle, end, count - 1 - before)]

    def _tensor(self, pixels: Pixels) -> Tensor:
        picture = torch.from_numpy(pixels.copy()).to(self.device.place).permute(2, 0, 1)[None].float() / 255
        height, width = picture.shape[2:]
        padded = F.pad(picture, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")
        return padded.to(self.device.dtype)


def load_interpolator(path: Path, sha256: str, device: Device) -> Interpolator:
    """Load FILM if the file is the one with this hash. Raises ModelError."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ModelError(f"{path.name}: it is not the file that the manifest names. Delete it, to fetch it again.")
    try:
        network = torch.jit.load(BytesIO(content), map_location="cpu")
    except RuntimeError as error:
        raise ModelError(f"{path.name}: cannot be loaded ({in_one_line(error)})") from error
    return Interpolator(network.eval().to(device.place, device.dtype), device)


def with_computed(
    files: Sequence[Path], interpolator: Interpolator, count: int, closed: bool, save: Save
) -> list[Path]:
    """Return the frames' files with `count` computed ones between neighbours, also at the end of a closed circle."""
    pairs = pairwise([*files, files[0]] if closed else files)
    result, number = list[Path](), 0
    for start, end in pairs:
        result.append(start)
        for pixels in interpolator.between(_read(start), _read(end), count):
            result.append(save(pixels, number))
            number += 1
    return result if closed else [*result, files[-1]]


def _read(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))

"""What the helper process of upscalers does (isolation.py): it builds a network and runs it once on a small picture."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipelines.errors import ModelError
from pipelines.esrgan import TILE, import_spandrel, load_esrgan

SIDE = 32
"""Pixels a side of the picture that a network is tried on."""
TENSOR_MAX = 1 << 30
"""Bytes of the largest tensor while a tile is enlarged, in float32. An ESRGAN that enlarges 8 times takes 600 MB."""


class _Largest(TorchDispatchMode):
    """Sees every tensor that is made, and keeps the size of the largest."""

    values = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.values = max(self.values, *(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)), 0)
        return made


def trial(file: BinaryIO, output: BinaryIO, path: str) -> str:
    """Build the network and enlarge a small picture with it. Returns what is wrong with it, "" for nothing."""
    largest = _Largest()
    try:
        upscaler = load_esrgan(Path(path), torch.device("cpu"), torch.float32)
    except ModelError as error:
        return str(error)
    with torch.inference_mode(), largest:
        made = upscaler.descriptor(torch.full((1, 3, SIDE, SIDE), 0.5))
    if made.shape != (1, 3, SIDE * upscaler.scale, SIDE * upscaler.scale):
        raise ValueError(f"it claims to enlarge {upscaler.scale} times, and does not")
    if 4 * largest.values * (TILE // SIDE) ** 2 > TENSOR_MAX:
        raise ValueError(f"it needs more than {TENSOR_MAX >> 30} GB for one tensor of a tile of {TILE} pixels")
    return ""


JOBS: Mapping[str, Callable[..., Any]] = {"trial": trial}
import_spandrel()  # before a child's memory is bounded

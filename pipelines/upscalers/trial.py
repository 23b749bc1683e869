"""What the helper process of upscalers does (isolation.py): it builds a network and runs it once on a small picture."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from pipelines.errors import ModelError
from pipelines.upscalers.esrgan import TILE, import_spandrel, load_esrgan

SIDE = 32
"""Pixels a side of the picture that a network is tried on."""
TENSOR_MAX = 1 << 30
"""Bytes of the largest tensor while a tile is enlarged, in float32. An ESRGAN that enlarges 8 times takes 600 MB."""


@contextmanager
def largest_tensor() -> Iterator[list[int]]:
    """Inside, sees what layers take and make; one number grows with it: the values of the largest tensor."""
    largest = [0]

    def see(module: nn.Module, taken: Any, made: Any) -> None:
        for tensor in (*taken, made):
            largest[0] = max(largest[0], tensor.numel() if isinstance(tensor, Tensor) else 0)

    hook = register_module_forward_hook(see)
    try:
        yield largest
    finally:
        hook.remove()


def trial(file: BinaryIO, output: BinaryIO, path: str) -> str:
    """Build the network and enlarge a small picture with it. Returns what is wrong with it, "" for nothing."""
    try:
        upscaler = load_esrgan(Path(path), torch.device("cpu"), torch.float32)
    except ModelError as error:
        return str(error)
    with torch.inference_mode(), largest_tensor() as largest:
        made = upscaler.descriptor(torch.full((1, 3, SIDE, SIDE), 0.5))
    if made.shape != (1, 3, SIDE * upscaler.scale, SIDE * upscaler.scale):
        raise ValueError(f"it claims to enlarge {upscaler.scale} times, and does not")
    if 4 * largest[0] * (TILE // SIDE) ** 2 > TENSOR_MAX:
        raise ValueError(f"it needs more than {TENSOR_MAX >> 30} GB for one tensor of a tile of {TILE} pixels")
    return ""


JOBS: Mapping[str, Callable[..., Any]] = {"trial": trial}
import_spandrel()  # before a child's memory is bounded

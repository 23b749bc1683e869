"""The job of the helper process for upscalers (isolation.py): build a network and run it once on a small picture."""

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
"""The side in pixels of the picture that a network is tried on."""
TENSOR_MAX = 1 << 30
"""Limit for the bytes of the largest tensor when a tile is enlarged in float32. An 8x ESRGAN takes 600 MB."""


@contextmanager
def largest_tensor() -> Iterator[list[int]]:
    """Watch the inputs and outputs of layers inside. Yield a list whose only item is the size of the largest tensor."""
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
    """Build the network and enlarge a small picture with it. Return what is wrong with it; "" if nothing is."""
    try:
        upscaler = load_esrgan(Path(path), torch.device("cpu"), torch.float32)
    except ModelError as error:
        return str(error)
    with torch.inference_mode(), largest_tensor() as largest:
        made = upscaler.descriptor(torch.full((1, 3, SIDE, SIDE), 0.5))
    if made.shape != (1, 3, SIDE * upscaler.scale, SIDE * upscaler.scale):
        raise ValueError(f"it claims to enlarge {upscaler.scale} times, but does not")
    if 4 * largest[0] * (TILE // SIDE) ** 2 > TENSOR_MAX:
        raise ValueError(f"it needs more than {TENSOR_MAX >> 30} GB for one tensor of a tile of {TILE} pixels")
    return ""


JOBS: Mapping[str, Callable[..., Any]] = {"trial": trial}
import_spandrel()  # before a child's memory is limited

"""How much memory a plan needs, computed beforehand, and how work continues with less if there is not enough.

The numbers cover activations, without the weights, with fused attention. They depend only on the number of pixels;
`tests/tiny/test_memory.py` counts every tensor that the networks make and confirms them.
"""

import ctypes
import logging
import mmap
import traceback
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from pipelines.ask.plan import LATENT_PIXELS, HighresPlan
from pipelines.errors import OutOfMemory

log = logging.getLogger(__name__)
Result = TypeVar("Result")

UNET_TENSORS = {True: 26, False: 16}
"""At its peak, a UNet holds this many tensors with the channels of its first level for every latent pixel, by whether
that level has attention. In SDXL it has none."""
CONTROL_TENSORS = 6
"""ControlNets, however many, add this many such tensors: the sums that they add to the UNet's levels."""

ROOM_USED = 0.85
"""The share of the free memory that plans use, because an allocator leaves holes."""


@dataclass(frozen=True)
class Footprint:
    """The bytes that the networks of one model need in addition to their weights."""

    unet: int
    """Per latent pixel and row of the batch; a guided image is two rows."""
    controls: int
    """What ControlNets, however many, add to that."""
    vae: int
    """Per pixel. One picture is decoded at a time."""

    @classmethod
    def of(cls, unet: UNet2DConditionModel, vae: AutoencoderKL) -> "Footprint":
        """Compute it from the networks' shapes and dtypes."""
        first, second = (tuple(vae.config.block_out_channels) * 2)[:2]
        width = unet.config.block_out_channels[0] * unet.dtype.itemsize
        return cls(
            unet=UNET_TENSORS[unet.config.down_block_types[0].startswith("CrossAttn")] * width,
            controls=CONTROL_TENSORS * width,
            # Either the last level's first block, which still has the previous level's channels, or the other blocks.
            vae=max(5 * first, 3 * second) * vae.dtype.itemsize,
        )

    def under_controls(self) -> "Footprint":
        """Return the same including what ControlNets, however many, add to the UNet's peak."""
        return replace(self, unet=self.unet + self.controls)

    def pixels(self, room: int) -> int:
        """Return how many pixels fit into this many bytes, if rows are computed one by one and decoding uses tiles."""
        return room * LATENT_PIXELS**2 // self.unet


def rows_at_once(footprint: Footprint, latent_pixels: int, rows: int, room: int | None) -> int:
    """Return how many rows of a batch the UNet can compute at once in this many bytes. Log it if not all fit."""
    if room is None:
        return rows
    need = footprint.unet * latent_pixels
    fit = int(ROOM_USED * room) // need
    if fit < 1:
        log.warning("A row of this pass needs %.1f GB and %.1f GB are free: it may not fit.", need / 1e9, room / 1e9)
    elif fit < rows:
        log.info("Memory has room for %d of the %d rows of this pass at once.", fit, rows)
    return max(1, min(fit, rows))


def room_left(device: torch.device) -> int | None:
    """Return the free bytes on the device, including our allocator's reserve; None if unknown."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocator ran out of memory. Those of the CPU and of CUDA's libraries raise RuntimeError."""
    said = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)


def with_fallback(work: Callable[[], Result], fallback: Callable[[], Result], told: str) -> Result:
    """Run the work. On out-of-memory, log and run the fallback once, which may raise, too."""
    try:
        return work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        release_memory(error)
    log.warning("Out of memory: %s.", told)
    return fallback()


def release_memory(error: BaseException) -> None:
    """After failed or cancelled work, release what its frames hold and return the GPU's memory."""
    traceback.clear_frames(error.__traceback__)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


_libc = ctypes.CDLL(None)
_trim = getattr(_libc, "malloc_trim", None)  # only in glibc


def forget_data_uris() -> None:
    """Empty urllib's cache of parsed addresses. Cog parses data URIs with it, and it would keep the last 128 whole."""
    urllib.parse.clear_cache()  # type: ignore[attr-defined]  # typeshed lacks it


def trim_heap() -> None:
    """Return freed memory of the process to the system.

    glibc keeps it, and with pictures of many sizes the holes add up: after 500 predictions the process had 798 MB
    without this function and 604 MB with it.
    """
    if _trim is not None:
        _trim(0)


def drop_pages(tensor: Tensor) -> None:
    """Drop the pages of a mapped file that a tensor occupies. They are read again if needed.

    Use it only for tensors of mapped files: others would lose their values.
    """
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    whole = end // mmap.PAGESIZE * mmap.PAGESIZE - first
    if whole > 0:
        _libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(whole), mmap.MADV_DONTNEED)


@contextmanager
def memory_errors_say(told: Callable[[], str]) -> Iterator[None]:
    """Turn an allocator's error into OutOfMemory with this text, which is made when the memory is released."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        release_memory(error)
        raise OutOfMemory(told()) from error


def memory_errors_say_what_fits(
    plan: HighresPlan, footprint: Callable[[], Footprint], device: torch.device
) -> AbstractContextManager[None]:
    """Turn an allocator's error into OutOfMemory, which suggests a size that fits."""

    def told() -> str:
        fit = what_fits(plan, footprint(), room_left(device))  # computed only now, when the ControlNets are loaded
        return f"No memory left for {plan.describe()}. {fit}"

    return memory_errors_say(told)


def what_fits(plan: HighresPlan, footprint: Footprint, room: int | None) -> str:
    """Return one sentence of advice: inputs for the largest picture of the plan's shape that fits."""
    width, height = plan.final_size
    if room is None:
        return f"Use a smaller hires_scale or size than {width}x{height}, or num_outputs=1."
    # work that failed must become smaller, even if this estimate says that it fits
    pixels = min(footprint.pixels(room), width * height * 0.8)
    scale = (pixels / (plan.first.width * plan.first.height)) ** 0.5
    if plan.hires and scale >= 1.05:
        return f"hires_scale={int(scale * 20) / 20:g} fits."
    if plan.hires and scale >= 1:
        return "highres_fix=Off fits."
    sides = (max(64, int(side * scale) // 64 * 64) for side in (plan.first.width, plan.first.height))
    return "width={} and height={} fit{}.".format(*sides, ", with highres_fix=Off" if plan.hires else "")

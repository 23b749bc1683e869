"""How much memory a plan takes, known without doing it, and how work gets by with less where there is not enough.

The figures are of activations, beside the weights, with fused attention. They grow with the pixels and with nothing
else; `tests/tiny/test_memory.py` counts every tensor that the networks make and finds the same.
"""

import ctypes
import logging
import mmap
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from pipelines.errors import OutOfMemory
from pipelines.plan import LATENT_PIXELS, HighresPlan

if TYPE_CHECKING:
    from pipelines.graphs import GraphedUNet

log = logging.getLogger(__name__)
Result = TypeVar("Result")

UNET_TENSORS = 26
"""The UNet at its peak holds so many tensors of its first level's channels, for every latent pixel."""
CONTROL_TENSORS = 6
"""So many more of them are what ControlNets add to the UNet's levels, summed, however many they are."""

ROOM_USED = 0.85
"""Of the free memory: an allocator leaves holes."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that the networks of one model take, beside their weights."""

    unet: int
    """Per latent pixel and row of the batch; a guided image is two rows."""
    vae: int
    """Per pixel of the one picture that is decoded at a time."""

    @classmethod
    def of(cls, unet: "UNet2DConditionModel | GraphedUNet", vae: AutoencoderKL) -> "Footprint":
        """Counted from the networks' shapes and number formats."""
        first, second = (tuple(vae.config.block_out_channels) * 2)[:2]
        return cls(
            unet=UNET_TENSORS * unet.config.block_out_channels[0] * unet.dtype.itemsize,
            # Either the last level's first block, which still has the channels of the level before, or the others.
            vae=max(5 * first, 3 * second) * vae.dtype.itemsize,
        )

    def under_controls(self) -> "Footprint":
        """The same with what ControlNets add to the UNet while that is at its peak, however many they are."""
        return replace(self, unet=self.unet * (UNET_TENSORS + CONTROL_TENSORS) // UNET_TENSORS)

    def pixels(self, room: int) -> int:
        """How large a picture fits into so many bytes: guided row by row and decoded in tiles."""
        return room * LATENT_PIXELS**2 // self.unet


def rows_at_once(footprint: Footprint, latent_pixels: int, rows: int, room: int | None) -> int:
    """How many of a batch's rows the UNet takes at once in so many bytes, told where it is not all of them."""
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
    """Bytes that the device has beside what is held there, by us or others; None where nobody can tell."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator gave up; the CPU's, CUDA's runtime and its libraries raise plain RuntimeErrors."""
    said = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)


def thriftily(work: Callable[[], Result], less: Callable[[], Result], saving: str) -> Result:
    """Do the work; where memory runs out, say so and do it the way that needs less. Only once: that may raise, too."""
    try:
        return work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        release_memory(error)
    log.warning("Out of memory: %s.", saving)
    return less()


def release_memory(error: BaseException) -> None:
    """After failed or cancelled work: let go of what its frames hold, and give the GPU's memory back."""
    traceback.clear_frames(error.__traceback__)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


_libc = ctypes.CDLL(None)
_trim = getattr(_libc, "malloc_trim", None)  # glibc's own


def trim_heap() -> None:
    """Hand freed memory of the process back to the system.

    glibc keeps it, and with pictures of many sizes its holes add up: 500 predictions ended at 798 MB, and so at 604 MB.
    """
    if _trim is not None:
        _trim(0)


def drop_pages(tensor: Tensor) -> None:
    """Take a mapped file's pages under the tensor out of memory; they would be read again where they are needed.

    Not for tensors that are no part of a file: those would lose their values.
    """
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    whole = end // mmap.PAGESIZE * mmap.PAGESIZE - first
    if whole > 0:
        _libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(whole), mmap.MADV_DONTNEED)


@contextmanager
def memory_errors_say_what_fits(
    plan: HighresPlan, footprint: Callable[[], Footprint], device: torch.device
) -> Iterator[None]:
    """Turn the allocator's last word into OutOfMemory, which tells the sizes that fit."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        release_memory(error)
        fit = what_fits(plan, footprint(), room_left(device))  # only now: the ControlNets are there
        raise OutOfMemory(f"No memory left for {plan.describe()}. {fit}") from error


def what_fits(plan: HighresPlan, footprint: Footprint, room: int | None) -> str:
    """Advice in one sentence: the largest picture of the plan's shape that has room, by the inputs that ask for it."""
    width, height = plan.final_size
    if room is None:
        return f"Use a smaller hires_scale or size than {width}x{height}, or num_outputs=1."
    # what did not fit by this count's word either must become smaller all the same
    pixels = min(footprint.pixels(room), width * height * 0.8)
    scale = (pixels / (plan.first.width * plan.first.height)) ** 0.5
    if plan.hires and scale >= 1.05:
        return f"hires_scale={int(scale * 20) / 20:g} fits."
    if plan.hires and scale >= 1:
        return "highres_fix=Off fits."
    sides = (max(64, int(side * scale) // 64 * 64) for side in (plan.first.width, plan.first.height))
    return "width={} and height={} fit{}.".format(*sides, ", with highres_fix=Off" if plan.hires else "")

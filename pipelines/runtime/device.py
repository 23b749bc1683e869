"""Where and how the networks run: one policy, in one place. docs/performance.md has the measurement behind each choice.

CPU: float32, the format of the parity promise, and everything as torch has it: there, other memory formats, compiling
and sliced attention cost more than they gain. CUDA: float16, the format that checkpoints of this kind are published in;
the VAE falls back to float32 by itself when a decode is not finite (`vae.py`); channels come last in memory and
networks are compiled (`compiling.py`). MPS: float16, as a best effort.
Attention is torch's own choice everywhere, and guidance one batch. Nothing here changes a plan or a sampler: those work
on float32 latents everywhere.
"""

import os
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import DeviceError

# oneDNN, which computes convolutions on a CPU, keeps the last 1024 it prepared, of every size that was ever drawn: 500
# predictions of mixed sizes ended at 1,307 MB, with 256 at 798 MB. A picture of the embedded model needs 73.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


OLDEST_GPU = (7, 5)
"""The CUDA capability (T4, RTX 20) from which on torch's builds for CUDA 13 have kernels."""
DRIVER = Path("/dev/nvidiactl")
"""There where the system shows an NVIDIA GPU."""


@dataclass(frozen=True)
class Device:
    """A torch device, the dtype of the networks on it, and whether they are compiled, with channels last in memory."""

    place: torch.device
    dtype: torch.dtype
    compiled: bool = False

    @property
    def queues(self) -> bool:
        """Whether work is queued there while the host goes on; elsewhere the host does it."""
        return self.place.type == "cuda"

    def __str__(self) -> str:
        return f"{self.place}, {str(self.dtype).removeprefix('torch.')}"


def best_device() -> Device:
    """CUDA where there is one, else MPS, else the CPU. PASTEL_COMPILE=0 leaves compiling out.

    Raises DeviceError for a GPU that this build of torch cannot use: it would draw on the CPU, and nobody would know.
    """
    hide = "Or hide the GPU (CUDA_VISIBLE_DEVICES=-1) and draw on the CPU."
    if torch.cuda.is_available():
        if (capability := torch.cuda.get_device_capability()) < OLDEST_GPU:
            name, found = torch.cuda.get_device_name(), "{}.{}".format(*capability)
            needed = "{}.{}".format(*OLDEST_GPU)
            raise DeviceError(f"{name} has CUDA capability {found}; torch needs {needed}. Use a newer GPU. {hide}")
        return Device(torch.device("cuda"), torch.float16, compiled=os.environ.get("PASTEL_COMPILE") != "0")
    if torch.version.cuda and DRIVER.exists() and "CUDA_VISIBLE_DEVICES" not in os.environ:
        raise DeviceError(
            f"There is an NVIDIA GPU, and torch, made for CUDA {torch.version.cuda}, cannot use it; its driver is "
            f"most likely too old. Update it (CUDA 13 needs 580 or newer). {hide}"
        )
    if torch.backends.mps.is_available():
        return Device(torch.device("mps"), torch.float16)
    return Device(torch.device("cpu"), torch.float32)


class Stopwatch:
    """Seconds per phase, without waiting for the GPU until the seconds are asked for.

    On CUDA the marks are events in the stream: the phases are timed where they run, and the host is never
    held up between them. Elsewhere work is synchronous and the wall clock says the same.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks = [("", self._now())]

    def _now(self) -> Any:
        """A torch.cuda.Event or a float."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def mark(self, phase: str) -> None:
        """The time since the last mark belongs to `phase`; a phase may be marked several times."""
        self._marks.append((phase, self._now()))

    def restart(self) -> None:
        """The time since the last mark belongs to nobody."""
        self._marks.append(("", self._now()))

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase in order of first mark. Waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
        total: dict[str, float] = {}
        for (_, start), (phase, end) in pairwise(self._marks):
            took = start.elapsed_time(end) / 1000 if self._cuda else end - start
            total[phase] = total.get(phase, 0.0) + took
        total.pop("", None)
        return total

"""Where and how the networks run, decided in one place. docs/performance.md has the measurement behind each choice.

CPU: float32, for which parity is promised. The rows of a batch are shared out among threads (`threads.py`). Other
memory formats, compiling and sliced attention cost more than they gain there.
CUDA: float16, in which checkpoints of this kind are published; the VAE falls back to float32 if a decoded picture is
not finite (`vae.py`); channels come last in memory and networks are compiled (`compiling.py`).
MPS: float16, as a best effort.
Everywhere torch chooses the attention kernel. On a GPU guidance runs as one batch. Plans and samplers do not depend on
the device: they always work on float32 latents.
"""

import math
import os
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import DeviceError
from pipelines.runtime.host import host_processors

# oneDNN, which computes convolutions on a CPU, caches the last 1024 that it prepared, for every size that was drawn.
# After 500 predictions of mixed sizes the process had 1,307 MB; with 256 entries it had 798 MB. One picture of the
# embedded model needs 73 entries.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


OLDEST_GPU = (7, 5)
"""The lowest CUDA capability (T4, RTX 20) that torch's builds for CUDA 13 support."""
DRIVER = Path("/dev/nvidiactl")
"""Exists if the system has an NVIDIA GPU."""


@dataclass(frozen=True)
class Device:
    """A torch device, the dtype of the networks on it, and whether they are compiled with channels last in memory."""

    place: torch.device
    dtype: torch.dtype
    compiled: bool = False

    @property
    def queues(self) -> bool:
        """Whether work is queued on the device while the host continues. Otherwise the host does the work itself."""
        return self.place.type == "cuda"

    @property
    def precision(self) -> str:
        """The name of the dtype, such as float16."""
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return f"{self.place}, {self.precision}"


def best_device() -> Device:
    """Return CUDA if available, else MPS, else the CPU. PASTEL_COMPILE=0 turns off compiling.

    Raises DeviceError for a GPU that this build of torch cannot use. Otherwise it would silently draw on the CPU.
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
            f"There is an NVIDIA GPU, but torch for CUDA {torch.version.cuda} cannot use it. Most likely its driver "
            f"is too old: update it (CUDA 13 needs 580 or newer). {hide}"
        )
    if torch.backends.mps.is_available():
        return Device(torch.device("mps"), torch.float16)
    return Device(torch.device("cpu"), torch.float32)


def limit_threads() -> None:
    """Give torch no more threads than a container's quota of processors lets run, unless OMP_NUM_THREADS says how many.

    By default torch has one for each processor of the machine. Once they have used up the quota, all of them stand
    still until the next period begins. This acts on the calling thread, and on those that use torch later.
    """
    quota = host_processors()
    if quota and math.ceil(quota) < torch.get_num_threads() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(math.ceil(quota))


class Stopwatch:
    """Measures seconds per phase without waiting for the GPU until they are read.

    On CUDA the marks are events in the stream, so phases are timed on the GPU and the host never waits between them.
    On other devices work is synchronous, and the wall clock shows the same.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks = [("", self._now())]

    def _now(self) -> Any:
        """Return the current time as a torch.cuda.Event or a float."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def mark(self, phase: str) -> None:
        """Count the time since the last mark for `phase`, which may be marked several times."""
        self._marks.append((phase, self._now()))

    def restart(self) -> None:
        """Ignore the time since the last mark."""
        self._marks.append(("", self._now()))

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase in order of first mark. Waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
        total: dict[str, float] = {}
        for (_, start), (phase, end) in pairwise(self._marks):
            took = start.elapsed_time(end) / 1000 if self._cuda else end - start
            total[phase] = total.get(phase, 0.0) + took
        total.pop("", None)
        return total

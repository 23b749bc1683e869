"""On a CUDA GPU: networks compiled once for every size, and the UNet's CUDA graphs.

One compilation serves all sizes that are multiples of 64 px; for the others the network runs as it is, since a request
never waits for a compiler. The plain networks stay behind all of it: what cannot be compiled, or draws another picture,
is left out with a line in the log. `PASTEL_COMPILE=0` leaves all of it out.
"""

import logging
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.errors import in_one_line
from pipelines.graphs import CudaRecorder, GraphedUNet, Record
from pipelines.highres import Picture, render
from pipelines.loader import Networks
from pipelines.memory import release_memory
from pipelines.plan import make_plan
from pipelines.request import GenerationRequest, HiresSettings

log = logging.getLogger(__name__)

ALIKE = 30.0
"""Decibels: two pictures that half precision's rounding alone sets apart are closer."""


def sped_up(networks: Networks, width: int, height: int) -> Networks:
    """The networks as fast as the device runs them, warmed up for pictures of this size and twice of it.

    Compiling may take minutes, less where torch's compile cache was kept; nothing is done where the device's policy is
    to leave networks as they are.
    """
    if not networks.device.compiled:
        return networks
    for network in (networks.unet, networks.vae.network):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # which torch's stubs do not know
    return compiled(networks, width, height, CudaRecorder())


def compiled(networks: Networks, width: int, height: int, record: Record, backend: str = "inductor") -> Networks:
    """Compile the networks for all sizes; they are returned plain where that fails or draws another picture."""
    start = time.perf_counter()
    options: dict[str, Any] = {"dynamic": True, "backend": backend}
    try:
        # not square: compiled for a square, the network would be compiled again for the first size that is not
        wanted = drawn(networks, 128, 192)
        networks.vae.network.decoder.compile(**options)
        faster = replace(networks, unet=GraphedUNet(networks.unet, torch.compile(networks.unet, **options), record))
        noise = 10 * np.log10(255**2 / max(1e-9, np.square(drawn(faster, 128, 192) - wanted).mean()))
        if noise < ALIKE:
            raise RuntimeError(f"the picture differs by {noise:.0f} dB")
        drawn(faster, width, height)
    except Exception as error:
        log.warning("The networks run uncompiled (%s): pictures take longer.", in_one_line(error))
        release_memory(error)
        torch.compiler.set_stance("force_eager")
        return networks
    torch.compiler.set_stance("eager_on_recompile")  # requests never wait for the compiler
    log.info("Compiled and warmed up in %.0f s.", time.perf_counter() - start)
    return faster


def drawn(networks: Networks, width: int, height: int) -> NDArray[np.float64]:
    """The picture of a short highres fix: every network at the size and at twice of it, often enough to be recorded."""
    request = GenerationRequest(
        prompt="", width=width, height=height, seed=1, num_inference_steps=3, hires=HiresSettings(steps=3)
    )
    events = render(networks, request, make_plan(request))
    (picture,) = (event.pixels.astype(np.float64) for event in events if isinstance(event, Picture))
    return picture

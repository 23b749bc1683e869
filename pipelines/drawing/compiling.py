"""Compiles the networks on a CUDA GPU, once for all sizes, and records the UNet's CUDA graphs.

One compilation serves all sizes that are multiples of 64 px. For other sizes the network runs uncompiled, because a
request never waits for a compiler. The plain networks are kept: if compiling fails or changes the picture, they are
used, and the log says so. `PASTEL_COMPILE=0` turns compiling off.
"""

import logging
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest, HiresSettings
from pipelines.drawing.phases import Picture, render
from pipelines.errors import in_one_line
from pipelines.models.model import Model
from pipelines.runtime.graphs import CudaRecorder, GraphedUNet, Record
from pipelines.runtime.memory import release_memory

log = logging.getLogger(__name__)

ALIKE = 30.0
"""In decibels (PSNR). Pictures that differ only by the rounding of half precision are above this."""


def compile_model(model: Model, width: int, height: int) -> Model:
    """Compile the model for its device and warm it up for pictures of this size and of twice this size.

    Compiling may take minutes; a kept torch compile cache makes it faster. The model is returned unchanged if nothing
    is to be compiled on its device.
    """
    if not model.device.compiled:
        return model
    for network in (model.unet.network, model.vae.network):
        network.to(memory_format=torch.channels_last)
    return compiled(model, width, height, CudaRecorder())


def compiled(model: Model, width: int, height: int, record: Record, backend: str = "inductor") -> Model:
    """Compile the networks for all sizes. Return the plain model if that fails or changes the picture."""
    start = time.perf_counter()
    torch.compiler.set_stance("default")  # another model may have been compiled before
    options: dict[str, Any] = {"dynamic": True, "backend": backend}
    try:
        # not square: compiled for a square, the network would be compiled again for the first size that is not square
        wanted = drawn(model, 128, 192)
        model.vae.network.decoder.compile(**options)
        unet = model.unet.network
        faster = replace(model, unet=GraphedUNet(unet, torch.compile(unet, **options), record))
        model.components.unet.leaving = faster.unet.forget
        noise = 10 * np.log10(255**2 / max(1e-9, np.square(drawn(faster, 128, 192) - wanted).mean()))
        if noise < ALIKE:
            raise RuntimeError(f"it changes the picture: PSNR {noise:.0f} dB")
        drawn(faster, width, height)
    except Exception as error:
        log.warning("The networks run uncompiled (%s): pictures take longer.", in_one_line(error))
        release_memory(error)
        model.vae.network.decoder._compiled_call_impl = None  # torch has no public way to undo Module.compile
        return model
    finally:
        torch.compiler.set_stance("eager_on_recompile")  # requests never wait for the compiler
    log.info("Compiled and warmed up in %.0f s.", time.perf_counter() - start)
    return faster


def drawn(model: Model, width: int, height: int) -> NDArray[np.float64]:
    """Draw with a short highres fix. It runs every network at both sizes, often enough for graphs to be recorded."""
    request = GenerationRequest(
        prompt="", width=width, height=height, seed=1, num_inference_steps=3, hires=HiresSettings(steps=3)
    )
    events = render(model, request, make_plan(request))
    (picture,) = (event.pixels.astype(np.float64) for event in events if isinstance(event, Picture))
    return picture

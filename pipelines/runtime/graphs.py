"""The UNet replayed as CUDA graphs.

A forward pass of the UNet launches a thousand kernels, which takes the host longer than the GPU needs for small
latents. A graph launches all of them at once. A size is recorded when it comes for the second time, which costs as
much as one more step.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from pipelines.errors import in_one_line
from pipelines.runtime.memory import release_memory
from pipelines.runtime.unet_call import UNet, UNetCall

log = logging.getLogger(__name__)

GRAPHS = 8
"""How many sizes graphs are kept for: four requests of two passes each. They share their memory."""
LARGEST = 2 * (1024 // 8) * (768 // 8)
"""The most latent pixels, of all rows together, that are recorded. With more the GPU is busy for longer than the host
takes to launch its kernels, and a recording holds its memory (here 0.4 GB for Stable Diffusion 1.5) while there are
graphs."""

Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Takes work on tensors that stay where they are; returns what repeats it, and the tensor that will hold the result."""


Key = tuple[torch.Size, ...]
"""The shapes of a call's inputs."""


@dataclass(frozen=True)
class Graph:
    """A recorded call."""

    places: UNetCall
    """What it reads; new values are copied there."""
    again: Callable[[], None]
    output: Tensor
    """Where its result lies; the next replay writes over it."""

    def replay(self, call: UNetCall) -> Tensor:
        """Compute the output of another call of the same shapes."""
        for place, value in zip(self.places.inputs, call.inputs, strict=True):
            place.copy_(value)
        self.again()
        return self.output.clone()


class CudaRecorder:
    """Records CUDA graphs in one pool of memory: no two run at once, and results are copied out before the next."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                output = work()
        finally:
            torch.cuda.set_stream(stream)  # a recording that fails leaves its own behind
        return graph.replay, output


class GraphedUNet(UNet):
    """A UNet that is recorded for a size at the size's second call and replayed from the third.

    The graphs that were used least recently are forgotten.
    """

    def __init__(
        self, network: UNet2DConditionModel, call: Callable[..., tuple[Tensor]], record: Record | None
    ) -> None:
        """`call` computes what `network` does. Without `record` it is only called."""
        super().__init__(network)
        self._call = call
        self._record: Record | None = record
        self._seen: set[Key] = set()
        self._graphs: OrderedDict[Key, Graph] = OrderedDict()

    def __call__(self, call: UNetCall) -> Tensor:
        """Return the network's output (rows, 4, h, w).

        With control networks or FreeU the plain network computes: graphs and compiled code know neither.
        """
        if call.guided or self.network.up_blocks[0].b1 is not None:
            return super().__call__(call)
        key = tuple(tensor.shape for tensor in call.inputs)
        if key not in self._graphs and not self._recorded(key, call):
            return call.compute(self._call)
        self._keep(key)
        return self._graphs[key].replay(call)

    def _recorded(self, key: Key, call: UNetCall) -> bool:
        """Record this size if it has been seen before and is worth it; return whether there is a graph now."""
        small = len(call.images) * call.images[0, 0].numel() <= LARGEST
        if self._record is None or not small or key not in self._seen:
            self._seen.add(key)
            return False
        places = call.clone()
        try:
            replay, output = self._record(lambda: places.compute(self._call))
        except Exception as error:  # also for want of memory: there will be no more of it at the next step
            log.warning("CUDA graphs cannot be recorded (%s): steps take longer.", in_one_line(error))
            self._record = None
            self._graphs.clear()
            release_memory(error)
            return False
        self._graphs[key] = Graph(places, replay, output)
        return True

    def _keep(self, key: Key) -> None:
        """Mark a graph as the one used last, and forget the least used where there are too many."""
        self._graphs.move_to_end(key)
        if len(self._graphs) > GRAPHS:
            forgotten, _ = self._graphs.popitem(last=False)
            self._seen.discard(forgotten)  # its next recording, too, comes after a call that warms up for it

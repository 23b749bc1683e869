"""Records the UNet as CUDA graphs and replays them.

A forward pass of the UNet launches a thousand kernels. For small latents this takes the host longer than the GPU needs
to run them. A graph launches all of them at once. A size is recorded when it is used for the second time, which costs
as much as one more step.
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
"""How many sizes graphs are kept for: four requests with two passes each. They share their memory."""
LARGEST = 2 * (1024 // 8) * (768 // 8)
"""The most latent pixels, over all rows, that are recorded. With more, the GPU takes longer than the host needs to
launch its kernels, so a graph gains nothing, and it holds its memory (here 0.4 GB for Stable Diffusion 1.5)."""

Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Takes work on tensors at fixed addresses. Returns a function that repeats it, and the tensor that gets the result."""


Key = tuple[torch.Size, ...]
"""The shapes of a call's inputs."""


@dataclass(frozen=True)
class Graph:
    """A recorded call."""

    places: UNetCall
    """The tensors that it reads. New values are copied there."""
    again: Callable[[], None]
    output: Tensor
    """The tensor that gets its result. The next replay overwrites it."""

    def replay(self, call: UNetCall) -> Tensor:
        """Compute the output of another call with the same shapes."""
        for place, value in zip(self.places.inputs, call.inputs, strict=True):
            place.copy_(value)
        self.again()
        return self.output.clone()


class CudaRecorder:
    """Records CUDA graphs in one memory pool. This is safe as they never run at once and results are copied out."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                output = work()
        finally:
            torch.cuda.set_stream(stream)  # a failed recording would leave its own stream set
        return graph.replay, output


class GraphedUNet(UNet):
    """A UNet that is recorded at the second call for a size and replayed from the third.

    The least recently used graphs are dropped.
    """

    def __init__(
        self, network: UNet2DConditionModel, call: Callable[..., tuple[Tensor]], record: Record | None
    ) -> None:
        """Use `call`, which computes the same as `network`. If `record` is None, nothing is recorded."""
        super().__init__(network)
        self._call = call
        self._record: Record | None = record
        self._seen: set[Key] = set()
        self._graphs: OrderedDict[Key, Graph] = OrderedDict()

    def __call__(self, call: UNetCall) -> Tensor:
        """Return the network's output (rows, 4, h, w).

        With control networks or FreeU the plain network is used: graphs and compiled code support neither.
        """
        if call.guided or self.network.up_blocks[0].b1 is not None:
            return super().__call__(call)
        key = tuple(tensor.shape for tensor in call.inputs)
        if key not in self._graphs and not self._recorded(key, call):
            return call.compute(self._call)
        self._keep(key)
        return self._graphs[key].replay(call)

    def forget(self) -> None:
        """Drop all graphs: they read the weights at fixed addresses. Sizes are recorded anew."""
        self._graphs.clear()
        self._seen.clear()

    def _recorded(self, key: Key, call: UNetCall) -> bool:
        """Record this size if it was used before and is small enough. Return whether there is a graph now."""
        small = len(call.images) * call.images[0, 0].numel() <= LARGEST
        if self._record is None or not small or key not in self._seen:
            self._seen.add(key)
            return False
        places = call.clone()
        try:
            replay, output = self._record(lambda: places.compute(self._call))
        except Exception as error:  # also if memory runs out: the next step would not have more
            log.warning("CUDA graphs cannot be recorded (%s): steps take longer.", in_one_line(error))
            self._record = None
            self._graphs.clear()
            release_memory(error)
            return False
        self._graphs[key] = Graph(places, replay, output)
        return True

    def _keep(self, key: Key) -> None:
        """Mark a graph as just used, and drop the least recently used one if there are too many."""
        self._graphs.move_to_end(key)
        if len(self._graphs) > GRAPHS:
            forgotten, _ = self._graphs.popitem(last=False)
            self._seen.discard(forgotten)  # so that another call warms up before its next recording

"""The UNet replayed as CUDA graphs.

A UNet forward starts a thousand kernels, which takes a host longer than small latents take the GPU; a graph starts all
of them at once. It is recorded for a size that comes for the second time, which costs as much as one more step.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from pipelines.errors import in_one_line
from pipelines.memory import release_memory

log = logging.getLogger(__name__)

GRAPHS = 8
"""Sizes that graphs are kept for: four requests of two passes each. They share their memory."""
LARGEST = 2 * (1024 // 8) * (768 // 8)
"""Latent pixels of all rows together that are recorded. More keep a GPU busy for longer than a host takes to start
them, and a recording holds its memory, here 0.4 GB of Stable Diffusion 1.5, as long as there are graphs."""

Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Work on tensors that stay where they are -> what does it again, and where its result will lie."""


class CudaRecorder:
    """Records CUDA graphs, all in one pool of memory: none runs beside another, and results are copied at once."""

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


class GraphedUNet(nn.Module):
    """A UNet that is recorded for a size at its second call and replayed from the third; the least used are forgotten.

    Called like diffusers' UNet with `return_dict=False`.
    """

    def __init__(
        self, network: UNet2DConditionModel, call: Callable[..., tuple[Tensor]], record: Record | None
    ) -> None:
        """`call` computes what `network` does; without `record` it is only called."""
        super().__init__()
        self.network, self._call = network, call
        self._record: Record | None = record
        self._seen: set[Any] = set()
        self._graphs: OrderedDict[Any, tuple[tuple[Tensor, ...], Callable[[], None], Tensor]] = OrderedDict()

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return self.network.dtype

    @property
    def config(self) -> Any:
        """The network's."""
        return self.network.config

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        return_dict: bool = False,
        **residuals: Tensor | tuple[Tensor, ...],
    ) -> tuple[Tensor]:
        """Images (B, C, h, w), time () and contexts (B, tokens, width) -> the noise (B, 4, h, w).

        With a ControlNet's residuals or FreeU the plain network computes: neither graphs nor compiled code know them.
        """
        inputs = sample, timestep, encoder_hidden_states
        if residuals or self.network.up_blocks[0].b1 is not None:
            noise: tuple[Tensor] = self.network(*inputs, return_dict=False, **residuals)
            return noise
        key = sample.shape, encoder_hidden_states.shape
        if key not in self._graphs:
            small = len(sample) * sample[0, 0].numel() <= LARGEST
            if self._record is None or not small or key not in self._seen:
                self._seen.add(key)
                return self._plain(*inputs)
            try:
                self._graphs[key] = self._recorded(*inputs)
            except Exception as error:  # also for want of memory: there will be no more of it at the next step
                log.warning("CUDA graphs cannot be recorded (%s): steps take longer.", in_one_line(error))
                self._record = None
                self._graphs.clear()
                release_memory(error)
                return self._plain(*inputs)
        self._graphs.move_to_end(key)
        if len(self._graphs) > GRAPHS:
            forgotten, _ = self._graphs.popitem(last=False)
            self._seen.discard(forgotten)  # its next recording, too, comes after a call that warms up for it
        places, replay, output = self._graphs[key]
        for place, value in zip(places, inputs, strict=True):
            place.copy_(value)
        replay()
        return (output.clone(),)

    def _plain(self, sample: Tensor, timestep: Tensor, contexts: Tensor) -> tuple[Tensor]:
        return self._call(sample, timestep, encoder_hidden_states=contexts, return_dict=False)

    def _recorded(self, *inputs: Tensor) -> tuple[tuple[Tensor, ...], Callable[[], None], Tensor]:
        assert self._record is not None
        places = tuple(value.clone() for value in inputs)
        replay, output = self._record(lambda: self._plain(*places)[0])
        return places, replay, output

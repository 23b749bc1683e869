"""The UNet on a CPU: each of several threads computes some rows of a call.

torch shares out every operation among its own threads, which wait for each other at its end, hundreds of times a call.
The rows of a batch do not depend on each other, and with guidance there are at least two. So here each thread computes
its rows from the first layer to the last, with its share of torch's threads, and they wait for each other once.
"""

import math
from collections.abc import Sequence
from time import perf_counter

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from pipelines.runtime.parts import InParts, at_once
from pipelines.runtime.unet_call import UNet, UNetCall
from pipelines.runtime.worker import POLL_SECONDS, Task, Worker, stop_if_asked

SHORT_SECONDS = 0.25
"""If a call took less than this, the next one runs without a check at every operation, which costs 10 us each."""

UNEVEN = 1.2
"""Rows are not shared out if the busiest thread would then have more than this many times its share of the work: three
rows on two threads, for example, or two on three."""

_helpers: list[Worker] = []
"""Threads that all models share, because one of them draws at a time. They are started when they are first needed."""


class ThreadedUNet(UNet):
    """A UNet on the CPU that shares out the rows of a call among threads."""

    def __init__(self, network: UNet2DConditionModel) -> None:
        """Use `network`."""
        super().__init__(network)
        self._short = False

    def plain(self) -> UNet:
        """Return this object: it always calls the network as it is."""
        return self

    def _compute(self, call: UNetCall) -> Tensor:
        started, total, threads = perf_counter(), len(call.images), torch.get_num_threads()
        rows = math.ceil(total / threads)
        share = threads // math.ceil(total / rows)
        even = rows < total and rows / share <= UNEVEN * total / threads
        output = self._together([*call.split(rows)], share) if even else self._part(call)
        self._short = perf_counter() - started < SHORT_SECONDS
        return output

    def _together(self, parts: Sequence[UNetCall], share: int) -> Tensor:
        """Compute the first part here and the others in helpers, each with `share` of torch's threads. If one part
        fails or is stopped, all of them are."""
        first, *others = parts
        threads, inference, grad = torch.get_num_threads(), torch.is_inference_mode_enabled(), torch.is_grad_enabled()

        def helped(part: UNetCall) -> Tensor:
            torch.set_num_threads(share)
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                return self._part(part)

        while len(_helpers) < len(others):
            _helpers.append(Worker(within=InParts))
        tasks = [helper.begin(helped, part) for helper, part in zip(_helpers, others, strict=False)]
        torch.set_num_threads(share)
        try:
            return torch.cat([self._part(first), *map(_result, tasks)])
        finally:
            for task in tasks:
                task.stop()
            for task in tasks:
                task.wait()
            torch.set_num_threads(threads)

    def _part(self, call: UNetCall) -> Tensor:
        """Compute rows in the calling thread."""
        if not self._short:
            return super()._compute(call)
        with at_once():
            return super()._compute(call)


def _result(task: Task[Tensor]) -> Tensor:
    """Wait for a helper. Raises Stopped as soon as the current thread's work is asked to stop."""
    while not task.done:
        stop_if_asked()
        task.wait(POLL_SECONDS)
    return task.outcome()

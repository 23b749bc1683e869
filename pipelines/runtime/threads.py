"""The UNet on a CPU: two threads compute half of a call's rows each.

torch shares out every operation among its own threads, which wait for each other at its end, hundreds of times a call.
The rows of a batch do not depend on each other, and with guidance there are at least two. So here each of two threads
computes its rows from the first layer to the last, with half of torch's threads, and they wait for each other once.
They are never more than two, because Python's code, which only one thread runs at a time, is much of a short call.

A thread that uses torch for the first time during a call gets only half of torch's threads, and keeps them.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from time import perf_counter
from typing import TypeVar

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from pipelines.runtime.parts import InParts, at_once
from pipelines.runtime.unet_call import UNet, UNetCall
from pipelines.runtime.worker import POLL_SECONDS, Task, Worker, stop_if_asked

Result = TypeVar("Result")

SHORT_SECONDS = 0.25
"""If a call took less than this, the next one runs without a check at every operation, which costs 10 us each."""
UNEVEN = 1.2
"""Work is not shared out if one of the threads would then have more than this many times half of the work: of three
rows, for example, or with one of three threads."""


class ThreadedUNet(UNet):
    """A UNet on the CPU that computes a call's rows in two threads."""

    def __init__(self, network: UNet2DConditionModel) -> None:
        """Use `network`."""
        super().__init__(network)
        self._short = 0, 0

    def plain(self) -> UNet:
        """Return this object: it always calls the network as it is."""
        return self

    def _compute(self, call: UNetCall) -> Tensor:
        total, started = len(call.images), perf_counter()
        rows, size = math.ceil(total / 2), _size(call)
        short = all(own <= known for own, known in zip(size, self._short, strict=True))
        compute = self._at_once if short else super()._compute
        if total > 1 and pays(rows, total):
            output = torch.cat(both(*(partial(compute, half) for half in call.split(rows))))
        else:
            output = compute(call)
        self._short = size if perf_counter() - started < SHORT_SECONDS else (0, 0)
        return output

    def _at_once(self, call: UNetCall) -> Tensor:
        with at_once():
            return super()._compute(call)


def pays(larger: int, total: int) -> bool:
    """Return whether two threads are worth it, if the larger share of the work is so much of the total, in any unit."""
    threads = torch.get_num_threads()
    return larger * threads <= UNEVEN * total * (threads // 2)


def both(first: Callable[[], Result], second: Callable[[], Result]) -> tuple[Result, Result]:
    """Do two pieces of work at the same time, the second one in the helper, each with half of torch's threads.

    There must be two of these at least, as `pays` makes sure. Both run in the caller's modes for inference, gradients
    and autocast, and the second one also within InParts. If the first one fails or is stopped, the second one is
    stopped. If the second one fails, the first is finished. Raises what they raise, and Stopped.
    """
    threads = torch.get_num_threads()
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    mixed, precision = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def helped() -> Result:
        torch.set_num_threads(threads // 2)
        autocast = torch.autocast("cpu", precision, enabled=mixed)
        with torch.inference_mode(inference), torch.set_grad_enabled(grad), autocast:
            return second()

    task = _helper().begin(helped)
    torch.set_num_threads(threads // 2)
    try:
        return first(), _result(task)
    finally:
        task.stop()
        task.wait()
        torch.set_num_threads(threads)


@cache
def _helper() -> Worker:
    """Return the second thread. All models share it, because one of them draws or learns at a time."""
    return Worker(within=InParts)


def _size(call: UNetCall) -> tuple[int, int]:
    """Return the numbers of values in a call's pictures and prompts: the time that it takes grows with both."""
    return call.images.numel(), call.condition.tokens.numel()


def _result(task: Task[Result]) -> Result:
    """Wait for the helper. Raises Stopped as soon as the current thread's work is asked to stop."""
    while not task.done:
        stop_if_asked()
        task.wait(POLL_SECONDS)
    return task.outcome()

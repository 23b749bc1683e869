"""A step of training on a CPU: two threads compute half of its rows each, forward and backward.

torch computes the gradients of everything on a CPU in one thread, layer by layer, and shares out each operation among
its own threads. As in a request's UNet calls (`runtime/threads.py`), it is faster when each of two threads does its own
rows from the first layer to the last. Both have gradients of their own for the trained weights, which are added.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipelines.runtime.threads import both, pays

WEIGHTS_MAX = 50_000_000
"""The most trained weights. Large networks gain nothing, and their gradients need much memory."""
Call = tuple[Tensor, ...]
"""A network's inputs, which all have the same rows."""


def compute(network: Callable[..., Tensor], weights: Sequence[nn.Parameter], calls: Sequence[Call]) -> list[Tensor]:
    """Return the network's outputs for each call: on a CPU in two threads, if their shares are about equal.

    Gradients flow to `weights`, which are all of the network that is trained, and to the inputs.
    """
    halves = _halves(calls)
    fits = sum(each.numel() for each in weights) <= WEIGHTS_MAX
    if calls[0][0].device.type != "cpu" or len(halves) != 2 or not fits or not pays(*_amounts(halves)):
        return [network(*call) for call in calls]
    first, second = halves
    outputs: tuple[Tensor, ...] = _InThreads.apply(network, len(first), *first, *second, *weights)
    return [torch.cat(outputs)] if len(calls) == 1 else [*outputs]


def _halves(calls: Sequence[Call]) -> Sequence[Call]:
    """Return two calls as they are, and one as two."""
    if len(calls) != 1:
        return calls
    split = [each.split(-(-len(each) // 2)) for each in calls[0]]
    return [*zip(*split, strict=True)]


def _amounts(halves: Sequence[Call]) -> tuple[int, int]:
    """Return how much work the larger half is, and both: the number of values in their first inputs."""
    amounts = [half[0].numel() for half in halves]
    return max(amounts), sum(amounts)


class _InThreads(torch.autograd.Function):
    """Two calls of a network in two threads, and later their gradients."""

    @staticmethod
    def forward(ctx: Any, network: Callable[..., Tensor], inputs: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Take the first call's inputs, as many of the second call, and the weights; return both outputs."""
        needs = ctx.needs_input_grad[2 : 2 + 2 * inputs]
        own = [each.detach().requires_grad_(need) for each, need in zip(tensors, needs, strict=False)]
        halves = own[:inputs], own[inputs:]
        with torch.enable_grad():
            outputs = both(*(partial(network, *half) for half in halves))
        ctx.halves, ctx.outputs, ctx.weights = halves, outputs, tensors[2 * inputs :]
        return tuple(each.detach() for each in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of what `forward` took."""
        wanted = [[each for each in half if each.requires_grad] for half in ctx.halves]
        found = both(
            *(
                partial(torch.autograd.grad, output, [*some, *ctx.weights], of_output, allow_unused=True)
                for output, some, of_output in zip(ctx.outputs, wanted, of_outputs, strict=True)
            )
        )
        of_inputs = []
        for half, some, gradients in zip(ctx.halves, wanted, found, strict=True):
            known = iter(gradients[: len(some)])
            of_inputs += [next(known) if each.requires_grad else None for each in half]
        of_weights = zip(*(gradients[len(some) :] for some, gradients in zip(wanted, found, strict=True)), strict=True)
        return None, None, *of_inputs, *(_sum(*each) for each in of_weights)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return first if second is None else second if first is None else first.add_(second)

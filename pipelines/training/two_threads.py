"""A step of training on a CPU: two threads compute half of the UNet's rows each, forward and backward.

torch computes all gradients on a CPU in one thread, layer by layer, and shares out each operation among its own
threads. As in a request's UNet calls (`runtime/threads.py`), a small network is faster if each of two threads does its
own rows from the first layer to the last. Each has gradients of its own for the trained weights, which are then added.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipelines.runtime.parts import at_once
from pipelines.runtime.threads import both, pays

WEIGHTS_MAX = 50_000_000
"""The most weights of a network that two threads compute. Long operations, as those of SD 1.5's UNet with 860 million,
gain nothing, and gradients are held twice."""
Call = tuple[Tensor, ...]
"""A network's inputs, which all have the same rows."""


def fits(network: nn.Module) -> bool:
    """Return whether a network is on a CPU and small enough for two threads."""
    weights = [*network.parameters()]
    return weights[0].device.type == "cpu" and sum(each.numel() for each in weights) <= WEIGHTS_MAX


def compute(network: Callable[..., Tensor], weights: Sequence[nn.Parameter], calls: Sequence[Call]) -> list[Tensor]:
    """Return a network's output for each call: in two threads, if there are two calls or rows and about equal shares.

    Gradients flow to the inputs and to `weights`, which must be all that is trained in the network. A stop ends the
    outputs' computation, and waits for that of gradients.
    """
    halves = _halves(calls)
    if len(halves) != 2 or not pays(*_amounts(halves)):
        return [network(*call) for call in calls]
    first, second = halves
    outputs: tuple[Tensor, ...] = _InThreads.apply(network, len(first), *first, *second, *weights)
    return [torch.cat(outputs)] if len(calls) == 1 else [*outputs]


def _halves(calls: Sequence[Call]) -> Sequence[Call]:
    """Return the calls; a single one of several rows as two."""
    if len(calls) != 1:
        return calls
    split = [each.split(math.ceil(len(each) / 2)) for each in calls[0]]
    return [*zip(*split, strict=True)]


def _amounts(halves: Sequence[Call]) -> tuple[int, int]:
    """Return how much work the larger half is, and both: the number of values in their first inputs."""
    amounts = [half[0].numel() for half in halves]
    return max(amounts), sum(amounts)


def _whole(network: Callable[..., Tensor], half: Sequence[Tensor]) -> Tensor:
    """Call the network without the helper's `InParts`, which is off when a checkpoint computes a layer again."""
    with at_once():
        return network(*half)


class _InThreads(torch.autograd.Function):
    """Two calls of a network in two threads, and later their gradients."""

    @staticmethod
    def forward(ctx: Any, network: Callable[..., Tensor], inputs: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Take the first call's inputs, as many of the second call, and the weights; return both outputs."""
        needs = ctx.needs_input_grad[2 : 2 + 2 * inputs]
        own = [each.detach().requires_grad_(need) for each, need in zip(tensors, needs, strict=False)]
        halves = own[:inputs], own[inputs:]
        with torch.enable_grad():
            outputs = both(*(partial(_whole, network, half) for half in halves))
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
    return first if second is None else second if first is None else first + second

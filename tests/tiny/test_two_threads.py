"""A step of training in two threads: the same outputs and gradients."""

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines.models.model import Model
from pipelines.training import two_threads
from pipelines.training.two_threads import Call, compute


@pytest.fixture(autouse=True)
def two_threads_of_torch() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Network(nn.Module):
    """Tells in which thread how many rows are computed. One weight is used for the first row only."""

    def __init__(self) -> None:
        super().__init__()
        self.all, self.some, self.none = (nn.Parameter(torch.rand(4, 4, dtype=torch.double)) for _ in range(3))
        self.seen: list[tuple[bool, int]] = []
        self.main = threading.current_thread()

    def forward(self, rows: Tensor, times: Tensor) -> Tensor:
        self.seen.append((threading.current_thread() is not self.main, len(rows)))
        output, first = (rows @ self.all).sin(), (times == 0)[:, None]
        return torch.where(first, output @ self.some, output) if first.any() else output


def inputs(rows: int, width: int = 4, needed: bool = True) -> Call:
    return torch.rand(rows, width, dtype=torch.double, requires_grad=needed), torch.arange(rows)


def gradients(network: Network, calls: list[Call], asked: Any) -> list[Tensor | None]:
    wanted = [*(call[0] for call in calls if call[0].requires_grad), *network.parameters()]
    error = sum((each.square().sum() for each in asked), torch.zeros(()))
    return [*torch.autograd.grad(error, wanted, allow_unused=True)]


@pytest.mark.parametrize("needed", [True, False])
@pytest.mark.parametrize(
    ("rows", "seen"),
    [
        ([2], [(False, 1), (True, 1)]),
        ([5], [(False, 3), (True, 2)]),
        ([3, 3], [(False, 3), (True, 3)]),
        ([3, 2], [(False, 3), (True, 2)]),
        ([2, 3], [(False, 2), (True, 3)]),
        ([1], [(False, 1)]),
        ([3], [(False, 3)]),  # one row would be waited for
        ([4, 1], [(False, 1), (False, 4)]),
    ],
)
def test_outputs_and_gradients_are_those_of_one_thread(
    rows: list[int], seen: list[tuple[bool, int]], needed: bool
) -> None:
    network, calls = Network(), [inputs(count, needed=needed) for count in rows]
    outputs = compute(network, [*network.parameters()], calls)
    assert sorted(network.seen) == seen
    plain = [network(*call) for call in calls]
    for one, other in zip(outputs, plain, strict=True):
        torch.testing.assert_close(one, other)
    found, wanted = gradients(network, calls, outputs), gradients(network, calls, plain)
    assert [each is None for each in found] == [each is None for each in wanted]
    assert found[-1] is None, "the last weight is not used"
    for one, other in zip(found, wanted, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other)


def test_a_frozen_network_still_tells_what_its_inputs_should_be() -> None:
    """A word is trained in this way."""
    network, calls = Network().requires_grad_(False), [inputs(2)]
    for outputs in (compute(network, [], calls), [network(*calls[0])]):
        (found,) = torch.autograd.grad(outputs[0].square().sum(), calls[0][0])
        assert found.abs().min() > 0
    assert network.seen == [(False, 1), (True, 1), (False, 2)] or network.seen == [(True, 1), (False, 1), (False, 2)]


def test_large_networks_are_trained_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread has gradients of its own."""
    network = Network()
    monkeypatch.setattr(two_threads, "WEIGHTS_MAX", 47)
    compute(network, [*network.parameters()], [inputs(2)])
    assert network.seen == [(False, 2)]


def test_what_fails_in_a_thread_is_raised() -> None:
    def failing(rows: Tensor, times: Tensor) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError("in the helper")
        return rows

    with pytest.raises(MemoryError, match="in the helper"):
        compute(failing, [], [inputs(2)])
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("mixed", [False, True])
def test_the_unet_learns_the_same(networks: Model, mixed: bool) -> None:
    unet = networks.unet.network
    weights = [unet.conv_in.weight, unet.mid_block.resnets[0].conv1.weight, unet.conv_out.weight]
    calls: list[Call] = [
        (torch.randn(2, 4, 8, side), torch.tensor([700, 20]), torch.randn(2, 77, 64, requires_grad=True))
        for side in (8, 12)
    ]

    def predicted(latents: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        return unet(latents, times, encoder_hidden_states=tokens, return_dict=False)[0]

    def learned(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            outputs = compute(predicted, weights, calls)
        error = sum((each.float().square().mean() for each in outputs), torch.zeros(()))
        return [*torch.autograd.grad(error, [*weights, *(call[2] for call in calls)])]

    for each in weights:
        each.requires_grad_(True)
    try:
        two, one = learned(2), learned(1)
    finally:
        for each in weights:
            each.requires_grad_(False)
    for found, wanted in zip(two, one, strict=True):
        tolerance = partial(torch.testing.assert_close, rtol=0)
        tolerance(found, wanted, atol=float(wanted.abs().max()) * (0.05 if mixed else 1e-5))

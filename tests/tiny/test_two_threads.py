"""A step of training in two threads: the same outputs and gradients."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines.models.model import Model
from pipelines.runtime import parts
from pipelines.training import two_threads
from pipelines.training.two_threads import Call, compute
from tests.torch_threads import torch_threads


@pytest.fixture(autouse=True)
def two_threads_of_torch() -> Iterator[None]:
    with torch_threads(2):
        yield


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
    network, (rows, times) = Network().requires_grad_(False), inputs(2)
    found, wanted = (
        torch.autograd.grad(output.square().sum(), rows)[0]
        for output in (compute(network, [], [(rows, times)])[0], network(rows, times))
    )
    torch.testing.assert_close(found, wanted)
    assert sorted(network.seen) == [(False, 1), (False, 2), (True, 1)]


def test_large_networks_are_not_for_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    assert two_threads.fits(network)
    assert not two_threads.fits(network.to("meta"))
    monkeypatch.setattr(two_threads, "WEIGHTS_MAX", 47)
    assert not two_threads.fits(Network())


def test_weights_that_share_their_gradient_keep_their_own() -> None:
    """torch gives the same tensor to both."""
    one, other = (nn.Parameter(torch.rand(1, 4, dtype=torch.double)) for _ in range(2))

    def network(rows: Tensor, _: Tensor) -> Tensor:
        return rows + (one + other).expand_as(rows)

    calls = [inputs(2, needed=False)]
    found, wanted = (
        torch.autograd.grad(output.square().sum(), [one, other])
        for output in (compute(network, [one, other], calls)[0], network(*calls[0]))
    )
    for each, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(each, right)


class Failing(torch.autograd.Function):
    """Fails in the helper's way back."""

    @staticmethod
    def forward(_: Any, rows: Tensor) -> Tensor:
        return rows.clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError("on the way back")
        return gradient


def test_what_fails_on_the_way_back_is_raised() -> None:
    rows, times = inputs(2)
    (output,) = compute(lambda rows, _: Failing.apply(rows), [], [(rows, times)])
    with pytest.raises(MemoryError, match="on the way back"):
        output.sum().backward()
    assert torch.get_num_threads() == 2


def test_what_fails_in_a_thread_is_raised() -> None:
    def failing(rows: Tensor, times: Tensor) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError("in the helper")
        return rows

    with pytest.raises(MemoryError, match="in the helper"):
        compute(failing, [], [inputs(2)])
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("mixed", "checkpoints"), [(False, False), (True, False), (False, True)])
def test_the_unet_learns_the_same(
    networks: Model, mixed: bool, checkpoints: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where operations of this size would be split into parts, which checkpoints do not expect."""
    monkeypatch.setattr(parts, "SCORES", 1000)
    unet = networks.unet.network
    weights = [unet.conv_in.weight, unet.mid_block.resnets[0].conv1.weight, unet.conv_out.weight]
    calls: list[Call] = [
        (torch.randn(2, 4, 8, side), torch.tensor([700, 20]), torch.randn(2, 77, 64, requires_grad=True))
        for side in (8, 12)
    ]

    helped: list[bool] = []

    def predicted(latents: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        helped.append(threading.current_thread() is not threading.main_thread())
        return unet(latents, times, encoder_hidden_states=tokens, return_dict=False)[0]

    def learned(threads: int) -> list[Tensor]:
        with torch_threads(threads):
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                outputs = compute(predicted, weights, calls)
            error = sum((each.float().square().mean() for each in outputs), torch.zeros(()))
            return [*torch.autograd.grad(error, [*weights, *(call[2] for call in calls)])]

    for each in weights:
        each.requires_grad_(True)
    if checkpoints:
        unet.enable_gradient_checkpointing()
        unet.train()
    try:
        two, one = learned(2), learned(1)
    finally:
        unet.eval()
        unet.disable_gradient_checkpointing()
        for each in weights:
            each.requires_grad_(False)
    assert sorted(helped) == [False, False, False, True]
    for found, wanted in zip(two, one, strict=True):
        most = float(wanted.abs().max()) * (0.05 if mixed else 1e-5)
        torch.testing.assert_close(found, wanted, atol=most, rtol=0)

"""The UNet's rows in two threads: the same result, and nothing goes on when a half fails or is stopped."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines.models.model import Model
from pipelines.runtime import threads
from pipelines.runtime.parts import InParts
from pipelines.runtime.threads import ThreadedUNet
from pipelines.runtime.unet_call import Condition, PicturePrompt, UNet, UNetCall, cross_attentions
from pipelines.runtime.worker import Stopped, Worker
from tests.torch_threads import torch_threads


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    with torch_threads(4):
        yield


class Network:
    """Tells what computes how many rows, and with how many of torch's threads."""

    def __init__(self, failing: str = "") -> None:
        self.seen: list[tuple[bool, int, int]] = []
        self.failing, self.main = failing, threading.current_thread()
        self.watched: list[bool] = []

    def __call__(self, images: Tensor, *_: object, class_labels: Tensor | None = None, **__: object) -> tuple[Tensor]:
        helper = threading.current_thread() is not self.main
        self.seen.append((helper, len(images), torch.get_num_threads()))
        self.watched.append(torch._C._is_torch_function_enabled())
        if self.failing == ("helper" if helper else "main"):
            raise MemoryError(self.failing)
        return (2 * images if class_labels is None else images + class_labels[:, :, None, None],)


def threaded(network: Any) -> ThreadedUNet:
    return ThreadedUNet(network)


def call(rows: int, side: int = 8, tokens: int = 77, vector: Tensor | None = None) -> UNetCall:
    condition = Condition(torch.rand(rows, tokens, 64), vector)
    return UNetCall(torch.rand(rows, 4, side, side), torch.tensor(7.0), condition)


@pytest.mark.parametrize(
    ("rows", "of_torch", "halves"),
    [
        (1, 4, [(False, 1, 4)]),
        (2, 4, [(False, 1, 2), (True, 1, 2)]),
        (2, 1, [(False, 2, 1)]),
        (2, 3, [(False, 2, 3)]),  # one thread would be idle
        (3, 4, [(False, 3, 4)]),  # and one row would be waited for
        (5, 4, [(False, 3, 2), (True, 2, 2)]),
        (8, 2, [(False, 4, 1), (True, 4, 1)]),
    ],
)
def test_each_thread_computes_half_of_the_rows(rows: int, of_torch: int, halves: list[tuple[bool, int, int]]) -> None:
    torch.set_num_threads(of_torch)
    network, asked = Network(), call(rows)
    assert torch.equal(threaded(network)(asked), 2 * asked.images)
    assert sorted(network.seen) == halves
    assert torch.get_num_threads() == of_torch


def test_each_row_has_its_own_vector() -> None:
    asked = call(2, vector=torch.rand(2, 4))
    assert torch.equal(threaded(Network())(asked), asked.images + asked.condition.vector[:, :, None, None])  # type: ignore[index]


@pytest.mark.parametrize("failing", ["main", "helper"])
def test_what_fails_in_one_thread_is_raised(failing: str) -> None:
    network = Network(failing)
    with pytest.raises(MemoryError, match=failing):
        threaded(network)(call(2))
    assert torch.get_num_threads() == 4
    network.failing = ""
    assert len(threaded(network)(call(2))) == 2


def test_a_stop_reaches_both_threads() -> None:
    """The work would never end otherwise."""
    begun = [threading.Event(), threading.Event()]

    def endless(images: Tensor, *_: object, **__: object) -> tuple[Tensor]:
        begun[threading.current_thread() is not here].set()
        while True:
            images = images + 1

    worker = Worker(within=InParts)
    here = worker.run(threading.current_thread)
    task = worker.begin(threaded(endless), call(2))
    for each in begun:
        assert each.wait(60)
    task.stop()
    task.wait(60)
    with pytest.raises(Stopped):
        task.outcome()


def test_only_calls_no_larger_than_a_short_one_run_without_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long one could not be stopped otherwise."""
    network = Network()
    unet = threaded(network)

    def watched(asked: UNetCall) -> bool:
        network.watched.clear()
        unet(asked)
        assert len(set(network.watched)) == 1
        return network.watched[0]

    monkeypatch.setattr(threads, "SHORT_SECONDS", 60)
    assert [watched(call(2)) for _ in range(2)] == [True, False]
    assert watched(call(2, side=16))
    assert not watched(call(2, side=8))
    assert watched(call(2, tokens=154))
    monkeypatch.setattr(threads, "SHORT_SECONDS", 0)
    assert [watched(call(2)) for _ in range(2)] == [False, True], "the second follows a long call"


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("mixed", [False, True])
def test_both_threads_compute_in_the_same_mode(mode: Any, mixed: bool) -> None:
    seen: dict[threading.Thread, tuple[object, ...]] = {}

    def network(images: Tensor, *_: object, **__: object) -> tuple[Tensor]:
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        seen[threading.current_thread()] = *modes, torch.get_autocast_dtype("cpu")
        return (images,)

    with mode(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        network(torch.empty(0))
        wanted = seen.pop(threading.current_thread())
        threaded(network)(call(2))
    assert [*seen.values()] == [wanted] * 2


def test_the_network_says_the_same(networks: Model) -> None:
    """Also with all that control networks give it."""
    unet = networks.unet.network
    wide = UNetCall(torch.rand(2, 4, 16, 24), torch.tensor(500.0), Condition(torch.rand(2, 77, 64)))
    widths = unet.config.block_out_channels
    levels = [(width, 16 >> level, 24 >> level) for level, width in enumerate(widths)]
    down = [levels[0]]
    for level, (width, height, across) in enumerate(levels):
        down += 2 * [levels[level]] + [(width, height // 2, across // 2)] * (level < len(levels) - 1)
    cases = {
        "alone": wide,
        "ControlNet": replace(wide, residuals=tuple(torch.rand(2, *shape) for shape in (*down, levels[-1]))),
        "T2I adapter": replace(wide, features=tuple(torch.rand(2, *shape) for shape in levels)),
        "IP-Adapter": replace(wide, pictures=(picture_prompt(unet),)),
    }
    expected: dict[str, Tensor] = {}
    with torch.inference_mode():
        for name, asked in cases.items():
            found, expected[name] = threaded(unet)(asked), UNet(unet)(asked)
            assert found.is_inference()
            torch.testing.assert_close(found, expected[name], atol=1e-4, rtol=1e-4)
            assert not torch.allclose(found, found.flip(0), atol=1e-2)
    assert not any(torch.allclose(each, expected["alone"], atol=1e-2) for each in [*expected.values()][1:])


def picture_prompt(unet: Any) -> PicturePrompt:
    widths = [attention.to_k.weight.shape for attention in cross_attentions(unet)]
    keys, values = (nn.ModuleList(nn.Linear(width, inner, bias=False) for inner, width in widths) for _ in range(2))
    return PicturePrompt(keys, values, tokens=torch.rand(2, 4, 64), weight=0.7)

"""The UNet's rows in threads: the same result, and nothing goes on when a part fails or is stopped."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines.models.model import Model
from pipelines.runtime.parts import InParts
from pipelines.runtime.threads import ThreadedUNet
from pipelines.runtime.unet_call import Condition, PicturePrompt, UNet, UNetCall, cross_attentions
from pipelines.runtime.worker import Stopped, Worker


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Four threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


class Network:
    """Tells what computes how many rows, and with how many of torch's threads."""

    def __init__(self, failing: str = "") -> None:
        self.seen: list[tuple[bool, int, int]] = []
        self.failing, self.main = failing, threading.current_thread()

    def __call__(self, images: Tensor, *_: object, **__: object) -> tuple[Tensor]:
        helper = threading.current_thread() is not self.main
        self.seen.append((helper, len(images), torch.get_num_threads()))
        if self.failing == ("helper" if helper else "main"):
            raise MemoryError(self.failing)
        return (2 * images,)


def call(rows: int) -> UNetCall:
    return UNetCall(torch.rand(rows, 4, 8, 8), torch.tensor(7.0), Condition(torch.rand(rows, 77, 64)))


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        (1, [(False, 1, 4)]),
        (2, [(False, 1, 2), (True, 1, 2)]),
        (3, [(False, 3, 4)]),  # one thread would be idle
        (4, [(False, 1, 1), *[(True, 1, 1)] * 3]),
        (8, [(False, 2, 1), *[(True, 2, 1)] * 3]),
    ],
)
def test_each_thread_computes_some_rows(rows: int, parts: list[tuple[bool, int, int]]) -> None:
    network, asked = Network(), call(rows)
    unet: Any = ThreadedUNet(network)  # type: ignore[arg-type]
    with torch.inference_mode():
        assert torch.equal(unet(asked), 2 * asked.images)
    assert sorted(network.seen) == parts
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("failing", ["main", "helper"])
def test_what_fails_in_one_thread_is_raised(failing: str) -> None:
    network = Network(failing)
    with pytest.raises(MemoryError, match=failing):
        ThreadedUNet(network)(call(2))  # type: ignore[arg-type]
    assert torch.get_num_threads() == 4
    network.failing = ""
    assert len(ThreadedUNet(network)(call(2))) == 2  # type: ignore[arg-type]


def test_a_stop_reaches_every_thread() -> None:
    """The work would never end otherwise."""
    begun = [threading.Event(), threading.Event()]

    def endless(images: Tensor, *_: object, **__: object) -> tuple[Tensor]:
        begun[threading.current_thread() is not here].set()
        while True:
            images = images + 1

    worker = Worker(within=InParts)
    here = worker.run(threading.current_thread)
    task = worker.begin(ThreadedUNet(endless), call(2))  # type: ignore[arg-type]
    for each in begun:
        assert each.wait(60)
    task.stop()
    task.wait(60)
    with pytest.raises(Stopped):
        task.outcome()


def test_the_network_says_the_same(networks: Model) -> None:
    """Also with all that control networks give it, and without gradients."""
    unet = networks.unet.network
    wide = UNetCall(torch.rand(2, 4, 20, 24), torch.tensor(500.0), Condition(torch.rand(2, 77, 64)))
    residual = torch.rand(2, 64, 20, 24)
    with torch.inference_mode():
        for asked in (wide, replace(wide, pictures=(picture_prompt(unet),))):
            found = ThreadedUNet(unet)(asked)
            assert found.is_inference()
            torch.testing.assert_close(found, UNet(unet)(asked), atol=1e-4, rtol=1e-4)
            assert float((found[0] - found[1]).abs().max()) > 1e-2
    parts = [*replace(wide, residuals=(residual,), features=(residual,)).split(1)]
    assert torch.equal(torch.cat([part.residuals[0] for part in parts]), residual)
    assert torch.equal(torch.cat([part.features[0] for part in parts]), residual)


def picture_prompt(unet: nn.Module) -> PicturePrompt:
    widths = [attention.to_k.weight.shape for attention in cross_attentions(unet)]  # type: ignore[arg-type]
    layers = [nn.ModuleList(nn.Linear(width, inner, bias=False) for inner, width in widths) for _ in range(2)]
    return PicturePrompt(*layers, tokens=torch.rand(2, 4, 64), weight=0.7)

"""Long operations on a CPU, done in parts, give the same result and end soon after the work is asked to stop."""

import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.ask.networks import ExtraFile, LoraTag
from pipelines.models.lora import LoraUse
from pipelines.models.model import Model
from pipelines.runtime import parts
from pipelines.runtime.parts import InParts, at_once, in_parts_on
from pipelines.runtime.worker import Stopped, Task, Worker
from pipelines.upscalers.esrgan import NetworkUpscaler

CLOSE = 64 * torch.finfo(torch.float32).eps
"""A kernel that chooses its blocks by the size may add up in another order; seen: no difference, on avx2."""

CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "3x3": lambda: nn.Conv2d(8, 16, 3, padding=1),
    "1x1": lambda: nn.Conv2d(8, 16, 1),
    "stride 2": lambda: nn.Conv2d(8, 16, 3, 2, padding=1),
    "stride 2, padded by the caller": lambda: nn.Conv2d(8, 16, 3, 2),
    "dilated": lambda: nn.Conv2d(8, 16, 3, padding=2, dilation=2),
    "oblong, in groups": lambda: nn.Conv2d(8, 16, (5, 3), (3, 1), padding=(1, 0), groups=4),
}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SCORES", 2_000_000 // torch.get_num_threads())
    monkeypatch.setattr(parts, "PRODUCTS", 500_000 // torch.get_num_threads())


class Counted:
    """A function, the number of its calls, and a task that is told to stop during one of them."""

    def __init__(self, function: Callable[..., Any], stop_at: int = 0) -> None:
        self._function, self._stop_at = function, stop_at
        self.calls = 0
        self.task: Task[Any] | None = None

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self._stop_at and self.task:
            self.task.stop()
        return self._function(*args, **options)

    def stops(self, work: Callable[[], object]) -> bool:
        """Whether the work, in a CPU's worker, ends where it is told to stop."""
        self.task = Worker(within=in_parts_on(torch.device("cpu"))).begin(work)
        self.task.wait()
        try:
            self.task.outcome()
        except Stopped:
            return True
        return False


@pytest.mark.parametrize("height", [97, 128])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
@torch.inference_mode()
def test_a_convolution_in_parts(kind: str, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    network, image, counted = CONVOLUTIONS[kind](), torch.randn(2, 8, height, 90), Counted(torch.conv2d)
    whole = network(image)
    with InParts(), monkeypatch.context() as patch:
        patch.setattr(torch, "conv2d", counted)
        found = network(image)
    assert counted.calls > 1
    torch.testing.assert_close(found, whole, rtol=CLOSE, atol=CLOSE)


@torch.inference_mode()
@pytest.mark.parametrize("scale", [None, 0.5])
def test_an_attention_in_parts(monkeypatch: pytest.MonkeyPatch, scale: float | None) -> None:
    torch.manual_seed(1)
    triple = [torch.randn(2, 3, 3000, 8) for _ in range(3)]
    counted = Counted(F.scaled_dot_product_attention)
    whole = F.scaled_dot_product_attention(*triple, scale=scale)
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", counted)
        found = parts.attention(*triple, scale=scale)
    assert counted.calls == 2 * 3 * 3
    torch.testing.assert_close(found, whole, rtol=CLOSE, atol=CLOSE)


@torch.inference_mode()
def test_the_attention_of_the_embedded_unet_is_done_in_parts(networks: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control is the number of calls with the usual limit."""
    given, calls = (torch.randn(1, 4, 32, 32), torch.tensor(500), torch.randn(1, 77, 64)), []
    for most in (1, parts.SCORES * 100):
        monkeypatch.setattr(parts, "SCORES", most)
        with InParts(), monkeypatch.context() as patch:
            patch.setattr(F, "scaled_dot_product_attention", counted := Counted(F.scaled_dot_product_attention))
            networks.unet.network(*given)
        calls.append(counted.calls)
    attentions = calls[1] // 2  # each is called by the network, and once more by what splits it
    assert calls == [attentions * (1 + 8), attentions * 2], "eight heads, each alone"


def test_what_parts_do_not_know_is_left_whole() -> None:
    triple = [torch.randn(1, 1, 2000, 8) for _ in range(3)]
    whole = F.scaled_dot_product_attention(*triple, is_causal=True)
    with InParts():
        assert torch.equal(F.scaled_dot_product_attention(*triple, is_causal=True), whole)


def test_an_attention_stops_between_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    triple = [torch.randn(2, 3, 3000, 8) for _ in range(3)]
    counted = Counted(F.scaled_dot_product_attention, stop_at=4)
    monkeypatch.setitem(parts.IN_PARTS, torch.sigmoid, lambda _: parts.attention(*triple))  # type: ignore[index]
    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    assert counted.stops(lambda: torch.sigmoid(torch.ones(())))
    assert counted.calls == 4


def test_a_network_stops_between_its_layers() -> None:
    counted = Counted(nn.Linear(4, 4), stop_at=3)

    def layers() -> Tensor:
        x = torch.ones(4)
        for _ in range(100):
            x = counted(x)
        return x

    assert counted.stops(layers)
    assert counted.calls == 3


def test_a_short_call_is_not_looked_into() -> None:
    counted = Counted(nn.Linear(4, 4), stop_at=3)

    def layers() -> None:
        with at_once():
            for _ in range(10):
                counted(torch.ones(4))

    assert not counted.stops(layers)
    assert counted.calls == 10


class Descriptor(Counted):
    """As spandrel describes a network of scale 1."""

    device, dtype = torch.device("cpu"), torch.float32


def test_an_upscaler_stops_between_its_tiles() -> None:
    """On a GPU as well, where nothing is done in parts."""
    network, begin = Descriptor(lambda tile: tile, stop_at=2), threading.Event()

    def enlarge() -> None:
        begin.wait()
        NetworkUpscaler(network, 1).enlarge(Image.new("RGB", (1000, 1000)))

    network.task = Worker().begin(enlarge)
    begin.set()
    network.task.wait()
    with pytest.raises(Stopped):
        network.task.outcome()
    assert network.calls == 2


def test_loras_whose_merging_is_stopped_are_taken_out_again(
    networks: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever operation was the last one, the next prediction has the weights as they were."""
    keys = [name for name, _ in networks.unet.network.named_modules() if name.endswith("attn2.to_k")][:2]
    layers = [networks.unet.network.get_submodule(name) for name in keys]
    before = [layer.weight.clone() for layer in layers]
    path = tmp_path / "x.safetensors"
    parts_of = {"up": lambda weight: (weight.shape[0], 1), "down": lambda weight: (1, weight.shape[1])}
    save_file(
        {
            f"lora_unet_{name.replace('.', '_')}.lora_{part}.weight": torch.ones(shape(layer.weight))
            for name, layer in zip(keys, layers, strict=True)
            for part, shape in parts_of.items()
        },
        path,
    )
    use = LoraUse(ExtraFile.at(path), LoraTag("x", 1, 1))
    for number in count(1):
        looks = iter(range(number))
        monkeypatch.setattr(parts, "stop_if_asked", lambda looks=looks: raise_at_the_end(looks))
        try:
            with InParts(), torch.inference_mode():
                networks.adapters.apply([use])
            break
        except Stopped:
            with torch.inference_mode():
                networks.adapters.apply([])
            assert all(map(torch.equal, (layer.weight for layer in layers), before)), number
    assert number > 10
    assert not any(map(torch.equal, (layer.weight for layer in layers), before))
    with torch.inference_mode():
        networks.adapters.apply([])


def raise_at_the_end(looks: Iterator[int]) -> None:
    if next(looks, None) is None:
        raise Stopped

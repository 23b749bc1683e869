"""An NVIDIA GPU draws the same picture as the CPU, within the limits of half precision."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from pipelines.ask.identity import ModelFiles
from pipelines.ask.networks import in_folders
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest, HiresSettings, NoiseSettings, RefinerSettings
from pipelines.drawing.compiling import compile_model
from pipelines.drawing.phases import BASE, REFINE, Beside, Finished, PassResult, Picture, render
from pipelines.families.sdxl import REFINER, SDXL
from pipelines.models.loader import load
from pipelines.models.model import Model
from pipelines.models.roster import Member, Roster
from pipelines.runtime.device import Device, best_device
from pipelines.runtime.graphs import GraphedUNet
from pipelines.runtime.worker import Worker
from pipelines.sampling.noise import Noise
from script.schema import ROOT
from tests.sdxl import networks as sdxl_networks
from tests.sdxl import single_file
from weights_script.resolve import resolve

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="they need an NVIDIA GPU, and torch sees none")

REQUEST = GenerationRequest(
    prompt="a pink sun over the sea", width=128, height=128, seed=5, num_inference_steps=10, hires=HiresSettings()
)


def draw(device: Device) -> np.ndarray:
    networks = load(resolve(None, None).files, device)
    return picture(networks, REQUEST)


def picture(networks: Model, request: GenerationRequest) -> np.ndarray:
    """The last one."""
    *_, last = (e.pixels for e in render(networks, request, make_plan(request)) if isinstance(e, Picture))
    return last.astype(float)


def decibels(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.square(one - other).mean())))


def test_half_precision_draws_the_picture_of_the_cpu() -> None:
    expected = draw(Device(torch.device("cpu"), torch.float32))
    assert decibels(draw(best_device()), expected) > 40


@pytest.fixture(scope="module")
def fast() -> Iterator[Model]:
    """Compiled and warmed up, as setup leaves them."""
    yield compile_model(load(resolve(None, None).files), 128, 128)
    torch.compiler.set_stance("default")


def test_compiled_networks_draw_the_picture_of_the_cpu(fast: Model) -> None:
    assert isinstance(fast.unet, GraphedUNet), "left out: see the log"
    expected = draw(Device(torch.device("cpu"), torch.float32))
    for _ in range(2):  # recorded, then replayed
        assert decibels(picture(fast, REQUEST), expected) > 40


def test_no_request_waits_for_the_compiler(fast: Model) -> None:
    made = counters["stats"]["unique_graphs"]
    for size in ((128, 128), (192, 128), (72, 200), (64, 64)):
        picture(fast, replace(REQUEST, width=size[0], height=size[1], num_outputs=2))
    assert counters["stats"]["unique_graphs"] == made


def test_the_host_waits_for_nothing_before_the_copy(fast: Model) -> None:
    """A size that was drawn before: recording one waits."""
    picture(fast, REQUEST)
    events = render(fast, REQUEST, make_plan(REQUEST))
    torch.cuda.set_sync_debug_mode("error")
    try:
        passes = [next(event.phase for event in events if isinstance(event, PassResult)) for _ in range(2)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert passes == [BASE, REFINE]
    assert isinstance(next(events), Picture)


def test_a_model_leaves_the_device_and_draws_the_same_picture_again(fast: Model) -> None:
    """Compiled code finds its weights again, and no graph reads the places where they were."""
    other = load(resolve(None, None).files)
    roster = Roster({name: Member(model=model, settings={}) for name, model in (("a", fast), ("b", other))}, {})
    roster.use([fast, other])
    expected, both = picture(fast, REQUEST), torch.cuda.memory_allocated()
    made = counters["stats"]["unique_graphs"]
    roster.use([other])
    assert fast.unet.network.device.type == "cpu"
    assert torch.cuda.memory_allocated() < both
    picture(other, REQUEST)  # what was free is used
    roster.use([fast])
    for _ in range(3):  # run, recorded, replayed
        assert decibels(picture(fast, REQUEST), expected) > 60
    assert counters["stats"]["unique_graphs"] == made


@pytest.mark.parametrize("roomy", [True, False])
def test_a_model_waits_in_pinned_memory_or_in_its_file(roomy: bool) -> None:
    """Compiled code finds its weights in the same order again, which is not that of the file."""
    model = load(resolve(None, None).files)
    model.unet.network.to(memory_format=torch.channels_last)
    roster, expected = Roster({"a": Member(model=model, settings={})}, {}), picture(model, REQUEST)
    weight = model.unet.network.conv_in.weight
    order, size = weight.stride(), sum(each.size for each in model.components.all)
    with mock.patch("pipelines.models.roster.host_room", return_value=4 * size if roomy else size // 2):
        roster.use([])
    assert weight.device.type == "cpu"
    assert weight.is_pinned() == roomy
    roster.use([model])
    assert weight.stride() == order
    assert decibels(picture(model, REQUEST), expected) > 60


def test_base_and_refiner_take_turns_and_draw_the_same_picture(tmp_path: Path) -> None:
    """Most bytes of these small models are their texts' tables, which are not on the device while UNets draw."""
    files = {family.name: tmp_path / f"{family.name}.safetensors" for family in (SDXL, REFINER)}
    for family in (SDXL, REFINER):
        single_file(files[family.name], sdxl_networks(family.name), family)
    before = torch.cuda.memory_allocated()
    base, refiner = (load(ModelFiles(name=name, checkpoint=path, vae=None)) for name, path in files.items())
    members = {"base": Member(model=base, settings={}), "fine": Member(model=refiner, settings={})}
    roster, asked = Roster(members, {}), replace(REQUEST, refiner=RefinerSettings(name="fine", switch_at=0.5))
    plan = make_plan(asked)

    def drawn() -> np.ndarray:
        events = render(base, asked, plan, beside=Beside(others={"fine": refiner}))
        return next(event.pixels.astype(float) for event in events if isinstance(event, Picture))

    roster.use([base, refiner], plan)
    expected, resident = drawn(), torch.cuda.memory_allocated() - before
    weights = sum(each.size for model in (base, refiner) for each in model.components.all)
    with mock.patch("pipelines.models.roster.room_left", return_value=-weights // 10):
        roster.use([base, refiner], plan)
    assert decibels(drawn(), expected) > 60
    texts = sum(model.components.texts.size for model in (base, refiner))
    assert torch.cuda.memory_allocated() - before <= resident - 0.9 * texts


def test_memory_is_what_was_computed() -> None:
    """Beside what is held already: weights, other tests' networks, and the workspaces of CUDA's libraries."""
    networks = load(resolve(None, None).files)
    asked = replace(REQUEST, width=256, height=256, num_outputs=4)
    picture(networks, asked)
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    picture(networks, asked)
    rows, pixels = 8, (512 // 8) ** 2
    computed = max(networks.footprint.unet * rows * pixels, networks.footprint.vae * 512 * 512)
    assert torch.cuda.max_memory_allocated() - held == pytest.approx(computed, rel=0.25)


def test_what_setup_warmed_up_serves_requests_of_any_thread() -> None:
    """Nine sizes make the first one forgotten; LoRAs and a failure in between leave what was recorded as it was."""
    worker = Worker()
    networks = worker.run(lambda: compile_model(load(resolve(None, None).files), 128, 128))
    expected = picture(networks, REQUEST)
    sizes = [replace(REQUEST, width=64 * k, height=64, hires=None) for k in range(1, 10)]
    with_lora = replace(
        REQUEST, prompt="a snowman <lora:snowman:1>", extras=in_folders(ROOT / "tests" / "data" / "loras", None)
    )
    for asked in (*sizes, with_lora, REQUEST, REQUEST):
        with ThreadPoolExecutor(1) as another:
            found = another.submit(worker.run, picture, networks, asked).result()
    assert decibels(found, expected) > 40
    torch.compiler.set_stance("default")


def test_nv_noise_is_what_the_gpu_draws() -> None:
    seeds, shape = (1, 2**32 - 1), (4, 64, 64)
    nv, gpu = (
        Noise(seeds, shape, device=torch.device("cuda"), settings=NoiseSettings(source=source))
        for source in ("NV", "GPU")
    )
    for _ in range(3):
        assert torch.allclose(nv.draw(), gpu.draw(), atol=1e-4)  # cuRAND's sine and logarithm are of single precision


def test_phases_are_timed_on_the_device() -> None:
    networks = load(resolve(None, None).files)
    (finished,) = (e for e in render(networks, REQUEST, make_plan(REQUEST)) if isinstance(e, Finished))
    assert finished.seconds["refine"] > finished.seconds["upscale"] >= 0

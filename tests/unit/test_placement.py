"""Where weights are while a request is drawn: a decision on sizes, and the moves of the weights."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import nn

from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest, HiresSettings
from pipelines.errors import OutOfMemory
from pipelines.models.roster import share
from pipelines.runtime.memory import Footprint
from pipelines.runtime.offloading import Components, Weights, from_file, settle_on_host
from pipelines.runtime.placement import Placement, Sizes, Waiting, Work, at_once, in_turns, place, wait

GB = 10**9
BASE = Sizes(texts=int(1.64 * GB), unet=int(5.14 * GB), pictures=int(0.17 * GB))
REFINER = Sizes(texts=int(1.39 * GB), unet=int(4.52 * GB), pictures=int(0.17 * GB))
"""In half precision, as published."""
FOOTPRINTS = [Footprint(unet=16 * width * 2, controls=0, vae=3 * 256 * 2) for width in (320, 384)]
"""Of SDXL and its refiner, as tests/tiny/test_memory.py confirms them."""


def work(scale: float = 1) -> Work:
    hires = HiresSettings(scale=scale) if scale > 1 else None
    return Work.of(make_plan(GenerationRequest(prompt="", width=1024, height=1024, seed=1, hires=hires)), FOOTPRINTS)


def test_work_is_a_row_of_the_largest_pass_and_the_final_picture() -> None:
    assert work() == Work(drawing=16 * 384 * 2 * 128 * 128, decoding=3 * 256 * 2 * 1024 * 1024)
    assert work(2) == Work(work().drawing * 4, work().decoding * 4)


@pytest.mark.parametrize(
    ("models", "scale", "room", "placement"),
    [
        ([BASE, REFINER], 1, 24, Placement.RESIDENT),
        ([BASE, REFINER], 2, 24, Placement.RESIDENT),
        ([BASE, REFINER], 1, 16, Placement.TURNS),
        ([BASE, REFINER], 2, 16, Placement.TURNS),
        ([BASE], 1, 16, Placement.RESIDENT),
        ([BASE], 1, 8, Placement.TURNS),
        ([BASE, REFINER], 1, 8, Placement.TURNS),
        ([BASE, REFINER], 1, 5, Placement.NONE),
    ],
)
def test_where_sdxl_goes(models: list[Sizes], scale: float, room: int, placement: Placement) -> None:
    assert place(models, work(scale), room * GB) is placement


def test_what_is_needed() -> None:
    assert at_once([BASE, REFINER], work()) == pytest.approx(14.6 * GB, rel=0.01)
    assert in_turns([BASE, REFINER], work()) == pytest.approx(5.34 * GB, rel=0.01)
    assert in_turns([Sizes(texts=9, unet=1, pictures=1)] * 2, Work(1, 99)) == 18, "tiles decode what does not fit"


def test_where_nobody_knows_the_room() -> None:
    assert place([BASE, REFINER], work(2), None) is Placement.RESIDENT
    assert wait(10 * GB, 10 * GB, None) is Waiting.COPIED


def test_control_networks_count_in_addition_to_turns() -> None:
    """SDXL's ControlNet has 2.5 GB. It is on the device for the whole request."""
    plain, more = work(), replace(work(), controls=int(2.5 * GB))
    assert (
        at_once([BASE], more) - at_once([BASE], plain) == in_turns([BASE], more) - in_turns([BASE], plain) == 2.5 * GB
    )
    assert place([BASE], plain, 11 * GB) is Placement.RESIDENT
    assert place([BASE], more, 11 * GB) is Placement.TURNS
    assert place([BASE], plain, 7 * GB) is Placement.TURNS
    assert place([BASE], more, 7 * GB) is Placement.NONE


@pytest.mark.parametrize(
    ("size", "unmapped", "room", "waiting"),
    [
        (7, 7, 20, Waiting.PINNED),  # with room for twice as much
        (7, 7, 10, Waiting.COPIED),
        (7, 0, 8, Waiting.MAPPED),
        (7, 7, 8, Waiting.NONE),
        (7, 1, 1, Waiting.NONE),
        (0, 0, 0, Waiting.PINNED),
    ],
)
def test_where_weights_wait(size: int, unmapped: int, room: int, waiting: Waiting) -> None:
    assert wait(size * GB, unmapped * GB, room * GB) is waiting


def weights() -> Weights:
    return Weights([nn.Linear(2, 2).requires_grad_(False)], torch.device("cpu"))


def test_a_change_on_the_device_is_there_again_after_it_left() -> None:
    """As a LoRA makes it. Weights without a change are not copied a second time."""
    layer = nn.Linear(2, 2).requires_grad_(False)
    moved = Weights([layer], torch.device("cpu"))
    moved.leave()
    kept = layer.bias.data_ptr()
    moved.enter()
    assert layer.bias.data_ptr() != kept
    with torch.inference_mode():
        layer.weight.fill_(3)
        moved.leave()
        assert layer.bias.data_ptr() == kept
        moved.take()
    assert moved.there
    assert layer.weight.tolist() == [[3, 3], [3, 3]]
    assert not layer.weight.is_inference(), "or the next LoRA could not be merged outside of a prediction"


def test_a_host_without_memory_for_the_copies_changes_nothing() -> None:
    layer = nn.Linear(2, 2).requires_grad_(False)
    moved, before = Weights([layer], torch.device("cpu")), [each.data_ptr() for each in layer.parameters()]
    full = RuntimeError("can't allocate memory")
    with (
        mock.patch.object(torch, "empty_strided", side_effect=[layer.weight.clone(), full]),
        pytest.raises(RuntimeError),
    ):
        moved.leave()
    assert moved.there
    moved.take()
    assert [each.data_ptr() for each in layer.parameters()] == before
    moved.leave()
    assert moved.left
    moved.take()
    with torch.inference_mode():
        layer.weight.fill_(3)
    with mock.patch.object(torch, "empty_strided", side_effect=full):
        moved.leave()  # the copies are there: a changed weight needs no more memory
    moved.take()
    assert layer.weight.tolist() == [[3, 3], [3, 3]]


def test_a_host_without_room_keeps_weights_in_their_file(caplog: pytest.LogCaptureFixture) -> None:
    """They take memory only where they were changed when they left."""
    layer = nn.Linear(2, 2).requires_grad_(False)
    order = layer.weight.data = layer.weight.data.t()
    sources = [each.detach().clone(memory_format=torch.contiguous_format) for each in layer.parameters()]
    for each, source in zip(layer.parameters(), sources, strict=True):
        from_file(each, source)
    moved = Weights([layer], torch.device("cpu"))
    with caplog.at_level("INFO"):
        settle_on_host([moved], 0, "SDXL")
    assert caplog.messages == [
        "SDXL stays mapped from its file while it waits: it has 0.0 GB, and 0.0 GB of the host's memory are free."
    ]
    moved.leave()
    assert [each.data_ptr() for each in layer.parameters()] == [each.data_ptr() for each in sources]
    moved._there = None  # as if the move had been interrupted
    moved.leave()
    moved.enter()
    assert layer.weight.stride() == order.stride(), "or compiled code would be compiled again"
    original = layer.bias.tolist()
    with torch.inference_mode(), mock.patch.object(torch.Tensor, "copy_", side_effect=AssertionError("written to")):
        layer.bias.add_(0)  # a LoRA came and went
        moved.leave()
    moved.enter()
    with torch.inference_mode():
        layer.bias.fill_(3)
    moved.leave()
    assert layer.bias.tolist() == [3, 3] != original


def test_a_host_without_room_refuses_weights_that_no_file_has() -> None:
    layer = nn.Linear(2, 2).requires_grad_(False)
    from_file(layer.weight, layer.weight.clone())
    moved = Weights([layer], torch.device("cpu"))
    assert (moved.size, moved.unmapped) == (24, 8)
    with pytest.raises(OutOfMemory, match=r"^No memory on the host for SDXL while it waits .*: 0\.0 GB must be copied"):
        settle_on_host([moved], 0, "SDXL")
    assert moved.there
    settle_on_host([moved], 1000, "SDXL")
    moved.leave()
    settle_on_host([moved], 0, "SDXL")  # it was copied before
    assert moved.left


def test_kinds_of_networks_take_turns() -> None:
    models = [mock.Mock(components=Components(weights(), weights(), weights())) for _ in range(2)]
    (texts, unet, pictures), (more_texts, other_unet, more_pictures) = (model.components.all for model in models)
    share(models)
    for taken, present in (
        ([texts, more_texts], [texts, more_texts]),
        ([unet], [unet]),
        ([other_unet], [other_unet]),
        ([more_pictures], [more_pictures]),
        ([unet], [unet]),
        ([pictures], [pictures]),
    ):
        for each in taken:
            each.take()
        found = [each for model in models for each in model.components.all if each.there]
        assert found == [each for model in models for each in model.components.all if each in present]

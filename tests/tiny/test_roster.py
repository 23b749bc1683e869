"""Several models in one process: picked, together in a picture, and off the device while another one draws."""

import gc
import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.ask.identity import ModelFiles
from pipelines.ask.inputs import Inputs
from pipelines.ask.networks import Extras
from pipelines.ask.plan import make_plan
from pipelines.ask.request import BOTH_PASSES, ControlSettings, GenerationRequest, HiresSettings, RefinerSettings
from pipelines.drawing.cast import cast_of, picked
from pipelines.drawing.phases import Beside, Picture, render
from pipelines.errors import InvalidInput, ModelError, OutOfMemory
from pipelines.families.sdxl import REFINER
from pipelines.infotext.asked import read_data, settle
from pipelines.infotext.other_models import with_models
from pipelines.models.loader import load
from pipelines.models.model import Model
from pipelines.models.roster import Member, Roster, made, put_away, sizes_of
from pipelines.runtime.device import Device
from pipelines.runtime.memory import ROOM_USED
from pipelines.runtime.offloading import Weights
from pipelines.runtime.placement import Work, at_once, in_turns
from tests import adapters
from tests.alike import alike
from tests.controls import random_control
from tests.controls import write as control_file
from tests.sdxl import networks as sdxl_networks
from tests.sdxl import single_file

OWN = {"width": 64, "height": 64}
PLAIN = "a\nSteps: 4, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64"


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = single_file(tmp_path_factory.mktemp("sdxl") / "big.safetensors", sdxl_networks())
    return load(ModelFiles(name="big", checkpoint=path, vae=None))


@pytest.fixture
def roster(networks: Model, sdxl: Model) -> Roster:
    members = {"tiny": Member(model=networks, settings=OWN), "big": Member(model=sdxl, settings=OWN, checked=True)}
    return Roster(members, {"lost": "no such file"}, {"lost": "gone.safetensors"})


def test_an_input_comes_before_generation_data_which_comes_before_the_first(roster: Roster) -> None:
    tiny, big = roster.members.values()
    digits = big.model.identity.sha256[:10]
    for name, end, member in (
        ("", "", tiny),
        ("big", "", big),
        ("", f", Model hash: {digits}, Model: tiny", big),
        ("", ", Model hash: 0000000000, Model: big", big),
        ("", ", Model hash: 0000000000, Model: other", tiny),
        ("Tiny", f", Model hash: {digits}", tiny),
    ):
        assert picked(roster, name, read_data(PLAIN + end)) is member


def test_names_that_are_not_here_tell_what_is(roster: Roster) -> None:
    with pytest.raises(InvalidInput, match=r"^model='bigg': is not one .* models here are big, tiny\.$"):
        roster.pick("bigg")
    with pytest.raises(InvalidInput, match=r"^model='lost': this model cannot be used here: no such file\. The"):
        roster.pick("lost")
    with pytest.raises(InvalidInput, match=r"gone': this model cannot be used here: no such file\. The"):
        roster.pick("gone")
    digits = roster.members["big"].model.identity.sha256[:10]
    with pytest.raises(InvalidInput, match=rf"^model='big \[0123456789\]': big here is {digits}\. Leave out"):
        roster.pick("big [0123456789]")


def cast(roster: Roster, text: str, name: str = "tiny") -> Any:
    member = roster.members[name]
    asked = settle(Inputs(highres_fix="On"), read_data(text), OWN)
    return cast_of(roster, member, with_models(asked, roster.names_beside(member.model)))


def test_other_models_take_part(roster: Roster, networks: Model) -> None:
    """The safety checker looks at what any of them draws."""
    twin = replace(networks)
    members = {**roster.members, "twin": Member(model=twin, settings=OWN, checked=True)}
    found = cast(Roster(members, {}), "Refiner: twin, Hires checkpoint: TWIN.ckpt")
    assert (found.model, found.others, found.checked) == (networks, {"twin": twin}, True)
    assert found.identities == {"twin": twin.identity}
    alone = cast(Roster(members, {}), "Refiner: twin, Refiner switch at: 1")
    assert (alone.others, alone.checked) == ({}, False)
    asked = settle(Inputs(), read_data("Refiner: gone, Refiner switch at: 1"), OWN)
    assert with_models(asked, roster.names).settings.refiner.name == "gone", "or nothing could be told about it"


@pytest.mark.parametrize("key", ["Refiner", "Hires checkpoint"])
def test_latents_of_another_kind_are_refused_at_once(roster: Roster, key: str) -> None:
    with pytest.raises(InvalidInput, match=rf"'{key}: big': SDXL cannot continue latents of Stable Diffusion 1"):
        cast(roster, f"{key}: big")
    found = cast(roster, f"{PLAIN}, Denoising strength: 0.5, Hires upscale: 2, {key}: big")
    assert (found.others, found.checked) == ({}, False), "of a whole block it is an obstacle"
    with pytest.raises(InvalidInput, match=rf"'{key}: lost': this model cannot be used here: no such file"):
        cast(roster, f"{key}: lost")


def test_an_inpainting_model_is_no_refiner(roster: Roster, tmp_path: Path) -> None:
    path = single_file(tmp_path / "nine.safetensors", sdxl_networks(channels=9))
    nine = Member(model=load(ModelFiles(name="nine", checkpoint=path, vae=None)), settings=OWN)
    with pytest.raises(InvalidInput, match="'Refiner: nine': it is an inpainting or unCLIP checkpoint, which cannot"):
        cast(Roster({**roster.members, "nine": nine}, {}), "Refiner: nine", "big")


def test_one_broken_model_of_several_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> int:
        raise ModelError("x.safetensors: no.")

    assert made({"a": fail, "b": lambda: 2}) == ({"b": 2}, {"a": "x.safetensors: no."})
    assert "The model a cannot be used: x.safetensors: no." in caplog.text
    with pytest.raises(ModelError, match=r"^x\.safetensors: no\.$"):
        made({"a": fail})
    with pytest.raises(ModelError, match=r"^None of the models can be used\. a: x\.safetensors: no\.; b: x"):
        made({"a": fail, "b": fail})

    def too_large() -> int:
        raise RuntimeError("CUDA out of memory. Tried to allocate")

    assert made({"a": too_large, "b": lambda: 2})[1] == {
        "a": "No memory left to load a. Use a larger GPU, or a smaller model."
    }
    with pytest.raises(ModelError, match=r"^None of the models can be used\. c: no such file; a: x"):
        made({"a": fail}, {"c": "no such file"})
    assert made({"b": lambda: 2}, {"c": "no such file"}) == ({"b": 2}, {"c": "no such file"})


# --- memory


def live() -> int:
    """Bytes of all tensors that were made since the tests were collected, and that anything still holds."""
    gc.collect()
    with mock.patch("warnings.warn"):
        storages = {each.untyped_storage().data_ptr(): each.nbytes for each in gc.get_objects() if type(each) in KINDS}
    return sum(storages.values())


KINDS = (torch.Tensor, torch.nn.Parameter)


def test_switching_copies_nothing_on_a_cpu_and_keeps_nothing(roster: Roster, networks: Model, tmp_path: Path) -> None:
    """Not even what a LoRA has changed, once another model draws."""
    tensors = adapters.kohya(networks.unet.network, networks.text.towers[0].model)
    use = adapters.use(adapters.write(tmp_path / "mine.safetensors", tensors))
    big = roster.members["big"].model
    places = [each.data_ptr() for each in networks.unet.network.parameters()]
    sizes = [live()]
    for turn in range(20):
        roster.use([networks])
        if turn in (0, 19):
            with networks.using([use], [], None):
                pass
        roster.use([big])
        if turn in (0, 19):
            sizes.append(live())
    assert sizes[1:] == sizes[:1] * 2
    assert [each.data_ptr() for each in networks.unet.network.parameters()] == places


def test_weights_leave_the_device_and_come_back(tmp_path: Path) -> None:
    """A copy in the host's memory stands for the device."""
    path = single_file(tmp_path / "some.safetensors", sdxl_networks())
    small = load(ModelFiles(name="some", checkpoint=path, vae=None))
    model = replace(small, device=Device(torch.device("cuda"), torch.float16))
    roster = Roster({"some": Member(model=model, settings=OWN)}, {})
    before = dict(parameters(model))
    with (
        host_short_of(0),
        pytest.raises(OutOfMemory, match=r"^No memory on the host for SDXL while it waits .* use a safetensors file"),
    ):
        put_away(model)
    assert all(each.there for each in model.components.all)
    with mock.patch.object(model.components.unet, "leaving") as forget:
        put_away(model)
        put_away(model)
    assert forget.call_count == 1, "graphs are void"
    host = {name: each.clone() for name, each in parameters(model)}
    places = {name: each.data_ptr() for name, each in parameters(model)}
    roster.use([model])
    assert all(each is before[name] for name, each in parameters(model)), "compiled code knows the objects"
    for name, each in parameters(model):
        assert each.data_ptr() != places[name]
        assert torch.equal(each, host[name])
    roster.use([])
    full = mock.patch.object(torch, "empty_strided", side_effect=RuntimeError("out of memory"))
    with full, pytest.raises(OutOfMemory, match=r"^No memory left on the device for some\. Draw with fewer"):
        roster.use([model])
    assert all(each.left for each in model.components.all)
    assert {name: each.data_ptr() for name, each in parameters(model)} == places


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = single_file(tmp_path_factory.mktemp("refiner") / "r.safetensors", sdxl_networks(REFINER.name), REFINER)
    return load(ModelFiles(name="refiner", checkpoint=path, vae=None))


def short_of(room: int) -> Any:
    return mock.patch("pipelines.models.roster.room_left", return_value=room)


def host_short_of(room: int) -> Any:
    return mock.patch("pipelines.models.roster.host_room", return_value=room)


def test_base_and_refiner_take_turns_where_both_do_not_fit(
    sdxl: Model, refiner: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever runs is there, and nothing else but its kind. The picture stays the same."""
    roster = Roster({"big": Member(model=sdxl, settings=OWN), "fine": Member(model=refiner, settings=OWN)}, {})
    asked = GenerationRequest(
        prompt="a sun",
        width=64,
        height=64,
        seed=3,
        num_inference_steps=2,
        hires=HiresSettings(steps=2, upscaler="Lanczos"),
        refiner=RefinerSettings(name="fine", switch_at=0.5, passes=BOTH_PASSES),
    )
    plan, both = make_plan(asked), (sdxl, refiner)
    parts = [each.components for each in both]
    kinds = [[each.texts for each in parts], [each.pictures for each in parts], *([each.unet] for each in parts)]
    seen: list[int] = []

    def check(kind: int, weights: Weights) -> None:
        assert weights.there
        assert all(each.left for number, other in enumerate(kinds) if number != kind for each in other)
        seen.append(kind)

    def picture() -> np.ndarray:
        events = render(sdxl, asked, plan, beside=Beside(others={"fine": refiner}))
        return next(event.pixels for event in events if isinstance(event, Picture))

    expected = picture()
    weights = sum(each.size for part in parts for each in part.all)
    told = "^No memory on the host for big and fine while it waits"
    with short_of(-weights // 10), host_short_of(weights), pytest.raises(OutOfMemory, match=told):
        roster.use(both, plan)
    assert not any(each.kept for part in parts for each in part.all), "nothing was copied to find that out"
    with caplog.at_level("INFO"), short_of(-weights // 10), host_short_of(2 * weights):
        roster.use(both, plan)
    assert re.search(r"big and fine need .* at once, .* in turns, and .* are free: text encoders, each", caplog.text)
    for number, model in enumerate(both):
        own = model.components
        for kind, held, networks in (
            (0, own.texts, [tower.network for tower in model.text.towers]),
            (1, own.pictures, [model.vae.network.encoder, model.vae.network.decoder]),
            (2 + number, own.unet, [model.unet.network]),
        ):
            for network in networks:
                network.hook = network.register_forward_pre_hook(lambda *_, k=kind, h=held: check(k, h))
    try:
        assert alike(picture(), expected)
    finally:
        for model in both:
            towers = [tower.network for tower in model.text.towers]
            for network in (*towers, model.vae.network.encoder, model.vae.network.decoder, model.unet.network):
                network.hook.remove()
    turns = [kind for kind, _ in itertools.groupby(seen)]
    assert turns == [0, 2, 3, 1, 3, 1], "each is brought once for a phase; the hires pass begins with the refiner"
    roster.use(both, plan)
    assert all(each.there for part in parts for each in part.all), "on a device that has room they stay"


def test_what_does_not_fit_even_in_turns_is_refused_before_work(roster: Roster, sdxl: Model) -> None:
    plan = make_plan(GenerationRequest(prompt="", width=64, height=64, seed=1, hires=None))
    held = sum(each.size for each in sdxl.components.all)
    told = r"^No memory for 1 x 64x64.*: big need .* in turns, but the device has 0\.0 GB for them\. "
    with short_of(sdxl.components.unet.size - held), pytest.raises(OutOfMemory, match=told + r"Use a larger GPU\."):
        roster.use([sdxl], plan)
    with short_of(sdxl.components.unet.size - held + 1), pytest.raises(OutOfMemory, match=told + "width=64 and"):
        roster.use([sdxl], plan)


def test_control_networks_count_before_work(sdxl: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They stay on the device while others take turns. Nothing is loaded to find that out."""
    roster = Roster({"big": Member(model=sdxl, settings=OWN)}, {})
    file = control_file(tmp_path / "c.safetensors", random_control(sdxl.unet.network))
    plain = GenerationRequest(prompt="", width=64, height=64, seed=1, hires=None)
    control = ControlSettings(model="c", picture=Image.new("RGB", (64, 64)), preprocessor="none")
    asked = replace(plain, extras=Extras(controls={"c": file}), controls=(control,))
    sizes, work = [sizes_of(sdxl.components)], Work.of(make_plan(plain), [sdxl.footprint_with(True)])
    weights, needed = sum(each.size for each in sdxl.components.all), sdxl.controls.growth([file])
    assert 0.3 * sdxl.components.unet.size < needed < sdxl.components.unet.size
    for room, request, log in (
        (at_once(sizes, work) / ROOM_USED + 1, plain, ""),
        (at_once(sizes, work) / ROOM_USED + 1, asked, "big with control networks need"),
        ((at_once(sizes, work) + needed) / ROOM_USED + 1, asked, ""),
    ):
        caplog.clear()
        with short_of(int(room) - weights), caplog.at_level("INFO"):
            roster.use([sdxl], make_plan(request), request)
        assert log in caplog.text
        assert bool(log) == bool(caplog.text)
    turns = in_turns(sizes, work) - weights
    with short_of(turns):
        roster.use([sdxl], make_plan(plain), plain)
    refused = pytest.raises(
        OutOfMemory, match=r"^No memory for 1 x 64x64.*: big with control networks need .* in turns"
    )
    with short_of(turns), refused:
        roster.use([sdxl], make_plan(asked), asked)
    with short_of(turns + needed):
        roster.use([sdxl], make_plan(asked), asked)
    assert not sdxl.controls.networks
    roster.use([sdxl])


def parameters(model: Model) -> list[tuple[str, torch.nn.Parameter]]:
    networks: list[torch.nn.Module] = [model.unet.network, model.vae.network, *(t.network for t in model.text.towers)]
    return [(f"{n} {name}", each) for n, part in enumerate(networks) for name, each in part.named_parameters()]

"""The GPU's optimisations, as far as a CPU can run them: torch's compiler with a backend that compiles nothing, graphs
with a recorder that computes again, and the meta device, where waiting for a result is an error."""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from torch import Tensor
from torch._dynamo.utils import counters

from pipelines.ask.catalog import SAMPLERS, ZERO_TERMINAL_SNR
from pipelines.ask.identity import ModelFiles
from pipelines.ask.networks import Extras
from pipelines.ask.plan import make_plan
from pipelines.ask.request import (
    AddedNoise,
    ControlSettings,
    FreeU,
    GenerationRequest,
    HiresSettings,
    NoiseSettings,
    ScheduleSettings,
    SkippedGuidance,
)
from pipelines.drawing import compiling as compiled
from pipelines.drawing.compiling import compile_model
from pipelines.drawing.phases import BASE, REFINE, PassResult, Picture, render
from pipelines.models.loader import load
from pipelines.models.model import Model
from pipelines.runtime import graphs
from pipelines.runtime.device import Device
from pipelines.runtime.graphs import GraphedUNet
from pipelines.runtime.unet_call import Condition, UNetCall
from tests import adapters
from tests.alike import alike
from tests.controls import by_authors_names, random_control, random_image_encoder, random_ip_adapter, random_t2i, write
from tests.folders import save
from tests.tiny.test_highres import steps_alone
from weights_script.resolve import ResolvedModel


def recorded(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """As a CUDA graph does it: the same places are read and written at every replay, and nothing else is."""
    output = work()
    return lambda: output.copy_(work()), output


def request(**fields: Any) -> GenerationRequest:
    small = {"prompt": "a pink sun", "width": 128, "height": 64, "seed": 7, "num_inference_steps": 2}
    return GenerationRequest(**{**small, "hires": HiresSettings(steps=2), **fields})


def picture(networks: Model, asked: GenerationRequest) -> np.ndarray:
    return next(e.pixels for e in render(networks, asked, make_plan(asked)) if isinstance(e, Picture))


@pytest.fixture
def uncompiled_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch's compiler as it was after the test. The picture that compiled networks draw on trial does not grow, which
    is a quarter of the work; what tests draw after it does."""
    monkeypatch.setattr(compiled, "HiresSettings", partial(HiresSettings, scale=1))
    yield
    torch.compiler.set_stance("default")
    torch.compiler.reset()


def smaller(networks: Model, files: ModelFiles, folder: Path, **blocks: object) -> ModelFiles:
    """The embedded model with one layer a block, two layers of its text encoder and a narrow random VAE."""
    unet, text = networks.unet.network, copy.deepcopy(networks.text.towers[0].model)
    shallow = UNet2DConditionModel.from_config({**unet.config, "layers_per_block": 1, **blocks})
    weights, trained = shallow.state_dict(), unet.state_dict()
    same = {name for name, weight in weights.items() if name in trained and trained[name].shape == weight.shape}
    shallow.load_state_dict(weights | {name: trained[name] for name in same})
    save(networks, folder, shallow)
    text.encoder.layers = text.encoder.layers[:2]
    text.config.num_hidden_layers = 2
    text.save_pretrained(folder / "text_encoder")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        narrow = {"block_out_channels": (32,) * 4, "layers_per_block": 0}
        vae = AutoencoderKL.from_config({**networks.vae.network.config, **narrow})
    vae.decoder.conv_out.weight.data *= 4  # or all its pictures would be nearly grey
    vae.save_pretrained(folder / "vae")
    return replace(files, checkpoint=folder, vae=None)


@pytest.fixture(scope="module")
def small(networks: Model, embedded: ResolvedModel, tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """With attention on one level: each kind of block is still there, but torch traces them in half of the time."""
    down = ("CrossAttnDownBlock2D", *["DownBlock2D"] * 3)
    up = (*["UpBlock2D"] * 3, "CrossAttnUpBlock2D")
    folder = tmp_path_factory.mktemp("small")
    return smaller(networks, embedded.files, folder, down_block_types=down, up_block_types=up)


@pytest.fixture(scope="module")
def shallow(networks: Model, embedded: ResolvedModel, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """With attention where Stable Diffusion has it, as control networks expect it."""
    return load(smaller(networks, embedded.files, tmp_path_factory.mktemp("shallow")))


@pytest.mark.usefixtures("uncompiled_after")
def test_one_compilation_serves_every_usual_size(small: ModelFiles, tmp_path: Path) -> None:
    shallow = load(small)
    lora = adapters.write(
        tmp_path / "mine.safetensors", adapters.kohya(shallow.unet.network, shallow.text.towers[0].model)
    )
    adapter = write(tmp_path / "adapter.safetensors", random_ip_adapter(shallow.unet.network))
    encoder = write(tmp_path / "encoder.safetensors", dict(random_image_encoder().state_dict()))
    seen = ControlSettings(model="some", picture=Image.effect_noise((64, 64), 60).convert("RGB"), end=0.4)
    shown = Extras(controls={"some": adapter}, image_encoder=encoder)
    asked = [
        request(height=128, hires=None),
        request(width=192, height=128, num_outputs=3, hires=None),
        request(prompt="a BREAK b BREAK c", hires=None),
        request(width=72, height=128, hires=None),  # these two run as they are: no multiple of 64,
        request(width=64, height=64, hires=None),  # and one latent wide at the deepest level
        request(freeu=FreeU(1.5, 1.6, 0.9, 0.2)),
        request(prompt="a pink sun <lora:mine:1>", extras=adapters.extras(lora)),
        request(controls=(seen,), extras=shown, height=128, num_inference_steps=3, hires=None),
        request(),  # none of these leaves anything behind that would have to be compiled for
    ]
    expected = [picture(shallow, each) for each in asked]
    counters.clear()
    torch.compiler.set_stance("eager_on_recompile")  # as another model, compiled before, leaves it
    faster = compiled.compiled(shallow, 128, 128, recorded, backend="eager")
    assert isinstance(faster.unet, GraphedUNet)
    made = counters["stats"]["unique_graphs"]
    found = [picture(faster, each) for each in asked]
    assert counters["stats"]["unique_graphs"] == made
    assert all(map(alike, found, expected))
    assert not any(map(alike, found, [*expected[1:], expected[0]]))
    torch.compiler.set_stance("fail_on_recompile")  # the compiled code is still in use, and not only allowed to be
    assert alike(picture(faster, asked[0]), expected[0])


@pytest.mark.usefixtures("uncompiled_after")
def test_what_cannot_be_compiled_runs_as_it_is(small: ModelFiles, caplog: pytest.LogCaptureFixture) -> None:
    own = load(small)
    compile_it = torch.compile

    def broken(target: Any, **options: Any) -> Any:
        if target is own.unet.network:  # the VAE's decoder comes before it
            raise RuntimeError("no compiler")
        return compile_it(target, **options)

    with caplog.at_level("WARNING"), mock.patch.object(torch, "compile", broken):
        networks = compiled.compiled(own, 64, 128, recorded, backend="eager")
    assert networks is own
    assert "The networks run uncompiled (no compiler)" in caplog.text
    counters.clear()
    picture(networks, request())
    assert not counters["stats"]  # nor is what was told to compile before the error


@pytest.mark.usefixtures("uncompiled_after")
def test_what_draws_another_picture_is_not_used(small: ModelFiles, caplog: pytest.LogCaptureFixture) -> None:
    own = load(small)
    with (
        caplog.at_level("WARNING"),
        mock.patch.object(torch, "compile", side_effect=lambda network, **_: network),
        mock.patch.object(torch.nn.Module, "compile"),
    ):
        networks = compiled.compiled(own, 64, 128, lambda work: (lambda: None, work() * 0))
    assert networks is own
    assert "it changes the picture: PSNR" in caplog.text


def test_a_cpu_is_left_alone(networks: Model) -> None:
    assert compile_model(networks, 128, 128) is networks


class Counted:
    """A UNet's forward, counted, and a recorder of its calls."""

    def __init__(self) -> None:
        self.calls = self.recordings = self.replays = 0

    def call(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        self.calls += 1
        return (sample * timestep + encoder_hidden_states.mean(),)

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.recordings += 1
        replay, output = recorded(work)

        def counted() -> None:
            self.replays += 1
            replay()

        return counted, output


def call(side: int, value: float) -> UNetCall:
    return UNetCall(torch.full((2, 4, side, side), value), torch.tensor(3.0), Condition(torch.full((2, 77, 8), value)))


def test_a_size_is_recorded_when_it_comes_again_and_replayed_with_new_values() -> None:
    counted = Counted()
    unet = GraphedUNet(mock.MagicMock(up_blocks=[mock.Mock(b1=None)]), counted.call, counted.record)
    results = [unet(call(8, value)) for value in (1.0, 2.0, 5.0)]
    assert (counted.recordings, counted.replays) == (1, 2)
    assert [float(result.mean()) for result in results] == [4.0, 8.0, 20.0]  # each a tensor of its own


def test_freeu_is_not_taken_for_what_was_recorded() -> None:
    counted = Counted()
    unet = GraphedUNet(mock.MagicMock(up_blocks=[block := mock.Mock(b1=None)]), counted.call, counted.record)
    for block.b1 in (None, 1.5, None, None):
        unet(call(8, 1.0))
    assert (counted.recordings, counted.replays) == (1, 2)


def test_the_least_used_sizes_are_forgotten() -> None:
    counted = Counted()
    unet = GraphedUNet(mock.MagicMock(up_blocks=[mock.Mock(b1=None)]), counted.call, counted.record)
    for side in range(8, 8 + graphs.GRAPHS + 1):
        for _ in range(2):
            unet(call(side, 1.0))
    unet(call(9, 1.0))
    unet(call(8, 1.0))  # the thread may be another by now: it warms up first
    assert counted.recordings == graphs.GRAPHS + 1
    unet(call(8, 1.0))
    assert counted.recordings == graphs.GRAPHS + 2


def test_large_sizes_are_not_recorded() -> None:
    counted = Counted()
    unet = GraphedUNet(mock.MagicMock(up_blocks=[mock.Mock(b1=None)]), counted.call, counted.record)
    for side in (96, 112):
        for _ in range(3):
            unet(call(side, 1.0))
    assert (counted.recordings, counted.replays) == (1, 2)


@pytest.mark.parametrize("made", [random_control, lambda unet: by_authors_names(random_t2i(unet)), random_ip_adapter])
def test_under_a_control_the_plain_network_computes(shallow: Model, tmp_path: Path, made: Callable[[Any], Any]) -> None:
    """Steps without it go on as graphs; those with it neither record nor replay one."""
    file = write(tmp_path / "some.safetensors", made(shallow.unet.network))
    encoder = write(tmp_path / "encoder.safetensors", dict(random_image_encoder().state_dict()))
    shown = Image.effect_noise((128, 64), 60)
    half = ControlSettings(model="some", picture=shown, end=0.4)
    extras = Extras(controls={"some": file}, image_encoder=encoder)
    under = request(controls=(half,), extras=extras, num_inference_steps=5, hires=None)
    recordings: list[Tensor] = []

    def record(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        replay, output = recorded(work)
        recordings.append(output)
        return replay, output

    faster = replace(shallow, unet=GraphedUNet(shallow.unet.network, shallow.unet.network, record))
    for asked in (under, request(hires=None), under):
        assert alike(picture(faster, asked), picture(shallow, asked))
    assert not alike(picture(shallow, under), picture(shallow, replace(under, controls=())))
    assert len(recordings) == 1
    shallow.controls.load_only([])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not permitted")])
def test_what_cannot_be_recorded_is_computed_and_not_tried_again(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    counted, record = Counted(), mock.Mock(side_effect=error)
    unet = GraphedUNet(mock.MagicMock(up_blocks=[mock.Mock(b1=None)]), counted.call, record)
    with caplog.at_level("WARNING"):
        results = [float(unet(call(8, value)).mean()) for value in (1.0, 2.0, 5.0)]
    assert results == [4.0, 8.0, 20.0]
    assert record.call_count == 1
    assert f"CUDA graphs cannot be recorded ({error})" in caplog.text


@pytest.fixture(scope="module")
def on_meta(small: ModelFiles) -> Model:
    """Networks on the meta device, where reading a value back is an error."""
    meta, own = torch.device("meta"), load(small)
    for network in (own.unet.network, own.vae.network, own.text.towers[0].model):
        network.to(meta)
    own.text.device = meta
    return replace(own, device=Device(meta, torch.float32))


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"DPM adaptive"}))  # whose step depends on the result
def test_no_step_waits_for_the_device(on_meta: Model, sampler: str) -> None:
    """Both passes are done before the first value is read back; with the real UNet under the default sampler alone, as
    each call of it takes the meta device most of a second."""
    network = nullcontext() if sampler == "DPM++ 2M" else steps_alone(on_meta)
    asked = request(prompt="(pink:1.2) sun AND [red:blue:2] house", num_outputs=2, sampler=sampler)
    asked = replace(
        asked, num_inference_steps=3, hires=HiresSettings(steps=3)
    )  # the fewest of which each sampler runs one
    events = render(on_meta, asked, make_plan(asked))
    with network:
        assert [next(e.phase for e in events if isinstance(e, PassResult)) for _ in range(2)] == [BASE, REFINE]
    with pytest.raises(NotImplementedError, match="meta tensor"):  # the copy to the host
        next(events)


@pytest.mark.parametrize("sampler", sorted({name for name in SAMPLERS if SAMPLERS[name].takes} - {"DPM adaptive"}))
def test_no_rarer_option_waits_for_the_device(on_meta: Model, sampler: str) -> None:
    asked = replace(
        request(prompt="[red:blue:0.5] house", num_outputs=2, sampler=sampler),
        num_inference_steps=6,
        noise=NoiseSettings(resize_width=128, resize_height=64),
        added_noise=AddedNoise(eta=0.5, eta_ddim=0.5, churn=3, scale=0.9),
        skipped_guidance=SkippedGuidance(early=0.3, minimum_sigma=1),
        schedule=ScheduleSettings(kind=ZERO_TERMINAL_SNR, downcast=True),
        extra_noise=0.1,
        sgm_noise=True,
        tiling=True,
        old_editing=True,
        hires=HiresSettings(steps=3),
    )
    with steps_alone(on_meta):
        events = render(on_meta, asked, make_plan(asked))
        assert [next(e.phase for e in events if isinstance(e, PassResult)) for _ in range(2)] == [BASE, REFINE]

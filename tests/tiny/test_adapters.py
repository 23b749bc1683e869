"""T2I adapters, IP-Adapters and Control-LoRAs on the embedded model match diffusers' networks, and act only where and
when they should."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipelines.ask.networks import ExtraFile, Extras, in_folders
from pipelines.ask.plan import make_plan
from pipelines.ask.request import ControlSettings, GenerationRequest, HiresSettings, ImageSettings
from pipelines.drawing.phases import render
from pipelines.errors import ModelError
from pipelines.families.sd1 import SD1
from pipelines.models.controls import load_control
from pipelines.models.model import Model
from pipelines.runtime.unet_call import UNet, cross_attentions
from pipelines.sampling.control import controls_of
from pipelines.sampling.denoiser import Guidance, GuidedDenoiser, Stage
from pipelines.sampling.prompts import PromptEncoder
from pipelines.sampling.samplers import ALGORITHMS
from script.schema import ROOT
from tests.controls import (
    by_authors_names,
    random_control_lora,
    random_image_encoder,
    random_ip_adapter,
    random_t2i,
    write,
)
from tests.passes import latents

SHOWN = Image.effect_noise((128, 64), 60).convert("RGB")
UNIT = ControlSettings(model="some", picture=SHOWN, preprocessor="none")
Tensors = dict[str, Tensor]

pytestmark = pytest.mark.xdist_group("adapters")  # one worker loads the model and the judge for all of them


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def t2i(networks: Model, folder: Path) -> ExtraFile:
    return write(folder / "t2i.safetensors", by_authors_names(random_t2i(networks.unet.network)))


@pytest.fixture(scope="module")
def control_lora(networks: Model, folder: Path) -> ExtraFile:
    return write(folder / "control_lora.safetensors", random_control_lora(networks.unet.network)[0])


@pytest.fixture(scope="module")
def ip(networks: Model, folder: Path) -> ExtraFile:
    return write(folder / "ip.safetensors", random_ip_adapter(networks.unet.network))


@pytest.fixture(scope="module")
def ip_plus(networks: Model, folder: Path) -> ExtraFile:
    return write(folder / "ip_plus.safetensors", random_ip_adapter(networks.unet.network, plus=True))


@pytest.fixture(scope="module", autouse=True)
def encoder(folder: Path) -> ExtraFile:
    """A small image encoder, which every request brings."""
    return write(folder / "encoder.safetensors", dict(random_image_encoder().state_dict()))


FILES = ["t2i", "control_lora", "ip", "ip_plus"]


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest) -> ExtraFile:
    """One of each kind."""
    found: ExtraFile = request.getfixturevalue(request.param)
    return found


@pytest.fixture(autouse=True)
def none_left(networks: Model) -> Iterator[None]:
    yield
    networks.controls.load_only([])


def asked(file: ExtraFile, *controls: ControlSettings, **fields: Any) -> GenerationRequest:
    small = {"prompt": "a boat", "width": 128, "height": 64, "seed": 1, "num_inference_steps": 2, "sampler": "Euler"}
    encoder = file.path.parent / "encoder.safetensors"
    extras = Extras(controls={"some": file}, image_encoder=ExtraFile.at(encoder) if encoder.is_file() else None)
    return GenerationRequest(**{**small, "hires": None, "controls": controls, "extras": extras, **fields})


# --- numbers ----------------------------------------------------------------------------------------------------------


def guided(networks: Model, request: GenerationRequest, network: Any, x: Tensor) -> Tensor:
    """The denoiser's output for one call at sigma 3, of "a boat AND a sun" and "night"."""
    prompts = PromptEncoder(networks.text, 1, "Original", False).encode("a boat AND a sun", "night", 4)
    plan, loaded = make_plan(request), networks.controls.encoder
    controls = controls_of(plan.first, request.controls, [network], None, networks.device, loaded)
    return GuidedDenoiser([Stage(networks, prompts)], Guidance(5.0), 3, controls=controls)(x, 3.0)


def by_hand(networks: Model, x: Tensor, options: Callable[[int, bool], dict[str, Any]]) -> Tensor:
    """The same with diffusers' UNet, row by row; `options` are what it takes beside, by row and whether it is the
    negative prompt's."""
    prompts = PromptEncoder(networks.text, 1, "Original", False).encode("a boat AND a sun", "night", 4)
    positive, negative = (condition.tokens for condition in prompts.at(0))
    time, scaled = torch.tensor(networks.noise.t_of(3.0)), x * 10**-0.5
    noises = []
    for row, context in enumerate([*positive, *negative]):
        told = options(row, row == len(positive))
        noises.append(networks.unet.network(scaled, time, **{"encoder_hidden_states": context[None], **told}).sample)
    *conditional, unconditional = noises
    whole = unconditional + sum(5.0 * (part - unconditional) for part in conditional)
    return x - 3.0 * whole


def start() -> Tensor:
    return torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("mode", ["balanced", "prompt", "control"])
@pytest.mark.parametrize("colours", [1, 3])
@torch.inference_mode()
def test_a_step_under_a_t2i_adapter_is_what_diffusers_networks_make_of_it(
    networks: Model, tmp_path: Path, mode: str, colours: int
) -> None:
    adapter = random_t2i(networks.unet.network, colours=colours)
    file = write(tmp_path / "some.safetensors", by_authors_names(adapter))
    request = asked(file, replace(UNIT, mode=mode, weight=0.7))
    network = load_control(file.path, networks.unet.network, networks.device, SD1)
    shown = torch.from_numpy(np.asarray(SHOWN).copy()).permute(2, 0, 1)[None] / 255
    features = adapter(shown[:, :colours])  # the picture is grey
    soft = (1.0,) * 4 if mode == "balanced" else (0.25, 0.62, 0.825, 1.0)

    def options(_: int, negative: bool) -> dict[str, Any]:
        share = 0.0 if mode == "control" and negative else 0.7
        added = [part * (share * level) for part, level in zip(features, soft, strict=True)]
        return {"down_intrablock_additional_residuals": added}

    found = guided(networks, request, network, start())
    assert torch.allclose(found, by_hand(networks, start(), options), atol=2e-4)
    assert not torch.allclose(found, by_hand(networks, start(), lambda *_: {}), atol=0.01)


@pytest.mark.parametrize("plus", [False, True])
@torch.inference_mode()
def test_a_step_under_an_ip_adapter_is_what_diffusers_makes_of_it(
    networks: Model, folder: Path, encoder: ExtraFile, plus: bool
) -> None:
    """Its own loader puts the weights into a copy of the UNet. The negative prompt sees nothing."""
    tensors = random_ip_adapter(networks.unet.network, plus)
    request = asked(write(folder / "one.safetensors", tensors), replace(UNIT, weight=0.7))
    networks.controls.load_only(request.extras.controls.values(), encoder)
    network = networks.controls[request.extras.controls["some"]]
    before = cross_attentions(networks.unet.network)[0].processor
    found = guided(networks, request, network, start())

    parts: dict[str, Tensors] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    unet = copy.deepcopy(networks.unet.network)
    unet._load_ip_adapter_weights([parts], low_cpu_mem_usage=False)
    for processor in unet.attn_processors.values():
        processor.scale = [0.7]
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    shown = CLIPImageProcessorPil(**size)(SHOWN, return_tensors="pt").pixel_values
    vision = random_image_encoder()

    def embedding(pixels: Tensor) -> Tensor:
        if plus:
            return vision(pixels, output_hidden_states=True).hidden_states[-2]
        return vision(pixels).image_embeds

    picture = embedding(shown)
    nothing = embedding(torch.zeros_like(shown)) if plus else torch.zeros_like(picture)

    def options(_: int, negative: bool) -> dict[str, Any]:
        return {"added_cond_kwargs": {"image_embeds": [(nothing if negative else picture)[:, None]]}}

    with_it = replace(networks, unet=UNet(unet))
    assert torch.allclose(found, by_hand(with_it, start(), options), atol=2e-4)
    assert not torch.allclose(found, by_hand(networks, start(), lambda *_: {}), atol=0.01)
    assert cross_attentions(networks.unet.network)[0].processor is before


@torch.inference_mode()
def test_two_pictures_at_once_and_one_for_a_while(networks: Model, ip: ExtraFile) -> None:
    """Each adds its share of attention: equal halves are the whole."""
    (whole,), (halves,), (ended,) = (
        latents(networks, asked(ip, *units, num_inference_steps=3))
        for units in (
            [UNIT],
            [replace(UNIT, weight=0.75), replace(UNIT, weight=0.25)],
            [replace(UNIT, weight=0.75), replace(UNIT, weight=0.25, end=0.3)],
        )
    )
    assert torch.allclose(whole, halves, atol=1e-3)
    assert not torch.allclose(whole, ended, atol=0.01)


def test_all_kinds_at_once(
    networks: Model, t2i: ExtraFile, control_lora: ExtraFile, ip: ExtraFile, encoder: ExtraFile
) -> None:
    extras = Extras(controls={"a": t2i, "b": control_lora, "c": ip}, image_encoder=encoder)
    units = [replace(UNIT, model=name) for name in extras.controls]
    (together,) = latents(networks, asked(t2i, *units, extras=extras))
    for left_out in units:
        (fewer,) = latents(networks, asked(t2i, *(unit for unit in units if unit is not left_out), extras=extras))
        assert not torch.allclose(together, fewer, atol=0.01)


def test_what_an_interrupted_call_leaves(networks: Model, ip: ExtraFile) -> None:
    """The attention that was there before, also where the network raises."""
    before = [attention.processor for attention in cross_attentions(networks.unet.network)]
    request = asked(ip, UNIT)
    with (
        mock.patch.object(networks.unet.network, "forward", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        latents(networks, request)
    after = [attention.processor for attention in cross_attentions(networks.unet.network)]
    assert all(one is other for one, other in zip(after, before, strict=True))


def test_two_adapters_add_up(networks: Model, t2i: ExtraFile) -> None:
    (whole,) = latents(networks, asked(t2i, replace(UNIT, weight=1)))
    (halves,) = latents(networks, asked(t2i, replace(UNIT, weight=0.75), replace(UNIT, weight=0.25)))
    (half,) = latents(networks, asked(t2i, replace(UNIT, weight=0.5)))
    assert torch.allclose(whole, halves, atol=1e-3)
    assert not torch.allclose(whole, half, atol=0.01)


def test_a_control_lora_is_the_controlnet_that_it_makes_of_the_unet(networks: Model, control_lora: ExtraFile) -> None:
    _, wanted = random_control_lora(networks.unet.network)
    found = load_control(control_lora.path, networks.unet.network, networks.device, SD1).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(tensor, wanted[name], atol=1e-6) for name, tensor in found.items())


def test_a_control_lora_is_added_to_the_model_without_the_loras_of_the_prediction_before(
    networks: Model, control_lora: ExtraFile
) -> None:
    (wanted,) = latents(networks, asked(control_lora, UNIT))
    loras = in_folders(ROOT / "tests" / "data" / "loras", None)
    networks.controls.load_only([])
    (other,) = latents(networks, asked(control_lora, prompt="a boat <lora:snowman:1>", extras=loras))
    (found,) = latents(networks, asked(control_lora, UNIT))
    assert torch.equal(found, wanted)
    assert not torch.equal(other, wanted)


def test_what_a_control_lora_lacks_is_a_copy_of_the_unets(networks: Model, tmp_path: Path) -> None:
    """A LoRA is merged into the UNet's weights in place."""
    tensors, wanted = random_control_lora(networks.unet.network)
    fewer = {name: tensor for name, tensor in tensors.items() if not name.endswith(".norm1.weight")}
    assert len(fewer) < len(tensors)
    path = write(tmp_path / "fewer.safetensors", fewer).path
    found = load_control(path, networks.unet.network, networks.device, SD1).state_dict()
    assert all(torch.allclose(tensor, wanted[name], atol=1e-6) for name, tensor in found.items())
    own = {tensor.data_ptr() for tensor in networks.unet.network.state_dict().values()}
    assert not own & {tensor.data_ptr() for tensor in found.values()}


def test_an_inpainting_unet_gives_a_control_lora_its_latents_channels(networks: Model, control_lora: ExtraFile) -> None:
    own = networks.unet.network
    inpainting = UNet2DConditionModel.from_config({**own.config, "in_channels": 9})
    weights = dict(own.state_dict())
    weights["conv_in.weight"] = torch.nn.functional.pad(weights["conv_in.weight"], (0, 0, 0, 0, 0, 5), value=9.0)
    inpainting.load_state_dict(weights)
    wanted, found = (
        load_control(control_lora.path, unet, networks.device, SD1).state_dict() for unet in (own, inpainting)
    )
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


# --- where and when ---------------------------------------------------------------------------------------------------


BOTH_PASSES = {"hires": HiresSettings(steps=1)}


@pytest.fixture(scope="module")
def without(networks: Model, t2i: ExtraFile) -> list[Tensor]:
    """Latents of both passes without any of them, drawn once: before the first was loaded."""
    return latents(networks, asked(t2i, **BOTH_PASSES))


def test_without_weight_the_picture_is_bit_for_bit_the_one_without(
    networks: Model, without: list[Tensor], file: ExtraFile
) -> None:
    with_none = latents(networks, asked(file, replace(UNIT, weight=0), **BOTH_PASSES))
    with_it = latents(networks, asked(file, UNIT, **BOTH_PASSES))
    after = latents(networks, asked(file, **BOTH_PASSES))
    assert all(map(torch.equal, without, with_none))
    assert not any(map(torch.equal, without, with_it))
    assert all(map(torch.equal, without, after))


@pytest.fixture(scope="module")
def plain(networks: Model, t2i: ExtraFile) -> list[Tensor]:
    """Latents after each of four steps without any of them."""
    return after_each_step(networks, asked(t2i, num_inference_steps=4))


def test_it_acts_at_its_steps_alone(networks: Model, plain: list[Tensor], file: ExtraFile) -> None:
    """The steps before are bit for bit those without it."""
    found = after_each_step(networks, asked(file, replace(UNIT, start=0.5), num_inference_steps=4))
    assert [torch.equal(one, other) for one, other in zip(found, plain, strict=True)] == [True, True, False, False]


def after_each_step(networks: Model, request: GenerationRequest) -> list[Tensor]:
    """The latents after 1, 2, 3 and 4 of four steps: of a schedule that ends there, the last one is another."""
    seen: list[Tensor] = []
    steps = ALGORITHMS["Euler"]

    def noted(*arguments: Any) -> Iterator[Tensor]:
        for x in steps(*arguments):
            seen.append(x.clone())
            yield x

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ALGORITHMS, "Euler", noted)
        latents(networks, request)
    return seen


def test_a_picture_to_start_from_and_a_batch(networks: Model, file: ExtraFile) -> None:
    """Each picture of a batch is the one that is drawn alone. Without a picture of its own it sees the image."""
    image = ImageSettings(picture=SHOWN)
    unit = replace(UNIT, picture=None)
    both = asked(file, unit, num_outputs=2, image=image)
    (found,) = latents(networks, both)
    alone = torch.cat([latents(networks, replace(both, num_outputs=1, seed=seed))[0] for seed in (1, 2)])
    assert torch.allclose(found, alone, atol=1e-3)
    (shown,) = latents(networks, replace(both, controls=(UNIT,)))
    assert torch.allclose(found, shown, atol=1e-3)
    (black,) = latents(networks, replace(both, controls=(replace(UNIT, picture=Image.new("RGB", SHOWN.size)),)))
    assert (found - black).abs().max() > 0.003


@pytest.mark.parametrize("size", [(64, 64), (72, 88)])
def test_any_size(networks: Model, file: ExtraFile, size: tuple[int, int]) -> None:
    width, height = size
    (found,) = latents(networks, asked(file, UNIT, width=width, height=height, num_inference_steps=1))
    assert found.shape[2:] == (height // 8, width // 8)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full_adapter", "light_adapter"])
@pytest.mark.parametrize("form", ["authors", "diffusers", "pickle"])
def test_every_form_of_a_t2i_adapter_is_the_same_network(networks: Model, tmp_path: Path, kind: str, form: str) -> None:
    """A light one has two levels alike at its end, which the embedded model has not."""
    unet = UNet2DConditionModel.from_config({**networks.unet.network.config, "block_out_channels": (32, 64, 64, 64)})
    adapter = random_t2i(unet, kind)
    tensors = adapter.state_dict() if form == "diffusers" else by_authors_names(adapter)
    path = tmp_path / "adapter.pth"
    if form == "pickle":
        torch.save(tensors, path)
    else:
        write(path, dict(tensors))
    found, wanted = load_control(path, unet, networks.device, SD1), adapter.state_dict()
    assert found.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.state_dict().items())
    assert found.config["adapter_type"] == kind


MADE: dict[str, Callable[[Any], Tensors]] = {
    "t2i": lambda unet: by_authors_names(random_t2i(unet)),
    "control_lora": lambda unet: random_control_lora(unet)[0],
    "ip": random_ip_adapter,
    "ip_plus": lambda unet: random_ip_adapter(unet, plus=True),
}


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("t2i", lambda t: t | {"conv_in.weight": torch.zeros(64, 768, 3, 3)}, "a T2I adapter for SDXL. Give one"),
        ("t2i", lambda t: t | {"conv_in.weight": torch.zeros(64, 100, 3, 3)}, "its first layer takes 100 channels"),
        ("t2i", lambda t: t | {"conv_in.weight": torch.zeros(8, 192, 3, 3)}, "T2IAdapter does not fit"),
        ("t2i", lambda t: {n: v for n, v in t.items() if n != "conv_in.bias"}, "lacks adapter.conv_in.bias"),
        ("t2i", lambda t: {n: v for n, v in t.items() if n != "conv_in.weight"}, "lacks conv_in.weight"),
        ("t2i", lambda t: t | {f"x.{k}": torch.zeros(1) for k in range(400)}, "a T2I adapter has about 40"),
        ("t2i", lambda t: t | {"conv_in.bias": torch.full((64,), torch.nan)}, "NaN or infinite"),
        ("t2i", lambda _: {"style_embedding": torch.zeros(1, 8, 8)}, "a T2I style adapter, not a ControlNet"),
        (
            "t2i",
            lambda _: {"base_model.model.controlnet_mid_block.x": torch.zeros(2)},
            "a PEFT adapter of a ControlNet,",
        ),
        ("control_lora", lambda t: t | {"time_embed.0.up": torch.zeros(3, 4)}, "product for time_embedding.linear_1"),
        (
            "control_lora",
            lambda t: t | {"time_embed.0.up": torch.zeros(())},
            "half of its product for time_embedding",
        ),
        (
            "control_lora",
            lambda t: {n: v for n, v in t.items() if n != "time_embed.0.up"},
            "lacks half of its product",
        ),
        ("control_lora", lambda t: {n: v for n, v in t.items() if "zero_convs.0" not in n}, "lacks controlnet_down"),
        ("ip", lambda t: {n: torch.zeros(64, 2048) if "_ip." in n else v for n, v in t.items()}, "made for SDXL"),
        ("ip", lambda t: t | {"image_proj.proj.3.weight": torch.zeros(2)}, "an IP-Adapter of the full face. Send"),
        ("ip", lambda t: t | {"ip_adapter.0.to_q_lora.down.weight": torch.zeros(2, 2)}, "an IP-Adapter FaceID"),
        ("ip", lambda t: {n: v for n, v in t.items() if ".31." not in n}, "lacks to_k.15.weight"),
        ("ip", lambda t: {n: v for n, v in t.items() if n != "image_proj.norm.weight"}, "lacks projection.norm.weight"),
        ("ip", lambda t: t | {"image_proj.proj.weight": torch.zeros(256, 9)}, "encoder of width 9, but .* has 24"),
        ("ip_plus", lambda t: t | {"image_proj.proj_in.weight": torch.zeros(128, 9)}, "of width 9, but .* has 64"),
        ("ip_plus", lambda t: {n: v for n, v in t.items() if "layers.3.1.3" not in n}, "lacks projection.layers.3.ff"),
        ("ip_plus", lambda t: t | {"image_proj.latents": torch.zeros(4)}, "its IP-Adapter has an unknown form"),
        ("control_lora", lambda t: t | {"label_emb.0.0.up": torch.zeros(3, 4)}, "a ControlNet for SDXL"),
    ],
)
def test_other_files_are_refused_before_anything_is_drawn(
    networks: Model, tmp_path: Path, kind: str, change: Callable[[Tensors], Tensors], words: str
) -> None:
    unet = networks.unet.network
    made = MADE[kind](unet)
    write(tmp_path / "encoder.safetensors", dict(random_image_encoder().state_dict()))
    broken = replace(write(tmp_path / "broken.safetensors", change(made)), origin="files='broken'")
    with pytest.raises(ModelError, match=f"^files='broken': .*{words}"):
        next(render(networks, asked(broken, UNIT), make_plan(asked(broken, UNIT))))


@pytest.mark.parametrize("plus", [False, True])
def test_an_ip_adapter_as_its_authors_pickled_it(networks: Model, tmp_path: Path, plus: bool) -> None:
    """In two dicts of a dict."""
    tensors = random_ip_adapter(networks.unet.network, plus)
    parts: dict[str, Tensors] = {"image_proj": OrderedDict(), "ip_adapter": OrderedDict()}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    torch.save(parts, tmp_path / "ip-adapter.bin")
    found = load_control(tmp_path / "ip-adapter.bin", networks.unet.network, networks.device, SD1).state_dict()
    flat = write(tmp_path / "flat.safetensors", tensors).path
    wanted = load_control(flat, networks.unet.network, networks.device, SD1).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


def test_half_precision_is_read(networks: Model, tmp_path: Path) -> None:
    for made in MADE.values():
        halves = {name: tensor.half() for name, tensor in made(networks.unet.network).items()}
        halves |= {"lora_controlnet": torch.zeros(0, dtype=torch.int64)} if "lora_controlnet" in halves else {}
        path = write(tmp_path / "half.safetensors", halves).path
        loaded = load_control(path, networks.unet.network, networks.device, SD1).state_dict()
        assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: None, "^files='ip': an IP-Adapter, which needs the image encoder CLIP ViT-H"),
        (lambda t: {"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, "a LoRA, not an image encoder of CLIP"),
        (lambda t: {n: v for n, v in t.items() if "projection" not in n}, "not a complete image encoder of CLIP"),
        (lambda t: {n: v for n, v in t.items() if "layers.1.mlp" not in n}, "lacks vision_model.encoder.layers.1"),
        (lambda t: {n: v for n, v in t.items() if "position" not in n}, "its image encoder lacks vision_model.embed"),
    ],
)
def test_an_image_encoder_that_is_none_is_named(
    networks: Model, ip: ExtraFile, tmp_path: Path, change: Callable[[Tensors], Tensors | None], words: str
) -> None:
    changed = change(dict(random_image_encoder().state_dict()))
    encoder = write(tmp_path / "encoder.safetensors", changed) if changed else None
    with pytest.raises(ModelError, match=words):
        networks.controls.load_only([replace(ip, origin="files='ip'")], encoder)


def test_an_image_encoder_goes_with_the_last_ip_adapter(networks: Model, ip: ExtraFile, t2i: ExtraFile) -> None:
    request = asked(ip, UNIT)
    latents(networks, request)
    loaded = networks.controls.encoder
    latents(networks, request)
    assert networks.controls.encoder is loaded is not None
    latents(networks, asked(t2i, UNIT))
    assert networks.controls.encoder is None


def test_the_memory_for_networks_is_known_before_they_are_loaded(
    networks: Model, file: ExtraFile, t2i: ExtraFile, encoder: ExtraFile
) -> None:
    """A file that is none counts nothing: loading it says why."""

    def held() -> int:
        found = [
            *networks.controls.networks,
            *([networks.controls.encoder.network] if networks.controls.encoder else []),
        ]
        return sum(each.nbytes for network in found for each in network.state_dict().values())

    controls = networks.controls
    needed = controls.growth([file], encoder)
    assert needed == controls.growth([file, replace(file, path=file.path.parent / "lost")], encoder)
    controls.load_only([file], encoder)
    assert needed == pytest.approx(held(), rel=0.01)
    assert controls.growth([file], encoder) == 0
    assert controls.growth([]) == pytest.approx(-held(), rel=0.01)
    other = controls.growth([t2i], encoder)
    before = held()
    controls.load_only([t2i], encoder)
    assert other == pytest.approx(held() - before, rel=0.01)

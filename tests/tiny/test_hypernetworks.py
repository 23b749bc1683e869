"""Hypernetworks: files as WebUI's training wrote them, compared with networks of torch's own modules."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from pipelines.ask.identity import ModelIdentity
from pipelines.ask.inputs import Inputs
from pipelines.ask.networks import ExtraFile, Extras, in_folders
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest, HiresSettings
from pipelines.drawing.phases import Picture, render
from pipelines.errors import InvalidInput, ModelError
from pipelines.infotext import obstacles as finding
from pipelines.infotext.asked import read_data, request_from, settle
from pipelines.infotext.obstacle import Obstacle
from pipelines.infotext.reading import GenerationData
from pipelines.infotext.writing import of_picture
from pipelines.models.hypernetworks import HypernetworkUse, hypernetworks_in
from pipelines.models.model import Model
from pipelines.runtime.unet_call import UNet, UNetCall
from tests.passes import latents
from weights_script.uploads import Uploads, sort_uploads

Form = dict[str, Any]
PLAIN: Form = {"layer_structure": [1, 2, 1], "activation_func": "linear", "is_layer_norm": False}
FORMS: dict[str, Form] = {
    "without metadata": {},
    "linear": PLAIN,
    "relu, activated to the end": PLAIN | {"activation_func": "relu"},
    "swish but for the output": PLAIN | {"activation_func": "swish", "activate_output": False},
    "norms": PLAIN | {"activation_func": "leakyrelu", "is_layer_norm": True, "activate_output": False},
    "dropout": PLAIN
    | {"layer_structure": [1, 2, 2, 1], "activation_func": "Mish", "use_dropout": True, "activate_output": False},
    "norms and dropout of its own": PLAIN
    | {
        "layer_structure": [1, 1.5, 0.5, 1],
        "activation_func": "tanh",
        "is_layer_norm": True,
        "dropout_structure": [0, 0.1, 0.2, 0],
        "activate_output": True,
    },
}
MODULES = {
    "relu": nn.ReLU,
    "swish": nn.Hardswish,
    "leakyrelu": nn.LeakyReLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
}


def network(width: int, form: Form, seed: int) -> nn.Sequential:
    """The modules that WebUI would make, in its order: linear, activation, norm, dropout."""
    torch.manual_seed(seed)
    structure, modules = form.get("layer_structure", [1, 2, 1]), list[nn.Module]()
    activation = MODULES.get(str(form.get("activation_func", "linear")).lower())
    last = len(structure) - 2
    dropout = form.get("dropout_structure") or [0, *[0.3] * (len(structure) - 3), 0, 0]
    for number, (size, size_next) in enumerate(pairwise(structure)):
        modules.append(nn.Linear(int(width * size), int(width * size_next)))
        if activation and (number < last or form.get("activate_output", True)):
            modules.append(activation())
        if form.get("is_layer_norm"):
            norm = nn.LayerNorm(int(width * size_next))
            nn.init.normal_(norm.weight, 1, 0.2)
            modules.append(norm)
        if (form.get("use_dropout") or form.get("dropout_structure")) and dropout[number + 1] > 0:
            modules.append(nn.Dropout(dropout[number + 1]))
    return nn.Sequential(*modules).eval()


def saved(
    path: Path, form: Form, networks: dict[int, tuple[nn.Sequential, nn.Sequential]], **options: Any
) -> ExtraFile:
    """A file as WebUI writes it: step and name, the form, and a pair of states for each width."""

    def state(module: nn.Sequential) -> dict[str, Tensor]:
        return {f"linear.{name}": value for name, value in module.state_dict().items()}

    content = {"step": 1000, "name": path.stem, "sd_checkpoint": "925997e9", **form}
    content |= {width: tuple(map(state, pair)) for width, pair in networks.items()}
    torch.save(content, path, **options)
    return ExtraFile.at(path)


@contextmanager
def replaced(model: Model, pairs: dict[int, tuple[nn.Sequential, nn.Sequential]], multiplier: float) -> Iterator[None]:
    """The same by wrapped layers."""

    class Wrapped(nn.Module):
        def __init__(self, layer: nn.Module, changing: nn.Sequential) -> None:
            super().__init__()
            self.layer, self.changing, self.in_features = layer, changing, layer.in_features

        def forward(self, context: Tensor) -> Tensor:
            return self.layer(context + multiplier * self.changing(context))

    found = [m for m in model.unet.network.modules() if isinstance(m, Attention) and m.to_k.in_features in pairs]
    for attention in found:
        key, value = pairs[attention.to_k.in_features]
        attention.to_k, attention.to_v = Wrapped(attention.to_k, key), Wrapped(attention.to_v, value)
    try:
        yield
    finally:
        for attention in found:
            attention.to_k, attention.to_v = attention.to_k.layer, attention.to_v.layer


@pytest.fixture(scope="module")
def called(networks: Model) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, tokens = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 64, generator=generator)
    width = networks.unet.network.config.cross_attention_dim
    tokens = tokens[:, :, :1].expand(-1, -1, width) if width != 64 else tokens
    unet = networks.unet.network

    @torch.inference_mode()
    def call() -> Tensor:
        return unet(x, torch.tensor(300.0), encoder_hidden_states=tokens.contiguous()).sample

    return call


def widths(model: Model) -> list[int]:
    return sorted({m.to_k.in_features for m in model.unet.network.modules() if isinstance(m, Attention)})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("multiplier", [1.0, -0.4])
@torch.inference_mode()
def test_a_hypernetwork_is_torchs_modules(
    networks: Model, called: Callable[[], Tensor], tmp_path: Path, form: str, multiplier: float
) -> None:
    described = FORMS[form]
    pairs = {width: (network(width, described, width), network(width, described, -width)) for width in widths(networks)}
    file, before = saved(tmp_path / "h.pt", described, pairs), called()
    with hypernetworks_in(networks.unet.network, [HypernetworkUse(file, multiplier)]):
        found = called()
    with replaced(networks, pairs, multiplier):
        expected = called()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (expected - before).abs().max() > 1e-2
    assert torch.equal(called(), before), "it goes with the pass"


@torch.inference_mode()
def test_first_files_legacy_files_and_half_precision(
    networks: Model, called: Callable[[], Tensor], tmp_path: Path
) -> None:
    """The first ones called their layers linear1 and linear2, in a list; torch's old form of files is read, too."""
    width = widths(networks)[0]
    pair = network(width, {}, 1).half(), network(width, {}, 2).half()
    names = {
        "0.weight": "linear1.weight",
        "0.bias": "linear1.bias",
        "1.weight": "linear2.weight",
        "1.bias": "linear2.bias",
    }
    old = {width: [{names[name]: value for name, value in each.state_dict().items()} for each in pair]}
    torch.save(old, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with hypernetworks_in(networks.unet.network, [HypernetworkUse(ExtraFile.at(tmp_path / "old.pt"), 1.0)]):
        found = called()
    with replaced(networks, {width: (pair[0].float(), pair[1].float())}, 1.0):
        torch.testing.assert_close(found, called(), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_several_act_one_after_the_other(networks: Model, called: Callable[[], Tensor], tmp_path: Path) -> None:
    width = widths(networks)[-1]
    first, second = ({width: (network(width, PLAIN, n), network(width, PLAIN, n + 1))} for n in (1, 3))
    files = [saved(tmp_path / f"{n}.pt", PLAIN, pairs) for n, pairs in enumerate((first, second))]
    with hypernetworks_in(networks.unet.network, [HypernetworkUse(files[0], 0.5), HypernetworkUse(files[1], 1.0)]):
        found = called()
    with replaced(networks, second, 1.0), replaced(networks, first, 0.5):  # the outer wrap sees the context first
        torch.testing.assert_close(found, called(), atol=1e-4, rtol=0)


# --- by a prompt's tag


@pytest.fixture(scope="module")
def folder(networks: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("hypernetworks")
    form = PLAIN | {"activation_func": "relu", "activate_output": False}
    pairs = {width: (network(width, form, width), network(width, form, -width)) for width in widths(networks)}
    saved(made / "ink.pt", form, pairs)
    return made


def asked(prompt: str, folder: Path | None = None, **options: Any) -> GenerationRequest:
    extras = in_folders(None, None, None, folder)
    small = {"width": 64, "height": 64, "seed": 7, "num_inference_steps": 3, "hires": None, "extras": extras}
    return GenerationRequest(**{"prompt": prompt, **small, **options})


def test_a_tag_draws_with_it_by_its_multiplier(networks: Model, folder: Path) -> None:
    (plain,), (full,), (weak,), (off,) = (
        latents(networks, asked(f"a sun{tag}", folder))
        for tag in ("", "<hypernet:ink>", "<hypernet:ink:0.3>", "<hypernet:ink:0>")
    )
    assert torch.equal(plain, off)
    assert (full - plain).abs().max() > (weak - plain).abs().max() > 1e-2


def test_the_hires_pass_has_those_of_its_own_prompt(networks: Model, folder: Path) -> None:
    hires = HiresSettings(steps=3, scale=1)
    with_it = asked("a sun<hypernet:ink:0.3>", folder, hires=hires)
    first, second = latents(networks, with_it)
    same, other = latents(networks, replace(with_it, hires=replace(hires, prompt="a sun")))
    assert torch.equal(first, same)
    assert (second - other).abs().max() > 1e-2


def test_what_is_written_is_read_and_drawn_again(networks: Model, folder: Path) -> None:
    request = asked("a sun <hypernet:ink:0.3>", folder)
    text = of_picture(request, make_plan(request), ModelIdentity(name="m", sha256="a" * 64), 0)
    data = read_data(text)
    made = settle_and_request(data, request.extras)
    assert made.prompt == request.prompt
    assert torch.equal(latents(networks, made)[0], latents(networks, request)[0])


def settle_and_request(data: GenerationData, extras: Extras) -> GenerationRequest:
    return request_from(settle(Inputs(), data, {"width": 64, "height": 64}), extras=extras)


OLD = "a sun\nSteps: 3, Sampler: Euler, CFG scale: 7, Seed: 7, Size: 64x64, Model hash: 925997e9, Hypernet: ink"


def test_a_block_from_before_2023_names_one(networks: Model, folder: Path) -> None:
    extras = in_folders(None, None, None, folder)
    digits = extras.hypernetworks["ink"].sha256[:10]
    block = f"{OLD}, Hypernet hash: {digits}, Hypernet strength: 0.3"
    assert settle_and_request(read_data(block), extras).prompt == "a sun<hypernet:ink:0.3>"
    assert settle_and_request(read_data(OLD), extras).prompt == "a sun<hypernet:ink:1.0>"
    assert not of_networks(block, extras)
    assert (
        "a different hypernetwork ink (0123456789)" in of_networks(block.replace(digits, "0123456789"), extras)[0].text
    )
    assert "<hypernet:ink:0.3>: there is no hypernetwork of this name" in of_networks(block, Extras())[0].text


def of_networks(block: str, extras: Extras) -> list[Obstacle]:
    settled = settle(Inputs(), read_data(block), {"width": 64, "height": 64})
    found = finding.obstacles(settled, ModelIdentity(name="m", sha256="a" * 64), extras=extras)
    return [each for each in found if each.other_picture and "hypernet" in each.text]


# --- what cannot be used


@pytest.mark.parametrize(
    ("tag", "told"),
    [
        ("<hypernet:oil>", "prompt='<hypernet:oil:1>': there is no hypernetwork of this name; available: ink"),
        ("<hypernet:ink:much>", "prompt='<hypernet:ink:much>': the multiplier must be a number from -100 to 100"),
        ("<hypernet:ink:nan>", "the multiplier must be a number"),
        ("<hypernet:ink:1e9>", "the multiplier must be a number"),
    ],
)
def test_a_tag_that_cannot_be_followed_is_named(folder: Path, tag: str, told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        asked(f"a sun {tag}", folder)
    assert told in str(caught.value)


def test_a_tag_in_the_negative_prompt_stays_text(networks: Model, folder: Path) -> None:
    """As with LoRAs in WebUI, where it is not looked for."""
    assert asked("a sun", folder, negative_prompt="<hypernet:oil>").negative_prompt == "<hypernet:oil>"


BROKEN: dict[str, tuple[Callable[[dict[Any, Any], int], Any], str]] = {
    "activation": (lambda content, width: content | {"activation_func": "prelu"}, "its activation is 'prelu'"),
    "name": (
        lambda content, width: {width: ({"a.weight": torch.ones(1)},) * 2},
        "a.weight .* is not a known part of a hyper",
    ),
    "shape": (lambda content, width: {width: ({"linear.0.weight": torch.ones(3, 5)},) * 2}, "layers of the shapes"),
    "nothing": (lambda content, width: {width: ({}, {})}, "layers of the shapes none"),
    "not finite": (
        lambda content, width: {width: ({"linear.0.weight": torch.full((width, width), torch.nan)},) * 2},
        "NaN or infinite",
    ),
    "whole numbers": (
        lambda content, width: {width: ({"linear.0.weight": torch.ones(width, width, dtype=torch.int8)},) * 2},
        "is not a known part of a hypernetwork",
    ),
    "other widths": (lambda content, width: {7: ({"linear.0.weight": torch.ones(7, 7)},) * 2}, "of width 7.*family"),
    "another kind": (lambda content, width: {"emb_params": torch.ones(2, 2)}, "not a hypernetwork"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_file_that_is_none_is_named(
    networks: Model, called: Callable[[], Tensor], tmp_path: Path, fault: str
) -> None:
    width = widths(networks)[0]
    saved(tmp_path / "h.pt", PLAIN, {width: (network(width, PLAIN, 1), network(width, PLAIN, 2))})
    change, told = BROKEN[fault]
    torch.save(change(torch.load(tmp_path / "h.pt"), width), tmp_path / "h.pt")
    file = ExtraFile.at(tmp_path / "h.pt", "files='h.pt'")
    broken = hypernetworks_in(networks.unet.network, [HypernetworkUse(file, 1.0)])
    before = called()
    with pytest.raises(ModelError, match=rf"(?s)^files='h\.pt': .*{told}"), broken:
        pass
    assert torch.equal(called(), before)


def test_an_upload_is_told_by_its_content(networks: Model, folder: Path) -> None:
    uploads = sort_uploads([folder / "ink.pt"], "brush")
    assert list(uploads.hypernetworks) == ["brush"]
    assert uploads == Uploads(hypernetworks=uploads.hypernetworks)


def test_it_is_drawn_on_the_plain_network(networks: Model, folder: Path) -> None:
    """Compiled code and graphs would not see its hooks."""

    class Forbidden(UNet):
        def __call__(self, call: UNetCall) -> Tensor:
            raise AssertionError("a compiled network was called")

    compiled = replace(networks, unet=Forbidden(networks.unet.network))
    request = asked("a sun<hypernet:ink>", folder)
    pictures = [e.pixels for e in render(compiled, request, make_plan(request)) if isinstance(e, Picture)]
    assert np.shape(pictures) == (1, 64, 64, 3)

"""LoRAs in the weights of the embedded model: what they change, that nothing of them remains, and what is refused."""

import hashlib
import pickle
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from pipelines.ask.networks import NO_EXTRAS, ExtraFile, Extras
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest, HiresSettings
from pipelines.drawing.phases import Notice, Picture, Step, render
from pipelines.errors import ModelError
from pipelines.families.layouts import unet_layout
from pipelines.models import lora
from pipelines.models.changes import Parts, change
from pipelines.models.checkpoint import NUMBER_FORMATS, map_tensors
from pipelines.models.loader import load
from pipelines.models.model import Model
from tests import adapters
from tests.adapters import CONV, LINEAR, TEXT, extras, kohya, use, write
from tests.alike import alike
from weights_script.resolve import ResolvedModel


@pytest.fixture(scope="module")
def networks(embedded: ResolvedModel) -> Model:
    """Networks of our own: others must not find a LoRA in theirs."""
    return load(embedded.files)


@pytest.fixture
def clean(networks: Model) -> Iterator[Model]:
    yield networks
    networks.adapters.apply([])


def some(networks: Model, seed: int = 0) -> dict[str, Tensor]:
    return kohya(networks.unet.network, networks.text.towers[0].model, seed)


@pytest.fixture
def file(networks: Model, tmp_path: Path) -> ExtraFile:
    return write(tmp_path / "some.safetensors", some(networks))


def asked(prompt: str, found: Extras = NO_EXTRAS, hires: HiresSettings | None = None) -> GenerationRequest:
    return GenerationRequest(
        prompt=prompt, width=64, height=64, seed=1, num_inference_steps=2, hires=hires, extras=found
    )


def draw(networks: Model, request: GenerationRequest) -> NDArray[np.uint8]:
    (pixels,) = (e.pixels for e in render(networks, request, make_plan(request)) if isinstance(e, Picture))
    return pixels


def weights(networks: Model) -> dict[str, Tensor]:
    """Those that the tests' LoRAs touch."""
    layers = {LINEAR: networks.unet.network, CONV: networks.unet.network, TEXT: networks.text.towers[0].model}
    return {name: network.get_submodule(name).weight.clone() for name, network in layers.items()}  # type: ignore


def test_a_picture_is_the_same_before_and_after_one_with_a_lora(clean: Model, file: ExtraFile) -> None:
    before = draw(clean, asked("a boat"))
    changed = draw(clean, asked("a boat <lora:some:2>", extras(file)))
    assert not alike(changed, before)
    # To the last bit, as what was merged is undone by the bytes of before, and the same code draws.
    assert np.array_equal(draw(clean, asked("a boat")), before)
    assert np.array_equal(draw(clean, asked("a boat <lyco:some:te=2>", extras(file))), changed)
    assert np.array_equal(draw(clean, asked("a boat <lora:some:0>", extras(file))), before)


@pytest.mark.parametrize("end", ["cancel", "error", "error while merging"])
def test_nothing_stays_after_a_cancel_or_an_error(
    clean: Model, file: ExtraFile, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    before, untouched = draw(clean, asked("a boat")), weights(clean)
    request = asked("a boat <lora:some:2>", extras(file))
    if end == "error while merging":
        calls: list[int] = []
        whole = change

        def breaks(parts: Parts, weight: Tensor, rank: int | None) -> Tensor:
            calls.append(1)
            if len(calls) == 5:  # three are the check of the shapes
                raise KeyboardInterrupt
            return whole(parts, weight, rank)

        monkeypatch.setattr(lora, "change", breaks)
        with pytest.raises(KeyboardInterrupt):
            draw(clean, request)
        monkeypatch.undo()
    else:
        with closing(render(clean, request, make_plan(request))) as events:
            assert any(isinstance(event, Step) and event.number for event in events)
            if end == "error":
                with pytest.raises(RuntimeError):
                    events.throw(RuntimeError("broken"))
    assert any(not torch.equal(weight, untouched[name]) for name, weight in weights(clean).items())
    assert np.array_equal(draw(clean, asked("a boat")), before)
    assert all(torch.equal(weight, untouched[name]) for name, weight in weights(clean).items())


def test_the_hires_pass_has_the_loras_of_its_own_prompt(clean: Model, file: ExtraFile) -> None:
    def pictures(prompt: str, hires_prompt: str) -> list[NDArray[np.uint8]]:
        request = asked(prompt, extras(file), HiresSettings(scale=1, steps=2, prompt=hires_prompt))
        events = render(clean, request, make_plan(request), show_phases=True)
        return [event.pixels for event in events if isinstance(event, Picture)]

    draft, _, plain = pictures("a boat", "a boat")
    same_draft, _, hires_alone = pictures("a boat", "a boat <lora:some:2>")
    other_draft, _, first_alone = pictures("a boat <lora:some:2>", "a boat")
    *_, both = pictures("a boat <lora:some:2>", "")
    assert np.array_equal(draft, same_draft)
    assert not alike(draft, other_draft)
    assert not any(alike(*pair) for pair in combinations((plain, hires_alone, first_alone, both), 2))


def test_several_add_up_and_multipliers_count(clean: Model, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{seed}.safetensors", some(clean, seed)) for seed in (0, 1)]
    before = weights(clean)
    clean.adapters.apply([use(files[0], te=0.5, unet=-1), use(files[1], te=0, unet=2)])
    after = weights(clean)
    for name, factors in ((LINEAR, (-1, 2)), (CONV, (-1, 2)), (TEXT, (0.5, 0))):
        expected = before[name].clone()
        for seed, factor in enumerate(factors):
            up, down = adapters.parts(expected.shape, seed)
            expected += (up.flatten(1) @ down.flatten(1)).reshape(expected.shape) * (1 / adapters.RANK) * factor
        assert torch.allclose(after[name], expected, atol=5e-6)  # sums of values up to 10: a few ulps of 1e-6
    clean.adapters.apply([use(files[0], rank=1)])
    up, down = adapters.parts(before[LINEAR].shape, 0)
    expected = before[LINEAR] + up[:, :1] @ down[:1] / adapters.RANK
    assert torch.allclose(weights(clean)[LINEAR], expected, atol=5e-6)


def test_the_same_set_stays_merged_and_a_changed_file_does_not(
    clean: Model, file: ExtraFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean.adapters.apply([use(file)])
    merged = weights(clean)
    monkeypatch.setattr(lora, "read_lora", lambda *_: pytest.fail("read again"))
    clean.adapters.apply([use(file)])
    monkeypatch.undo()
    clean.adapters.apply([use(write(file.path, some(clean, 1)))])
    assert not torch.equal(weights(clean)[LINEAR], merged[LINEAR])


def test_a_mapped_checkpoint_is_never_written_to(embedded: ResolvedModel, file: ExtraFile, tmp_path: Path) -> None:
    """In single precision, as networks on a CPU are, weights are the file's own pages."""
    path = tmp_path / "single.safetensors"
    save_file({name: tensor.float() for name, tensor in map_tensors(embedded.files.checkpoint).items()}, path)
    mapped = load(replace(embedded.files, checkpoint=path, sha256=""))
    before, digest = weights(mapped), hashlib.sha256(path.read_bytes()).digest()
    mapped.adapters.apply([use(file)])
    assert not torch.equal(weights(mapped)[LINEAR], before[LINEAR])
    assert hashlib.sha256(path.read_bytes()).digest() == digest


LDM = {LINEAR: "middle_block.1.transformer_blocks.0.attn1.to_q", CONV: "middle_block.0.in_layers.2"}


SPELLINGS: dict[str, Callable[[str, str], dict[str, str]]] = {
    "PEFT": lambda unet, text: {
        f"base_model.model.{unet}": "lora_B.weight lora_A.weight",
        f"base_model.model.text_model.{text}": "lora_B.default.weight lora_A.default.weight",
    },
    "diffusers": lambda unet, text: {
        f"unet.{unet}": "lora.up.weight lora.down.weight",
        f"text_encoder.text_model.{text}": "lora_linear_layer.up.weight lora_linear_layer.down.weight",
    },
    "LDM's layers": lambda unet, text: {
        f"lora_unet_{LDM[unet].replace('.', '_')}": "lora_up.weight lora_down.weight",
        f"lora_te_text_model_{text.replace('.', '_')}": "lora_up.weight lora_down.weight",
    },
    "attention processors": lambda unet, text: {
        f"unet.{unet.removesuffix('.to_q')}.processor.to_q_lora": "up.weight down.weight",
        f"text_encoder.text_model.{text}": "lora_B.weight lora_A.weight",
    },
}


@pytest.mark.parametrize("names", SPELLINGS.values(), ids=SPELLINGS)
def test_names_of_other_programs(clean: Model, tmp_path: Path, names: Callable[[str, str], dict[str, str]]) -> None:
    before, tensors = weights(clean), {}
    for (module, spelled), name in zip(names(LINEAR, TEXT).items(), (LINEAR, TEXT), strict=True):
        for part, tensor in zip(spelled.split(), adapters.parts(before[name].shape), strict=True):
            tensors[f"{module}.{part}"] = tensor
    clean.adapters.apply([use(write(tmp_path / "other.safetensors", tensors))])
    for name in (LINEAR, TEXT):
        up, down = adapters.parts(before[name].shape)
        assert torch.allclose(weights(clean)[name], before[name] + up @ down, atol=5e-6)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_loha_lokr_and_cores_are_what_their_papers_say() -> None:
    a, b, c, d = random(6, 2), random(2, 8), random(6, 2), random(2, 8)
    loha = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(4.0)}
    assert torch.allclose(change(loha, torch.zeros(6, 8), None), (a @ b) * (c @ d) * 2, atol=5e-6)
    first, second = random(2, 4), random(3, 2, 3, 3)
    whole = torch.einsum("ab,cdkl->acbdkl", first, second).reshape(6, 8, 3, 3)
    lokr = {"lokr_w1": first, "lokr_w2": second, "alpha": torch.tensor(4.0)}
    assert torch.allclose(change(lokr, torch.zeros_like(whole), None), whole, atol=5e-6), (
        "alpha counts for what has a rank"
    )
    w2_a, w2_b = random(3, 2), random(2, 2 * 9)
    lokr = {"lokr_w1": first, "lokr_w2_a": w2_a, "lokr_w2_b": w2_b, "alpha": torch.tensor(4.0)}
    whole = torch.kron(first[..., None, None], (w2_a @ w2_b).reshape(3, 2, 3, 3))
    assert torch.allclose(change(lokr, torch.zeros_like(whole), None), whole * 2, atol=5e-6)
    up, core, down, x = random(6, 2, 1, 1), random(2, 2, 3, 3), random(2, 8, 1, 1), random(1, 8, 5, 5)
    conv = torch.nn.functional.conv2d
    weight = change(
        {"lora_up.weight": up, "lora_mid.weight": core, "lora_down.weight": down}, torch.zeros(6, 8, 3, 3), None
    )
    assert torch.allclose(conv(x, weight), conv(conv(conv(x, down), core), up), atol=1e-4)


def renamed(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


def thin_core(tensors: dict[str, Tensor], method: str) -> dict[str, Tensor]:
    """Parts of a few megabytes whose product fits, by way of a step that takes gigabytes."""
    layer = f"lora_unet_{CONV.replace('.', '_')}"
    channels, rank = len(tensors[f"{layer}.lora_up.weight"]), 4096
    core = torch.zeros(1, rank, channels * 9, 1)
    if method == "lora":
        parts = {"lora_up.weight": torch.zeros(channels, 1), "lora_down.weight": torch.zeros(rank, 1)}
        parts |= {"lora_mid.weight": core}
    else:
        sides = {"a": torch.zeros(1, channels), "b": torch.zeros(rank, 1)}
        parts = {f"hada_w{k}_{side}": sides[side].clone() for k in (1, 2) for side in "ab"}
        parts |= {"hada_t1": core, "hada_t2": core.clone()}
    return {f"{layer}.{name}": part for name, part in parts.items()}


LAYER = f"lora_unet_{LINEAR.replace('.', '_')}"
UP = f"{LAYER}.lora_up.weight"
HOSTILE: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "a checkpoint": (lambda _: {"model.diffusion_model.out.2.weight": torch.ones(2)}, "a Stable Diffusion checkpoint"),
    "of SDXL": (lambda t: renamed(t, "lora_te_", "lora_te2_"), "made for SDXL"),
    "of SD 3": (lambda t: renamed(t, "lora_te_", "lora_te3_"), "made for SD 3, Flux or the like"),
    "of another form": (lambda t: renamed(t, ".lora_up", ".vera_up"), "parts are missing"),
    "of no layer": (lambda t: {UP.replace("to_q", "to_z"): t[UP]}, "all its tensors are unknown .*to_z"),
    "magnitudes of another layer": (
        lambda t: t | {UP.replace("lora_up.weight", "dora_scale"): torch.ones(7, 1)},
        "7 mag",
    ),
    "blocks that fill no layer": (
        lambda t: {UP.replace("lora_up.weight", "oft_blocks"): torch.ones(3, 5, 5)},
        "3 blocks",
    ),
    "a part missing": (lambda t: {name: v for name, v in t.items() if name != UP}, "parts are missing"),
    "wrong shapes": (lambda t: t | {UP: torch.ones(3, adapters.RANK)}, "does not fit a weight of shape"),
    "ranks that differ": (lambda t: t | {UP: torch.ones(t[UP].shape[0], 5)}, "does not fit"),
    "NaN": (lambda t: t | {UP: torch.full_like(t[UP], float("nan"))}, "NaN"),
    "whole numbers": (lambda t: t | {UP: t[UP].int()}, "quantised"),
    "an alpha of many": (
        lambda t: t | {UP.replace("lora_up.weight", "alpha"): torch.ones(2)},
        "alpha is not a single number",
    ),
    "a huge rank": (
        lambda t: (
            t | {UP: torch.ones(t[UP].shape[0], 5000), UP.replace("up", "down"): torch.ones(5000, t[UP].shape[0])}
        ),
        "of rank 5000",
    ),
    "nothing": (lambda _: {}, "holds no tensors"),
    "a core between a thin up and a thin down": (lambda t: thin_core(t, "lora"), "needs an intermediate tensor of"),
    "a core of LoHa": (lambda t: thin_core(t, "hada"), "needs an intermediate tensor of"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_lora_is_refused_with_the_weights_untouched(clean: Model, tmp_path: Path, case: str) -> None:
    break_it, told = HOSTILE[case]
    before = weights(clean)
    with pytest.raises(ModelError, match=told):
        clean.adapters.apply([use(write(tmp_path / "bad.safetensors", break_it(some(clean))))])
    assert all(torch.equal(weight, before[name]) for name, weight in weights(clean).items())


def test_a_pickle_is_read_as_plain_data(clean: Model, file: ExtraFile, tmp_path: Path) -> None:
    clean.adapters.apply([use(file)])
    expected = weights(clean)
    path = tmp_path / "some.pt"
    torch.save({"state_dict": some(clean)}, path)
    clean.adapters.apply([use(ExtraFile.at(path))])
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(clean).items())
    path.write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(ModelError, match="nothing in it was run"):
        clean.adapters.apply([use(ExtraFile.at(path))])


FORMATS = [kind for kind in NUMBER_FORMATS.values() if kind.is_floating_point]


@pytest.mark.parametrize("kind", FORMATS, ids=str)
def test_every_number_format_is_read_and_checked(clean: Model, tmp_path: Path, kind: torch.dtype) -> None:
    before, tensors = weights(clean), {name: value.to(kind) for name, value in some(clean).items()}
    clean.adapters.apply([use(write(tmp_path / "a.safetensors", tensors))])
    up, down = (tensors[f"lora_unet_{LINEAR.replace('.', '_')}.lora_{side}.weight"] for side in ("up", "down"))
    expected = before[LINEAR] + up.float() @ down.float() / adapters.RANK
    assert torch.allclose(weights(clean)[LINEAR], expected, atol=5e-6)
    tensors[UP] = torch.full(tensors[UP].shape, float("nan")).to(kind)
    with pytest.raises(ModelError, match="NaN or infinite"):
        clean.adapters.apply([use(write(tmp_path / "b.safetensors", tensors))])


def test_what_is_left_over_is_told_and_the_rest_applied(clean: Model, tmp_path: Path) -> None:
    """As WebUI does: one name that is not known here is no reason to leave out a thousand that are."""
    plain = some(clean)
    clean.adapters.apply([use(write(tmp_path / "plain.safetensors", plain))])
    expected = weights(clean)
    strange = {"lora_unet_nowhere.lora_up.weight": torch.ones(2), "who.knows": torch.ones(1, dtype=torch.int32)}
    strange |= {UP.replace("lora_up.weight", "bias_values"): torch.ones(3), UP.replace("to_q", "to_x"): torch.ones(3)}
    file = write(tmp_path / "more.safetensors", plain | strange)
    request = asked("a boat <lora:more:1>", extras(file), HiresSettings(scale=1, steps=2))
    told = [event.text for event in render(clean, request, make_plan(request)) if isinstance(event, Notice)]
    assert len(told) == 1, "once, though both passes have it"
    assert told[0].startswith("more.safetensors: 4 of its 13 tensors are unknown and left out: ")
    assert all(name in told[0] for name in ("nowhere", "and 1 more"))
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(clean).items())
    assert not [e for e in render(clean, asked("a boat"), make_plan(asked("a boat"))) if isinstance(e, Notice)]


def test_ldm_names_of_every_layer_are_known(clean: Model, tmp_path: Path) -> None:
    layout = unet_layout(clean.unet.network.config.down_block_types)
    tensors = {}
    for name, module in clean.unet.network.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            up, down = adapters.parts(module.weight.shape)
            key = "lora_unet_" + layout.to_ldm(name).replace(".", "_")
            tensors |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(2)}
    assert any("input_blocks_1_1_" in name for name in tensors)
    clean.adapters.apply([use(write(tmp_path / "ldm.safetensors", tensors))])
    assert clean.adapters.left_over == ()


def lora64(tensors: dict[str, Tensor], module: str) -> Tensor:
    up, down = (tensors[f"{module}.lora_{side}.weight"].double().flatten(1) for side in ("up", "down"))
    return up @ down * float(tensors[f"{module}.alpha"]) / len(down)


@pytest.mark.parametrize("weight", [1, 0.6, -1, 2])
@pytest.mark.parametrize("form", ["of outputs", "of inputs", "PEFT's"])
@pytest.mark.parametrize("layer", [LINEAR, CONV])
def test_dora_is_the_formula_of_its_paper(clean: Model, tmp_path: Path, layer: str, form: str, weight: float) -> None:
    """W + weight * (m * (W + s B A) / ||W + s B A|| - W), here in double precision. alpha is not the rank."""
    module = f"lora_unet_{layer.replace('.', '_')}"
    tensors = {name: value for name, value in some(clean).items() if name.startswith(f"{module}.")}
    tensors[f"{module}.alpha"] = torch.tensor(0.5)
    before = weights(clean)[layer].double()
    side = 1 if form == "of inputs" else 0
    magnitudes = random(before.shape[side]).abs().double() + 0.5
    shape = [1] * before.dim()
    shape[side] = -1
    changed = before + lora64(tensors, module).reshape(before.shape)
    norms = changed.transpose(0, side).flatten(1).norm(dim=1)
    expected = before + weight * (changed * (magnitudes / norms).reshape(shape) - before)
    if form == "PEFT's":
        shape = [1, -1, 1, 1] if layer == CONV else [-1]
        name = f"base_model.model.unet.{layer}.lora_magnitude_vector.weight"
    else:
        name = f"{module}.dora_scale"
    tensors[name] = magnitudes.float().reshape(shape)
    clean.adapters.apply([use(write(tmp_path / "dora.safetensors", tensors), unet=weight)])
    assert clean.adapters.left_over == ()
    assert torch.allclose(weights(clean)[layer].double(), expected, atol=1e-5)
    assert not torch.allclose(weights(clean)[layer].double(), before + weight * (changed - before), atol=1e-2)


def test_glora_ia3_oft_and_full_differences_are_what_their_papers_say() -> None:
    for shape in ((6, 8), (6, 8, 3, 3)):
        weight = random(*shape)
        flat, inputs = weight.flatten(1), weight.flatten(2) if weight.dim() > 2 else weight[..., None]
        a, b, c, d = random(8, 2), random(2, 8), random(6, 2), random(2, flat.shape[1])
        expected = torch.einsum("oik,ij->ojk", inputs, a @ b).reshape(shape) + (c @ d).reshape(shape)
        glora = {"a1.weight": a, "a2.weight": b, "b1.weight": c, "b2.weight": d}
        assert torch.allclose(change(glora, weight, None), expected, atol=5e-6)
        swapped = {"a2.weight": a, "a1.weight": b, "b2.weight": c, "b1.weight": d, "alpha": torch.tensor(1)}
        assert torch.allclose(change(swapped, weight, None), expected / 2, atol=5e-6)
        for of_inputs, side in ((True, 8), (False, 6)):
            ia3 = {"weight": random(side), "on_input": torch.tensor(int(of_inputs))}
            factors = ia3["weight"].reshape((1, -1) if of_inputs else (-1, 1))
            expected = (inputs * factors[..., None]).reshape(shape)
            assert torch.allclose(change(ia3, weight, None), expected)
        blocks = random(3, 2, 2) / 4
        skew = blocks - blocks.mT
        turned = [(torch.eye(2) + q) @ torch.linalg.inv(torch.eye(2) - q) for q in skew]
        assert all(torch.allclose(r @ r.T, torch.eye(2), atol=1e-6) for r in turned), "they are rotations"
        expected = torch.cat([r.T @ flat[2 * k : 2 * k + 2] for k, r in enumerate(turned)]).reshape(shape)
        assert torch.allclose(change({"oft_blocks": blocks}, weight, None), expected - weight, atol=5e-6)
        assert torch.equal(change({"diff": weight * 3}, weight, None), weight * 3)


def test_norms_and_biases_are_changed_and_restored(clean: Model, tmp_path: Path) -> None:
    name = "mid_block.resnets.0.norm1"
    norm, conv = clean.unet.network.get_submodule(name), clean.unet.network.get_submodule(CONV)
    before = [parameter.clone() for parameter in (norm.weight, norm.bias, conv.bias)]
    layer = f"lora_unet_{name.replace('.', '_')}"
    tensors = {f"{layer}.w_norm": random(len(before[0])), f"{layer}.b_norm": random(len(before[1])) * 2}
    tensors[f"lora_unet_{CONV.replace('.', '_')}.diff_b"] = random(len(before[2])) * 3
    clean.adapters.apply([use(write(tmp_path / "norm.safetensors", tensors), unet=0.5)])
    for parameter, old, added in zip((norm.weight, norm.bias, conv.bias), before, tensors.values(), strict=True):
        assert torch.allclose(parameter, old + 0.5 * added, atol=1e-6)
    clean.adapters.apply([])
    assert all(torch.equal(*pair) for pair in zip((norm.weight, norm.bias, conv.bias), before, strict=True))


def test_an_embedding_inside_a_lora_counts_while_the_lora_does(clean: Model, tmp_path: Path) -> None:
    """`bundle_emb` of OneTrainer and others; a file of its own with the same name goes before it, as in WebUI."""
    vectors = random(2, clean.text.towers[0].model.config.hidden_size)
    tensors = some(clean) | {"bundle_emb.zqx.string_to_param.*": vectors}
    bundle = write(tmp_path / "bundle.safetensors", tensors)
    alone = write(tmp_path / "zqx.safetensors", {"emb_params": vectors})
    other = write(tmp_path / "other.safetensors", {"emb_params": -vectors})
    plain = write(tmp_path / "plain.safetensors", some(clean))
    tag = "a zqx boat <lora:plain:1>"

    def drawn(prompt: str, found: Extras) -> NDArray[np.uint8]:
        return draw(clean, asked(prompt, found))

    expected = drawn(tag, Extras(loras={"plain": plain}, embeddings={"zqx": alone}))
    assert np.array_equal(drawn(tag, Extras(loras={"plain": bundle})), expected)
    assert clean.adapters.left_over == ()
    assert not alike(drawn(tag, Extras(loras={"plain": plain})), expected)
    replaced = drawn(tag, Extras(loras={"plain": bundle}, embeddings={"zqx": other}))
    assert np.array_equal(replaced, drawn(tag, Extras(loras={"plain": plain}, embeddings={"zqx": other})))
    untagged = drawn("a zqx boat", Extras(loras={"plain": bundle}))
    assert np.array_equal(untagged, drawn("a zqx boat", NO_EXTRAS)), "not without its tag"


def test_a_broken_file_is_told_by_its_input(clean: Model, tmp_path: Path) -> None:
    path = tmp_path / "tmpab12cd34my.safetensors"
    path.write_bytes(b"no weights")
    told = r"^lora_file='my.safetensors': neither safetensors nor .* bytes\. Give a \.safetensors file\.$"
    with pytest.raises(ModelError, match=told):
        clean.adapters.apply([use(ExtraFile.at(path, "lora_file='my.safetensors'"))])

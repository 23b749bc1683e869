"""SDXL and its refiner, on small models with random weights."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.adapter import T2IAdapter
from diffusers.models.controlnets.controlnet import ControlNetModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.animation.frames import Frame, FrameTexts, draw_film
from pipelines.ask.animation import AnimationSettings
from pipelines.ask.catalog import SAMPLERS
from pipelines.ask.film import make_film
from pipelines.ask.identity import ModelFiles
from pipelines.ask.networks import ExtraFile, Extras, LoraTag
from pipelines.ask.plan import make_plan
from pipelines.ask.request import (
    BOTH_PASSES,
    FIRST_PASS,
    ControlSettings,
    FramingSettings,
    FreeU,
    GenerationRequest,
    HiresSettings,
    ImageSettings,
    RefinerSettings,
)
from pipelines.drawing.cast import Cast
from pipelines.drawing.phases import DRAFT, FINAL, UPSCALED, Beside, Notice, PassResult, Picture, render
from pipelines.drawing.pictures import remarks
from pipelines.drawing.unused import idle_refiner, unused_by
from pipelines.errors import ModelError
from pipelines.families.layouts import ADDED, CLASSES
from pipelines.families.prediction import NoisePrediction, VPrediction
from pipelines.families.sdxl import REFINER, SDXL
from pipelines.infotext.writing import of_picture
from pipelines.models.controls import load_control
from pipelines.models.loader import load
from pipelines.models.lora import LoraUse
from pipelines.models.model import Model
from pipelines.runtime.unet_call import UNet, UNetCall
from pipelines.sampling.denoiser import Guidance, GuidedDenoiser, Stage
from pipelines.sampling.schedules import sigmas
from script.schema import ROOT
from tests.controls import by_ldm_names, random_control
from tests.sdxl import WIDTH_G, WIDTH_L, folder, networks, single_file

PICTURE = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))


def model_of(path: Path, name: str = "small") -> Model:
    return load(ModelFiles(name=name, checkpoint=path, vae=None))


def request(**fields: Any) -> GenerationRequest:
    small = {"prompt": "a sun over the sea", "width": 64, "height": 64, "seed": 3, "num_inference_steps": 4}
    return GenerationRequest(**{**small, "hires": None, **fields})


def results(model: Model, asked: GenerationRequest, **others: Model) -> list[PassResult]:
    events = render(model, asked, make_plan(asked), beside=Beside(others=others))
    return [event for event in events if isinstance(event, PassResult)]


def latents(model: Model, asked: GenerationRequest, **others: Model) -> Tensor:
    """What the last pass makes."""
    return results(model, asked, **others)[-1].latents


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return model_of(single_file(tmp_path_factory.mktemp("base") / "base.safetensors", networks()), "base")


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("refiner") / "refiner.safetensors"
    return model_of(single_file(path, networks(REFINER.name), REFINER), "refiner")


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [SDXL, REFINER], ids=lambda family: family.name)
def test_a_diffusers_folder_draws_what_the_single_file_does(
    tmp_path: Path, base: Model, refiner: Model, family: Any
) -> None:
    one = base if family is SDXL else refiner
    other = model_of(folder(tmp_path / "folder", networks(family.name)))
    assert one.family is other.family is family
    asked = request(negative_prompt="night", image=ImageSettings(picture=PICTURE, denoising_strength=0.9))
    # The refiner of random weights makes latents of 20: 1e-4 of them.
    assert torch.allclose(latents(one, asked), latents(other, asked), atol=2e-3)


def test_the_unet_sees_what_that_of_diffusers_does(base: Model) -> None:
    """There the pooled text and the sizes come separately, and become waves inside the network."""
    (made,) = results(base, request(width=96, framing=FramingSettings(crop_left=8)))
    condition, _ = made.prompts.at(0)
    assert condition.vector is not None
    x, time = torch.randn(1, 4, 8, 12), torch.tensor(500.0)
    sizes = torch.tensor([[64.0, 96.0, 0.0, 8.0, 64.0, 96.0]])
    unet: Any = networks()["unet"]
    with torch.inference_mode():
        found = base.unet(UNetCall(x, time, condition))
        added = {"text_embeds": condition.vector[:, :WIDTH_G], "time_ids": sizes}
        expected = unet(x, time, condition.tokens, added_cond_kwargs=added, return_dict=False)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "prediction", "pure_noise"),
    [({}, NoisePrediction(), False), ({"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}, VPrediction(), True)],
)
def test_empty_tensors_tell_how_a_file_was_trained(
    tmp_path: Path, more: Mapping[str, Tensor], prediction: object, pure_noise: bool
) -> None:
    model = model_of(single_file(tmp_path / "x.safetensors", networks(), **more))
    assert model.prediction == prediction
    assert (model.noise.sigmas[-1] > 4000) == pure_noise


def test_a_file_without_its_second_encoder_is_told(tmp_path: Path) -> None:
    parts = {name: network for name, network in networks().items() if name != "text_encoder"}
    with pytest.raises(ModelError, match=r"holds no text encoder \(conditioner\.embedders\.0\.transformer\.\*\)"):
        model_of(single_file(tmp_path / "x.safetensors", parts))


def test_a_model_cut_down_from_sdxl_is_told(tmp_path: Path) -> None:
    """SSD-1B has no attention in the middle."""
    path = single_file(tmp_path / "whole.safetensors", networks())
    tensors = {name: each for name, each in load_file(path).items() if ".middle_block.1." not in name}
    save_file(tensors, tmp_path / "cut.safetensors")
    with pytest.raises(ModelError, match=r"a UNet of an unknown form, such as SSD-1B's"):
        model_of(tmp_path / "cut.safetensors")


def test_a_small_picture_is_told(base: Model) -> None:
    for side, told in ((448, True), (512, False)):
        asked = request(width=side, height=640)
        lines = list(remarks(base, make_plan(asked), asked))
        assert any(f"SDXL draws poorly at {side}x640" in line for line in lines) == told


def test_a_refiner_without_a_picture_is_told(refiner: Model) -> None:
    for image, told in ((None, True), (ImageSettings(picture=PICTURE), False)):
        asked = request(width=640, height=640, image=image)
        lines = list(remarks(refiner, make_plan(asked), asked))
        assert any("A refiner draws poorly from noise alone. Send an image" in line for line in lines) == told


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_an_empty_negative_prompt_is_zeros_but_for_the_sizes(base: Model) -> None:
    (empty,), (space,) = (results(base, request(negative_prompt=text)) for text in ("", " "))
    nothing, blank = empty.prompts.at(0)[1], space.prompts.at(0)[1]
    assert nothing.vector is not None
    assert blank.vector is not None
    assert not nothing.tokens.any()
    assert not nothing.vector[:, :WIDTH_G].any()
    assert blank.tokens.any()
    assert torch.equal(nothing.vector[:, WIDTH_G:], blank.vector[:, WIDTH_G:])


def test_the_hires_pass_is_told_the_size_before_it_is_rounded(base: Model) -> None:
    asked = request(width=72, height=88, hires=HiresSettings(scale=1.5, steps=2))
    _, hires = results(base, asked)
    unet: Any = networks()["unet"]
    told = unet.add_time_proj(torch.tensor([132.0, 108.0, 0.0, 0.0, 132.0, 108.0])).reshape(1, -1)
    vector = hires.prompts.at(0)[0].vector
    assert vector is not None
    assert torch.allclose(vector[:, WIDTH_G:], told, atol=1e-5)


@pytest.mark.parametrize(("used", "acts"), [(False, False), (True, True)])
def test_clip_skip_acts_on_the_first_encoder_if_that_is_asked_for(base: Model, used: bool, acts: bool) -> None:
    framing = FramingSettings(clip_l_skip=used)
    (one,), (two,) = (results(base, request(clip_skip=skip, framing=framing)) for skip in (1, 2))
    first, second = one.prompts.at(0)[0].tokens, two.prompts.at(0)[0].tokens
    assert torch.equal(first[..., WIDTH_L:], second[..., WIDTH_L:])
    assert torch.equal(first, second) != acts


# --- the refiner ------------------------------------------------------------------------------------------------------


def test_the_refiner_takes_over_where_it_is_asked_to(base: Model, refiner: Model) -> None:
    """With Karras's levels the timesteps fall faster than the steps."""
    shares = {share: _switch(base, refiner, switch_at=share) for share in (0.0, 0.5, 1.0)}
    assert shares[0.0] == 0
    assert shares[1.0] is None
    assert _switch(base, refiner, switch_at=0.5, by_steps=True) == 2
    assert 0 < (shares[0.5] or 0) < 4


def _switch(base: Model, refiner: Model, **settings: Any) -> int | None:
    asked = request(schedule_type="Karras", refiner=RefinerSettings(name="refiner", **settings))
    (made,) = results(base, asked, refiner=refiner)
    return made.refined_from


@pytest.mark.parametrize("by_calls", [False, True])
def test_the_relay_of_the_page_switches_where_it_says(base: Model, refiner: Model, by_calls: bool) -> None:
    page = " ".join((ROOT / "docs" / "families.md").read_text(encoding="utf-8").split())
    told = r"they are (\d+) and (\d+)" if by_calls else r"the base draws (\d+) of these 40 steps and the refiner (\d+)"
    ((first, second),) = re.findall(told, page)
    nothing: Any = None  # no prompts are needed to switch
    stages = [Stage(base, nothing), Stage(refiner, nothing, starts_at=0.8, by_calls=by_calls)]
    denoiser = GuidedDenoiser(stages, Guidance(5, calls=40), 1)
    for level in sigmas(base.noise, "SGM Uniform", 40, SAMPLERS["Euler"])[:-1]:
        denoiser._advance(base.noise.nearest(level))
        denoiser.calls += 1
    assert (denoiser.switched_at, denoiser.calls) == (int(first), int(first) + int(second))


def test_a_refiner_that_never_takes_over_is_told_and_not_named(base: Model, refiner: Model) -> None:
    """Of four steps of SGM Uniform the last is at 0.75 of the timesteps. WebUI names a refiner as it takes over."""
    for share, switches in ((0.7, True), (0.8, False)):
        asked = request(schedule_type="SGM Uniform", refiner=RefinerSettings(name="refiner", switch_at=share))
        events = list(render(base, asked, plan := make_plan(asked), beside=Beside(others={"refiner": refiner})))
        told = [event.text for event in events if isinstance(event, Notice)]
        assert told == ([] if switches else ["The refiner refiner never took over: no step reaches 0.8."])
        (picture,) = (event for event in events if isinstance(event, Picture))
        assert picture.refined is switches
        text = of_picture(asked.as_drawn(picture.refined), plan, base.identity, 0, others={"refiner": refiner.identity})
        assert ("Refiner" in text) == switches


def test_drafts_name_a_refiner_that_may_still_take_over(base: Model, refiner: Model) -> None:
    hires = HiresSettings(steps=2, upscaler="None", scale=1)
    asked = request(schedule_type="SGM Uniform", hires=hires, refiner=RefinerSettings(name="refiner", switch_at=0.99))
    beside = Beside(others={"refiner": refiner})
    events = list(render(base, asked, make_plan(asked), show_phases=True, beside=beside))
    found = {event.kind: event.refined for event in events if isinstance(event, Picture)}
    assert found == {DRAFT: True, UPSCALED: True, FINAL: False}


def test_frames_name_a_refiner_only_if_it_took_over(base: Model, refiner: Model) -> None:
    """A key frame's generation data is that of its picture alone."""
    for share, switches in ((0.7, True), (0.8, False)):
        refined = RefinerSettings(name="refiner", switch_at=share)
        keys = [request(prompt=text, schedule_type="SGM Uniform", refiner=refined) for text in ("a sun", "a moon")]
        animation = AnimationSettings(text="a sun | a moon", frames=3, even_motion=False)
        film = make_film([replace(keys[0], animation=animation), *keys])
        others = {"refiner": refiner}
        texts = FrameTexts(film, Cast(model=base, others=others, checked=False))
        frames = [each for each in draw_film(base, film, Beside(others=others)) if isinstance(each, Frame)]
        told = [*map(texts.of, frames), texts.of_film]
        assert ["Refiner: refiner" in text for text in told] == [switches] * 4


def test_what_ends_where_the_refiner_takes_over_is_told(base: Model, refiner: Model, tmp_path: Path) -> None:
    """ControlNets fit the pass's own model alone. One that ended before the switch misses nothing."""
    save_file(random_control(base.unet.network), tmp_path / "net.safetensors")
    extras = Extras(controls={"net": ExtraFile.at(tmp_path / "net.safetensors")})
    plain = ControlSettings(model="net", picture=PICTURE, preprocessor="none")
    freeu, refined = (
        FreeU(b1=1.3, b2=1.4, s1=0.9, s2=0.2),
        RefinerSettings(name="refiner", switch_at=0.5, by_steps=True),
    )
    for control, settings, told in (
        (plain, {"freeu": freeu}, ["The refiner refiner drew without ControlNet net and FreeU."]),
        (replace(plain, end=0.25), {}, []),
        (plain, {"sampler": "Heun"}, ["The refiner refiner drew without ControlNet net."]),
        (replace(plain, end=0.25), {"sampler": "Heun"}, []),
    ):
        asked = request(**{"extras": extras, "controls": (control,), "refiner": refined, **settings})
        events = render(base, asked, make_plan(asked), beside=Beside(others={"refiner": refiner}))
        assert [event.text for event in events if isinstance(event, Notice)] == told
    base.controls.load_only([])


def test_a_refiner_that_cannot_take_over_is_told(base: Model, refiner: Model) -> None:
    others = {"base": base, "refiner": refiner}
    already, off = (
        "does nothing: it is the model that draws already.",
        "does nothing: Refiner switch at: 1 turns it off.",
    )
    hires = HiresSettings(steps=2, checkpoint="refiner")
    for settings, fields, told in (
        ({"name": "base"}, {}, already),
        ({"name": "refiner"}, {}, ""),
        ({"name": "refiner", "switch_at": 1.0}, {}, off),
        ({"name": "refiner"}, {"hires": hires}, already),  # as in WebUI, nothing is switched in the hires pass
        ({"name": "refiner", "passes": FIRST_PASS}, {"hires": hires}, ""),
        ({"name": "base", "passes": BOTH_PASSES}, {"hires": hires}, ""),
        ({}, {}, ""),
    ):
        asked = request(refiner=RefinerSettings(**settings), **fields)
        lines = [f"The refiner {settings['name']} {told}"] if told else []
        assert list(idle_refiner(asked, base, others)) == lines
    scores = {"sdxl_refiner_high_aesthetic_score": "the score"}
    assert list(unused_by(base, scores, {"refiner": refiner})) == []
    assert [line.partition(":")[0] for line in unused_by(base, scores)] == ["the score does nothing here"]


@pytest.mark.parametrize(
    ("passes", "refined"),
    [("second pass", [False, True]), (FIRST_PASS, [True, False]), (BOTH_PASSES, [True, True])],
)
def test_the_passes_that_a_refiner_takes_part_in(base: Model, refiner: Model, passes: str, refined: list[bool]) -> None:
    settings = RefinerSettings(name="refiner", switch_at=0.2, passes=passes)
    asked = request(hires=HiresSettings(steps=3), refiner=settings)
    assert [made.refined_from is not None for made in results(base, asked, refiner=refiner)] == refined


def test_a_refiner_of_the_same_weights_changes_nothing_but_the_start_of_its_stage(base: Model) -> None:
    """The sampler's history, x and the noise go on: the picture is that of one model."""
    twin = replace(base)
    asked = request(sampler="DPM++ 2M SDE", num_inference_steps=5)
    refined = replace(asked, refiner=RefinerSettings(name="twin", switch_at=0.4))
    (made,) = results(base, refined, twin=twin)
    assert made.refined_from
    assert torch.equal(made.latents, latents(base, asked))


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_a_refiner_of_other_noise_levels_gets_its_own_timesteps(base: Model, refiner: Model, sampler: str) -> None:
    """The sampler keeps the base's levels. The refiner knows them by the timesteps of its own training."""
    pure = replace(base, noise=base.noise.zero_terminal_snr())
    seen: list[float] = []
    watched = replace(refiner, unet=Watched(refiner.unet.network, seen))
    asked = request(sampler=sampler, num_inference_steps=6, refiner=RefinerSettings(name="refiner", switch_at=0.3))
    for first in (pure, base):
        seen.clear()
        (made,) = results(first, asked, refiner=watched)
        assert made.refined_from
        if sampler == "Euler":
            levels = [sigma for sigma in made.sigmas if sigma][made.refined_from :]
            own = [first.noise.t_of(sigma) for sigma in levels]
        else:
            own = list(reversed(made.sigmas))[made.refined_from : -1]  # the last one is not visited
            levels = [first.noise.sigma_of(t) for t in own]
        wanted = [refiner.noise.t_of(sigma) for sigma in levels]
        assert seen == pytest.approx(wanted if first is pure else own, abs=1e-4)
        assert (own == pytest.approx(wanted, abs=1e-2)) == (first is base)


class Watched(UNet):
    """Notes the timesteps of its calls."""

    def __init__(self, network: Any, seen: list[float]) -> None:
        super().__init__(network)
        self._seen = seen

    def __call__(self, call: UNetCall) -> Tensor:
        self._seen.append(float(call.time))
        return super().__call__(call)


def test_the_model_that_ends_a_pass_decodes_it(base: Model, refiner: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for model in (base, refiner):
        monkeypatch.setattr(model.vae, "begin", partial(_begun, seen, model, model.vae.begin))
    asked = request(refiner=RefinerSettings(name="refiner", switch_at=0.5))
    beside = Beside(others={"refiner": refiner})
    for each in (request(), asked):
        assert [event for event in render(base, each, make_plan(each), beside=beside) if _shown(event)]
    assert seen == [base, refiner]


def _begun(seen: list[Model], model: Model, begin: Callable[[Tensor], Any], latent: Tensor) -> Any:
    seen.append(model)
    return begin(latent)


def _shown(event: object) -> bool:
    return isinstance(event, Picture)


def test_a_hires_pass_by_another_model(base: Model, refiner: Model) -> None:
    """Its prompts, its sizes and scores, its UNet and its VAE are that model's."""
    asked = request(hires=HiresSettings(steps=2, checkpoint="refiner"))
    first, hires = results(base, asked, refiner=refiner)
    assert first.prompts.at(0)[0].tokens.shape[2] == WIDTH_L + WIDTH_G
    assert hires.prompts.at(0)[0].tokens.shape[2] == WIDTH_G
    assert not torch.allclose(hires.latents, latents(base, request(hires=HiresSettings(steps=2))), atol=1e-2)


def test_loras_are_not_applied_to_a_refiner_but_stay_in_the_model(base: Model, refiner: Model, tmp_path: Path) -> None:
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    width = networks()["unet"].get_submodule("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q").in_features
    extras = Extras(loras={"one": _lora(tmp_path / "one.safetensors", {layer: width})})
    plain = {name: each.clone() for name, each in refiner.unet.network.state_dict().items()}
    asked = request(prompt="a sun <lora:one:1>", extras=extras, refiner=RefinerSettings(name="refiner", switch_at=0.5))
    assert results(base, asked, refiner=refiner)
    assert all(torch.equal(each, plain[name]) for name, each in refiner.unet.network.state_dict().items())


def test_loras_act_on_a_refiner_of_the_same_family(base: Model, tmp_path: Path) -> None:
    """As in WebUI, where any model can be the refiner: one of the same weights changes nothing."""
    twin = model_of(single_file(tmp_path / "twin.safetensors", networks()), "twin")
    layers = {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q": 64}
    tagged = {"prompt": "a sun <lora:one:0.1>", "extras": Extras(loras={"one": _lora(tmp_path / "one.st", layers)})}
    refined = latents(base, request(**tagged, refiner=RefinerSettings(name="twin", switch_at=0.5)), twin=twin)
    assert torch.equal(refined, latents(base, request(**tagged)))
    assert not torch.equal(refined, latents(base, request(prompt="a sun")))


def _lora(path: Path, layers: Mapping[str, int]) -> ExtraFile:
    tensors = {}
    for layer, width in layers.items():
        tensors |= {f"{layer}.lora_down.weight": torch.ones(1, width), f"{layer}.lora_up.weight": torch.ones(width, 1)}
    save_file(tensors, path)
    return ExtraFile.at(path)


# --- networks beside it -----------------------------------------------------------------------------------------------


def test_a_lora_changes_each_encoder_by_its_own_names(base: Model, tmp_path: Path) -> None:
    small, large = (tower.model for tower in base.text.towers)
    before = [small.encoder.layers[0].mlp.fc1.weight.clone(), large.encoder.layers[0].mlp.fc1.weight.clone()]
    path = tmp_path / "one.safetensors"
    name = "text_model_encoder_layers_0_mlp_fc1"
    tensors = {}
    for prefix, width in (("lora_te1_", WIDTH_L), ("text_encoder_2.", WIDTH_G)):
        layer = prefix + (name if prefix.startswith("lora") else name.replace("_layers_0_mlp_", ".layers.0.mlp."))
        layer = layer.replace("text_encoder_2.text_model_encoder", "text_encoder_2.text_model.encoder")
        tensors |= {f"{layer}.lora_down.weight": torch.ones(1, width), f"{layer}.lora_up.weight": torch.ones(64, 1)}
    save_file(tensors, path)
    base.adapters.apply([LoraUse(ExtraFile.at(path), LoraTag("one", 1.0, 1.0))])
    after = [small.encoder.layers[0].mlp.fc1.weight.clone(), large.encoder.layers[0].mlp.fc1.weight.clone()]
    assert all(torch.allclose(new - old, torch.ones(()), atol=1e-5) for old, new in zip(before, after, strict=True))
    base.adapters.apply([])
    assert torch.equal(small.encoder.layers[0].mlp.fc1.weight, before[0])


@pytest.mark.parametrize(
    "vectors", [{"clip_l": WIDTH_L, "clip_g": WIDTH_G}, {"clip_l": WIDTH_L}, {"emb_params": WIDTH_L}]
)
def test_an_embedding_has_vectors_for_both_encoders(base: Model, tmp_path: Path, vectors: Mapping[str, int]) -> None:
    save_file({name: torch.ones(2, width) for name, width in vectors.items()}, tmp_path / "zeta.safetensors")
    extras = Extras(embeddings={"zeta": ExtraFile.at(tmp_path / "zeta.safetensors")})
    asked, plain = request(prompt="a zeta", extras=extras), request(prompt="a zeta")
    events = list(render(base, asked, make_plan(asked)))
    found = next(event for event in events if isinstance(event, PassResult)).prompts
    told = [event.text for event in events if isinstance(event, Notice)]
    without = results(base, plain)[0].prompts.at(0)[0].tokens
    if len(vectors) == 2:
        assert [name for name, _ in found.embeddings] == ["zeta", "zeta"], "WebUI names it once for each encoder"
        changed = (found.at(0)[0].tokens - without).abs().amax((0, 1))
        assert changed[:WIDTH_L].max() > 0.01
        assert changed[WIDTH_L:].max() > 0.01
        assert not told
    else:
        assert torch.equal(found.at(0)[0].tokens, without)
        assert "zeta stays text, as in WebUI" in told[0]


@pytest.mark.parametrize("named", [dict, partial(by_ldm_names, levels=3), partial(by_ldm_names, prefix="", levels=3)])
def test_a_controlnet_sees_the_vector(
    base: Model, tmp_path: Path, named: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    """Files by diffusers' names call its layers otherwise."""
    unet = base.unet.network
    tensors = random_control(unet)
    assert any(name.startswith(CLASSES) for name in tensors)
    written = {name.replace(CLASSES, ADDED) if named is dict else name: each for name, each in named(tensors).items()}
    save_file({name: each.contiguous() for name, each in written.items()}, tmp_path / "control.safetensors")
    found = load_control(tmp_path / "control.safetensors", unet, base.device, SDXL)
    expected = ControlNetModel.from_unet(unet)
    expected.load_state_dict(tensors)
    x, context, picture = (torch.randn(shape) for shape in ((1, 4, 8, 8), (1, 7, WIDTH_L + WIDTH_G), (1, 3, 64, 64)))
    vector = torch.randn(1, WIDTH_G + 6 * 256)
    one, other = (each(x, 500, context, picture, class_labels=vector, return_dict=False) for each in (found, expected))
    for ours, theirs in zip((*one[0], one[1]), (*other[0], other[1]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_control_networks_of_sdxl_act(base: Model, tmp_path: Path) -> None:
    save_file(random_control(base.unet.network), tmp_path / "net.safetensors")
    adapter = T2IAdapter(3, [32, 64, 64, 64], 2, downscale_factor=16, adapter_type="full_adapter_xl")
    save_file(adapter.state_dict(), tmp_path / "adapter.safetensors")
    plain = latents(base, request())
    for name in ("net", "adapter"):
        extras = Extras(controls={name: ExtraFile.at(tmp_path / f"{name}.safetensors")})
        control = ControlSettings(model=name, picture=PICTURE, preprocessor="none")
        drawn = latents(base, request(extras=extras, controls=(control,)))
        assert drawn.isfinite().all()
        assert not torch.allclose(drawn, plain, atol=1e-3), name


def test_a_t2i_adapter_of_another_family_is_told(base: Model, tmp_path: Path) -> None:
    save_file(T2IAdapter(3, [32, 64, 64], 2).state_dict(), tmp_path / "adapter.safetensors")
    with pytest.raises(ModelError, match=r"a T2I adapter for Stable Diffusion 1\.x\. Give one that was made for SDXL"):
        load_control(tmp_path / "adapter.safetensors", base.unet.network, base.device, SDXL)


def test_an_inpainting_checkpoint_draws(tmp_path: Path) -> None:
    model = model_of(single_file(tmp_path / "inpaint.safetensors", networks(channels=9)))
    assert latents(model, request()).isfinite().all()

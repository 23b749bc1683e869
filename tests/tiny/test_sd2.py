"""Stable Diffusion 2.x and its derived models, on small models with random weights."""

import re
import shutil
from argparse import Namespace
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.controlnets.controlnet import ControlNetModel
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.__main__ import read_given
from pipelines.ask.identity import ModelFiles
from pipelines.ask.inputs import Inputs
from pipelines.ask.networks import ExtraFile, Extras, LoraTag
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest, HiresSettings, ImageSettings
from pipelines.drawing.cast import Cast
from pipelines.drawing.drawing import Drawing, Given
from pipelines.drawing.phases import Notice, PassResult, Picture, render
from pipelines.drawing.pictures import check_image, check_noise_level, remarks, with_depth
from pipelines.drawing.start import hires_stage, scaled_depth
from pipelines.drawing.unused import unused_by
from pipelines.errors import InvalidInput, ModelError
from pipelines.families.detection import in_ldm_layout
from pipelines.families.noise_schedule import LAST_ALPHA
from pipelines.families.prediction import PREDICTIONS, NoisePrediction, VPrediction
from pipelines.families.sd2 import OPENCLIP_H, SD2
from pipelines.images.masks import prepare
from pipelines.images.reading import flat, read_pictures
from pipelines.infotext.asked import NO_DATA, Fetched, Pictures, read_data, settle
from pipelines.infotext.writing import of_picture
from pipelines.models.controls import load_control
from pipelines.models.depth import prepared_size
from pipelines.models.image_prompt import ImagePrompt, Spread, blurred
from pipelines.models.loader import load
from pipelines.models.lora import LoraUse
from pipelines.models.model import Model
from pipelines.models.parameterization import ALPHAS
from pipelines.models.roster import Member, Roster
from pipelines.runtime.device import Device, Stopwatch
from pipelines.sampling.denoiser import Stage
from predict import Predictor
from tests import passes
from tests.controls import by_ldm_names, random_control
from tests.sd2 import WIDTH, folder, networks, single_file
from weights_script.convert import convert

YAML = "model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  params:\n"
SGM_YAML = """model:
  params:
    denoiser_config:
      params:
        scaling_config:
          target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling
"""
PICTURE = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
OTHER = Image.new("RGB", (64, 64), (200, 30, 30))


def model_of(path: Path, prediction: str = "") -> Model:
    return load(ModelFiles(name="small", checkpoint=path, vae=None, prediction=prediction))


def request(**fields: Any) -> GenerationRequest:
    small = {"prompt": "a sun over the sea", "width": 64, "height": 64, "seed": 3, "num_inference_steps": 3}
    return GenerationRequest(**{**small, "hires": None, **fields})


def latents(model: Model, asked: GenerationRequest) -> Tensor:
    """Return the latents of the last pass."""
    return passes.latents(model, asked)[-1]


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return single_file(tmp_path_factory.mktemp("noise") / "noise.safetensors", networks())


@pytest.fixture(scope="module")
def unclip(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("unclip") / "unclip.safetensors"
    return model_of(single_file(path, networks(vector=2 * WIDTH)))


@pytest.fixture(scope="module")
def depth(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return model_of(single_file(tmp_path_factory.mktemp("depth") / "depth.safetensors", networks(channels=5)))


# --- what a file says of itself ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("v", "found"), [(False, NoisePrediction()), (True, VPrediction())])
def test_a_file_that_does_not_declare_its_prediction_is_probed(tmp_path: Path, v: bool, found: object) -> None:
    model = model_of(single_file(tmp_path / "x.safetensors", networks(v=v)))
    assert (model.family, model.prediction) == (SD2, found)
    assert model.settings == {"width": 768 if v else 512, "height": 768 if v else 512}


@pytest.mark.parametrize(
    ("beside", "metadata", "setting", "found"),
    [
        ("", {"modelspec.prediction_type": "v"}, "", "v_prediction"),
        (f"{YAML}    parameterization: v\n", {}, "", "v_prediction"),
        (SGM_YAML, {}, "", "v_prediction"),
        (f"{YAML}    linear_start: 0.00085\n", {"modelspec.prediction_type": "v"}, "", "epsilon"),
        (f"{YAML}    parameterization: v\n", {}, "epsilon", "epsilon"),
        ("", {"modelspec.prediction_type": "v"}, "epsilon", "epsilon"),
    ],
)
def test_which_declaration_of_the_prediction_wins(
    tmp_path: Path, beside: str, metadata: dict[str, str], setting: str, found: str
) -> None:
    """The setting overrides the configuration beside the file, which overrides what the file itself declares."""
    path = single_file(tmp_path / "x.safetensors", networks(), metadata)
    if beside:
        path.with_suffix(".yaml").write_text(beside)
    assert model_of(path, setting).prediction == PREDICTIONS[found]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model: [", "while parsing"),
        ("prompt: a cat", "no `model` part"),
        ("model: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("#" * 70_000, "longer than 65536 bytes"),
        ("[" * 1_000, "recursion"),
        ("\xff\x00", "x.yaml"),
    ],
)
def test_a_broken_configuration_is_named_in_the_error(noise: Path, tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "x.safetensors"
    path.symlink_to(noise)
    path.with_suffix(".yaml").write_text(text, encoding="latin-1")
    with pytest.raises(ModelError, match=r"x\.yaml: not a configuration of a model") as caught:
        model_of(path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_noise_levels_in_a_file_are_used(tmp_path: Path) -> None:
    alphas = torch.linspace(0.99, 0.0, 1000)
    model = model_of(single_file(tmp_path / "x.safetensors", networks(), alphas_cumprod=alphas))
    assert model.noise.alphas[:999] == tuple(alphas.tolist()[:999])
    assert model.noise.alphas[999] == pytest.approx(LAST_ALPHA)


@pytest.mark.parametrize(
    "alphas",
    [torch.linspace(0.9, 0.1, 10), torch.linspace(0.1, 0.9, 1000), torch.full((1000,), 0.5), torch.ones(1000) * np.nan],
)
def test_invalid_noise_levels_are_refused(tmp_path: Path, alphas: Tensor) -> None:
    path = single_file(tmp_path / "x.safetensors", networks(), alphas_cumprod=alphas)
    with pytest.raises(ModelError, match="its alphas_cumprod must be"):
        model_of(path)


FORMS: dict[str, Callable[[], Mapping[str, nn.Module]]] = {
    "noise": networks,
    "inpainting": lambda: networks(channels=9),
    "depth": lambda: networks(channels=5),
    "unclip": lambda: networks(vector=2 * WIDTH),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_diffusers_folder_draws_the_same_as_the_single_file(tmp_path: Path, form: str) -> None:
    parts = FORMS[form]()
    kind = "v_prediction" if form == "unclip" else "epsilon"
    one = model_of(single_file(tmp_path / "x.safetensors", parts))
    other = model_of(folder(tmp_path / "folder", parts, prediction_type=kind))
    assert (one.family, one.prediction) == (other.family, other.prediction)
    asked = request(image=ImageSettings(picture=PICTURE, denoising_strength=0.9))
    assert torch.allclose(latents(one, asked), latents(other, asked), atol=1e-4)


# --- adapters ---------------------------------------------------------------------------------------------------------


def lora(path: Path, *layers: str) -> LoraUse:
    tensors = {}
    for layer in layers:
        tensors[f"{layer}.lora_down.weight"] = torch.ones(1, WIDTH)
        tensors[f"{layer}.lora_up.weight"] = torch.ones(WIDTH, 1)
    save_file(tensors, path)
    return LoraUse(ExtraFile.at(path), LoraTag(path.stem, 1.0, 1.0))


def test_attention_of_the_text_encoder_is_changed_whole_or_not_at_all(noise: Path, tmp_path: Path) -> None:
    """WebUI ignores changes to an attention unless the file changes all four of its layers."""
    model = model_of(noise)
    layers = [
        f"lora_te_text_model_encoder_layers_0_self_attn_{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")
    ]
    weights = {name: tensor.clone() for name, tensor in model.text.towers[0].model.state_dict().items()}

    def changed() -> list[str]:
        return [
            name
            for name, tensor in model.text.towers[0].model.state_dict().items()
            if not torch.equal(tensor, weights[name])
        ]

    model.adapters.apply([lora(tmp_path / "some.safetensors", *layers[:3])])
    assert changed() == []
    assert "6 of its 6 tensors are left out, as in WebUI, because this text encoder" in model.adapters.left_over[0]
    assert "unknown" not in model.adapters.left_over[0]
    model.adapters.apply([lora(tmp_path / "all.safetensors", *layers)])
    assert len(changed()) == 4


@pytest.mark.parametrize(("width", "family"), [(768, r"Stable Diffusion 1\.x"), (2048, "SDXL"), (1280, "SDXL refiner")])
def test_a_lora_of_another_family_is_refused_by_name(noise: Path, tmp_path: Path, width: int, family: str) -> None:
    path = tmp_path / "other.safetensors"
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file({f"{layer}.lora_up.weight": torch.ones(32, 1), f"{layer}.lora_down.weight": torch.ones(1, width)}, path)
    with pytest.raises(ModelError, match=rf"made for {family}, but the model here is Stable Diffusion 2\.x\. Give one"):
        model_of(noise).adapters.apply([LoraUse(ExtraFile.at(path), LoraTag("other", 1.0, 1.0))])


def test_a_controlnet_of_another_family_is_refused_by_name(noise: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": torch.ones(32, 768)}, path)
    with pytest.raises(
        ModelError, match=r"made for Stable Diffusion 1\.x, but the model here is Stable Diffusion 2\.x"
    ):
        model_of(noise).controls.load_only([ExtraFile.at(path)])


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_a_lora_of_one_text_layer_is_refused_by_name(noise: Path, tmp_path: Path, part: str) -> None:
    layer = f"lora_te_text_model_encoder_layers_0_self_attn_{part}_proj"
    save_file(
        {f"{layer}.lora_up.weight": torch.ones(768, 1), f"{layer}.lora_down.weight": torch.ones(1, 768)},
        tmp_path / "part.safetensors",
    )
    with pytest.raises(ModelError, match=r"made for Stable Diffusion 1\.x, but the model here is"):
        model_of(noise).adapters.apply([LoraUse(ExtraFile.at(tmp_path / "part.safetensors"), LoraTag("a", 1.0, 1.0))])


def test_the_family_of_a_lora_is_that_of_its_unet_layers(noise: Path, tmp_path: Path) -> None:
    """SDXL's first text encoder is as wide as that of Stable Diffusion 1.x."""
    text = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    unet = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {}
    for layer, width in ((text, 768), (unet, 2048)):
        tensors |= {f"{layer}.lora_up.weight": torch.ones(32, 1), f"{layer}.lora_down.weight": torch.ones(1, width)}
    save_file(tensors, tmp_path / "xl.safetensors")
    with pytest.raises(ModelError, match=r"made for SDXL, but the model here is Stable Diffusion 2\.x"):
        model_of(noise).adapters.apply([LoraUse(ExtraFile.at(tmp_path / "xl.safetensors"), LoraTag("xl", 1.0, 1.0))])


@pytest.mark.parametrize("named", [dict, partial(by_ldm_names, levels=2), partial(by_ldm_names, prefix="", levels=2)])
def test_a_controlnet_of_its_own_family_acts(
    noise: Path, tmp_path: Path, named: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    model = model_of(noise)
    unet = model.unet.network
    tensors = random_control(unet)
    save_file({name: tensor.contiguous() for name, tensor in named(tensors).items()}, tmp_path / "control.safetensors")
    found = load_control(tmp_path / "control.safetensors", unet, model.device, SD2)
    expected = ControlNetModel.from_unet(unet)
    expected.load_state_dict(tensors)
    x, context, picture = (torch.randn(shape) for shape in ((1, 4, 8, 8), (1, 7, WIDTH), (1, 3, 64, 64)))
    results = [each(x, 500, context, picture, return_dict=False) for each in (found, expected)]
    assert len(results[0][0]) == len(results[1][0]) > 2
    # The same arithmetic on the same weights, whose memory may be aligned differently.
    for one, other in zip((*results[0][0], results[0][1]), (*results[1][0], results[1][1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(results[0][1], torch.zeros(()))


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        (
            {"emb_params": torch.ones(1, 768)},
            r"its vectors have 768 values \(Stable Diffusion 1\.x\), this model takes",
        ),
        ({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)}, "a textual inversion embedding for SDXL"),
    ],
)
def test_the_word_of_an_embedding_for_another_family_stays_text(
    noise: Path, tmp_path: Path, tensors: dict[str, Tensor], told: str
) -> None:
    """As in WebUI, which loads only embeddings of the model's width."""
    save_file(tensors, tmp_path / "word.safetensors")
    model, word = model_of(noise), replace(ExtraFile.at(tmp_path / "word.safetensors"), origin="files='word'")
    asked = request(prompt="a word", extras=Extras(embeddings={"word": word}))
    torch.testing.assert_close(latents(model, asked), latents(model, request(prompt="a word")))
    events = render(model, asked, make_plan(asked))
    (text,) = (event.text for event in events if isinstance(event, Notice))
    assert re.match(rf"word stays text, as in WebUI: files='word': {told}", text)


def test_a_fitting_embedding_is_found_behind_a_longer_name_that_does_not_fit(noise: Path, tmp_path: Path) -> None:
    """`zeta-long` is for another family, so `zeta` is read in its place."""
    files = {}
    for name, width in (("zeta", WIDTH), ("zeta-long", 768)):
        save_file({"emb_params": torch.ones(1, width)}, tmp_path / f"{name}.safetensors")
        files[name] = ExtraFile.at(tmp_path / f"{name}.safetensors")
    text = model_of(noise).text
    (table,), (tower,) = text.embedding_tables(files), text.towers
    first, *others = table.units(tower.tokenize("zeta-long"))
    assert first == (-1,)
    assert [(token,) for token in tower.tokenize("-long")] == others


def test_a_file_without_the_unused_text_layer_draws_the_same(noise: Path, tmp_path: Path) -> None:
    """diffusers' converter writes 23 text layers, the published files 24, of which the last one is not used."""
    last = f"resblocks.{OPENCLIP_H.layers}."
    tensors = {name: tensor for name, tensor in load_file(noise).items() if last not in name}
    assert len(tensors) < len(load_file(noise))
    save_file(tensors, tmp_path / "short.safetensors")
    one, other = (latents(model_of(path), request()) for path in (noise, tmp_path / "short.safetensors"))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_in_a_wrapper_is_the_same(noise: Path, tmp_path: Path) -> None:
    """Some training programs save the object around the model, whose name then precedes every name."""
    tensors = load_file(noise)
    for wrapper in ("state_dict.", "model.", "module.", "state_dict.module."):
        assert in_ldm_layout({f"{wrapper}{name}": name for name in tensors}) == {name: name for name in tensors}
    save_file({f"model.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "wrapped.safetensors")
    wrapped, plain = model_of(tmp_path / "wrapped.safetensors"), model_of(noise).unet.network.state_dict()
    assert wrapped.family is SD2
    assert all(torch.equal(tensor, plain[name]) for name, tensor in wrapped.unet.network.state_dict().items())


def test_noise_levels_in_bfloat16_are_replaced_by_the_familys(noise: Path, tmp_path: Path) -> None:
    """bfloat16 is too coarse for them: neighbours become equal, and the first one becomes 1."""
    usual = torch.tensor(SD2.noise.alphas)
    rounded = load_file(noise) | {ALPHAS: usual.bfloat16()}
    save_file(rounded, tmp_path / "bf16.safetensors")
    assert model_of(tmp_path / "bf16.safetensors").noise.alphas == SD2.noise.alphas
    save_file(rounded | {ALPHAS: usual.flip(0).bfloat16()}, tmp_path / "broken.safetensors")
    with pytest.raises(ModelError, match="must be 1000 numbers that fall from 1 to 0"):
        model_of(tmp_path / "broken.safetensors")


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_an_inpainting_checkpoint_sees_as_much_as_the_mask_weight_allows(tmp_path: Path) -> None:
    model = model_of(single_file(tmp_path / "x.safetensors", networks(channels=9)))
    assert model.identity.inpainting
    one, other = (ImageSettings(picture=each, denoising_strength=1) for each in (PICTURE, OTHER))
    start = torch.zeros(1, 4, 8, 8)

    def drawn(image: ImageSettings, weight: float) -> Tensor:
        asked = request(image=image, mask_weight=weight)
        events = render(model, asked, make_plan(asked), given=Given(latents=start))
        return next(e.latents for e in events if isinstance(e, PassResult))

    assert torch.equal(drawn(one, 1.0), drawn(other, 1.0)), "without a mask all of it is masked"
    assert not torch.equal(drawn(one, 0.5), drawn(other, 0.5))
    asked = request(mask_weight=0.5)
    assert "Conditional mask weight: 0.5, " in of_picture(asked, make_plan(asked), model.identity, 0)


def test_variations_are_the_same_in_any_batch(unclip: Model) -> None:
    asked = request(image=ImageSettings(picture=PICTURE, denoising_strength=1), num_outputs=2, image_noise_level=500)
    both = latents(unclip, asked)
    second = latents(unclip, replace(asked, seed=asked.seed + 1, num_outputs=1))
    assert torch.allclose(both[1], second[0], atol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=1e-2)


def test_variations_depend_on_the_picture_its_noise_level_and_the_prompt(unclip: Model) -> None:
    asked = request(image=ImageSettings(picture=PICTURE, denoising_strength=1))
    plain = latents(unclip, asked)
    others = [
        replace(asked, image=ImageSettings(picture=OTHER, denoising_strength=1)),
        replace(asked, image_noise_level=999),
        replace(asked, prompt=""),
        replace(asked, image=None),
    ]
    assert all(not torch.allclose(plain, latents(unclip, other), atol=1e-4) for other in others)
    assert unclip.settings["denoising_strength"] == 1
    assert unclip.settings["guidance_scale"] == 10


def test_a_picture_is_blurred_along_the_axes_that_shrink() -> None:
    """The blur is kornia's: as wide as the axis shrinks, with a mirrored border."""
    picture = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    assert torch.equal(blurred(picture, 96), picture)
    sigma = (96 / 32 - 1) / 2
    weights = np.exp(-(np.arange(-2, 3) ** 2) / (2 * sigma**2))
    rows = picture.numpy()[0, 0]
    padded = np.pad(rows, ((0, 0), (2, 2)), mode="reflect")
    wide = sum(w * padded[:, k : k + 96] for k, w in enumerate(weights / weights.sum()))
    assert np.allclose(blurred(picture[:, :, :32], 32)[0, 0], wide[:32], atol=1e-6), "only across"
    assert not np.allclose(blurred(picture, 32)[0, 0], wide, atol=1e-3), "and down"


def test_every_form_has_a_hires_pass(unclip: Model, depth: Model, tmp_path: Path) -> None:
    inpainting = model_of(single_file(tmp_path / "x.safetensors", networks(channels=9)))
    asked = request(image=ImageSettings(picture=PICTURE), hires=HiresSettings(steps=2))
    for model in (unclip, depth, inpainting):
        assert latents(model, asked).shape == (1, 4, 16, 16)
    assert latents(inpainting, replace(asked, image=None)).shape == (1, 4, 16, 16)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[Stage]:
    """Return the stages of all hires passes that are drawn."""
    made: list[Stage] = []

    def kept(*args: Any) -> Stage:
        made.append(hires_stage(*args))
        return made[-1]

    monkeypatch.setattr("pipelines.drawing.phases.hires_stage", kept)
    return made


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_an_inpainting_checkpoint_sees_its_enlarged_picture(tmp_path: Path, stages: list[Stage], upscaler: str) -> None:
    """How much it sees depends on the conditional mask weight."""
    model = model_of(single_file(tmp_path / "x.safetensors", networks(channels=9)))
    asked = request(num_outputs=2, hires=HiresSettings(upscaler=upscaler, steps=2))
    for weight in (1.0, 0.5, 0.0):
        latents(model, replace(asked, mask_weight=weight))
    grey, half, whole = (stage.channels for stage in stages)
    assert grey is not None
    assert half is not None
    assert whole is not None
    assert all(each[:, :1].eq(1).all() for each in (grey, half, whole))
    assert torch.allclose(grey[0], grey[-1]), "at 1, nothing is seen"
    assert not torch.allclose(grey, half, atol=1e-3)
    assert not torch.allclose(whole[0], whole[1], atol=1e-3), "each its own picture"


def test_unclip_sees_the_enlarged_picture_after_a_pixel_upscaler(unclip: Model, stages: list[Stage]) -> None:
    for upscaler in ("Latent", "Lanczos"):
        latents(unclip, request(num_outputs=2, hires=HiresSettings(upscaler=upscaler, steps=2)))
    nothing, seen = (stage.vectors for stage in stages)
    assert nothing is not None
    assert seen is not None
    assert not nothing.any()
    assert seen.shape == nothing.shape
    assert seen.any(dim=1).all()


def test_the_condition_of_a_hires_pass_can_be_given(unclip: Model, tmp_path: Path, stages: list[Stage]) -> None:
    inpainting = model_of(single_file(tmp_path / "x.safetensors", networks(channels=9)))
    asked = request(hires=HiresSettings(upscaler="Lanczos", steps=2))
    for model, shape in ((unclip, (1, 2 * WIDTH)), (inpainting, (1, 5, 16, 16))):
        told = torch.rand(shape)
        list(render(model, asked, make_plan(asked), given=Given(hires_condition=told)))
        stage = stages[-1]
        given = stage.channels if stage.vectors is None else stage.vectors
        assert given is not None
        assert torch.equal(given, told)


def test_a_file_gives_each_pass_its_own_condition(tmp_path: Path) -> None:
    path = tmp_path / "case.safetensors"
    save_file({"1_hires_image_cond": torch.ones(1), "0_txt2img_image_cond": torch.zeros(1)}, path)
    given = read_given(Namespace(init_latent=None, image_cond=path, hires_image_cond=path))
    assert (given.condition, given.hires_condition) == (torch.zeros(1), torch.ones(1))


def test_the_log_says_what_webui_cannot_draw(tmp_path: Path) -> None:
    """WebUI fails with a latent upscaler and an inpainting checkpoint."""
    model = model_of(single_file(tmp_path / "x.safetensors", networks(channels=9)))
    told = []
    for upscaler, weight in (("Latent", 1.0), ("Lanczos", 1.0), ("Latent", 0.5)):
        asked = request(hires=HiresSettings(upscaler=upscaler, steps=2), mask_weight=weight)
        told.append(list(remarks(model, make_plan(asked), asked)))
    assert [len(each) for each in told] == [1, 0, 0]
    assert "WebUI" in told[0][0]


def test_a_depth_checkpoint_follows_the_map(depth: Model) -> None:
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)))
    image = ImageSettings(picture=PICTURE, denoising_strength=1)
    maps = [None, ramp, ramp.transpose(Image.Transpose.ROTATE_90), Image.new("L", (64, 64), 7)]
    drawn = [latents(depth, request(image=replace(image, depth=each))) for each in maps]
    assert all(each.isfinite().all() for each in drawn), "also under a flat map"
    assert all(not torch.allclose(a, b, atol=1e-4) for k, a in enumerate(drawn) for b in drawn[:k])


def test_depth_is_estimated_once_for_both_passes(depth: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert depth.depth is not None
    seen, estimate = list[Image.Image](), depth.depth.depth
    monkeypatch.setattr(depth.depth, "depth", lambda picture: seen.append(picture) or estimate(picture))
    hires = HiresSettings(scale=1, steps=1, denoising_strength=0.5)
    image = ImageSettings(picture=PICTURE, denoising_strength=0.9)
    passes.latents(depth, request(image=image, hires=hires))
    assert len(seen) == 1


def test_a_depth_map_of_16_bits_is_read_whole(depth: Model, tmp_path: Path) -> None:
    """Its steps may be finer than those of 8 bits. A ControlNet gets it in 8 bits."""
    ramp = np.tile(np.arange(64, dtype=np.uint16) + 30_000, (64, 1))
    Image.fromarray(ramp).save(tmp_path / "depth.png")
    (read,) = read_pictures(Inputs(control_images=(tmp_path / "depth.png",))).controls
    assert np.array_equal(np.asarray(flat(read))[..., 0], ramp // 257)
    given = with_depth(depth, Pictures(image=PICTURE, controls=(read,)), controlled=False)
    image = ImageSettings(picture=PICTURE, depth=given.depth, resize_mode="crop")
    whole, crop = (depth_in(depth, request(image=image, width=width)) for width in (64, 128))
    assert np.allclose(whole, ramp / 257, atol=1e-3)
    assert crop.shape == (64, 128)
    assert (np.diff(crop[0]) >= 0).all()
    assert len(np.unique(crop)) > 60, "it is as fine when it is resized"


def depth_in(model: Model, asked: GenerationRequest) -> NDArray[np.float32]:
    """Return the depth map that a request is drawn with, (H, W)."""
    assert asked.image is not None
    canvas = prepare(asked.image, (asked.width, asked.height))
    drawing = Drawing(
        model=model,
        hires_model=model,
        refiner=model,
        request=asked,
        plan=make_plan(asked),
        canvas=canvas,
        upscaler=None,
        show_phases=False,
        watch=Stopwatch(torch.device("cpu")),
    )
    return drawing.depth[0, 0].numpy()


def test_a_depth_map_is_scaled_by_its_minimum_and_maximum() -> None:
    scaled = scaled_depth(torch.rand(1, 1, 384, 384) * 900 + 100, (8, 12))
    assert scaled.shape == (1, 1, 8, 12)
    assert scaled.aminmax() == (-1, 1)
    assert torch.equal(scaled_depth(torch.full((1, 1, 9, 9), 4.0), (4, 4)), torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("size", "prepared"),
    [((512, 512), (384, 384)), ((800, 600), (512, 384)), ((64, 2048), (32, 384)), ((400, 2000), (384, 1920))],
)
def test_the_size_that_depth_is_estimated_at(size: tuple[int, int], prepared: tuple[int, int]) -> None:
    assert prepared_size(*size) == prepared


def test_a_depth_checkpoint_refuses_a_request_without_depth(depth: Model, noise: Path) -> None:
    with pytest.raises(InvalidInput, match=r"image='': Stable Diffusion 2\.x depth needs an image"):
        check_image(depth, Pictures(), controlled=False)
    check_image(model_of(noise), Pictures(), controlled=False)
    blind = replace(depth, depth=None)
    with pytest.raises(InvalidInput, match="control_images='': this checkpoint has no depth estimator"):
        with_depth(blind, Pictures(image=PICTURE), controlled=False)
    with pytest.raises(InvalidInput, match="no controls: they cannot be combined with your own map"):
        with_depth(blind, Pictures(image=PICTURE, controls=(OTHER,)), controlled=True)
    for model in (blind, depth):
        with pytest.raises(InvalidInput, match="control_images='2 sent': an image has one depth map"):
            with_depth(model, Pictures(image=PICTURE, controls=(OTHER, OTHER)), controlled=False)
    shown = with_depth(blind, Pictures(image=PICTURE, controls=(OTHER,)), controlled=False)
    assert (shown.depth, shown.controls) == (OTHER, ())


def test_a_noise_level_without_the_statistics_that_it_needs_is_refused(unclip: Model) -> None:
    """Single files of the small unCLIP model lack them."""
    check_noise_level(unclip, 500)
    assert unclip.image_prompt is not None
    tower = unclip.image_prompt.tower
    unknown = replace(unclip, image_prompt=ImagePrompt(tower, Spread(torch.zeros(1), torch.ones(1), known=False)))
    check_noise_level(unknown, 0)
    with pytest.raises(InvalidInput, match=r"^image_noise_level=1: this checkpoint lacks the statistics"):
        check_noise_level(unknown, 1)


def test_settings_that_a_model_does_not_use_are_named(depth: Model, unclip: Model, tmp_path: Path) -> None:
    inpainting = model_of(single_file(tmp_path / "x.safetensors", networks(channels=9)))
    settings = {name: name for name in ("clip_skip", "conditional_mask_weight", "image_noise_level", "seed")}
    told = {model.family.name: list(unused_by(model, settings)) for model in (depth, unclip, inpainting)}
    names = {family: [line.partition(" does nothing here: ")[0] for line in lines] for family, lines in told.items()}
    assert names == {
        "Stable Diffusion 2.x depth": ["clip_skip", "conditional_mask_weight", "image_noise_level"],
        "Stable unCLIP": ["clip_skip", "conditional_mask_weight"],
        "Stable Diffusion 2.x": ["clip_skip", "image_noise_level"],
    }
    assert told["Stable unCLIP"][0].endswith("Stable unCLIP always uses the same layer of its text encoders.")
    assert list(unused_by(depth, {"seed": "seed"})) == []


def predictor_of(model: Model) -> tuple[Any, Cast]:
    """Return a predictor with this model and no further networks, and the models of its requests."""
    predictor: Any = Predictor()
    predictor.roster = Roster({"only": Member(model=model, settings=model.settings)}, {})
    predictor.fetchers = SimpleNamespace(run=lambda work, *arguments: work(*arguments))
    predictor.library = SimpleNamespace(load_only=mock.Mock(return_value=Fetched()))
    return predictor, Cast(model=model, others={}, checked=False)


def test_a_map_beside_controlnets_is_refused_before_they_are_fetched(depth: Model) -> None:
    predictor, cast = predictor_of(replace(depth, depth=None))
    inputs, pictures = Inputs(controls="canny"), Pictures(image=PICTURE, controls=(OTHER,))
    with pytest.raises(InvalidInput, match="no controls: they cannot be combined"):
        predictor.requests_for([settle(inputs, NO_DATA, depth.settings, pictures)], inputs, pictures, cast)
    predictor.library.load_only.assert_not_called()


def test_a_request_logs_what_its_model_does_not_use(depth: Model, capsys: pytest.CaptureFixture[str]) -> None:
    pictures, inputs = Pictures(image=PICTURE), Inputs(clip_skip=2)
    asked = settle(inputs, read_data("Image noise level: 5"), depth.settings, pictures)
    predictor, cast = predictor_of(depth)
    predictor.requests_for([asked], inputs, pictures, cast)
    lines = [line for line in capsys.readouterr().out.splitlines() if "does nothing here" in line]
    assert [line.partition(" does")[0] for line in lines] == ["clip_skip", "Image noise level"]


def test_the_log_says_what_is_missing(
    depth: Model, unclip: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    image = ImageSettings(picture=PICTURE, depth=Image.new("L", (64, 64), 7))
    latents(depth, request(image=image))
    latents(unclip, request())
    path = folder(tmp_path / "blind", networks(channels=5), prediction_type="epsilon")
    shutil.rmtree(path / "depth_estimator")
    model_of(path)
    for told in ("depth map is flat", "it was made for variations of images", "blind has no depth estimator"):
        assert told in caplog.text


def test_a_folder_without_its_image_encoder_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "x", networks(vector=2 * WIDTH), prediction_type="v_prediction")
    shutil.rmtree(path / "image_encoder")
    with pytest.raises(ModelError, match="Stable unCLIP needs its image encoder"):
        model_of(path)


def test_a_depth_checkpoint_draws_a_picture(depth: Model) -> None:
    asked = request(image=ImageSettings(picture=PICTURE))
    (drawn,) = (e.pixels for e in render(depth, asked, make_plan(asked)) if isinstance(e, Picture))
    assert drawn.shape == (64, 64, 3)


@pytest.mark.parametrize(("kind", "near"), [(torch.float16, 0.05), (torch.bfloat16, 0.3)])
def test_half_precision_draws_nearly_the_same(tmp_path: Path, kind: torch.dtype, near: float) -> None:
    """The difference is at most a hundredth of the largest values for float16, and a tenth for bfloat16."""
    path = single_file(tmp_path / "x.safetensors", networks(v=True))
    asked = request(num_inference_steps=1)
    whole, half = (drawn_in(each, path, asked) for each in (torch.float32, kind))
    assert whole.abs().max() > 10 * near
    assert (half - whole).abs().max() < near


def test_large_queries_and_keys_do_not_overflow_in_half_precision(tmp_path: Path) -> None:
    """SD 2.1's overflow if attention is written out, which makes the picture black."""
    parts = {**networks(v=True), "unet": deepcopy(networks(v=True)["unet"])}
    for name, module in parts["unet"].named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("to_q", "to_k")):
            module.weight.data *= 2000
    path = single_file(tmp_path / "x.safetensors", parts)
    asked = request(num_inference_steps=1)
    assert drawn_in(torch.float16, path, asked).isfinite().all()
    assert not drawn_in(torch.float16, path, asked, AttnProcessor()).isfinite().all()


def drawn_in(kind: torch.dtype, path: Path, asked: GenerationRequest, attention: AttnProcessor | None = None) -> Tensor:
    """Return the last latents of a v model in a precision, with another attention than the engine's if given."""
    files = ModelFiles(name="small", checkpoint=path, vae=None, prediction="v_prediction")
    model = load(files, Device(torch.device("cpu"), kind))
    if attention:
        model.unet.network.set_attn_processor(attention)
    return latents(model, asked).float()


@pytest.mark.parametrize("form", FORMS)
def test_a_converted_file_is_the_same_model(tmp_path: Path, form: str) -> None:
    """Everything that its family needs is kept, including the noise levels and the configuration beside the file."""
    path = single_file(tmp_path / "x.safetensors", FORMS[form](), alphas_cumprod=torch.linspace(0.99, 0.01, 1000))
    path.with_suffix(".yaml").write_text(f"{YAML}    parameterization: v\n")
    convert(path, tmp_path / "small.safetensors")
    one, other = model_of(path), model_of(tmp_path / "small.safetensors")
    assert (one.family, one.prediction, one.noise) == (other.family, other.prediction, other.noise)
    assert (one.depth is None, one.image_prompt is None) == (other.depth is None, other.image_prompt is None)
    assert isinstance(other.prediction, VPrediction)

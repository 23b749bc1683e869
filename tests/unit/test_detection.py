"""Families recognised by their tensors, and what files declare about themselves."""

from types import SimpleNamespace

import pytest

from pipelines.errors import ModelError
from pipelines.families.detection import (
    FAMILIES,
    SIGNS,
    Declaration,
    check_channels,
    declared_in_file,
    declared_in_scheduler,
    family_of,
    sign_of,
    sign_of_folder,
)
from pipelines.families.prediction import NoisePrediction, VPrediction
from pipelines.families.sd1 import SD1


def tensors(*names: str, width: int = 1280) -> dict[str, SimpleNamespace]:
    return {name: SimpleNamespace(shape=(width,)) for name in names}


UNET = "model.diffusion_model.input_blocks.0.0.weight"
NAMES = {
    "Stable Diffusion 3": ["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"],
    "Flux": ["double_blocks.0.img_attn.qkv.weight"],
    "SDXL": [UNET, "conditioner.embedders.0.transformer.x", "conditioner.embedders.1.model.ln_final.weight"],
    "SDXL refiner": [UNET, "conditioner.embedders.0.model.ln_final.weight"],
    "Stable Diffusion 2.x depth": [
        UNET,
        "cond_stage_model.model.ln_final.weight",
        "depth_model.model.pretrained.act_postprocess3.0.project.0.bias",
    ],
    "Stable unCLIP": [UNET, "cond_stage_model.model.ln_final.weight", "embedder.model.ln_final.weight"],
    "Stable Diffusion 2.x": [UNET, "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"],
    "AltDiffusion": [UNET, "cond_stage_model.roberta.embeddings.word_embeddings.weight"],
}


@pytest.mark.parametrize("family", NAMES)
def test_every_family_is_named(family: str) -> None:
    sign = sign_of(tensors(*NAMES[family]))
    assert sign is not None
    assert sign.family == family
    if family in FAMILIES:
        assert family_of("x", sign).name == family
        return
    with pytest.raises(ModelError, match=rf"^x: an? {family} checkpoint\. This container does not run {family} yet"):
        family_of("x", sign)


def test_every_sign_has_its_case() -> None:
    assert {sign.family for sign in SIGNS} == set(NAMES)


def test_what_has_no_sign_is_stable_diffusion_1() -> None:
    assert sign_of(tensors(UNET, "cond_stage_model.transformer.text_model.final_layer_norm.weight")) is None
    assert family_of("x", None) is SD1


def test_the_layout_of_a_refiner_with_the_width_of_sd2_is_sd2() -> None:
    """SD 2.1 Turbo is published so."""
    sign = sign_of(tensors(*NAMES["SDXL refiner"], width=1024))
    assert sign is not None
    assert sign.family == "Stable Diffusion 2.x"


@pytest.mark.parametrize(
    ("unet", "family"),
    [
        (
            {
                "addition_embed_type": "text_time",
                "projection_class_embeddings_input_dim": 2816,
                "cross_attention_dim": 2048,
                "addition_time_embed_dim": 256,
            },
            "SDXL",
        ),
        (
            {
                "addition_embed_type": "text_time",
                "projection_class_embeddings_input_dim": 2560,
                "cross_attention_dim": 1280,
                "addition_time_embed_dim": 256,
            },
            "SDXL refiner",
        ),
        ({"class_embed_type": "projection", "use_linear_projection": True}, "Stable unCLIP"),
        ({"use_linear_projection": True}, "Stable Diffusion 2.x"),
        ({"use_linear_projection": True, "in_channels": 9}, "Stable Diffusion 2.x"),
        ({"use_linear_projection": True, "in_channels": 5}, "Stable Diffusion 2.x depth"),
        ({"class_embed_type": None, "addition_embed_type": None}, None),
    ],
)
def test_families_of_diffusers_folders(unet: dict[str, object], family: str | None) -> None:
    sign = sign_of_folder(unet)
    assert (sign.family if sign else None) == family


@pytest.mark.parametrize(("channels", "task"), [(5, "depth to image"), (8, "InstructPix2Pix"), (7, "another task")])
def test_other_tasks_are_named(channels: int, task: str) -> None:
    with pytest.raises(ModelError, match=f"a checkpoint for {task}: its UNet takes {channels} channels instead of 4"):
        check_channels("x", SD1, channels)


V, EPSILON = "v_prediction", "epsilon"


@pytest.mark.parametrize(
    ("names", "metadata", "expected"),
    [
        ([], {}, Declaration()),
        (["v_pred"], {}, Declaration(V)),
        (["v_pred", "ztsnr"], {}, Declaration(V, True)),
        (["ztsnr"], {"modelspec.prediction_type": "epsilon"}, Declaration(EPSILON, True)),
        ([], {"modelspec.prediction_type": "v"}, Declaration(V)),
        (["v_pred"], {"modelspec.prediction_type": "epsilon"}, Declaration(V)),
        ([], {"modelspec.architecture": "stable-diffusion-v2-768-v"}, Declaration(V)),
        ([], {"modelspec.architecture": "stable-diffusion-v1"}, Declaration()),
        ([], {"modelspec.architecture": "stable-diffusion-v2-768-v", "modelspec.prediction_type": "epsilon"}, None),
    ],
)
def test_what_a_file_declares(names: list[str], metadata: dict[str, str], expected: Declaration | None) -> None:
    assert declared_in_file(tensors(*names), metadata) == (expected or Declaration(EPSILON))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Declaration()),
        ({"prediction_type": "epsilon", "rescale_betas_zero_snr": False}, Declaration(EPSILON)),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, Declaration(V, True)),
    ],
)
def test_what_a_scheduler_declares(config: dict[str, object], expected: Declaration) -> None:
    assert declared_in_scheduler(config) == expected


def test_a_declaration_replaces_what_the_family_does() -> None:
    assert Declaration().apply("x", SD1) == (NoisePrediction(), SD1.noise)
    assert Declaration(V, True).apply("x", SD1) == (VPrediction(), SD1.noise.zero_terminal_snr())
    with pytest.raises(ModelError, match=r"^x: its UNet predicts 'sample'\. This container knows epsilon and v_pred"):
        Declaration("sample").apply("x", SD1)

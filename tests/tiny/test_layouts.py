"""Layer names in both layouts map one to one, and diffusers' own converters know them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_controlnet_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.full_size import meta_networks
from pipelines.families.layouts import UNET_PREFIX, VAE_PREFIX, Layout, control_layout, unet_layout, vae_layout
from pipelines.models.model import Model
from weights_script.resolve import ResolvedModel

Case = tuple[nn.Module, Layout, str, Callable[[dict[str, Tensor], Any], dict[str, Tensor]]]
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 2816,
}


def unet_case(unet: UNet2DConditionModel) -> Case:
    return unet, unet_layout(unet.config.down_block_types), UNET_PREFIX, convert_ldm_unet_checkpoint


def vae_case(vae: AutoencoderKL) -> Case:
    return vae, vae_layout(len(vae.config.block_out_channels)), VAE_PREFIX, convert_ldm_vae_checkpoint


@pytest.fixture(scope="module", params=["UNet of SD 1.5", "UNet of SDXL's form", "VAE", "ControlNet"])
def case(request: pytest.FixtureRequest) -> Case:
    """A network of full size without weights, and how diffusers converts it from LDM's names."""
    parts = meta_networks()
    with torch.device("meta"):
        if request.param == "ControlNet":
            control = ControlNetModel.from_unet(parts["unet"], load_weights_from_unet=False)
            return control, control_layout(4), "control_model.", convert_controlnet_checkpoint
        if request.param == "UNet of SDXL's form":
            return unet_case(UNet2DConditionModel(**SDXL))
    return vae_case(parts["vae"]) if request.param == "VAE" else unet_case(parts["unet"])


def test_diffusers_converters_read_our_names(case: Case) -> None:
    network, layout, prefix, convert = case
    wanted = network.state_dict()
    converted = convert(layout.tensors_to_ldm(wanted, prefix), dict(network.config))
    assert converted.keys() == wanted.keys()
    assert all(converted[name].shape == tensor.shape for name, tensor in wanted.items())


def test_every_name_has_one_partner(case: Case) -> None:
    network, layout, prefix, _ = case
    wanted = network.state_dict()
    ldm = layout.tensors_to_ldm(wanted, prefix)
    assert len(ldm) == len(wanted)
    back = layout.tensors_to_diffusers(ldm, prefix)
    assert list(back) == list(wanted)
    assert all(back[name].shape == tensor.shape for name, tensor in wanted.items())


def test_no_pair_is_ambiguous(case: Case) -> None:
    _, layout, _, _ = case
    theirs, ours = zip(*layout.pairs, strict=True)
    assert len(set(theirs)) == len(set(ours)) == len(layout.pairs)


def test_the_embedded_files_names_are_those_of_its_networks(networks: Model, embedded: ResolvedModel) -> None:
    inside = load_file(embedded.files.checkpoint)
    for network, layout, prefix, _ in (unet_case(networks.unet.network), vae_case(networks.vae.network)):
        made = layout.tensors_to_ldm(network.state_dict(), prefix)
        assert {name: tensor.shape for name, tensor in made.items()} == {
            name: tensor.shape for name, tensor in inside.items() if name.startswith(prefix)
        }


def test_unknown_names_and_parts_of_words_stay_as_they_are() -> None:
    layout = unet_layout(["CrossAttnDownBlock2D"] * 2)
    for name in ("x", "out.20.weight", "input_blocks.10.0.op.weight", "", "\n☃"):
        assert layout.to_diffusers(name) == name
    assert layout.to_diffusers("input_blocks.1.1.proj_in.weight") == "down_blocks.0.attentions.0.proj_in.weight"

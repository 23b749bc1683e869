"""Networks -> the tensors of a single file, by the names that LDM and SGM give them: the inverse of loading one."""

from collections.abc import Sequence

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from pipelines.families.family import Family, TextTower
from pipelines.families.layouts import UNET_PREFIX, VAE_PREFIX, openclip_layout, unet_layout, vae_layout, vector_layer
from pipelines.models.build import PROJECTION, TextNetwork, text_model
from pipelines.models.checkpoint import OPENCLIP_PROJECTION


def checkpoint_weights(
    family: Family, unet: UNet2DConditionModel, vae: AutoencoderKL, texts: Sequence[TextNetwork]
) -> dict[str, Tensor]:
    """Return the tensors of a whole checkpoint. `texts` are in the family's order."""
    tensors = unet_weights(unet, UNET_PREFIX) | vae_weights(vae, VAE_PREFIX)
    for tower, network in zip(family.texts, texts, strict=True):
        tensors |= text_weights(network, tower)
    return tensors


def unet_weights(unet: UNet2DConditionModel, prefix: str = "") -> dict[str, Tensor]:
    """Return a UNet's tensors."""
    named = {vector_layer(name): tensor for name, tensor in unet.state_dict().items()}
    return unet_layout(unet.config.down_block_types).tensors_to_ldm(named, prefix)


def vae_weights(vae: AutoencoderKL, prefix: str = "") -> dict[str, Tensor]:
    """Return an autoencoder's tensors."""
    return vae_layout(len(vae.config.block_out_channels)).tensors_to_ldm(vae.state_dict(), prefix)


def text_weights(network: TextNetwork, tower: TextTower) -> dict[str, Tensor]:
    """Return a text encoder's tensors, with the tower's prefix."""
    own = text_model(network)
    if not tower.openclip:
        return {f"{tower.prefix}text_model.{name}": tensor for name, tensor in own.state_dict().items()}
    tensors = openclip_layout(len(own.encoder.layers)).tensors_to_ldm(own.state_dict(), tower.prefix)
    if tower.pooled:
        tensors[tower.prefix + OPENCLIP_PROJECTION] = network.state_dict()[PROJECTION].T
    return tensors

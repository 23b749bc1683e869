"""A checkpoint, with its own or a better VAE -> one set of networks in memory, ready to draw.

Shapes are read from the tensors, not from a fixed config, so that any model of the SD 1.x form loads. Networks are
built on the meta device and take the file's tensors as they are: nothing is initialised to be overwritten, nothing is
copied twice.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from pipelines.checkpoint import (
    UNET_PREFIX,
    VAE_PREFIX,
    read_tensor,
    read_tensors,
    split_checkpoint,
    vae_tensors,
    weight_file,
)
from pipelines.conditioning import TextEncoder, load_tokenizer
from pipelines.device import Device, best_device
from pipelines.errors import ModelError
from pipelines.memory import Footprint
from pipelines.model import ModelFiles, ModelIdentity
from pipelines.unet import fit_any_size
from pipelines.vae import VAE

LATENT_SCALE = 0.18215
Network = TypeVar("Network", bound=nn.Module)
UNET_HEADS = 8  # every SD 1.x UNet; the count cannot be read from the tensors


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The networks of one model, shared by every phase and task."""

    identity: ModelIdentity
    unet: UNet2DConditionModel
    vae: VAE
    text: TextEncoder
    device: Device

    @cached_property
    def footprint(self) -> Footprint:
        """Bytes that these networks take."""
        return Footprint.of(self.unet, self.vae.network, self.text.model)


def load(files: ModelFiles, device: Device | None = None) -> Networks:
    """Read the files and build the networks. Raises ModelError, which names the file and the reason."""
    device = device or best_device()
    if files.checkpoint.is_dir():
        unet, vae, text = _from_folder(files.checkpoint, device)
    else:
        unet, vae, text = _from_single_file(files.checkpoint, device)
    if files.vae is not None:
        vae = load_vae(files.vae, device)
    if vae is None:
        raise ModelError(f"{files.checkpoint}: holds no VAE. Name one beside it (PASTEL_VAE).")
    fit_any_size(unet)
    if files.vae is not None:
        _check_applied(files.vae, vae)
    return Networks(
        identity=identify(files),
        unet=unet.eval(),
        vae=VAE(vae.eval(), LATENT_SCALE),
        text=TextEncoder(text.eval(), load_tokenizer(files.tokenizer), device.place),
        device=device,
    )


def identify(files: ModelFiles) -> ModelIdentity:
    """Names and hashes as infotexts give them."""
    vae = files.vae
    return ModelIdentity(
        name=files.name,
        sha256=files.sha256 or sha256_of(files.checkpoint),
        vae_name=vae.name if vae else "",
        vae_sha256=sha256_of(vae) if vae else "",
        folder=files.checkpoint.is_dir(),
        vae_folder=bool(vae and vae.is_dir()),
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of a weight file, whose first ten digits are WebUI's "Model hash"; of a folder, its UNet's or VAE's."""
    file = weight_file(path) if path.is_dir() else path
    if file is None:
        return ""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _from_single_file(path: Path, device: Device) -> tuple[UNet2DConditionModel, AutoencoderKL | None, CLIPTextModel]:
    unet, vae, text = split_checkpoint(path, read_tensors(path, device.place, device.dtype))
    return _build_unet(path, unet), _build_vae(path, vae) if vae else None, _build_text_encoder(path, text)


def _from_folder(path: Path, device: Device) -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    """A diffusers folder; reading it is diffusers' and transformers' own business, offline."""
    with _folder_errors(path):
        unet = UNet2DConditionModel.from_pretrained(path, subfolder="unet", **_diffusers_options(device))
        vae = AutoencoderKL.from_pretrained(path, subfolder="vae", **_diffusers_options(device))
        text = CLIPTextModel.from_pretrained(path, subfolder="text_encoder", dtype=device.dtype, local_files_only=True)
        prediction = DDIMScheduler.load_config(path, subfolder="scheduler", local_files_only=True)
    _refuse_other_families(path, unet, text, prediction.get("prediction_type", "epsilon"))
    return unet.to(device.place), vae.to(device.place), text.to(device.place)


def _diffusers_options(device: Device) -> dict[str, Any]:
    return {"torch_dtype": device.dtype, "local_files_only": True, "low_cpu_mem_usage": False}


@contextmanager
def _folder_errors(path: Path) -> Iterator[None]:
    """What the libraries raise at an unreadable folder -> ModelError with their first line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise ModelError(f"{path}: not a diffusers folder that can be read ({first_line}).") from error


def _refuse_other_families(path: Path, unet: UNet2DConditionModel, text: CLIPTextModel, prediction: str) -> None:
    """A folder tells its family by its configuration: SD 1.x has one CLIP, four channels and predicts noise."""
    wrong = {
        "has more than one text encoder (SDXL)": unet.config.addition_embed_type is not None,
        "was made for another text encoder": unet.config.cross_attention_dim != text.config.hidden_size,
        f"takes {unet.config.in_channels} channels (inpainting, depth)": unet.config.in_channels != 4,
        f"predicts {prediction} instead of noise (SD 2.x)": prediction != "epsilon",
    }
    for reason in (reason for reason, holds in wrong.items() if holds):
        raise ModelError(f"{path}: {reason}. This container runs Stable Diffusion 1.x text-to-image models.")


def load_vae(path: Path, device: Device) -> AutoencoderKL:
    """The VAE of a file or diffusers folder."""
    if path.is_dir():
        with _folder_errors(path):
            return AutoencoderKL.from_pretrained(path, **_diffusers_options(device)).to(device.place)
    return _build_vae(path, vae_tensors(path, read_tensors(path, device.place, device.dtype)))


def _check_applied(path: Path, vae: AutoencoderKL) -> None:
    """Compare the VAE in use with the file that was asked for, read anew.

    A better VAE that is silently not applied is the classic cause of pale pictures. Its last layer tells: every file
    has it under this one name.
    """
    file = weight_file(path) if path.is_dir() else path
    applied = vae.decoder.conv_out.weight
    wanted = read_tensor(file, "decoder.conv_out.weight") if file else None
    if wanted is None or not torch.equal(applied.cpu(), wanted.to(applied.dtype)):
        raise ModelError(f"{path}: this VAE was asked for and is not the one in use.")


def _build_unet(path: Path, tensors: Mapping[str, Tensor]) -> UNet2DConditionModel:
    config = unet_config(path, tensors)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    return fill(path, unet, convert_ldm_unet_checkpoint(dict(tensors), config))


def _build_vae(path: Path, tensors: Mapping[str, Tensor]) -> AutoencoderKL:
    config = vae_config(path, tensors)
    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    return fill(path, vae, convert_ldm_vae_checkpoint(dict(tensors), config))


def _build_text_encoder(path: Path, tensors: Mapping[str, Tensor]) -> CLIPTextModel:
    with torch.device("meta"):
        text = CLIPTextModel(text_config(path, tensors))
    device = tensors["final_layer_norm.weight"].device
    # A buffer that is no weight: on the meta device it must be made by hand.
    text.embeddings.position_ids = torch.arange(text.config.max_position_embeddings, device=device)[None]
    return fill(path, text, tensors)


def fill(path: Path, network: Network, tensors: Mapping[str, Tensor]) -> Network:
    """Give the meta network its tensors; every parameter must be there, in its shape."""
    try:
        report = network.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ModelError(f"{path}: {type(network).__name__} does not fit: {lines[min(1, len(lines) - 1)]}") from error
    if report.missing_keys:
        missing = f"{report.missing_keys[0]} and {len(report.missing_keys) - 1} more"
        raise ModelError(f"{path}: {type(network).__name__} lacks {missing}. The file is cut or of another form.")
    return network.requires_grad_(False)


def _shape(path: Path, tensors: Mapping[str, Tensor], name: str) -> torch.Size:
    try:
        return tensors[name].shape
    except KeyError:
        raise ModelError(f"{path}: lacks {name}. The file is cut or of another form.") from None


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many consecutive numbers follow `prefix` in the tensors' names."""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}
    return len(numbers)


def unet_config(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The diffusers configuration that the LDM tensors have. Three blocks a level: two residual, one that resizes."""
    in_channels = _shape(path, tensors, UNET_PREFIX + "input_blocks.0.0.weight")[1]
    if in_channels != 4:
        raise ModelError(
            f"{path}: takes {in_channels} channels (inpainting, depth). This container runs text-to-image models."
        )
    levels = (_count(tensors, UNET_PREFIX + "input_blocks.") + 2) // 3
    channels = [
        _shape(path, tensors, f"{UNET_PREFIX}input_blocks.{3 * level + 1}.0.out_layers.3.weight")[0]
        for level in range(levels)
    ]
    attends = [f"{UNET_PREFIX}input_blocks.{3 * level + 1}.1.norm.weight" in tensors for level in range(levels)]
    context = f"{UNET_PREFIX}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    return {
        "in_channels": in_channels,
        "out_channels": 4,
        "block_out_channels": tuple(channels),
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        "layers_per_block": 2,
        "attention_head_dim": UNET_HEADS,  # diffusers' name for the number of heads in SD 1.x configs
        "cross_attention_dim": _shape(path, tensors, context)[1],
    }


def vae_config(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The diffusers configuration that the LDM tensors have."""
    levels = _count(tensors, VAE_PREFIX + "encoder.down.")
    channels = [
        _shape(path, tensors, f"{VAE_PREFIX}encoder.down.{level}.block.0.conv1.weight")[0] for level in range(levels)
    ]
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": tuple(channels),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": 2,
        "scaling_factor": LATENT_SCALE,
    }


def text_config(path: Path, tensors: Mapping[str, Tensor]) -> CLIPTextConfig:
    """CLIP's text model. Heads are 64 wide; the small models that tests use have four."""
    vocabulary, width = _shape(path, tensors, "embeddings.token_embedding.weight")
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=_shape(path, tensors, "encoder.layers.0.mlp.fc1.weight")[0],
        num_hidden_layers=_count(tensors, "encoder.layers."),
        num_attention_heads=width // 64 if width >= 512 else 4,
        max_position_embeddings=_shape(path, tensors, "embeddings.position_embedding.weight")[0],
        hidden_act="quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )

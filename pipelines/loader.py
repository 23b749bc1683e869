"""A checkpoint, with its own or a better VAE -> one set of networks in memory, ready to draw.

Shapes are read from the tensors, not from a fixed config, so that any model of the SD 1.x form loads. Networks are
built on the meta device and take the file's tensors as they are: nothing is initialised to be overwritten, nothing is
copied twice.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from pipelines.checkpoint import (
    UNET_PREFIX,
    VAE_PREFIX,
    check_finite,
    check_plain,
    map_tensors,
    no_larger_than,
    split_checkpoint,
    vae_tensors,
    weight_file,
)
from pipelines.conditioning import TextEncoder, load_tokenizer
from pipelines.control import ControlNets
from pipelines.device import Device, best_device
from pipelines.errors import ModelError, in_one_line
from pipelines.graphs import GraphedUNet
from pipelines.lora import Adapters
from pipelines.memory import Footprint
from pipelines.model import ModelFiles, ModelIdentity
from pipelines.network import built_of, fill
from pipelines.unet import fit_any_size
from pipelines.vae import VAE

LATENT_SCALE = 0.18215
EXTRA_CHANNELS = {5: "depth to image", 8: "InstructPix2Pix"}
IN_CHANNELS = (4, 9)  # the latter of checkpoints for inpainting
UNET_HEADS = 8  # every SD 1.x UNet; the count cannot be read from the tensors


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The networks of one model, shared by every phase and task."""

    identified: Future[ModelIdentity]
    unet: UNet2DConditionModel | GraphedUNet
    vae: VAE
    text: TextEncoder
    adapters: Adapters
    controls: ControlNets
    device: Device

    @property
    def identity(self) -> ModelIdentity:
        """Names and hashes. Files are hashed while the first picture is drawn; this waits for the end of it."""
        return self.identified.result()

    @property
    def plain_unet(self) -> UNet2DConditionModel:
        """The network whose weights and settings all others that compute the same share."""
        return self.unet.network if isinstance(self.unet, GraphedUNet) else self.unet

    @cached_property
    def _footprint(self) -> Footprint:
        return Footprint.of(self.unet, self.vae.network)

    @property
    def footprint(self) -> Footprint:
        """Bytes that these networks take, under the ControlNets of the present prediction if it has any."""
        return self._footprint.under_controls() if self.controls.networks else self._footprint


def load(files: ModelFiles, device: Device | None = None) -> Networks:
    """Read the files and build the networks. Raises ModelError, which names the file and the reason."""
    device = device or best_device()
    if os.path.isdir(files.checkpoint):  # unlike Path.is_dir, False for a name that the system refuses
        unet, vae, text = _from_folder(files.checkpoint, device)
    else:
        unet, vae, text = _from_single_file(files.checkpoint, device, own_vae=files.vae is None)
    if files.vae is not None:
        vae = load_vae(files.vae, device)
    if vae is None:
        raise ModelError(f"{files.checkpoint}: holds no VAE. Name one beside it (PASTEL_VAE).")
    fit_any_size(unet)
    if files.vae is not None:
        _check_applied(files.vae, vae)
    hashing = ThreadPoolExecutor(1)
    identified = hashing.submit(identify, files)
    hashing.shutdown(wait=False)
    return Networks(
        identified=identified,
        unet=unet.eval(),
        vae=VAE(vae.eval(), LATENT_SCALE),
        text=TextEncoder(text.eval(), load_tokenizer(files.tokenizer), device.place),
        adapters=Adapters(unet, text),
        controls=ControlNets(unet.config, device),
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


def _from_single_file(
    path: Path, device: Device, own_vae: bool
) -> tuple[UNet2DConditionModel, AutoencoderKL | None, CLIPTextModel]:
    unet, vae, text = split_checkpoint(path, map_tensors(path))
    if unet_config(path, unet)["cross_attention_dim"] != _shape(path, text, "embeddings.token_embedding.weight", 2)[1]:
        raise ModelError(f"{path}: its UNet was made for another text encoder. The file is put together wrongly.")
    return (
        _build_unet(path, unet, device),
        _build_vae(path, vae, device) if vae and own_vae else None,
        _build_text_encoder(path, text, device),
    )


def _from_folder(path: Path, device: Device) -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    unet = from_subfolder(UNet2DConditionModel, path / "unet", device)
    vae = from_subfolder(AutoencoderKL, path / "vae", device)
    text = from_subfolder(CLIPTextModel, path / "text_encoder", device)
    scheduler = read_config(path / "scheduler" / "scheduler_config.json")
    _refuse_other_families(path, unet, text, scheduler.get("prediction_type", "epsilon"))
    return unet, vae, text


def from_subfolder(network_class: Any, folder: Path, device: Device) -> Any:
    """A network of a diffusers folder; reading it is diffusers' and transformers' own business, offline.

    They would fill what is missing with random numbers and a warning: here it is an error.
    """
    read_config(folder / "config.json")
    file = weight_file(folder)
    if file is None:
        raise ModelError(f"{folder}: not a diffusers folder that can be read (it holds no weights).")
    tensors = map_tensors(file)
    check_plain(file, tensors)
    options: dict[str, Any] = {"dtype": device.dtype}
    if network_class is not CLIPTextModel:
        options = {"torch_dtype": device.dtype, "low_cpu_mem_usage": False}
    with folder_errors(folder), no_larger_than(tensors.values()):
        network, report = network_class.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, **options
        )
        if report["missing_keys"]:
            raise ValueError(f"{file.name} lacks {min(report['missing_keys'])}")
    check_finite(file, network.state_dict())
    return network.to(device.place)


@contextmanager
def folder_errors(path: Path) -> Iterator[None]:
    """What the libraries raise at an unreadable folder -> ModelError with their first line."""
    try:
        yield
    except Exception as error:  # of a dozen kinds
        raise ModelError(f"{path}: not a diffusers folder that can be read ({in_one_line(error)}).") from error


def read_config(path: Path) -> dict[str, Any]:
    """A network's or scheduler's configuration. The libraries would take a string for a name on the hub and ask there,
    and make lists as long as it says before a network is begun."""
    with folder_errors(path.parent):
        config = json.loads(path.read_text(encoding="utf-8"), parse_int=_sane)
        if not isinstance(config, dict):
            raise ValueError(f"{path.name} holds no JSON object")
        return config


def _sane(digits: str) -> int:
    if len(digits) > 6:
        raise ValueError(f"{digits[:20]} is no size of a network")
    return int(digits)


def _refuse_other_families(path: Path, unet: UNet2DConditionModel, text: CLIPTextModel, prediction: str) -> None:
    """A folder tells its family by its configuration: SD 1.x has one CLIP, four channels and predicts noise."""
    wrong = {
        "has more than one text encoder (SDXL)": unet.config.addition_embed_type is not None,
        "was made for another text encoder": unet.config.cross_attention_dim != text.config.hidden_size,
        f"takes {unet.config.in_channels} channels (depth)": unet.config.in_channels not in IN_CHANNELS,
        f"predicts {prediction} instead of noise (SD 2.x)": prediction != "epsilon",
    }
    for reason in (reason for reason, holds in wrong.items() if holds):
        raise ModelError(f"{path}: {reason}. This container runs Stable Diffusion 1.x text-to-image models.")


def load_vae(path: Path, device: Device) -> AutoencoderKL:
    """The VAE of a file or diffusers folder."""
    if os.path.isdir(path):
        return from_subfolder(AutoencoderKL, path, device)
    return _build_vae(path, vae_tensors(path, map_tensors(path)), device)


def _check_applied(path: Path, vae: AutoencoderKL) -> None:
    """Compare the VAE in use with the file that was asked for, read anew.

    A better VAE that is silently not applied is the classic cause of pale pictures. Its last layer tells: every file
    has it under this one name.
    """
    file = weight_file(path) if path.is_dir() else path
    applied = vae.decoder.conv_out.weight
    inside = map_tensors(file) if file else {}
    wanted = inside.get("decoder.conv_out.weight", inside.get(f"{VAE_PREFIX}decoder.conv_out.weight"))
    if wanted is None or not torch.equal(applied.cpu(), wanted.to(applied.dtype)):
        raise ModelError(f"{path}: this VAE was asked for and is not the one in use.")


def _build_unet(path: Path, tensors: Mapping[str, Tensor], device: Device) -> UNet2DConditionModel:
    config = unet_config(path, tensors)
    with built_of(path, "UNet", tensors), torch.device("meta"):
        unet, converted = UNet2DConditionModel(**config), convert_ldm_unet_checkpoint(dict(tensors), config)
    return fill(path, unet, converted, device)


def _build_vae(path: Path, tensors: Mapping[str, Tensor], device: Device) -> AutoencoderKL:
    config = vae_config(path, tensors)
    with built_of(path, "VAE", tensors), torch.device("meta"):
        vae, converted = AutoencoderKL(**config), convert_ldm_vae_checkpoint(dict(tensors), config)
    return fill(path, vae, converted, device)


def _build_text_encoder(path: Path, tensors: Mapping[str, Tensor], device: Device) -> CLIPTextModel:
    with built_of(path, "text encoder", tensors), torch.device("meta"):
        text = CLIPTextModel(text_config(path, tensors))
    # A buffer that is no weight: on the meta device it must be made by hand.
    text.embeddings.position_ids = torch.arange(text.config.max_position_embeddings)[None]
    return fill(path, text, tensors, device)


def _shape(path: Path, tensors: Mapping[str, Tensor], name: str, dimensions: int) -> torch.Size:
    if name not in tensors:
        raise ModelError(f"{path}: lacks {name}. The file is cut or of another form.")
    shape = tensors[name].shape
    if len(shape) != dimensions or 0 in shape:
        raise ModelError(f"{path}: {name} is of shape {tuple(shape)}, which no Stable Diffusion 1.x has.")
    return shape


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many consecutive numbers follow `prefix` in the tensors' names."""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}
    return len(numbers)


def unet_config(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The diffusers configuration that the LDM tensors have. Three blocks a level: two residual, one that resizes."""
    in_channels = _shape(path, tensors, UNET_PREFIX + "input_blocks.0.0.weight", 4)[1]
    if in_channels not in IN_CHANNELS:
        made_for = EXTRA_CHANNELS.get(in_channels, "another task")
        raise ModelError(
            f"{path}: a checkpoint for {made_for}: its UNet takes {in_channels} channels instead of 4 or 9. "
            "Give the text-to-image checkpoint that it was made of."
        )
    levels = (_count(tensors, UNET_PREFIX + "input_blocks.") + 2) // 3
    channels = [
        _shape(path, tensors, f"{UNET_PREFIX}input_blocks.{3 * level + 1}.0.out_layers.3.weight", 4)[0]
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
        "cross_attention_dim": _shape(path, tensors, context, 2)[1],
    }


def vae_config(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The diffusers configuration that the LDM tensors have."""
    levels = _count(tensors, VAE_PREFIX + "encoder.down.")
    channels = [
        _shape(path, tensors, f"{VAE_PREFIX}encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)
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
    vocabulary, width = _shape(path, tensors, "embeddings.token_embedding.weight", 2)
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=_shape(path, tensors, "encoder.layers.0.mlp.fc1.weight", 2)[0],
        num_hidden_layers=_count(tensors, "encoder.layers."),
        num_attention_heads=width // 64 if width >= 512 else 4,
        max_position_embeddings=_shape(path, tensors, "embeddings.position_embedding.weight", 2)[0],
        hidden_act="quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )

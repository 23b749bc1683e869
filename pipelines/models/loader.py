"""Loads a checkpoint, with its own or a better VAE, as a model that is ready to draw."""

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

from pipelines.ask.identity import ModelFiles, ModelIdentity
from pipelines.errors import ModelError
from pipelines.families.detection import (
    Declaration,
    check_channels,
    declared_in_scheduler,
    family_of,
    in_ldm_layout,
    sign_of_folder,
)
from pipelines.families.family import INPAINTING_CHANNELS, LATENT_CHANNELS, Family
from pipelines.families.layouts import UNET_PREFIX, VAE_PREFIX
from pipelines.families.sd1 import SD1
from pipelines.families.sd2 import DEPTH, UNCLIP
from pipelines.models.build import (
    TOKENS,
    TextNetwork,
    build_text_encoder,
    build_unet,
    build_vae,
    check_widths,
    shape_of,
    text_model,
    unet_config,
)
from pipelines.models.checkpoint import (
    family_of_file,
    map_tensors,
    text_tensors,
    vae_tensors,
    weight_file,
    with_prefix,
)
from pipelines.models.controls import ControlNetworks
from pipelines.models.depth import DepthEstimator, build_depth_estimator, depth_estimator_of_folder
from pipelines.models.folders import from_subfolder, read_config, unet_of_folder
from pipelines.models.image_prompt import ImagePrompt, build_image_prompt, image_prompt_of_folder
from pipelines.models.lora import Adapters
from pipelines.models.model import Model
from pipelines.models.parameterization import declared_by, probe
from pipelines.models.text import EncoderTower, TextEncoder, load_tokenizer
from pipelines.models.unet import fit_any_size, widen_heads
from pipelines.models.vae import VAE
from pipelines.runtime.device import Device, best_device
from pipelines.runtime.offloading import Components, Weights
from pipelines.runtime.threads import ThreadedUNet
from pipelines.runtime.unet_call import UNet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """The networks in a checkpoint, its family and what it declares."""

    family: Family
    declared: Declaration
    unet: UNet2DConditionModel
    vae: AutoencoderKL | None
    texts: tuple[TextNetwork, ...]
    image_prompt: ImagePrompt | None = None
    depth: DepthEstimator | None = None


@torch.inference_mode(False)  # weights that may change count their changes, which tensors of inference mode do not
def load(files: ModelFiles, device: Device | None = None) -> Model:
    """Read the files and build the model. Raises ModelError, which names the file and the reason."""
    device = device or best_device()
    parts = _read(files, device)
    vae = _vae(files, parts, device)
    tokenizers = [load_tokenizer(files.tokenizer, tower.openclip) for tower in parts.family.texts]
    fit_any_size(parts.unet.eval())
    widen_heads(parts.unet, device.place)
    declared = replace(parts.declared, prediction=files.prediction or parts.declared.prediction)
    plain = parts.unet.config.in_channels == LATENT_CHANNELS  # inpainting UNets always predict the noise
    if parts.family.probed and plain and declared.prediction is None:
        declared = replace(declared, prediction=probe(parts.unet))
        log.info("%s does not say what it predicts: a probe found %s.", files.checkpoint.name, declared.prediction)
    elif declared.describe():
        said = "is set to" if files.prediction else "declares"
        log.info("%s %s %s.", files.checkpoint.name, said, " and ".join(declared.describe()))
    prediction, noise = declared.apply(files.checkpoint, parts.family)
    if parts.family is DEPTH and parts.depth is None:
        log.warning("%s has no depth estimator: every request needs its own depth map.", files.checkpoint.name)
    hashing = ThreadPoolExecutor(1)
    identified = hashing.submit(identify, files, parts.unet.config.in_channels == INPAINTING_CHANNELS, parts.family)
    hashing.shutdown(wait=False)
    components = _components(parts, vae, device)
    return Model(
        family=parts.family,
        prediction=prediction,
        noise=noise,
        unet=(ThreadedUNet if device.place.type == "cpu" else UNet)(parts.unet),
        vae=VAE(vae.eval(), parts.family.latent_scale, components.pictures.take),
        text=TextEncoder(
            [
                EncoderTower(spec, network.eval(), tokenize)
                for spec, network, tokenize in zip(parts.family.texts, parts.texts, tokenizers, strict=True)
            ],
            parts.family,
            device.place,
        ),
        image_prompt=parts.image_prompt,
        depth=parts.depth,
        adapters=Adapters(parts.unet, list(map(text_model, parts.texts)), parts.family),
        controls=ControlNetworks(parts.unet, parts.family, device),
        components=components,
        device=device,
        identified=identified,
    )


def family_at(files: ModelFiles) -> Family:
    """Return a model's family without loading it. Raises ModelError."""
    path = files.checkpoint
    if os.path.isdir(path):
        return family_of(path, sign_of_folder(read_config(path / "unet" / "config.json")))
    return family_of_file(path, in_ldm_layout(map_tensors(path)))


def _read(files: ModelFiles, device: Device) -> Parts:
    if os.path.isdir(files.checkpoint):  # unlike Path.is_dir, False for a name that the system refuses
        return _from_folder(files.checkpoint, device, own_vae=files.vae is None)
    return _from_single_file(files.checkpoint, device, own_vae=files.vae is None)


def _components(parts: Parts, vae: AutoencoderKL, device: Device) -> Components:
    extras = parts.image_prompt, parts.depth.network if parts.depth else None
    return Components(
        texts=Weights(parts.texts, device.place),
        unet=Weights([parts.unet], device.place),
        pictures=Weights([vae, *(each for each in extras if each is not None)], device.place),
    )


def _vae(files: ModelFiles, parts: Parts, device: Device) -> AutoencoderKL:
    """Return the requested VAE, or the checkpoint's own."""
    if files.vae is not None:
        vae = load_vae(files.vae, device)
        _check_applied(files.vae, vae)
        return vae
    if parts.vae is None:
        raise ModelError(f"{files.checkpoint}: holds no VAE. Name one with PASTEL_VAE.")
    return parts.vae


def identify(files: ModelFiles, inpainting: bool = False, family: Family = SD1) -> ModelIdentity:
    """Return what infotexts say about the model, mainly names and hashes. Reads the whole files."""
    vae = _vae_folder(files.vae) if files.vae else None
    return ModelIdentity(
        name=files.name,
        sha256=files.sha256 or sha256_of(files.checkpoint),
        vae_name=vae.name if vae else "",
        vae_sha256=sha256_of(vae) if vae else "",
        inpainting=inpainting,
        masks_pictures_only=family.rounds_mask,
        folder=files.checkpoint.is_dir(),
        vae_folder=bool(vae and vae.is_dir()),
    )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a weight file, or of a folder's UNet or VAE.

    Its first ten digits are WebUI's "Model hash".
    """
    file = weight_file(path) if path.is_dir() else path
    if file is None:
        return ""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _from_single_file(path: Path, device: Device, own_vae: bool) -> Parts:
    tensors = in_ldm_layout(map_tensors(path))
    family = family_of_file(path, tensors)
    unet, vae = with_prefix(tensors, UNET_PREFIX), with_prefix(tensors, VAE_PREFIX)
    texts = [text_tensors(path, tensors, tower) for tower in family.texts]
    check_widths(path, unet_config(path, unet, family), [shape_of(path, text, TOKENS, 2)[1] for text in texts])
    return Parts(
        family,
        declared_by(path, tensors, family),
        build_unet(path, unet, family, device),
        build_vae(path, vae, device) if vae and own_vae else None,
        tuple(build_text_encoder(path, text, tower, device) for text, tower in zip(texts, family.texts, strict=True)),
        build_image_prompt(path, tensors, device),
        build_depth_estimator(path, tensors, device) if family is DEPTH else None,
    )


def _from_folder(path: Path, device: Device, own_vae: bool) -> Parts:
    family = family_of(path, sign_of_folder(read_config(path / "unet" / "config.json")))
    unet = unet_of_folder(path / "unet", device)
    vae = from_subfolder(AutoencoderKL, path / "vae", device) if own_vae and (path / "vae").is_dir() else None
    texts = tuple(
        from_subfolder(CLIPTextModelWithProjection if tower.pooled else CLIPTextModel, path / tower.folder, device)
        for tower in family.texts
    )
    check_channels(path, family, unet.config.in_channels)
    check_widths(path, unet.config, [text.config.hidden_size for text in texts])
    scheduler = path / "scheduler" / "scheduler_config.json"
    declared = declared_in_scheduler(read_config(scheduler)) if scheduler.is_file() else Declaration()
    prompt = image_prompt_of_folder(path, device) if family is UNCLIP else None
    estimator = path / "depth_estimator"
    depth = depth_estimator_of_folder(estimator, device) if family is DEPTH and estimator.is_dir() else None
    return Parts(family, declared, unet, vae, texts, prompt, depth)


def load_vae(path: Path, device: Device) -> AutoencoderKL:
    """Load the VAE of a file, of a VAE's folder, or of a whole diffusers folder. Raises ModelError."""
    if os.path.isdir(path):
        return from_subfolder(AutoencoderKL, _vae_folder(path), device)
    return build_vae(path, vae_tensors(path, map_tensors(path)), device)


def _vae_folder(path: Path) -> Path:
    """Return the VAE's folder: `vae` inside a pipeline's folder, or the path itself. A file is returned unchanged."""
    inner = path / "vae"
    return inner if os.path.isdir(inner) else path


def _check_applied(path: Path, vae: AutoencoderKL) -> None:
    """Compare the VAE in use with the requested file, which is read again. Raises ModelError if they differ.

    A better VAE that is silently not applied is the classic cause of pale pictures. The last layer is compared, because
    every file has it under the same name.
    """
    file = weight_file(_vae_folder(path)) if path.is_dir() else path
    applied = vae.decoder.conv_out.weight
    inside = map_tensors(file) if file else {}
    wanted = inside.get("decoder.conv_out.weight", inside.get(f"{VAE_PREFIX}decoder.conv_out.weight"))
    if wanted is None or not torch.equal(applied.cpu(), wanted.to(applied.dtype)):
        raise ModelError(f"{path}: this VAE was requested, but it is not the one in use.")

"""Weight files -> tensors by their original (LDM) names, with named errors for files that are something else.

Only the forms that are safe to read: `.safetensors`, and `.ckpt`/`.pt` pickles through torch's `weights_only`
unpickler, which runs no code.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipelines.errors import ModelError

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer."
WANTED = (UNET_PREFIX, VAE_PREFIX, TEXT_PREFIX)
Content = TypeVar("Content")
"""Whatever stands for a tensor: names are all that is looked at."""


def read_tensors(path: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of the file; floating ones in `dtype` on `device`.

    Raises ModelError when the file is missing, cut, or of no readable form.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file. Give the path of a .safetensors or .ckpt checkpoint.")
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path, device)
    elif path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        tensors = read_pickle(path)
    else:
        raise ModelError(f"{path}: unknown kind of file {path.suffix!r}. Known are .safetensors, .ckpt, .pt, .bin.")
    return {
        name: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in tensors.items()
    }


def _read_safetensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ModelError(f"{path}: not a whole safetensors file ({error}). Fetch it again.") from error


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.ckpt` or the like, mapped and not yet in memory. Runs no code; raises ModelError."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds here, all mean the same to the user
        first_line = str(error).strip().split("\n")[0]
        raise ModelError(
            f"{path}: cannot be read as plain weights ({first_line}); nothing in it was run. "
            "Pickles that need code are refused; use a .safetensors version of this checkpoint."
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def read_tensor(path: Path, name: str) -> Tensor | None:
    """One tensor of a VAE or checkpoint file, by its name inside the VAE; None where the file has none."""
    names = (name, VAE_PREFIX + name)
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return next((file.get_tensor(each) for each in names if each in file.keys()), None)  # noqa: SIM118
    tensors = read_pickle(path)
    return next((tensors[each] for each in names if each in tensors), None)


def weight_file(folder: Path) -> Path | None:
    """The weights of a diffusers pipeline's UNet, or of a folder that holds one network."""
    found = (sorted(folder.glob(pattern)) for pattern in ("unet/*.safetensors", "unet/*.bin", "*.safetensors", "*.bin"))
    return next((files[0] for files in found if files), None)


def split_checkpoint(path: Path, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], ...]:
    """(UNet, VAE, text encoder) tensors of a Stable Diffusion 1.x single file, prefixes kept for the UNet and VAE.

    Text tensors come without any prefix (`embeddings.`, `encoder.`, `final_layer_norm.`): merged checkpoints
    of this kind are published both with and without `text_model.` in their names.
    """
    _refuse_other_architectures(path, tensors)
    unet = {name: value for name, value in tensors.items() if name.startswith(UNET_PREFIX)}
    vae = {name: value for name, value in tensors.items() if name.startswith(VAE_PREFIX)}
    text = {
        name.removeprefix(TEXT_PREFIX).removeprefix("text_model."): value
        for name, value in tensors.items()
        if name.startswith(TEXT_PREFIX)
    }
    text.pop("embeddings.position_ids", None)  # an index 0..76, which some checkpoints hold in broken float16
    return unet, vae, text


def vae_tensors(path: Path, tensors: Mapping[str, Content]) -> dict[str, Content]:
    """Tensors of a separate VAE file under the names they have inside a checkpoint.

    VAE files are published with and without `first_stage_model.`; a whole checkpoint serves as well.
    Raises ModelError when the file holds no decoder.
    """
    inside = {name: value for name, value in tensors.items() if name.startswith(VAE_PREFIX)}
    if not inside:
        kept = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
        inside = {VAE_PREFIX + name: value for name, value in tensors.items() if name.startswith(kept)}
    if VAE_PREFIX + "decoder.conv_in.weight" not in inside:
        raise ModelError(f"{path}: holds no VAE decoder, so it cannot be put over the checkpoint's VAE.")
    return inside


def _refuse_other_architectures(path: Path, tensors: dict[str, Tensor]) -> None:
    """Say what the file is instead of failing on a missing key somewhere inside."""
    if any(name.startswith("conditioner.embedders.") for name in tensors):
        raise ModelError(f"{path}: an SDXL checkpoint. This container runs Stable Diffusion 1.x checkpoints.")
    if any(name.startswith("cond_stage_model.model.") for name in tensors):
        raise ModelError(f"{path}: a Stable Diffusion 2.x checkpoint. This container runs Stable Diffusion 1.x.")
    if any("lora_down" in name or "lora_A" in name for name in tensors):
        raise ModelError(f"{path}: a LoRA, not a checkpoint. Give the checkpoint that it was made for.")
    for prefix, part in zip(WANTED, ("UNet", "VAE", "text encoder"), strict=True):
        if part != "VAE" and not any(name.startswith(prefix) for name in tensors):
            raise ModelError(f"{path}: holds no {part} ({prefix}*), so it is not a Stable Diffusion checkpoint.")

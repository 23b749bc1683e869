"""Weight files -> tensors by their original (LDM) names, with named errors for files that are something else.

Only what is safe to read, told by its content and not by its ending: safetensors, and pickles through torch's
`weights_only` unpickler, which runs no code. Tensors are mapped: names, shapes and types are known before any
of them is in memory, so a wrong file is refused at the price of its header.
"""

import mmap
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from pipelines.errors import ModelError, in_one_line

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer."
WANTED = (UNET_PREFIX, VAE_PREFIX, TEXT_PREFIX)


@dataclass(frozen=True)
class Kind:
    """What a file is by its tensors' names, and what to give instead where a checkpoint is wanted."""

    what: str
    pattern: str
    instead: str = "Give a Stable Diffusion 1.x checkpoint: this container runs no other family."


CHECKPOINT = Kind("a Stable Diffusion checkpoint", r"^model\.diffusion_model\.", "")
VAE_FILE = Kind("a VAE", r"^(decoder|encoder)\.conv_in\.", "Name it with PASTEL_VAE, beside a checkpoint.")
UPSCALER = Kind(
    "an upscaler", r"^(params\w*\.)?(conv_first\.|model\.1\.sub\.|body\.\d)", "Send it with a request, in files."
)
KINDS = (  # the first that fits: other families and what is trained beside a checkpoint have some of its names
    Kind("an SDXL checkpoint", r"^conditioner\.embedders\.(1\.|0\.transformer\.)"),
    Kind("an SDXL refiner", r"^conditioner\.embedders\."),
    Kind("a Stable Diffusion 2.x checkpoint", r"^cond_stage_model\.model\."),
    Kind("a Stable Diffusion 3 checkpoint", r"(^|\.)joint_blocks\.\d"),
    Kind("a Flux checkpoint or a relative of it", r"(^|\.)double_blocks\.\d"),
    Kind("a quantised file (bitsandbytes or the like)", r"\.(absmax|quant_map|SCB|scale_weight)$", "Give it in fp16."),
    Kind("a LoRA", r"lora_(up|down|A|B)\b|\.lora\.|\.(hada|lokr)_w1", "Give the checkpoint that it was made for."),
    Kind("a ControlNet", r"^(control_model|controlnet_\w+|input_hint_block)\.", "Give the checkpoint that it guides."),
    Kind("a textual inversion embedding", r"^(string_to_param\b|emb_params$)", "Give the checkpoint it was made for."),
    CHECKPOINT,
    Kind("a UNet in diffusers' layout", r"^down_blocks\.\d", "Give the whole folder, with its VAE and text encoder."),
    UPSCALER,
    VAE_FILE,
)


def kind_of(names: Iterable[str]) -> Kind | None:
    """What a file with these tensors is; None for what is not known."""
    text = "\n".join(names)
    return next((kind for kind in KINDS if re.search(kind.pattern, text, re.MULTILINE)), None)


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of the file by its name, mapped and not yet in memory.

    Raises ModelError when the file is missing, cut, or of no readable form.
    """
    if is_safetensors(path):
        with _read_errors(path), safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    content = unpickle(path)
    content = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    groups = {f"{name}.": value for name, value in content.items() if isinstance(value, Mapping)}
    nested = {f"{group}{name}": value for group, values in groups.items() for name, value in values.items()}
    return {str(name): value for name, value in (nested | dict(content)).items() if isinstance(value, Tensor)}


def is_safetensors(path: Path) -> bool:
    """Whether the file is safetensors; if not, it looks like a pickle. Raises ModelError for anything else."""
    try:
        if not path.is_file():  # a pipe would be waited for
            found = "a folder or a device" if path.exists() else "no such file"
            raise ModelError(f"{path}: {found}. Give the path of a .safetensors or .ckpt checkpoint.")
        with path.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}).") from error
    pickled = start.startswith((b"PK\x03\x04", b"\x80\x02"))
    if start[8:9] != b"{" and not pickled:
        raise ModelError(f"{path}: {_what_else(start)}. Give a .safetensors file.")
    return not pickled


def _what_else(start: bytes) -> str:
    """The usual things that are found in place of weights."""
    if not start:
        return "an empty file"
    if start.startswith(b"GGUF"):
        return "a GGUF file, which holds quantised weights"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, and not the file that it points to"
    if start.lstrip().startswith(b"<"):
        return "a web page, and no weights: whoever serves the file may want a login"
    return "neither safetensors nor a pickle of torch, or cut within its first bytes"


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a whole safetensors file ({error}). Fetch it again.") from error


def unpickle(path: Path) -> Any:
    """The content of a pickle that torch wrote, tensors mapped where its form allows. Runs no code.

    Raises ModelError.
    """
    try:
        zipped = _refuse_bombs(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # torch raises many kinds here, all mean the same to the user
        asked_for = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {asked_for[1]}" if asked_for else in_one_line(error)
        raise ModelError(
            f"{path}: cannot be read as plain weights ({reason}); nothing in it was run. "
            "Pickles that need code are refused; use a .safetensors version of it."
        ) from error


def _refuse_bombs(path: Path) -> bool:
    """Raise ValueError for small files that ask for much memory; returns whether the file is of torch's zip form.

    torch never packs what it stores, and weights need no bytearray, which torch's unpickler makes of any size.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        zipped = content[:2] == b"PK"
        suspicious = not zipped and content.find(b"bytearray") >= 0
        if zipped:
            with zipfile.ZipFile(stream) as archive:
                members = archive.infolist()
                if sum(member.file_size for member in members) > len(content):
                    raise ValueError("its members are packed and hold more than the file")
                scripts = [member for member in members if member.filename.endswith("data.pkl")]
                suspicious = any(b"bytearray" in archive.read(member) for member in scripts)
    if suspicious:
        raise ValueError("it asks for a bytearray, which weights do not need")
    return zipped


def check_plain(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise ModelError for tensors that pickles can name and that would grow beyond their file once they are copied."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or not tensor.is_cpu or tensor.is_quantized:
            raise ModelError(f"{path}: {name} is no plain tensor (sparse, quantised, or without values).")
    if sum(tensor.nbytes for tensor in tensors.values()) > path.stat().st_size:
        raise ModelError(f"{path}: its tensors claim to be larger than the file. It is broken, or made to do harm.")


@contextmanager
def no_larger_than(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside, no more parameters are made than these tensors can fill, four times over: libraries make some twice.

    Sizes and counts of layers come from the file, and a small one can ask for any; building would take all memory, or
    never end. Raises ValueError, before a parameter's memory is written to.
    """
    room = 4 * sum(max(1, tensor.numel()) for tensor in tensors)

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal room
        room -= max(1, parameter.numel()) if parameter is not None else 0
        if room < 0:
            raise ValueError("it describes a network that is larger than the file")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def check_finite(path: Path | str, tensors: Mapping[str, Tensor]) -> None:
    """Raise ModelError for weights that are NaN or infinite: no picture comes of them."""
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ModelError(
                f"{path}: {name} has values that are NaN or infinite in {tensor.dtype}. "
                "The file is broken, or its values need more than half precision. Use another version of it."
            )


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite. The sum tells for a thirtieth of the time; it may overflow, so it only
    raises doubt."""
    return not tensor.is_floating_point() or bool(tensor.sum().isfinite() or tensor.isfinite().all())


def weight_file(folder: Path) -> Path | None:
    """The weights of a diffusers pipeline's UNet, or of a folder that holds one network."""
    found = (sorted(folder.glob(pattern)) for pattern in ("unet/*.safetensors", "unet/*.bin", "*.safetensors", "*.bin"))
    return next((files[0] for files in found if files), None)


def split_checkpoint(path: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], ...]:
    """(UNet, VAE, text encoder) tensors of a Stable Diffusion 1.x single file, prefixes kept for the UNet and VAE.

    Text tensors come without any prefix (`embeddings.`, `encoder.`, `final_layer_norm.`): merged checkpoints
    of this kind are published both with and without `text_model.` in their names.
    Raises ModelError for another kind of file.
    """
    refuse_other_kinds(path, tensors)
    unet = {name: value for name, value in tensors.items() if name.startswith(UNET_PREFIX)}
    vae = {name: value for name, value in tensors.items() if name.startswith(VAE_PREFIX)}
    text = {
        name.removeprefix(TEXT_PREFIX).removeprefix("text_model."): value
        for name, value in tensors.items()
        if name.startswith(TEXT_PREFIX)
    }
    if not text:
        raise ModelError(
            f"{path}: holds no text encoder ({TEXT_PREFIX}*). Give the whole checkpoint, not its UNet alone."
        )
    text.pop("embeddings.position_ids", None)  # an index 0..76, which some checkpoints hold in broken float16
    return unet, vae, text


def refuse_other_kinds(path: Path, names: Iterable[str]) -> None:
    """Raise ModelError for a file that is no Stable Diffusion 1.x checkpoint by its tensors' names: say what it is."""
    kind = kind_of(names)
    if kind is None:
        raise ModelError(f"{path}: holds no UNet ({UNET_PREFIX}*), so it is not a Stable Diffusion checkpoint.")
    if kind is not CHECKPOINT:
        raise ModelError(f"{path}: {kind.what}. {kind.instead}")


def vae_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a separate VAE file under the names they have inside a checkpoint.

    VAE files are published with and without `first_stage_model.`; a whole checkpoint serves as well.
    Raises ModelError when the file holds no decoder, or is of another family.
    """
    inside = {name: value for name, value in tensors.items() if name.startswith(VAE_PREFIX)}
    if not inside:
        kept = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
        inside = {VAE_PREFIX + name: value for name, value in tensors.items() if name.startswith(kept)}
    kind = kind_of(tensors)
    if VAE_PREFIX + "decoder.conv_in.weight" not in inside or kind not in (CHECKPOINT, VAE_FILE, None):
        seen = f" It is {kind.what}." if kind else ""
        raise ModelError(f"{path}: holds no VAE decoder that can be put over the checkpoint's VAE.{seen}")
    return inside

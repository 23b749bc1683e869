"""Weight files -> tensors by their original (LDM) names, with named errors for files that are something else.

Only formats that are safe to read are accepted, recognised by content and not by file name: safetensors (headers.py),
and pickles written by torch, whose code is never run (pickles.py). Tensors are memory-mapped: names, shapes and types
are known before any values are in memory, so a wrong file is refused after reading only its header.
"""

import mmap
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from pipelines.errors import ModelError, in_one_line
from pipelines.families.detection import FAMILIES, Shaped, family_of, in_ldm_layout, not_run, sign_of
from pipelines.families.family import Family, TextTower
from pipelines.families.layouts import UNET_PREFIX, VAE_PREFIX, of_today, openclip_layout, vae_layout
from pipelines.files.contents import looks_like, read_content, tensors_in
from pipelines.files.headers import Stored, read_header

NUMBER_FORMATS: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""torch's dtypes by their names in headers."""


OPENCLIP_PROJECTION = "text_projection"
"""OpenCLIP's matrix for the pooled text, which is the transpose of transformers' layer of this name."""
PIECE = 1 << 22
"""How many 8-bit values are checked at once."""


@dataclass(frozen=True)
class Kind:
    """What a file is, judging by its tensors' names, and what to give instead if a checkpoint is needed."""

    what: str
    pattern: str
    instead: str = f"Give a checkpoint of {' or '.join(FAMILIES)}: this container runs no other family."


CHECKPOINT = Kind("a Stable Diffusion checkpoint", r"^model\.diffusion_model\.", "")
VAE_FILE = Kind("a VAE", r"^(decoder|encoder)\.conv_in\.", "Name it with PASTEL_VAE, beside a checkpoint.")
UPSCALER = Kind(
    "an upscaler", r"^(params\w*\.)?(conv_first\.|model\.1\.sub\.|body\.\d)", "Send it with a request, in files."
)
LORA_NAMES = (
    r"lora_(up|down|A|B)\b|[._]lora\.|\.(hada|lokr)_w1|\.oft_blocks$|\.dora_scale$|\.on_input$|^bundle_emb\."
    r"|^(lora|lycoris)_\w+\.(diff|diff_b|w_norm|b_norm|[ab][12]\.weight)$"
)
CONTROLNET = Kind(
    "a ControlNet",
    r"^(lora_controlnet$|(control_model|controlnet_\w+|input_hint_block)\.)",
    "Give the checkpoint that it guides.",
)
T2I_ADAPTER = Kind(
    "a T2I adapter",
    r"^(adapter\.)?body\.\d+\.((resnets|body)\.\d+\.)?block1\.",
    "Send it with a request, in files.",
)
IP_ADAPTER = Kind("an IP-Adapter", r"^ip_adapter\.\d+\.to_k_ip\.", "Send it with a request, in files.")
IMAGE_ENCODER = Kind("an image encoder of CLIP", r"^vision_model\.embeddings\.", "Give the checkpoint that it is for.")
SDXL_EMBEDDING = Kind("a textual inversion embedding for SDXL", r"^clip_[lg]$")
_FACES = "Send a plain or a plus one: the face networks of this kind are not supported."
FACE_ADAPTERS = (
    Kind("an IP-Adapter FaceID", r"^(image_proj\.perceiver_resampler\.|ip_adapter\.\d+\.to_\w+_lora\.)", _FACES),
    Kind("an IP-Adapter of the full face", r"^image_proj\.proj\.3\.", _FACES),
)
KINDS = (  # the first match counts, because networks trained from a checkpoint share some of its names
    *FACE_ADAPTERS,
    IP_ADAPTER,
    T2I_ADAPTER,
    Kind("a T2I style adapter", r"^style_embedding$", "Send a T2I adapter for a map, in files."),
    Kind("a union ControlNet", r"^(task_embedding$|control_add_embedding\.)", "Send a ControlNet for one kind of map."),
    Kind("a fuser of CoAdapters", r"^spatial_ch_projs\.", "Send the T2I adapters without it, in files."),
    Kind("a PEFT adapter of a ControlNet", r"^base_model\.model\.controlnet_", "Give the checkpoint that it guides."),
    Kind("a quantised file (bitsandbytes or the like)", r"\.(absmax|quant_map|SCB|scale_weight)$", "Give it in fp16."),
    Kind("a LoRA", LORA_NAMES, "Give the checkpoint that it was made for."),
    CONTROLNET,
    Kind("a textual inversion embedding", r"^(string_to_param\b|emb_params$)", "Give the checkpoint it was made for."),
    SDXL_EMBEDDING,
    CHECKPOINT,
    Kind("a UNet in diffusers' layout", r"^down_blocks\.\d", "Give the whole folder, with its VAE and text encoder."),
    UPSCALER,
    VAE_FILE,
    IMAGE_ENCODER,
)


def kind_of(tensors: Mapping[str, Shaped]) -> Kind | None:
    """Return what a file with these tensors is; None if unknown."""
    sign = sign_of(tensors)
    if sign and sign.family not in FAMILIES:
        return Kind(sign.what, sign.pattern, not_run(sign))
    text = "\n".join(in_ldm_layout(tensors))
    return next((kind for kind in KINDS if re.search(kind.pattern, text, re.MULTILINE)), None)


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Return every tensor of the file by its name, memory-mapped and not yet read.

    Raises ModelError if the file is missing, incomplete, or in a format that cannot be read.
    """
    return mapped(path, stored_in(path, content_of(path)))


def content_of(path: Path) -> Any:
    """Return the file's content, with a `Stored` for each tensor: by name for safetensors, any nesting for a pickle.

    Raises ModelError.
    """
    with _header_errors(path) if is_safetensors(path) else _pickle_errors(path):
        return read_content(path)


def stored_in(path: Path, content: Any) -> dict[str, Stored]:
    """Return the tensors in the result of `content_of`, by their names. Raises ModelError."""
    with _pickle_errors(path):
        return tensors_in(content)


def mapped(path: Path, stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """Memory-map these tensors of the file. Changes to them stay in the process and never reach the file."""
    with path.open("rb") as stream:
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    return {name: _tensor(content, each) for name, each in stored.items()}


def _tensor(content: mmap.mmap, stored: Stored) -> Tensor:
    kind = NUMBER_FORMATS[stored.kind]
    if stored.extent == 0:
        return torch.empty(stored.shape, dtype=kind)
    if stored.content is not None:
        return torch.frombuffer(bytearray(stored.content), dtype=kind).as_strided(stored.shape, stored.strides)
    if stored.start % kind.itemsize == 0:
        values = torch.frombuffer(content, dtype=kind, count=stored.extent, offset=stored.start)
    else:  # torch needs values aligned to their size, which old files do not guarantee
        size = stored.extent * kind.itemsize
        values = torch.frombuffer(content, dtype=torch.uint8, count=size, offset=stored.start).clone().view(kind)
    return values.as_strided(stored.shape, stored.strides)


def read_metadata(path: Path) -> dict[str, str]:
    """Return a safetensors file's metadata; empty for a pickle. Raises ModelError for other files."""
    if not is_safetensors(path):
        return {}
    with _header_errors(path):
        return dict(read_header(path).texts)


def is_safetensors(path: Path) -> bool:
    """Return True for safetensors and False for a pickle. Raises ModelError for anything else."""
    try:
        if not path.is_file():  # reading a pipe would block
            found = "a folder or a device" if path.exists() else "no such file"
            raise ModelError(f"{path}: {found}. Give the path of a .safetensors or .ckpt checkpoint.")
        with path.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}).") from error
    form = looks_like(start)
    if not form:
        raise ModelError(f"{path}: {_what_else(start)}. Give a .safetensors file.")
    return form == "safetensors"


def _what_else(start: bytes) -> str:
    """Describe things that are often found in place of weights."""
    if not start:
        return "an empty file"
    if start.startswith(b"GGUF"):
        return "a GGUF file, which holds quantised weights"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file that it points to"
    if start.lstrip().startswith(b"<"):
        return "a web page, not weights: the server may require a login"
    return "neither safetensors nor a pickle of torch, or cut off after its first bytes"


@contextmanager
def _header_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, RecursionError, OSError) as error:
        raise ModelError(f"{path}: not a whole safetensors file ({error}). Fetch it again.") from error


@contextmanager
def _pickle_errors(path: Path) -> Iterator[None]:
    """Turn what is raised inside, for a pickle that cannot be read, into a ModelError with the reason."""
    try:
        yield
    except Exception as error:  # zipfile raises many kinds, which all mean the same to the user
        raise ModelError(
            f"{path}: cannot be read as plain weights ({in_one_line(error)}); nothing in it was run. "
            "Pickles that need code are refused; use a .safetensors version."
        ) from error


def check_plain(path: Path, tensors: Mapping[str, Tensor], others: Iterable[Path] = ()) -> None:
    """Raise ModelError for unusual tensors that a pickle can describe, and for those that would outgrow their file.

    `others` are the other files if the weights are split into several.
    """
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or not tensor.is_cpu or tensor.is_quantized:
            raise ModelError(f"{path}: {name} is not a plain tensor (it is sparse, quantised, or has no values).")
    size = sum(each.stat().st_size for each in (path, *others))
    if sum(tensor.nbytes for tensor in tensors.values()) > size:
        raise ModelError(f"{path}: its tensors claim to be larger than the file. It is broken or malicious.")


@contextmanager
def no_larger_than(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Limit the parameters created inside to four times what these tensors can fill (libraries create some twice).

    Sizes and numbers of layers come from the file. A small file can ask for any, and building the network would then
    take all memory or never end. Raises ValueError before a parameter's memory is written to.
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
    """Raise ModelError for weights that are NaN or infinite, because they cannot give a picture."""
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ModelError(
                f"{path}: {name} has values that are NaN or infinite in {tensor.dtype}. "
                "The file is broken, or its values need more than half precision. Use another version of it."
            )


def is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite, for any dtype.

    The smallest and the largest value prove it in a thirtieth of the time that all values take: both are NaN if one
    is. torch has no arithmetic for 8-bit numbers, so these are checked in half precision, piece by piece.
    """
    if tensor.is_complex():
        return is_finite(torch.view_as_real(tensor))
    if not (tensor.is_floating_point() and tensor.numel()):
        return True
    if tensor.itemsize == 1:
        return all(bool(piece.half().isfinite().all()) for piece in tensor.flatten().split(PIECE))
    low, high = tensor.aminmax()
    return bool(low.isfinite() and high.isfinite())


def weight_file(folder: Path) -> Path | None:
    """Return the weight file of a diffusers pipeline's UNet, or of a folder with one network. Of several, the first."""
    return next(iter(weight_files(folder / "unet") or weight_files(folder)), None)


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights of a folder's network: one, or all parts if they are split.

    safetensors is preferred over pickles; among variants the plain one is preferred, then fp16.
    """
    for ending in ("safetensors", "bin"):
        found = sorted(folder.glob(f"*.{ending}"), key=lambda path: (_variant_rank(path.name), path.name))
        if found:
            part = _PART_OF_SET.search(found[0].name)
            return [path for path in found if part and path.name.endswith(part[0])] or found[:1]
    return []


_PART_OF_SET = re.compile(r"-of-\d+[^/]*$")


def _variant_rank(name: str) -> int:
    plain = re.fullmatch(r"(diffusion_pytorch_model|model|pytorch_model)(-\d+-of-\d+)?\.\w+", name)
    return 0 if plain else 1 if ".fp16" in name else 2


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names have this prefix, under their whole names."""
    return {name: value for name, value in tensors.items() if name.startswith(prefix)}


def text_tensors(path: Path, tensors: Mapping[str, Tensor], tower: TextTower) -> dict[str, Tensor]:
    """Return the tensors of one text encoder of a single file.

    They get transformers' names without any prefix (`embeddings.`, `encoder.`, `final_layer_norm.`), because merged
    checkpoints are published both with and without `text_model.` in their names. Raises ModelError for a file without
    this encoder.
    """
    prefix = tower.prefix
    text = {
        name.removeprefix(prefix).removeprefix("text_model."): value
        for name, value in with_prefix(tensors, prefix).items()
    }
    if not text:
        raise ModelError(f"{path}: holds no text encoder ({prefix}*). Give the whole checkpoint, not its UNet alone.")
    if not tower.openclip:
        return text
    layers = {name.split(".")[2] for name in text if name.startswith("transformer.resblocks.")}
    named = openclip_layout(min(len(layers), tower.layers)).tensors_to_diffusers(text)
    projection = named.pop(OPENCLIP_PROJECTION, None)
    return named if projection is None else {**named, f"{OPENCLIP_PROJECTION}.weight": projection.T}


def family_of_file(path: Path, tensors: Mapping[str, Tensor]) -> Family:
    """Return the family of a single-file checkpoint. Raises ModelError, which says what the file is instead."""
    kind = kind_of(tensors)
    if kind is None:
        raise ModelError(f"{path}: holds no UNet ({UNET_PREFIX}*), so it is not a Stable Diffusion checkpoint.")
    if kind is not CHECKPOINT:
        raise ModelError(f"{path}: {kind.what}. {kind.instead}")
    return family_of(path, sign_of(tensors))


def vae_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a separate VAE file under the names that they have inside a checkpoint.

    VAE files are published with and without `first_stage_model.`, and with diffusers' names. A whole checkpoint works,
    too. Raises ModelError if the file has no decoder or is for another family.
    """
    inside = {name: value for name, value in tensors.items() if name.startswith(VAE_PREFIX)}
    if not inside:
        kept = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
        own = {of_today(name): value for name, value in tensors.items() if name.startswith(kept)}
        levels = {name.split(".")[2] for name in own if name.startswith("encoder.down_blocks.")}
        inside = vae_layout(len(levels)).tensors_to_ldm(own, VAE_PREFIX)
    kind = kind_of(tensors)
    if VAE_PREFIX + "decoder.conv_in.weight" not in inside or kind not in (CHECKPOINT, VAE_FILE, None):
        seen = f" It is {kind.what}." if kind else ""
        raise ModelError(f"{path}: holds no VAE decoder that can replace the checkpoint's.{seen}")
    return inside

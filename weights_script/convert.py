"""A checkpoint -> a smaller, safe one: fp16 safetensors of the tensors that draw, perhaps with another VAE.

Tensors go through one at a time, so memory holds the largest of them and not the file. Pickles are read by torch's
`weights_only` unpickler, which runs no code.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipelines.checkpoint import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX, WANTED, read_pickle, vae_tensors
from pipelines.errors import ModelError

EMA_PREFIX = "model_ema."
"""LDM's moving average of the UNet: names without their dots, so that `a.b` is at `model_ema.ab`."""
_NAMES = {torch.float16: "F16", torch.float32: "F32", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64"}
_NAMES |= {torch.int32: "I32", torch.uint8: "U8", torch.int8: "I8", torch.bool: "BOOL", torch.int16: "I16"}


@dataclass(frozen=True)
class Lazy:
    """A tensor that is not in memory yet."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def convert(source: Path, target: Path, *, half: bool = True, vae: Path | None = None, ema: bool = False) -> None:
    """Write the checkpoint `source` to `target` as safetensors, by rename.

    `half` makes floating tensors fp16. `vae` takes the place of the checkpoint's own. `ema` takes the moving average
    of the UNet's weights instead of the last ones. Raises ModelError, and leaves `target` as it was.
    """
    if target.suffix != ".safetensors":
        raise ModelError(f"{target}: must end in .safetensors, the format that is written.")
    with ExitStack() as files:
        found = _opened(source, files)
        tensors = {name: tensor for name, tensor in found.items() if name.startswith(WANTED)}
        if not any(name.startswith(UNET_PREFIX) for name in tensors):
            raise ModelError(f"{source}: holds no UNet ({UNET_PREFIX}*), so it is not a Stable Diffusion checkpoint.")
        if ema:
            tensors |= _moving_average(source, found, tensors)
        if vae is not None:
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(VAE_PREFIX)}
            tensors |= vae_tensors(vae, _opened(vae, files))
        tensors.pop(f"{TEXT_PREFIX}text_model.embeddings.position_ids", None)  # 0..76, in some files in broken float16
        _write(target, tensors, half)


def _opened(path: Path, files: ExitStack) -> dict[str, Lazy]:
    """The tensors of a file by name, unread."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file.")
    if path.suffix == ".safetensors":
        return _safetensors(path, files)
    found = read_pickle(path)
    return {name: Lazy(value.dtype, tuple(value.shape), partial(_same, value)) for name, value in found.items()}


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _safetensors(path: Path, files: ExitStack) -> dict[str, Lazy]:
    try:
        file = files.enter_context(safe_open(path, framework="pt"))
    except SafetensorError as error:
        raise ModelError(f"{path}: not a whole safetensors file ({error}).") from error
    dtypes = {name: dtype for dtype, name in _NAMES.items()}
    found = {}
    for name in file.keys():  # noqa: SIM118 (not a mapping)
        described = file.get_slice(name)
        dtype = dtypes[described.get_dtype()]
        found[name] = Lazy(dtype, tuple(described.get_shape()), partial(file.get_tensor, name))
    return found


def _moving_average(path: Path, found: Mapping[str, Lazy], tensors: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """The averaged UNet under the names of the plain one."""
    names = [name for name in tensors if name.startswith(UNET_PREFIX)]
    averaged = {name: EMA_PREFIX + name.removeprefix("model.").replace(".", "") for name in names}
    missing = [name for name in names if averaged[name] not in found]
    if missing:
        raise ModelError(f"{path}: holds no moving average of {len(missing)} UNet tensors. Leave --ema out.")
    return {name: found[averaged[name]] for name in names}


def _write(target: Path, tensors: Mapping[str, Lazy], half: bool) -> None:
    """A safetensors file, tensor by tensor: the length of the header, the header, the bytes."""
    kinds = {name: lazy.dtype for name, lazy in tensors.items()}
    if half:
        kinds |= {name: torch.float16 for name, dtype in kinds.items() if dtype.is_floating_point}
    header, offset = {}, 0
    for name, lazy in tensors.items():
        end = offset + torch.Size(lazy.shape).numel() * kinds[name].itemsize
        header[name] = {"dtype": _NAMES[kinds[name]], "shape": lazy.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    text += b" " * (-len(text) % 8)
    part = target.with_name(f"{target.name}.part")
    try:
        with part.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for tensor in _finished(tensors, kinds):
                stream.write(tensor.flatten().view(torch.uint8).numpy().tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _finished(tensors: Mapping[str, Lazy], kinds: Mapping[str, torch.dtype]) -> Iterator[Tensor]:
    """Each tensor in its final format. Raises ModelError for one that the format cannot hold."""
    for name, lazy in tensors.items():
        tensor = lazy.read().to(kinds[name]).contiguous()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{name}: has values that are not finite, or too large for fp16 (try --keep-precision).")
        yield tensor

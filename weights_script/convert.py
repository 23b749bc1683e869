"""Convert a checkpoint to a smaller, safe one: fp16 safetensors with only the tensors needed for drawing.

The VAE can be replaced. Tensors are mapped and written one at a time, so memory holds the largest one, not the file.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pipelines.errors import ModelError
from pipelines.families.detection import (
    MARKERS,
    SPEC_PREDICTION,
    SPECS,
    declared_in_configuration,
    in_ldm_layout,
)
from pipelines.families.layouts import UNET_PREFIX, VAE_PREFIX
from pipelines.files.beside import read_beside
from pipelines.models.build import POSITIONS
from pipelines.models.checkpoint import (
    NUMBER_FORMATS,
    check_plain,
    family_of_file,
    is_finite,
    map_tensors,
    read_metadata,
    vae_tensors,
)
from pipelines.models.depth import DEPTH_PREFIX
from pipelines.models.image_prompt import AUGMENTOR_PREFIX, IMAGE_PREFIX
from pipelines.models.parameterization import ALPHAS

EMA_PREFIX = "model_ema."
"""LDM's moving average of the UNet. Its names have no dots: the average of `a.b` is `model_ema.ab`."""
_NAMES = {dtype: name for name, dtype in NUMBER_FORMATS.items()}


def convert(source: Path, target: Path, *, half: bool = True, vae: Path | None = None, ema: bool = False) -> None:
    """Write the checkpoint `source` to `target` as safetensors. `target` only appears when it is complete.

    `half` converts floating-point tensors to fp16. `vae` replaces the checkpoint's VAE. `ema` uses the moving average
    of the UNet's weights instead of the latest ones. Raises ModelError and leaves `target` as it was.
    """
    if target.suffix != ".safetensors":
        raise ModelError(f"{target}: must end in .safetensors, the format that is written.")
    found = in_ldm_layout(map_tensors(source))
    family = family_of_file(source, found)
    texts = (tower.prefix for tower in family.texts)
    wanted = UNET_PREFIX, VAE_PREFIX, *texts, IMAGE_PREFIX, AUGMENTOR_PREFIX, DEPTH_PREFIX
    names = (*MARKERS, ALPHAS) if family.own_alphas else MARKERS
    tensors = {name: tensor for name, tensor in found.items() if name.startswith(wanted) or name in names}
    if ema:
        tensors |= _moving_average(source, found, tensors)
    check_plain(source, tensors)
    if vae is not None:
        better = vae_tensors(vae, map_tensors(vae))
        check_plain(vae, better)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(VAE_PREFIX)} | better
    tensors |= {name: _positions(tensor) for name, tensor in tensors.items() if name.endswith(POSITIONS)}
    declared = {name: text for name, text in read_metadata(source).items() if name in SPECS}
    if (beside := read_beside(source)) is not None:
        declared[SPEC_PREDICTION] = declared_in_configuration(beside)
    _write(target, tensors, half, declared)


def _positions(told: Tensor) -> Tensor:
    """Return the text encoder's positions as integers, which is how programs use them. In some files they are broken,
    and half precision would change the pictures."""
    return told.double().to(torch.int64) if bool(told.double().isfinite().all()) else told


def _moving_average(path: Path, found: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the averaged UNet under the names of the plain one."""
    names = [name for name in tensors if name.startswith(UNET_PREFIX)]
    averaged = {name: EMA_PREFIX + name.removeprefix("model.").replace(".", "") for name in names}
    missing = [name for name in names if averaged[name] not in found]
    if missing:
        raise ModelError(f"{path}: has no moving average of {len(missing)} UNet tensors. Leave --ema out.")
    return {name: found[averaged[name]] for name in names}


def _write(target: Path, tensors: Mapping[str, Tensor], half: bool, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, tensor by tensor: the length of the header, the header, the bytes."""
    kinds = {name: tensor.dtype for name, tensor in tensors.items()}
    if half:
        kinds |= {name: torch.float16 for name, dtype in kinds.items() if dtype.is_floating_point and name != ALPHAS}
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * kinds[name].itemsize
        header[name] = {"dtype": _NAMES[kinds[name]], "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps({"__metadata__": {"format": "pt", **metadata}} | header).encode()
    text += b" " * (-len(text) % 8)
    part = target.with_name(f"{target.name}.part")
    try:
        with part.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for tensor in finished_tensors(tensors, kinds):
                stream.write(tensor.flatten().view(torch.uint8).numpy().tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def finished_tensors(tensors: Mapping[str, Tensor], kinds: Mapping[str, torch.dtype]) -> Iterator[Tensor]:
    """Yield each tensor in its final format. Raises ModelError for values that the format cannot hold."""
    for name, tensor in tensors.items():
        finished = tensor.to(kinds[name]).contiguous()
        if not is_finite(finished):
            raise ModelError(f"{name}: has values that are not finite, or too large for fp16 (try --keep-precision).")
        yield finished

"""Which of a container's models the host has memory for, computed from the headers of their files before any is loaded.

On a CPU, weights in its precision stay mapped from their files, and others become copies in memory. So two SDXL models
in half precision take 28 GB, and in single precision almost none.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from pipelines.ask.identity import ModelFiles
from pipelines.errors import ModelError
from pipelines.families.layouts import VAE_PREFIX
from pipelines.models.checkpoint import NUMBER_FORMATS, content_of, stored_in, weight_files
from pipelines.runtime.device import Device
from pipelines.runtime.host import host_room

UNUSED = "model_ema."
"""The prefix of a training's averaged weights, which are not loaded."""
FOLDERS = ("unet", "text_encoder", "text_encoder_2", "image_encoder", "depth_estimator")
"""The networks of a diffusers folder, apart from the VAE."""


Made = TypeVar("Made")


def makers(
    models: Mapping[str, ModelFiles], device: Device, load: Callable[[str], Made]
) -> dict[str, Callable[[], Made]]:
    """Return what loads each model, by name, or raises ModelError if the host has no memory for it."""
    refused = without_room(models, device)

    def make(name: str) -> Made:
        if name in refused:
            raise ModelError(refused[name])
        return load(name)

    return {name: partial(make, name) for name in models}


def without_room(models: Mapping[str, ModelFiles], device: Device) -> dict[str, str]:
    """Return why models cannot be loaded that the host has no memory for, by name. Earlier ones come first.

    Nothing is refused if the host's memory is not known. On other devices than a CPU weights are not copied to the
    host before they leave the device.
    """
    room = host_room() if device.place.type == "cpu" else None
    if room is None:
        return {}
    left, fit, refused = room, list[str](), dict[str, int]()
    for name, files in models.items():
        need = copied_bytes(files, device)
        if need is None:
            continue
        if need > left:
            refused[name] = need
        else:
            left -= need
            fit.append(name)
    advice = f"Only {', '.join(fit)} can be loaded here." if fit else "Give the container more memory."
    free = f"but {left / 1e9:.1f} of {room / 1e9:.1f} GB are left. {advice}"
    copy = f"its copy in {device.precision} takes"
    return {
        name: f"{models[name].checkpoint}: {copy} {need / 1e9:.1f} GB of memory, {free}"
        for name, need in refused.items()
    }


def copied_bytes(files: ModelFiles, device: Device) -> int | None:
    """Return the bytes of the copies that loading a model makes; None for files that cannot be read. Loading them says
    why."""
    try:
        return sum(_copied(path, device, without) for path, without in _weight_files(files))
    except (ModelError, OSError):
        return None


def _weight_files(files: ModelFiles) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield the files, each with the prefixes of weights in it that are not loaded."""
    path, vae = files.checkpoint, files.vae
    if path.is_dir():
        folders = [path / name for name in (*FOLDERS, *(() if vae else ("vae",)))]
        yield from ((file, ()) for folder in folders if folder.is_dir() for file in weight_files(folder))
    else:
        yield path, (UNUSED, *((VAE_PREFIX,) if vae else ()))
    if vae:
        inner = vae / "vae"
        yield from ((file, ()) for file in (weight_files(inner if inner.is_dir() else vae) if vae.is_dir() else [vae]))


def _copied(path: Path, device: Device, without: tuple[str, ...]) -> int:
    stored = stored_in(path, content_of(path))
    kinds = {name: NUMBER_FORMATS[each.kind] for name, each in stored.items() if not name.startswith(without)}
    copied = [stored[name] for name, kind in kinds.items() if kind.is_floating_point and kind != device.dtype]
    return sum(each.extent for each in copied) * device.dtype.itemsize

"""Diffusers folders: their configurations and networks, with named errors."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers.modeling_utils import PreTrainedModel

from pipelines.errors import ModelError, in_one_line
from pipelines.families.layouts import of_today, vector_layer
from pipelines.models.checkpoint import map_tensors, weight_files
from pipelines.models.network import built_of, fill
from pipelines.runtime.device import Device


def from_subfolder(network_class: Any, folder: Path, device: Device) -> Any:
    """Load a network from a diffusers folder to the device.

    The folder may contain any variant (fp16), and its weights may be split into parts. Raises ModelError.
    """
    return _loaded(network_class, folder, read_config(folder / "config.json"), device)


def unet_of_folder(folder: Path, device: Device) -> UNet2DConditionModel:
    """Load a UNet. SDXL's vector goes in where unCLIP's does, as in single files: the layers are the same.

    Raises ModelError.
    """
    config = read_config(folder / "config.json")
    if config.get("addition_embed_type") == "text_time":
        config |= {"addition_embed_type": None, "class_embed_type": "projection"}
    unet: UNet2DConditionModel = _loaded(UNet2DConditionModel, folder, config, device)
    return unet


def _loaded(network_class: Any, folder: Path, config: dict[str, Any], device: Device) -> Any:
    files = weight_files(folder)
    if not files:
        raise ModelError(f"{folder}: not a diffusers folder that can be read (it holds no weights).")
    found = (named for file in files for named in map_tensors(file).items())
    tensors = {vector_layer(of_today(name)): tensor for name, tensor in found}
    with folder_errors(folder):
        with built_of(folder, network_class.__name__, tensors):
            network = _empty(network_class, config)
        known = network.state_dict().keys()
        named = {name if name in known else name.removeprefix("text_model."): each for name, each in tensors.items()}
        return fill(files[0], network, named, device, files[1:])


def _empty(network_class: Any, config: dict[str, Any]) -> Any:
    """Create a network with this configuration. The meta device is not used, because some networks have buffers that no
    file contains. Memory for the weights is reserved but not written to."""
    if issubclass(network_class, PreTrainedModel):
        return network_class(network_class.config_class.from_dict(config))
    return network_class.from_config(config)


@contextmanager
def folder_errors(path: Path) -> Iterator[None]:
    """Turn what the libraries raise for an unreadable folder into a ModelError with its first line."""
    try:
        yield
    except Exception as error:  # there are a dozen kinds
        raise ModelError(f"{path}: not a diffusers folder that can be read ({in_one_line(error)}).") from error


def read_config(path: Path) -> dict[str, Any]:
    """Read the configuration of a network or scheduler. Raises ModelError.

    It is checked before the libraries see it. They would treat a string as a name on the hub and look it up there, and
    they would create lists of any length that it asks for.
    """
    with folder_errors(path.parent):
        config = json.loads(path.read_text(encoding="utf-8"), parse_int=_sane)
        if not isinstance(config, dict):
            raise ValueError(f"{path.name} is not a JSON object")
        return config


def _sane(digits: str) -> int:
    if len(digits) > 6:
        raise ValueError(f"{digits[:20]} is not the size of a network")
    return int(digits)

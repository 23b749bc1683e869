"""Diffusers folders: their configurations and networks, with named errors."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.modeling_utils import PreTrainedModel

from pipelines.errors import ModelError, in_one_line
from pipelines.families.layouts import of_today
from pipelines.models.checkpoint import map_tensors, weight_files
from pipelines.models.network import built_of, fill
from pipelines.runtime.device import Device


def from_subfolder(network_class: Any, folder: Path, device: Device) -> Any:
    """Return a network of a diffusers folder, on the device.

    The folder may hold any variant (fp16), and its weights in one file or in parts. Raises ModelError.
    """
    config = read_config(folder / "config.json")
    files = weight_files(folder)
    if not files:
        raise ModelError(f"{folder}: not a diffusers folder that can be read (it holds no weights).")
    tensors = {of_today(name): tensor for file in files for name, tensor in map_tensors(file).items()}
    with folder_errors(folder):
        with built_of(folder, network_class.__name__, tensors):
            network = _empty(network_class, config)
        known = network.state_dict().keys()
        named = {name if name in known else name.removeprefix("text_model."): each for name, each in tensors.items()}
        return fill(files[0], network, named, device, files[1:])


def _empty(network_class: Any, config: dict[str, Any]) -> Any:
    """Return a network of this configuration. It is not made on the meta device, as some have buffers that no file
    holds; memory for its weights is reserved and not written to."""
    if issubclass(network_class, PreTrainedModel):
        return network_class(network_class.config_class.from_dict(config))
    return network_class.from_config(config)


@contextmanager
def folder_errors(path: Path) -> Iterator[None]:
    """Turn what the libraries raise at an unreadable folder into a ModelError with their first line."""
    try:
        yield
    except Exception as error:  # of a dozen kinds
        raise ModelError(f"{path}: not a diffusers folder that can be read ({in_one_line(error)}).") from error


def read_config(path: Path) -> dict[str, Any]:
    """Return the configuration of a network or scheduler. Raises ModelError.

    It is checked before the libraries see it: they would take a string for a name on the hub and ask there, and make
    lists as long as it says before they begin a network.
    """
    with folder_errors(path.parent):
        config = json.loads(path.read_text(encoding="utf-8"), parse_int=_sane)
        if not isinstance(config, dict):
            raise ValueError(f"{path.name} holds no JSON object")
        return config


def _sane(digits: str) -> int:
    if len(digits) > 6:
        raise ValueError(f"{digits[:20]} is not the size of a network")
    return int(digits)

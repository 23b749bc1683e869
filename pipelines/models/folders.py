"""Diffusers folders: their configurations and networks, read offline, with named errors."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.modeling_utils import PreTrainedModel

from pipelines.errors import ModelError, in_one_line
from pipelines.models.checkpoint import check_finite, check_plain, map_tensors, no_larger_than, weight_file
from pipelines.runtime.device import Device


def from_subfolder(network_class: Any, folder: Path, device: Device) -> Any:
    """Return a network of a diffusers folder, on the device.

    diffusers and transformers read it themselves. They would fill what is missing with random numbers and a warning;
    here that is an error. Raises ModelError.
    """
    read_config(folder / "config.json")
    file = weight_file(folder)
    if file is None:
        raise ModelError(f"{folder}: not a diffusers folder that can be read (it holds no weights).")
    tensors = map_tensors(file)
    check_plain(file, tensors)
    options: dict[str, Any] = {"dtype": device.dtype}
    if not issubclass(network_class, PreTrainedModel):
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

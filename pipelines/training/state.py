"""The state of a training: everything that a later one needs to go on as if there had been no break.

It is plain tensors and numbers, because an earlier result may come from anybody: nothing in it is run.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines.errors import InvalidInput, ModelError
from pipelines.models.checkpoint import check_finite, check_plain, map_tensors
from pipelines.training.result import SETTINGS, STATE

FIELD = "resume"
WEIGHT, MOMENTS = "weight.", ("exp_avg", "exp_avg_sq", "step")
"""Prefix of the weights' names, and what AdamW remembers of each."""
SETTINGS_MAX = 16 << 20
"""Limit for the bytes of training.json."""


@dataclass(frozen=True)
class Progress:
    """How far a training is."""

    step: int
    """Steps that are done."""
    losses: tuple[float, ...]
    """The mean loss of each."""
    scaler: dict[str, float]
    """The state of accelerate's gradient scaler; empty without one."""


def write_state(path: Path, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Write the trained weights and what the optimizer remembers, in single precision."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in trained.items():
        tensors[WEIGHT + name] = parameter.detach()
        tensors |= {f"{key}.{name}": optimizer.state[parameter][key] for key in MOMENTS if parameter in optimizer.state}
    written = path.with_suffix(".part")
    save_file({name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}, written)
    written.replace(path)


def read_state(path: Path, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Put a state into the trained weights and the optimizer. Raises InvalidInput if it is of another training."""
    try:
        tensors = map_tensors(path)
        check_plain(path, tensors)
        check_finite(path, tensors)
    except ModelError as error:
        raise InvalidInput(FIELD, STATE, f"its state cannot be read ({error})", "Send the whole result.") from error
    if missing := {WEIGHT + name for name in trained} ^ {name for name in tensors if name.startswith(WEIGHT)}:
        rule = f"is of another training: {min(missing)} is in only one of both"
        raise InvalidInput(FIELD, STATE, rule, "Use the model and the settings of that training.")
    for name, parameter in trained.items():
        found = {key: tensors[f"{key}.{name}"] for key in MOMENTS if f"{key}.{name}" in tensors}
        for tensor in (tensors[WEIGHT + name], *(found[key] for key in MOMENTS[:2] if key in found)):
            if tensor.shape != parameter.shape:
                rule = f"is of another training: {name} has the shape {tuple(tensor.shape)}"
                raise InvalidInput(FIELD, STATE, rule, "Use the model and the settings of that training.")
        if found and not _is_memory(found):
            rule = f"what the optimizer remembers of {name} is not whole"
            raise InvalidInput(FIELD, STATE, rule, "Send the whole result.")
        parameter.data.copy_(tensors[WEIGHT + name])
        if found:
            optimizer.state[parameter] = {
                key: tensor.clone() if key == "step" else tensor.to(parameter.device).clone()
                for key, tensor in found.items()
            }


def _is_memory(found: Mapping[str, Tensor]) -> bool:
    """Return whether these are all of AdamW's moments, with values that it can have."""
    if found.keys() != set(MOMENTS):
        return False
    squares, step = found[MOMENTS[1]], found[MOMENTS[2]]
    return step.numel() == 1 and step.dim() == 0 and float(step) >= 1 and bool((squares >= 0).all())


def progress_of(settings: Mapping[str, Any]) -> Progress:
    """Read how far an earlier training was. Raises InvalidInput."""
    try:
        step, losses = int(settings["step"]), tuple(map(float, settings["losses"]))
        scaler = {str(name): float(value) for name, value in settings.get("scaler", {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InvalidInput(FIELD, SETTINGS, f"cannot be read ({error})", "Send the whole result.") from error
    if not 0 < step == len(losses) or not all(map(math.isfinite, losses)):
        raise InvalidInput(FIELD, SETTINGS, "its steps and losses do not match", "Send the whole result.")
    return Progress(step, losses, scaler)


def read_settings(path: Path) -> dict[str, Any]:
    """Read training.json. Raises ValueError."""
    try:
        with path.open("rb") as stream:
            found = json.loads(stream.read(SETTINGS_MAX))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{SETTINGS} cannot be read: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
        raise ValueError(f"{SETTINGS} has no settings")
    return found

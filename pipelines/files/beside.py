"""The configuration that may come with a single-file checkpoint: NAME.yaml beside NAME.safetensors, as in LDM."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import ModelError, in_one_line

BYTES_MAX = 1 << 16
"""Limit for a configuration. Published ones have two to five thousand bytes."""


def read_beside(checkpoint: Path) -> Mapping[str, Any] | None:
    """Return the `model` part of the configuration beside a checkpoint; None if there is no such file.

    Only plain values are read. Raises ModelError for a file that is not a model's configuration.
    """
    path = checkpoint.with_suffix(".yaml")
    if not path.is_file():
        return None
    try:
        with path.open("rb") as stream:
            content = stream.read(BYTES_MAX + 1)
        if len(content) > BYTES_MAX:
            raise ValueError(f"it is longer than {BYTES_MAX} bytes")
        found = yaml.safe_load(content)
        model = found.get("model") if isinstance(found, dict) else None
        if not isinstance(model, dict):
            raise ValueError("it has no `model` part")
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        fix = "Correct or remove it, or say what the model predicts with PASTEL_PREDICTION."
        raise ModelError(f"{path}: not a configuration of a model ({in_one_line(error)}). {fix}") from error
    return model

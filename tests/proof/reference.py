"""WebUI's cases: the files expected in their folder, and what a test does if one of them is missing.

The folder contains a checkpoint of 70 MB and is not part of the repository. `tests/data/webui` has the facts that are.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from script.parity import REFERENCE
from script.webui_facts import FACTS

SHARED_FILES = (
    "tiny_sd15.safetensors",
    "loras/tinylora.safetensors",
    "loras/tinylocon.safetensors",
    "embeddings/flat.safetensors",
    "embeddings/tiny_neg4.safetensors",
    "embeddings/tinyemb1.pt",
)
"""What the cases need beside their own files. Which cases are expected stands in the table `cases.json`."""


def facts(name: str) -> dict[str, Any]:
    """A table of `tests/data/webui`."""
    table: dict[str, Any] = json.loads((FACTS / name).read_text(encoding="utf-8"))
    return table


def require(*paths: str, folder: Path = REFERENCE) -> None:
    """Skip the test where the folder or a file in it is missing. In CI, where nothing may be missing, fail the test."""
    missing = [path for path in paths if not (folder / path).exists()]
    if folder.is_dir() and not missing:
        return
    what = f"{folder} is not there" if not folder.is_dir() else f"{', '.join(missing)} is missing in {folder}"
    text = f"WebUI's cases were not compared: {what}. CONTRIBUTING.md tells how to name the folder (WEBUI_REFERENCE)."
    if os.environ.get("CI") == "true":
        pytest.fail(f"{text} In CI (CI=true) every case must be compared.", pytrace=False)
    pytest.skip(text)

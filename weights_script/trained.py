"""Results of trainings: which base model one is for, and the file inside that requests use."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipelines.ask.networks import plain_name
from pipelines.errors import ModelError
from pipelines.files.archives import Limits, form_of, unpack

SETTINGS = "training.json"
SETTINGS_MAX = 16 << 20
INVERSION, LORAS = "textual inversion", ("LoRA", "pivotal tuning")
"""Tasks whose results belong to a base model: an embedding, and LoRAs. Other results are checkpoints."""
OPERATORS = Limits(entries=10_000, file=20_000_000_000, total=80_000_000_000)
"""Limits for a result that the operator names."""
STRANGERS = Limits(entries=10_000, file=2 << 30, total=4 << 30)
"""Limits for a result in a request; all results of one request together have the same total."""


@dataclass(frozen=True)
class Trained:
    """The result of a training, unpacked."""

    task: str
    token: str
    """The word in prompts that means what was trained."""
    base: str
    """The base model's entry in the manifest, or its file's name."""
    base_sha256: str
    file: Path
    """The LoRA, embedding or checkpoint."""

    @property
    def belongs_to_base(self) -> bool:
        """Whether it is a LoRA or an embedding, and no checkpoint."""
        return self.task in (INVERSION, *LORAS)

    @property
    def name(self) -> str:
        """Its name in prompts and tags."""
        return self.file.stem


def is_result(path: Path) -> bool:
    """Return whether the file may be the result of a training: no weight file is a TAR."""
    try:
        return path.is_file() and form_of(path) == "tar"
    except OSError:
        return False


def opened(path: Path, folder: Path, limits: Limits) -> Trained:
    """Unpack what prompts use of a result into the folder. Raises ModelError for other archives."""
    try:
        files = unpack(path, folder, limits, lambda name: name == SETTINGS).files
        if SETTINGS not in files:
            raise ValueError(f"it has no {SETTINGS}")
        with files[SETTINGS].open("rb") as stream:
            told = json.loads(stream.read(SETTINGS_MAX))
        name = plain_name(str(told["name"]))
        if not name or "/" in name or name.startswith("."):
            raise ValueError(f"{SETTINGS} names no file")
        inside = f"{name}.safetensors"
        found = unpack(path, folder, limits, lambda each: each == inside).files
        if inside not in found:
            raise ValueError(f"it has no {inside}")
        file = found[inside].rename(folder / inside)
        task, token = str(told["task"]), str(told["token"])
        return Trained(task, token, str(told.get("base", "")), str(told.get("base_sha256", "")), file)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{path}: not the result of a training ({error}). Give the archive that train returned."
        ) from error


def unpacked_here(path: Path) -> Trained:
    """Unpack a result into a folder that lasts as long as the process."""
    folder = tempfile.TemporaryDirectory(prefix="pastel-trained-", ignore_cleanup_errors=True)
    _kept.append(folder)
    return opened(path, Path(folder.name), OPERATORS)


_kept: list[tempfile.TemporaryDirectory[str]] = []

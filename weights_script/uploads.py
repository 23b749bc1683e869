"""Sort uploaded files into LoRAs, embeddings, hypernetworks, control networks and upscalers, by their content."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.ask.inputs import checked_files
from pipelines.ask.networks import ExtraFile, check_name, name_of_upload, plain_name, training_name
from pipelines.errors import InvalidInput

FIX = "Send a LoRA, an embedding, a hypernetwork, a ControlNet, an adapter or an upscaler."
FILES_MAX = 16
"""Most files of one request. Each is inspected before anything is drawn."""
NAMELESS = "file"
"""The server's name for a file that was sent as a data URI."""


@dataclass(frozen=True)
class Uploads:
    """Uploaded files of each kind, by name."""

    loras: dict[str, ExtraFile] = field(default_factory=dict[str, ExtraFile])
    embeddings: dict[str, ExtraFile] = field(default_factory=dict[str, ExtraFile])
    controls: dict[str, ExtraFile] = field(default_factory=dict[str, ExtraFile])
    hypernetworks: dict[str, ExtraFile] = field(default_factory=dict[str, ExtraFile])
    upscalers: dict[str, ExtraFile] = field(default_factory=dict[str, ExtraFile])
    encoders: dict[str, ExtraFile] = field(default_factory=dict[str, ExtraFile])
    """Image encoders for IP-Adapters."""


def sent_files(files: Sequence[Path]) -> Sequence[Path]:
    """Return the files that were sent. Raises InvalidInput for too many of them, and for a string."""
    if len(files) > FILES_MAX:
        raise InvalidInput("files", f"{len(files)} sent", f"at most {FILES_MAX} files", "Leave some out.")
    return checked_files(files, "files")


def sort_uploads(files: Sequence[Path], names: str) -> Uploads:
    """Return the files by kind and name. The comma-separated `names` take precedence over the files' own names.

    Raises InvalidInput for a file of another kind, and for a name that two files share or that does not fit in a tag.
    """
    uploads, given = Uploads(), [check_name("file_names", name.strip()) for name in names.split(",")]
    for number, path in enumerate(sent_files(files)):
        file = ExtraFile.at(path, f"files={name_of_upload(path.name)!r}")
        kind = _kind_of(file)
        name = (given[number] if number < len(given) else "") or _own_name(file)
        here = getattr(uploads, kind)
        if name in here:
            fix = "Give each its own in generation_data: File names: first, second."
            raise InvalidInput("files", name, "two files have this name", fix)
        here[name] = file
    return uploads


def _own_name(file: ExtraFile) -> str:
    """Return the file's own name; for a LoRA without one, the name that it was trained under."""
    stem = name_of_upload(file.path.stem)
    trained = training_name(file) if stem == NAMELESS and file.path.suffix != ".pt" else ""
    return plain_name(trained or stem)


def _kind_of(file: ExtraFile) -> str:
    from pipelines.models.checkpoint import (  # here: imports torch, which is only loaded if files are sent
        content_of,
        kind_of,
        stored_in,
    )
    from pipelines.models.hypernetworks import is_hypernetwork

    with file.blamed():
        content = content_of(file.path)
        if is_hypernetwork(content):
            return "hypernetworks"
        tensors = stored_in(file.path, content)
    if not tensors:
        raise InvalidInput("files", name_of_upload(file.path.name), "holds no tensors", FIX)
    kind = kind_of(tensors)
    what = kind.what if kind else "an embedding" if len(tensors) == 1 else "unknown"
    group = group_of(what)
    if group is None:
        raise InvalidInput("files", name_of_upload(file.path.name), f"is {what}", FIX)
    return group


def group_of(what: str) -> str | None:
    """Return the field of `Uploads` for a kind of file; None for a kind that requests cannot upload."""
    return next((group for words, group in GROUPS.items() if words in what), None)


GROUPS = {
    "LoRA": "loras",
    "embedding": "embeddings",
    "ControlNet": "controls",
    "T2I adapter": "controls",
    "IP-Adapter": "controls",
    "image encoder": "encoders",
    "upscaler": "upscalers",
    "unknown": "upscalers",  # the upscaler library recognises more kinds than we do, and reports the others itself
}
"""Kind of a file, as it is described to users -> the field of `Uploads`."""

"""Finds the tensors in a weight file, by name. The format is recognised by content, not by extension."""

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.files.headers import NAME_MAX, Stored, check_name, read_header
from pipelines.files.pickles import read_pickle

DEPTH_MAX = 6
"""How deeply nested dicts are searched."""
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""The first bytes of files that may be torch's pickles: a zip, or a pickle's protocol number."""


def looks_like(start: bytes) -> str:
    """Return the format of a file that begins with these bytes (at least nine): "safetensors", "pickle" or ""."""
    if start[8:9] == b"{":
        return "safetensors"
    return "pickle" if start.startswith(PICKLES) else ""


def read_content(path: Path) -> Any:
    """Return the file's content, with a `Stored` for each tensor: by name for safetensors, any nesting for a pickle.

    Raises OSError and, like zipfile, many kinds of Exception with the reason.
    """
    with path.open("rb") as stream:
        form = looks_like(stream.read(9))
    return read_header(path).tensors if form == "safetensors" else read_pickle(path)


def tensors_in(content: Any) -> dict[str, Stored]:
    """Return the tensors of a file's content by their names. Names of nested dicts are joined with dots.

    If there is a `state_dict`, only that is used. Raises ValueError.
    """
    for _ in range(2):  # some files nest it twice, and WebUI looks twice
        content = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    found: dict[str, Stored] = {}
    seen: set[int] = set()  # the same dict could be in many places
    groups = deque([("", content, 0)] if isinstance(content, Mapping) else [])
    while groups:
        prefix, group, depth = groups.popleft()
        if id(group) in seen or depth > DEPTH_MAX:
            continue
        seen.add(id(group))
        for name, value in group.items():
            if isinstance(value, Stored):
                check_name(f"{prefix}{name}", found)
                found[f"{prefix}{name}"] = value
            elif isinstance(value, dict) and _is_short(prefix, name):
                groups.append((f"{prefix}{name}.", value, depth + 1))
    return found


def _is_short(prefix: str, name: object) -> bool:
    """Return whether both together could begin a tensor's name. Longer ones are texts stored along with weights."""
    return len(prefix) + (len(name) if isinstance(name, str) else 0) < NAME_MAX

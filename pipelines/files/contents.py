"""What a weight file holds, told by its content and not by its ending: the places of its tensors by their names."""

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.files.headers import NAME_MAX, Stored, check_name, read_header
from pipelines.files.pickles import read_pickle

DEPTH_MAX = 6
"""Of dicts in dicts that are looked into."""
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How files begin that may be pickles of torch: as a zip, or with a pickle's protocol."""


def looks_like(start: bytes) -> str:
    """Return which form a file has that begins with these nine bytes or more: safetensors, a pickle, or "" for none."""
    if start[8:9] == b"{":
        return "safetensors"
    return "pickle" if start.startswith(PICKLES) else ""


def read_content(path: Path) -> Any:
    """Return what the file holds, with `Stored` for each tensor: by name, or in dicts of any form in a pickle.

    Raises OSError, and many kinds of Exception with the reason, as zipfile does.
    """
    with path.open("rb") as stream:
        form = looks_like(stream.read(9))
    return read_header(path).tensors if form == "safetensors" else read_pickle(path)


def tensors_in(content: Any) -> dict[str, Stored]:
    """Return the tensors of a content by their names, those of dicts inside it by all names that lead to them.

    Of a checkpoint with other things beside its weights, its `state_dict` counts. Raises ValueError.
    """
    for _ in range(2):  # some files have it twice, and WebUI looks twice
        content = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    found: dict[str, Stored] = {}
    seen: set[int] = set()  # one dict could stand in many places
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
    """Whether both together could begin a tensor's name. What is longer is text that stands beside weights."""
    return len(prefix) + (len(name) if isinstance(name, str) else 0) < NAME_MAX

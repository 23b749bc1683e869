"""How much memory the host has left: the machine's, within the limits of its control groups (a container's limit)."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class _Groups:
    """Where one version of control groups tells about memory. Files and their keys are named as in the kernel's manual
    (https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/memory.html)."""

    line: str
    """The line about this process in /proc/self/cgroup, with its group."""
    mount: str
    limit: str
    used: str
    file_pages: tuple[str, str]


VERSIONS = (
    _Groups(r"^0::(.*)$", "sys/fs/cgroup", "memory.max", "memory.current", ("active_file", "inactive_file")),
    _Groups(
        r"^\d+:(?:\w+,)*memory(?:,\w+)*:(.*)$",
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_active_file", "total_inactive_file"),
    ),
)


def host_room(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process can still fill, with swap; None if unknown, as on systems other than Linux.

    Pages of files count as free, because the system drops them when memory is needed. `root` is where the system's
    files are.
    """
    return min((*_of_machine(root), *_of_groups(root)), default=None)


def _of_machine(root: Path) -> Iterator[int]:
    told = _numbers(_read(root / "proc/meminfo").replace(":", ""))
    if "MemAvailable" in told:
        yield (told["MemAvailable"] + told.get("SwapFree", 0)) * 1024


def _of_groups(root: Path) -> Iterator[int]:
    """Yield what each limited group that this process belongs to has left. Inside a container, the limit of the
    container stands at the mount itself."""
    own = _read(root / "proc/self/cgroup")
    for version in VERSIONS:
        mount, path = root / version.mount, re.search(version.line, own, re.MULTILINE)
        below = PurePosixPath(path[1].strip("/")) if path else PurePosixPath()
        for group in (below, *below.parents):
            folder = mount / group
            limit, used = (_read(folder / name).strip() for name in (version.limit, version.used))
            if limit.isdecimal() and used.isdecimal():  # "max" means no limit
                told = _numbers(_read(folder / "memory.stat"))
                yield max(0, int(limit) - int(used) + sum(told.get(key, 0) for key in version.file_pages))


def _numbers(text: str) -> Mapping[str, int]:
    """Return the numbers of lines such as `active_file 4096` by their names."""
    return {name: int(number) for name, number in re.findall(r"^(\S+)\s+(\d+)", text, re.MULTILINE)}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

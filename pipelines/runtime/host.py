"""What the host leaves to this process: memory and processors, within the limits of its control groups (a container's
limits). Files and their keys are named as in the kernel's manual
(https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/memory.html,
https://docs.kernel.org/scheduler/sched-bwc.html)."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class _Memory:
    """What files and keys tell about a group's memory."""

    limit: str
    used: str
    file_pages: tuple[str, str]


MEMORY_V2 = _Memory("memory.max", "memory.current", ("active_file", "inactive_file"))
MEMORY_V1 = _Memory("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))
QUOTA_V1 = ("cpu.cfs_quota_us", "cpu.cfs_period_us")


def host_room(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process can still fill, with swap; None if unknown, as on systems other than Linux.

    Pages of files count as free, because the system drops them when memory is needed. `root` is where the system's
    files are.
    """
    return min((*_of_machine(root), *_of_groups(root)), default=None)


def host_processors(root: Path = Path("/")) -> float | None:
    """Return how many processors' time this process may use, such as 1.5; None if nothing limits it.

    This is the quota that `docker run --cpus` sets. Programs still see all of the machine's processors.
    """
    quotas = [_read(folder / "cpu.max").split() for folder in _groups_v2(root)]
    quotas += [[_read(folder / name).strip() for name in QUOTA_V1] for folder in _groups_v1(root, "cpu")]
    limited = (each for each in quotas if len(each) == 2 and all(number.isdecimal() and int(number) for number in each))
    return min((int(quota) / int(period) for quota, period in limited), default=None)  # without "max" and -1


def _of_machine(root: Path) -> Iterator[int]:
    told = _numbers(_read(root / "proc/meminfo").replace(":", ""))
    if "MemAvailable" in told:
        yield (told["MemAvailable"] + told.get("SwapFree", 0)) * 1024


def _of_groups(root: Path) -> Iterator[int]:
    """Yield the bytes that each limited group has left."""
    for memory, folders in ((MEMORY_V2, _groups_v2(root)), (MEMORY_V1, _groups_v1(root, "memory"))):
        for folder in folders:
            limit, used = (_read(folder / name).strip() for name in (memory.limit, memory.used))
            if limit.isdecimal() and used.isdecimal():  # "max" means no limit
                told = _numbers(_read(folder / "memory.stat"))
                yield max(0, int(limit) - int(used) + sum(told.get(key, 0) for key in memory.file_pages))


def _groups_v2(root: Path) -> Iterator[Path]:
    return _groups(root, r"^0::(.*)$", "sys/fs/cgroup")


def _groups_v1(root: Path, controller: str) -> Iterator[Path]:
    return _groups(root, rf"^\d+:(?:\w+,)*{controller}(?:,\w+)*:(.*)$", f"sys/fs/cgroup/{controller}")


def _groups(root: Path, line: str, mount: str) -> Iterator[Path]:
    """Yield the folders of the group that `line` finds in /proc/self/cgroup, and of all groups around it. Inside a
    container, the limits of the container stand at the mount itself."""
    path = re.search(line, _read(root / "proc/self/cgroup"), re.MULTILINE)
    below = PurePosixPath(path[1].strip("/")) if path else PurePosixPath()
    for group in (below, *below.parents):
        yield root / mount / group


def _numbers(text: str) -> Mapping[str, int]:
    """Return the numbers of lines such as `active_file 4096` by their names."""
    return {name: int(number) for name, number in re.findall(r"^(\S+)\s+(\d+)", text, re.MULTILINE)}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

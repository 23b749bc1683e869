"""What the host has left, as the files of different systems tell it."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from pipelines.runtime.host_memory import host_room

MEMINFO = "MemTotal:    24000000 kB\nMemFree:  1000000 kB\nMemAvailable:  8000000 kB\nSwapFree:  500000 kB\n"
MACHINE = 8_500_000 * 1024
V2 = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/kube.slice/pod\n"}
V1 = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/\n"}
STAT = "anon 700\nfile 290\nactive_file 200\ninactive_file 90\n"


def group(folder: str, limit: object, used: int = 1000, stat: str = STAT) -> dict[str, str]:
    """A group's files in version 2."""
    told = {"max": f"{limit}\n", "current": f"{used}\n", "stat": stat}
    return {f"sys/fs/cgroup/{folder}/memory.{name}": text for name, text in told.items()}


def old_group(folder: str, limit: int, used: int) -> dict[str, str]:
    """A group's files in version 1."""
    stat = "active_file 1\ntotal_active_file 200\ntotal_inactive_file 90\n"
    told = {"limit_in_bytes": f"{limit}\n", "usage_in_bytes": f"{used}\n", "stat": stat}
    return {f"sys/fs/cgroup/memory/{folder}/memory.{name}": text for name, text in told.items()}


@pytest.mark.parametrize(
    ("files", "room"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 1 kB\n"}, None),
        ({"proc/meminfo": MEMINFO}, MACHINE),
        (V2 | group("kube.slice/pod", "max"), MACHINE),
        (V2 | group("kube.slice/pod", 5000), 5000 - 1000 + 290),
        (V2 | group("kube.slice/pod", 5000) | group("kube.slice", 3000, 2900), 3000 - 2900 + 290),
        (V2 | group(".", 4000), 4000 - 1000 + 290),  # inside of the container
        (V2 | group("kube.slice/pod", 5000, stat=""), 5000 - 1000),
        (V2 | group("kube.slice/pod", 500, stat=""), 0),  # the limit was lowered
        (V1 | old_group("docker/abc", 6000, 1000), 6000 - 1000 + 290),
        (V1 | old_group(".", 7000, 1000), 7000 - 1000 + 290),
        (V1 | old_group("docker/abc", 9223372036854771712, 1000), MACHINE),  # no limit
    ],
)
def test_the_smallest_limit_counts(tmp_path: Path, files: Mapping[str, str], room: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host_room(tmp_path) == room

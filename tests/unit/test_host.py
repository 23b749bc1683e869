"""What the host leaves to a process, as the files of different systems tell it."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from pipelines.runtime.host import host_processors, host_room

MEMINFO = "MemTotal:    24000000 kB\nMemFree:  1000000 kB\nMemAvailable:  8000000 kB\nSwapFree:  500000 kB\n"
MACHINE = 8_500_000 * 1024
V2 = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/kube.slice/pod\n"}
V1 = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/docker/abc\n3:cpuset:/x\n0::/\n"}
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


def old_quota(folder: str, quota: int) -> dict[str, str]:
    """A group's processors in version 1."""
    told = {"quota": f"{quota}\n", "period": "100000\n"}
    return {f"sys/fs/cgroup/cpu/{folder}/cpu.cfs_{name}_us": text for name, text in told.items()}


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
    assert host_room(written(tmp_path, files)) == room


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({}, None),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),  # inside of the container
        (V2 | {"sys/fs/cgroup/kube.slice/pod/cpu.max": "400000 100000\n"}, 4),
        (
            V2
            | {"sys/fs/cgroup/kube.slice/pod/cpu.max": "max 100000\n"}
            | {"sys/fs/cgroup/kube.slice/cpu.max": "50000 100000\n"},
            0.5,
        ),
        (V1 | old_quota("docker/abc", 200000), 2),
        (V1 | old_quota("docker/abc", -1), None),
        (V1 | old_quota(".", 200000), 2),
        ({"sys/fs/cgroup/cpu.max": "150000\n"}, None),
        ({"sys/fs/cgroup/cpu.max": "100000 0\n"}, None),
    ],
)
def test_the_smallest_quota_of_processors_counts(
    tmp_path: Path, files: Mapping[str, str], processors: float | None
) -> None:
    assert host_processors(written(tmp_path, files)) == processors


def written(root: Path, files: Mapping[str, str]) -> Path:
    """The system's files below a folder."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root

"""Make lock files from requirements: names, versions and the SHA-256 of every build in the package index.

They contain no addresses, so they work with any mirror.
"""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.markers import Marker
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".venv" / "tools"
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt", "requirements-upscalers.txt")
LOCK, CUDA_LOCK, PROOF_LOCK, CONTAINER_LOCK = (
    ROOT / f"requirements{kind}.lock" for kind in ("", "-cuda", "-proof", "-container")
)
ELSEWHERE = {"torch": ["6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"]}
"""Builds that PyPI lacks: torch 2.13.0+cpu for Python 3.11 on Linux, x86_64, with the hash of our first copy."""
HEADERS = {
    LOCK: "Hashes of every package in requirements*.txt; script/setup installs nothing else. Made by script/lock.",
    PROOF_LOCK: "Hashes of every package in requirements-proof.txt. Made by script/lock.",
    CUDA_LOCK: "What the CUDA build of torch needs beside requirements.lock, on Linux. Made by script/lock.",
    CONTAINER_LOCK: "What cog.yaml installs. docs/container.md says why a space is before each ==. By script/lock.",
}
BY_COG = {"cog", "coglet"}
"""Cog removes these from the requirements and installs them itself."""
PLATFORM = {"python_full_version": "3.11.0", "sys_platform": "linux", "platform_machine": "x86_64"}
"""The container, in the terms of environment markers."""


def compiled(requirements: str, *options: str) -> dict[str, str]:
    """Return uv's lock entries by package name: `name==version ; marker \\` and a line for each hash."""
    command = [str(TOOLS / "bin" / "uv"), "pip", "compile", "-", "--generate-hashes", "--universal"]
    command += ["--python-version", "3.11", "--no-annotate", "--no-header", "--quiet", *options]
    text = subprocess.run(command, input=requirements, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return read_entries(text)


def read_entries(text: str) -> dict[str, str]:
    """Return the entries of a lock file, or of uv's output, by package name."""
    entries = [entry for entry in re.split(r"\n(?=\S)", text.strip()) if not entry.startswith("#")]
    return {entry.partition("==")[0]: entry for entry in entries}


def with_hashes(entry: str, more: Iterable[str]) -> str:
    return entry + "".join(f" \\\n    --hash=sha256:{each}" for each in more)


def container_entries(ours: dict[str, str], cuda: dict[str, str]) -> dict[str, str]:
    """Return lock entries for the container: the packages of requirements.txt and what torch's CUDA build needs.

    Cog drops the hashes of a line that reads `name==version`, but copies a line that reads `name ==version` as it is.
    """
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    chosen = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line} - BY_COG
    entries = {name: ours[name] for name in chosen} | {name: entry for name, entry in cuda.items() if applies(entry)}
    return {name: with_space(entry) for name, entry in entries.items()}


def with_space(entry: str) -> str:
    """Return the entry as `name ==version` without its marker and without hashes of builds that PyPI does not have."""
    name, version = entry.split()[0].split("==")
    hashes = re.findall(r"--hash=sha256:(\S+)", entry)
    return with_hashes(f"{name} =={version}", [each for each in hashes if each not in ELSEWHERE.get(name, [])])


def applies(entry: str) -> bool:
    """Return whether the container's platform needs this package of the CUDA lock."""
    marker = re.match(r"\S+ ; (.+) \\\n", entry)
    return marker is None or Marker(marker[1]).evaluate(PLATFORM)


def write(path: Path, entries: dict[str, str]) -> None:
    body = "\n".join(entries[name] for name in sorted(entries))
    path.write_text(f"# {HEADERS[path]}\n{body}\n")
    print(f"{path.name}: {len(entries)} packages, {body.count('--hash')} hashes")


def main() -> None:
    python = [sys.executable, "-m"]
    subprocess.run([*python, "venv", str(TOOLS)], check=True)
    pip = [str(TOOLS / "bin" / "pip"), "install", "--quiet", "-r", str(ROOT / "requirements-tools.txt")]
    subprocess.run(pip, check=True)
    pins = "\n".join((ROOT / name).read_text() for name in REQUIREMENTS)
    ours = compiled(pins, "--no-deps")
    ours |= {name: with_hashes(ours[name], hashes) for name, hashes in ELSEWHERE.items()}
    write(LOCK, ours)
    write(PROOF_LOCK, compiled((ROOT / "requirements-proof.txt").read_text(), "--no-deps"))
    torch = compiled(next(line for line in pins.splitlines() if line.startswith("torch==")))
    cuda = {name: entry for name, entry in torch.items() if name not in ours}
    write(CUDA_LOCK, cuda)
    write(CONTAINER_LOCK, container_entries(ours, cuda))


if __name__ == "__main__":
    main()

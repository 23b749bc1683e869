"""Requirements -> lock files: names, versions and the SHA-256 of every build that the package index has of them.

No addresses are in them: they hold on any mirror.
"""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".venv" / "tools"
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt", "requirements-upscalers.txt")
LOCK, CUDA_LOCK, PROOF_LOCK = (ROOT / f"requirements{kind}.lock" for kind in ("", "-cuda", "-proof"))
ELSEWHERE = {"torch": ["6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"]}
"""Builds that PyPI does not have: torch 2.13.0+cpu for Python 3.11 on Linux, x86_64, as it was first met."""
HEADERS = {
    LOCK: "Hashes of every package in requirements*.txt; script/setup installs nothing else. Made by script/lock.",
    PROOF_LOCK: "Hashes of every package in requirements-proof.txt. Made by script/lock.",
    CUDA_LOCK: "What the CUDA build of torch needs beside requirements.lock, on Linux. Made by script/lock.",
}


def compiled(requirements: str, *options: str) -> dict[str, str]:
    """uv's lock entries by package name: `name==version ; marker \\` and a line for each hash."""
    command = [str(TOOLS / "bin" / "uv"), "pip", "compile", "-", "--generate-hashes", "--universal"]
    command += ["--python-version", "3.11", "--no-annotate", "--no-header", "--quiet", *options]
    text = subprocess.run(command, input=requirements, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return {entry.partition("==")[0]: entry for entry in re.split(r"\n(?=\S)", text.strip())}


def with_hashes(entry: str, more: Iterable[str]) -> str:
    return entry + "".join(f" \\\n    --hash=sha256:{each}" for each in more)


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
    write(CUDA_LOCK, {name: entry for name, entry in torch.items() if name not in ours})


if __name__ == "__main__":
    main()

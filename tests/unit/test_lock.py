"""The lock files hold exactly what the requirements ask for: names, versions, hashes, and no address of any index."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt", "requirements-upscalers.txt")
LOCKS = ("requirements.lock", "requirements-cuda.lock", "requirements-proof.lock")


def pins(name: str) -> dict[str, str]:
    """Versions by normalised package name."""
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / name).read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in found}


def test_every_requirement_is_locked_at_its_version_and_nothing_else() -> None:
    asked = {package: version for name in REQUIREMENTS for package, version in pins(name).items()}
    assert pins("requirements.lock") == asked, "run script/lock"


def test_what_the_proof_compares_with_is_locked_at_its_version() -> None:
    assert pins("requirements-proof.lock") == pins("requirements-proof.txt"), "run script/lock"


def test_the_cuda_lock_has_only_what_torch_brings_along() -> None:
    extra = pins("requirements-cuda.lock")
    assert "nvidia-cudnn-cu13" in extra
    assert not extra.keys() & pins("requirements.lock").keys()


@pytest.mark.parametrize("name", LOCKS)
def test_every_entry_has_hashes_and_no_address(name: str) -> None:
    entries = re.split(r"\n(?=[^\s#])", (ROOT / name).read_text().partition("\n")[2])
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)
    assert not re.search(r"://|--index|--find-links", "".join(entries))


@pytest.mark.parametrize("name", [*REQUIREMENTS, "requirements-tools.txt", "requirements-proof.txt"])
def test_every_chosen_package_says_why_it_is_here(name: str) -> None:
    chosen = (ROOT / name).read_text().partition("# What the packages above need.")[0]
    lines = [line for line in chosen.splitlines() if re.match(r"\w", line)]
    assert lines
    assert [line for line in lines if "  # " not in line] == []

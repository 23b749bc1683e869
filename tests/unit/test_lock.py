"""The lock files contain exactly what the requirements ask for: names, versions, hashes, and no index address."""

import re

import pytest

from script.lock import CONTAINER_LOCK, CUDA_LOCK, LOCK, PROOF_LOCK, REQUIREMENTS, ROOT, container_entries, read_entries

LOCKS = tuple(path.name for path in (LOCK, CUDA_LOCK, CONTAINER_LOCK, PROOF_LOCK))


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


def test_the_container_installs_the_locked_builds() -> None:
    ours, cuda = (read_entries(path.read_text()) for path in (LOCK, CUDA_LOCK))
    written = "\n".join(entry for _, entry in sorted(container_entries(ours, cuda).items()))
    assert CONTAINER_LOCK.read_text().partition("\n")[2] == written + "\n", "run script/lock"


def test_cog_copies_every_line_of_the_containers_lock_as_it_is() -> None:
    """Cog's rules, from its Go source: pkg/requirements/requirements.go and pkg/config/config.go."""
    lines = CONTAINER_LOCK.read_text().partition("\n")[2].replace("\\\n", "").splitlines()
    rewritten = re.compile(r"[a-zA-Z0-9\-_]+==[^ ]+|--find-links=\S+|-f\s+\S+|--extra-index-url=\S+")
    assert [line for line in lines if rewritten.search(line) or "#" in line] == []
    versions = {re.match(r"[\w.-]+", line)[0]: re.search(r"[<>=!~]=?\s*([^\s,;|]+)", line)[1] for line in lines}
    assert versions["torch"] == pins("requirements.txt")["torch"], "Cog chooses the base image by it"
    assert not versions.keys() & {"cog", "coglet"}, "Cog strikes them out with a warning"


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

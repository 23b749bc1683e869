"""Claims on files of a shared cache: whoever fetches or deletes one has it alone, and whoever uses one keeps it.

A claim is a lock of the kernel's on a file of its own (flock), which is free again when its process ends, however that
happens. The lock's file is deleted with the last claim, so that claims leave nothing behind.
"""

import fcntl
import hashlib
import os
from pathlib import Path

from pipelines.runtime.worker import pause

FOLDER = "claims"


class Claim:
    """A claim on one entry of a cache folder; to be released."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def release(self) -> None:
        """Give the claim up. Safe to call twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody else has a claim
            self._path.unlink(missing_ok=True)
        except OSError:
            pass  # another process has one, and deletes the file
        os.close(descriptor)

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


POLL_SECONDS = 0.1


def wait_for_claim(cache: Path, key: str, *, alone: bool = False) -> Claim:
    """A claim that is waited for. Raises Stopped where this thread's work is told to stop, and OSError."""
    while (held := claim(cache, key, alone=alone)) is None:
        pause(POLL_SECONDS)
    return held


def claim(cache: Path, key: str, *, alone: bool = False) -> Claim | None:
    """A claim on the entry `key`, `alone` or shared with others; None where it cannot be had without waiting.

    Raises OSError where the cache cannot be written.
    """
    folder = cache / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
    mode = (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, mode)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if _is_still(path, descriptor):
            return Claim(path, descriptor)
        os.close(descriptor)  # it was deleted while we waited: the claim would be on nothing


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False

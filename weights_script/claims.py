"""Claims on files of a shared cache: a process that fetches or deletes a file has it alone; one that uses it keeps it.

A claim is a kernel lock (flock) on a file of its own. It is released when its process ends, for whatever reason. The
lock file is deleted with the last claim, so claims leave nothing behind.
"""

import fcntl
import hashlib
import os
from pathlib import Path

from pipelines.runtime.worker import pause

FOLDER = "claims"


class Claim:
    """A claim on one entry of a cache folder; release it when done."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def release(self) -> None:
        """Give up the claim. Calling this twice is safe."""
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
    """Wait for a claim and return it. Raises Stopped if this thread's work is asked to stop, and OSError."""
    while (held := claim(cache, key, alone=alone)) is None:
        pause(POLL_SECONDS)
    return held


def claim(cache: Path, key: str, *, alone: bool = False) -> Claim | None:
    """Return a claim on the entry `key`, `alone` or shared with others; None if another process has it.

    Raises OSError if the cache cannot be written.
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
        os.close(descriptor)  # the file was deleted meanwhile, so the claim would be on nothing


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False

"""Download one URL to one file. A download resumes after a cut, retries, and is checked while it streams.

The file gets its final name only when it is complete and correct. This is our own code because the Hub's client
compares sizes but not hashes on its plain path, uses several connections only for files in the Hub's chunk store
(hf_xet), and has no mirrors.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from pipelines.errors import ModelError
from weights_script.segments import Segments
from weights_script.web import (
    CHUNK,
    OPEN,
    PATIENCE,
    Access,
    Interrupted,
    Patience,
    RangeRefused,
    SourceFailed,
    accepts_ranges,
    ask,
    patiently,
    range_start,
    read_chunks,
    refuse_pages,
    shows_its_end,
    stated_length,
    version_of,
)

log = logging.getLogger(__name__)

ROOM_TO_SPARE = 16 << 20
"""Bytes that a download leaves free on the disk."""
LARGE = 128 << 20
"""Remaining bytes from which several connections are worth opening."""
LONGEST_TEXT = 16 << 20
PAGES = (b"<!doctype", b"<html", b"<?xml", b"version https://git-lfs")
"""Beginnings of files that are not weights: web pages, error documents, Git LFS pointers."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What is known about a file before it is fetched."""

    size: int | None = None
    sha256: str = ""
    """All digits or the first ones; empty if unknown."""
    at_most: int | None = None
    """The most bytes to accept if the size is unknown."""
    use: str = ""
    """What the weights are for, in the terms used for uploads (`loras`, `controls`); empty for any kind."""

    def problem(self, size: int, sha256: str) -> str:
        """Say what is wrong with a file of this size and hash; empty if nothing is."""
        if self.size is not None and size != self.size:
            return f"wrong length: {size} bytes, expected {self.size}"
        if not sha256.startswith(self.sha256):
            return f"wrong bytes: SHA-256 {sha256}, expected {self.sha256}"
        return ""


class Digest(Protocol):
    """A running hash with hashlib's interface."""

    def update(self, data: bytes | bytearray, /) -> None: ...
    def hexdigest(self) -> str: ...


class NoRoom(ModelError):
    """The disk is full, so another source would not help."""


def download(
    url: str, target: Path, expected: Expected, *, access: Access = OPEN, patience: Patience = PATIENCE
) -> str:
    """Fetch the URL to `target` and return its SHA-256. The caller makes sure that no other process does the same.

    Until it is complete, the file is in `target` + ".part", where the next try or the next run continues.
    Raises SourceFailed or NoRoom.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    job = _Job(url=url, part=Part(target), expected=expected, access=access, patience=patience)
    return patiently(job.attempt, patience, lambda: job.part.size)


def read_text(url: str, *, access: Access = OPEN, patience: Patience = PATIENCE) -> str:
    """Return a small document, such as a repository's listing, with the same retries. Raises SourceFailed."""

    def attempt() -> str:
        with ask(url, {}, access, patience.timeout) as response:
            return b"".join(read_chunks(response, patience, LONGEST_TEXT)).decode(errors="replace")

    return patiently(attempt, patience, lambda: 0)


class Part:
    """The beginning of a file, kept next to its final place, with a note of the version it belongs to."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self) -> str:
        """Return the ETag or date of the version that the part belongs to; empty if unknown."""
        try:
            return str(json.loads(self.note.read_text())["version"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def remember(self, version: str) -> None:
        self.note.write_text(json.dumps({"version": version}))

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def finish(self) -> None:
        self.path.replace(self.target)
        self.note.unlink(missing_ok=True)

    def hash_of(self, length: int) -> Digest:
        """Return a SHA-256 that has been fed the first `length` bytes."""
        digest = hashlib.sha256()
        if length:
            with self.path.open("rb") as file:
                while length and (chunk := file.read(min(CHUNK, length))):
                    digest.update(chunk)
                    length -= len(chunk)
        return digest

    def wrong_kind(self) -> str:
        """Say what the file is if its first bytes are not those of a weight file; empty otherwise."""
        with self.path.open("rb") as file:
            beginning = file.read(64).lstrip().lower()
        if not beginning:
            return "sent an empty file"
        return "sent a web page or a pointer instead of the file" if beginning.startswith(PAGES) else ""


@dataclass(kw_only=True)
class _Job:
    url: str
    part: Part
    expected: Expected
    access: Access
    patience: Patience
    pieced: bool = False
    """Whether the part consists of more than one answer."""
    one_connection: bool = False
    """Whether several connections were tried and failed."""

    def attempt(self) -> str:
        """Continue where the part ends. Return the SHA-256 of the finished file."""
        # Only continue a part if both pieces certainly belong to the same file: either the server says so (If-Range),
        # or the hash of the whole file will show it.
        kept = self.part.size if self.part.version() or self.expected.sha256 else 0
        whole = kept > 0 and kept == self.expected.size
        self.pieced = kept > 0
        sha256 = self.part.hash_of(kept).hexdigest() if whole else self.receive(kept)
        problem = self.expected.problem(self.part.size, sha256) or self.part.wrong_kind()
        if problem:
            self.part.discard()
            # One of several pieces may be bad: try once more from the start, in one piece.
            self.one_connection = True
            raise (Interrupted if self.pieced else SourceFailed)(problem)
        self.part.finish()
        return sha256

    def receive(self, kept: int) -> str:
        """Write what the server sends to the part. Return the SHA-256 of the whole file."""
        headers = {"Range": f"bytes={kept}-"} if kept else {}
        if kept and self.part.version():
            headers["If-Range"] = self.part.version()
        try:
            with ask(self.url, headers, self.access, self.patience.timeout) as response:
                return self.take(response, kept)
        except RangeRefused:
            self.part.discard()
            raise Interrupted("the server refused to continue; starting again") from None

    def take(self, response: HTTPResponse, kept: int) -> str:
        refuse_pages(response)
        offset = self.agreed_offset(response, kept)
        body = stated_length(response)
        length = self.expected.size if body is None else offset + body
        if self.expected.size not in (None, length):
            raise SourceFailed(f"wrong length: {length} bytes, expected {self.expected.size}")
        if length is None and not self.expected.sha256 and not shows_its_end(response):
            raise SourceFailed("states no length, and no size or hash is known, so a cut file would go unnoticed")
        if self.expected.at_most is not None and (length or 0) > self.expected.at_most:
            raise SourceFailed(f"too large: {amount(length or 0)}, at most {amount(self.expected.at_most)} are taken")
        _need_room(self.part.target, (length or 0) - offset)
        sha256 = self.write(response, offset, length)
        if length is not None and self.part.size < length:
            raise Interrupted(f"cut after {self.part.size} of {length} bytes")
        return sha256

    def agreed_offset(self, response: HTTPResponse, kept: int) -> int:
        """Return where the answer's bytes belong: after the kept part if the server continues it, else at the start."""
        offset = range_start(response)
        if offset not in (0, kept):
            raise SourceFailed(f"sent another range than requested ({response.headers.get('Content-Range')})")
        if offset and self.part.version() not in ("", version_of(response)):
            self.part.discard()
            raise Interrupted("the file changed since the last try; starting again")
        return offset

    def write(self, response: HTTPResponse, offset: int, length: int | None) -> str:
        digest = self.part.hash_of(offset)
        try:
            with (
                self.part.path.open("r+b" if offset else "wb") as file,
                closing(_Progress(self.part.target.name, offset, length)) as progress,
                closing(self.chunks(response, offset, length)) as chunks,
            ):
                file.seek(offset)
                file.truncate()
                self.part.remember(version_of(response))  # only now: the old content may be of another version
                for chunk in chunks:
                    file.write(chunk)
                    digest.update(chunk)
                    progress.add(len(chunk))
                file.flush()
                os.fsync(file.fileno())  # otherwise the rename could reach the disk before the content
        except OSError as error:
            raise _cannot_write(self.part.target, error) from error
        return digest.hexdigest()

    def chunks(self, response: HTTPResponse, offset: int, length: int | None) -> Generator[bytes | bytearray]:
        """Yield the answer's body. For a large file of a known version, leave it unread and yield segments instead."""
        version = version_of(response) if accepts_ranges(response) else ""
        if length is None or length - offset < LARGE or not version or self.one_connection:
            yield from read_chunks(
                response, self.patience, self.expected.at_most if length is None else length - offset
            )
            return
        response.close()
        self.pieced = True
        rest = Segments(
            url=self.url, access=self.access, version=version, start=offset, end=length, patience=self.patience
        )
        try:
            with closing(rest.in_order()) as segments:
                yield from segments
        except SourceFailed as failure:
            self.one_connection = True
            raise Interrupted(f"{failure}; continuing with one connection") from failure


def _cannot_write(target: Path, error: OSError) -> ModelError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoRoom(f"{target}: the disk is full. Free some space and run again: it continues from there.")
    return ModelError(f"{target}: cannot be written ({error.strerror}).")


def _need_room(target: Path, more: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if more > 0 and free < more + ROOM_TO_SPARE:
        raise NoRoom(f"{target}: needs {amount(more)} more on this disk, {amount(free)} are free.")


def amount(size: float) -> str:
    """Format a number of bytes for people: 2.13 GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} bytes"


class _Progress:
    """A bar on a terminal, otherwise a log line every few seconds, because container logs cannot show a bar."""

    SECONDS = 5.0

    def __init__(self, name: str, done: int, total: int | None) -> None:
        self.name, self.done, self.total, self.first = name, done, total, done
        self.started = self.said = time.monotonic()
        log.info("%s: fetching%s", name, f", {amount(done)} already here" if done else "")
        self.bar = tqdm(desc=name, initial=done, total=total, unit="B", unit_scale=True, disable=None)

    def add(self, size: int) -> None:
        self.done += size
        self.bar.update(size)
        now = time.monotonic()
        if self.bar.disable and now - self.said >= self.SECONDS:
            self.said = now
            rate = (self.done - self.first) / (now - self.started)
            share = f"{self.done / self.total:.0%} of {amount(self.total)}" if self.total else amount(self.done)
            log.info("%s: %s, %s/s", self.name, share, amount(rate))

    def close(self) -> None:
        self.bar.close()

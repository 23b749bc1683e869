"""One URL -> one file: resumed after a cut, retried, checked while it streams, renamed only when it is whole and right.

Own code: the Hub's client compares sizes but no hashes on its plain path, has several connections only for what the Hub
itself keeps in its chunk store (hf_xet), and knows no mirrors.
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
"""Bytes still to come from which on several connections are worth their start."""
LONGEST_TEXT = 16 << 20
PAGES = (b"<!doctype", b"<html", b"<?xml", b"version https://git-lfs")
"""How files begin that are no weights: web pages, error documents, pointers of Git's large file storage."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What is known of a file before it is fetched."""

    size: int | None = None
    sha256: str = ""
    """All digits or the first ones; empty when nothing is known."""
    at_most: int | None = None
    """Bytes that may come where no size is known."""
    use: str = ""
    """What the weights are for, as uploads are told apart (`loras`, `controls`); empty for weights of any kind."""

    def problem(self, size: int, sha256: str) -> str:
        """What is wrong with a file of this size and hash; empty when nothing is."""
        if self.size is not None and size != self.size:
            return f"wrong length: {size} bytes, expected {self.size}"
        if not sha256.startswith(self.sha256):
            return f"wrong bytes: SHA-256 {sha256}, expected {self.sha256}"
        return ""


class Digest(Protocol):
    """A hash being fed, as hashlib's are."""

    def update(self, data: bytes | bytearray, /) -> None: ...
    def hexdigest(self) -> str: ...


class NoRoom(ModelError):
    """The disk is full, so no other source would help."""


def download(
    url: str, target: Path, expected: Expected, *, access: Access = OPEN, patience: Patience = PATIENCE
) -> str:
    """Fetch the URL to `target` and return its SHA-256. The caller sees to it that no other process does the same.

    Until then the bytes lie in `target` + ".part", from where the next try or the next run goes on.
    Raises SourceFailed, or NoRoom.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    job = _Job(url=url, part=_Part(target), expected=expected, access=access, patience=patience)
    return patiently(job.attempt, patience, lambda: job.part.size)


def read_text(url: str, *, access: Access = OPEN, patience: Patience = PATIENCE) -> str:
    """A small document, such as a repository's listing, with the same retries. Raises SourceFailed."""

    def attempt() -> str:
        with ask(url, {}, access, patience.timeout) as response:
            return b"".join(read_chunks(response, patience, LONGEST_TEXT)).decode(errors="replace")

    return patiently(attempt, patience, lambda: 0)


class _Part:
    """The beginning of a file, kept beside its final place, with a note of which version it is of."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self) -> str:
        """ETag or date of the version that the part is of; empty when unknown."""
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
        """A SHA-256 that has taken in the first `length` bytes."""
        digest = hashlib.sha256()
        if length:
            with self.path.open("rb") as file:
                while length and (chunk := file.read(min(CHUNK, length))):
                    digest.update(chunk)
                    length -= len(chunk)
        return digest

    def wrong_kind(self) -> str:
        """Says so when the content is no weight file by its first bytes."""
        with self.path.open("rb") as file:
            beginning = file.read(64).lstrip().lower()
        if not beginning:
            return "sent an empty file"
        return "sent a web page or a pointer instead of the file" if beginning.startswith(PAGES) else ""


@dataclass(kw_only=True)
class _Job:
    url: str
    part: _Part
    expected: Expected
    access: Access
    patience: Patience
    pieced: bool = False
    """What lies in the part came in more than one answer."""
    one_connection: bool = False
    """Several were tried, and did not work out."""

    def attempt(self) -> str:
        """Fetch from where the part ends. Returns the SHA-256 of the finished file."""
        # A part is only continued when both pieces are sure to be of one file: the server says so (If-Range), or the
        # hash of the whole will tell.
        kept = self.part.size if self.part.version() or self.expected.sha256 else 0
        whole = kept > 0 and kept == self.expected.size
        self.pieced = kept > 0
        sha256 = self.part.hash_of(kept).hexdigest() if whole else self.receive(kept)
        problem = self.expected.problem(self.part.size, sha256) or self.part.wrong_kind()
        if problem:
            self.part.discard()
            # One of several pieces may be the bad one: then once more from the start, as one.
            self.one_connection = True
            raise (Interrupted if self.pieced else SourceFailed)(problem)
        self.part.finish()
        return sha256

    def receive(self, kept: int) -> str:
        """Take what the server sends into the part; returns the SHA-256 of all of it."""
        headers = {"Range": f"bytes={kept}-"} if kept else {}
        if kept and self.part.version():
            headers["If-Range"] = self.part.version()
        try:
            with ask(self.url, headers, self.access, self.patience.timeout) as response:
                return self.take(response, kept)
        except RangeRefused:
            self.part.discard()
            raise Interrupted("the server refused to go on; starting again") from None

    def take(self, response: HTTPResponse, kept: int) -> str:
        refuse_pages(response)
        offset = self.agreed_offset(response, kept)
        body = stated_length(response)
        length = self.expected.size if body is None else offset + body
        if self.expected.size not in (None, length):
            raise SourceFailed(f"wrong length: {length} bytes, expected {self.expected.size}")
        if length is None and not self.expected.sha256 and not shows_its_end(response):
            raise SourceFailed("states no length, and no size or hash is known: a cut file could not be told")
        if self.expected.at_most is not None and (length or 0) > self.expected.at_most:
            raise SourceFailed(f"too large: {amount(length or 0)}, at most {amount(self.expected.at_most)} are taken")
        _need_room(self.part.target, (length or 0) - offset)
        sha256 = self.write(response, offset, length)
        if length is not None and self.part.size < length:
            raise Interrupted(f"cut after {self.part.size} of {length} bytes")
        return sha256

    def agreed_offset(self, response: HTTPResponse, kept: int) -> int:
        """Where the answer's bytes belong: after the kept part if the server goes on there, else at the start."""
        offset = range_start(response)
        if offset not in (0, kept):
            raise SourceFailed(f"sent another range than asked for ({response.headers.get('Content-Range')})")
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
                self.part.remember(version_of(response))  # now: what was there before may be of another version
                for chunk in chunks:
                    file.write(chunk)
                    digest.update(chunk)
                    progress.add(len(chunk))
                file.flush()
                os.fsync(file.fileno())  # so that the rename cannot outlive the content
        except OSError as error:
            raise _cannot_write(self.part.target, error) from error
        return digest.hexdigest()

    def chunks(self, response: HTTPResponse, offset: int, length: int | None) -> Generator[bytes | bytearray]:
        """The answer's body; for a large file of a known version it is left unread, and segments come instead."""
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
            raise Interrupted(f"{failure}; going on with one connection") from failure


def _cannot_write(target: Path, error: OSError) -> ModelError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoRoom(f"{target}: the disk is full. Free some room and run again: it goes on from there.")
    return ModelError(f"{target}: cannot be written ({error.strerror}).")


def _need_room(target: Path, more: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if more > 0 and free < more + ROOM_TO_SPARE:
        raise NoRoom(f"{target}: needs {amount(more)} more on this disk, {amount(free)} are free.")


def amount(size: float) -> str:
    """Bytes for people: 2.13 GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} bytes"


class _Progress:
    """A bar on a terminal, else a log line every few seconds: in a container's log a bar would not survive."""

    SECONDS = 5.0

    def __init__(self, name: str, done: int, total: int | None) -> None:
        self.name, self.done, self.total, self.first = name, done, total, done
        self.started = self.said = time.monotonic()
        log.info("%s: fetching%s", name, f", {amount(done)} are here already" if done else "")
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

"""LRU cache of files that requests name. They are downloaded anonymously, and their total size is limited."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.errors import NAME_MAX, shown
from pipelines.runtime.worker import Stopped
from weights_script import hub
from weights_script.claims import Claim, claim, wait_for_claim
from weights_script.download import Expected, NoRoom, read_text
from weights_script.fetch import fetch_url, refuse_offline, url_key
from weights_script.ledger import Ledger
from weights_script.room import room
from weights_script.web import PATIENCE, Access, Refused, SourceFailed

FETCHED = "fetched"
"""The shelf's folder in the cache."""
LARGEST = 2 << 30
"""Most bytes of one file; a LoRA of every layer at full rank is smaller."""
FOLDERS_MAX = 1000
"""Most files and listing answers that are kept, however small they are."""
PARTS = (".part", ".part.json")
PART_SECONDS = 24 * 3600
"""How long a partial download is kept, so that a fetch of the same address can continue it."""
HURRY = replace(PATIENCE, tries=1, connects=1, timeout=5.0)
"""For a server whose previous answer is on record."""


class Shelf:
    """The shelf of one request. Files that it used are kept until it is closed, by this process and by others.

    Each file, and each answer of a listing, has a folder of its own, whose modification time is its last use.
    """

    def __init__(self, cache: Path) -> None:
        """Raises ModelError: the setting of its size cannot be read."""
        self._folder = cache / FETCHED
        self._room = room()
        self._used: dict[str, Claim] = {}
        self._closed = False

    def close(self) -> None:
        """Release the files that were used, and any that still arrive."""
        self._closed = True
        for held in self._used.values():
            held.release()
        self._used.clear()

    def fetch(self, url: str, use: str = "") -> Path:
        """Return the file of an address, for a use (`Expected.use`).

        Raises SourceFailed, also if there is no room for the file, and other ModelErrors.
        """
        key = url_key(url)
        left = max(0, min(LARGEST, self._room - sum(_size(self._folder / used) for used in self._used)))
        self._make_room(left if not (self._folder / key).is_dir() else 0)
        others = (folder for folder in self._by_age() if folder != self._folder / key)
        left = max(0, min(left, self._room - sum(map(_size, others))))  # other processes also keep what they use
        fetch = partial(fetch_url, url, self._folder, Expected(at_most=left, use=use), access=_access(url))
        try:
            path = fetch()
        except NoRoom:
            if not self._make_room(self._room):
                raise
            path = fetch()
        self._hold(key)
        while not path.is_file():  # another process deleted it before we held it
            self._used.pop(key).release()  # a fetch needs the folder alone
            path = fetch()
            self._hold(key)
        with suppress(OSError):
            os.utime(path.parent)  # not the file: its time helps to identify it
        return path

    def _hold(self, key: str) -> None:
        if key not in self._used:
            self._used[key] = wait_for_claim(self._folder, key)
        if self._closed:  # the request was cancelled meanwhile
            self.close()
            raise Stopped

    def listed(self, url: str, pick: Callable[[Any], str]) -> str:
        """Return what `pick` takes from a listing's JSON; if the server cannot be reached, what it took last time.

        Raises SourceFailed.
        """
        note = self._folder / url_key(url) / "picked"
        known = note.read_text() if note.is_file() else ""
        try:
            refuse_offline()
            text = read_text(url, access=_access(url), patience=HURRY if known else PATIENCE)
        except SourceFailed as failure:
            if isinstance(failure, Refused) or not known:
                raise
        else:
            known = _picked(text, pick)
        self._make_room(0)
        with suppress(OSError):  # if the cache cannot be written, fetching the file reports it
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(known)
            os.utime(note.parent)
        return known

    def _make_room(self, more: int) -> bool:
        """Delete old partial downloads and the least recently used files until `more` bytes fit.
        Return whether anything was deleted.

        Keep what this request uses, and what another process fetches or uses.
        """
        folders = list(self._by_age())
        total, count, gone = sum(_size(folder) for folder in folders), len(folders), 0
        for folder in folders:
            if total + more <= self._room and count < FOLDERS_MAX and not _is_abandoned(folder):
                continue
            key = folder.relative_to(self._folder).as_posix()
            held = None if key in self._used else claim(self._folder, key, alone=True)
            if held is None:
                continue
            with held:
                total, count, gone = total - _size(folder), count - 1, gone + 1
                shutil.rmtree(folder, ignore_errors=True)
        if gone:
            Ledger(self._folder).forget_missing()
        return gone > 0

    def _by_age(self) -> Iterator[Path]:
        """Yield the folders, the least recently used first."""
        ages = []
        for folder in self._folder.glob("urls/*"):
            with suppress(FileNotFoundError):  # another process deleted it
                ages.append((folder.stat().st_mtime, folder))
        yield from (folder for _, folder in sorted(ages))


def _picked(text: str, pick: Callable[[Any], str]) -> str:
    """Return what `pick` takes from a listing. Raises SourceFailed for an answer that is not a listing."""
    try:
        listing = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also for a number of 10,000 digits
        raise SourceFailed("did not answer with a listing") from error
    try:
        picked = pick(listing)
    except (LookupError, TypeError, AttributeError) as error:
        raise SourceFailed("did not answer with a listing") from error
    if len(picked) > 2 * NAME_MAX or shown(picked) != picked:
        raise SourceFailed("answered with a listing whose names cannot be used")
    return picked


def _is_abandoned(folder: Path) -> bool:
    """Return whether a fetch into this folder was given up: it has at most a part, and nothing arrived for a day."""
    newest = 0.0
    with suppress(OSError):  # another process deletes it
        for path in folder.iterdir():
            if not path.name.endswith(PARTS):
                return False
            newest = max(newest, path.stat().st_mtime)
        newest = max(newest, folder.stat().st_mtime)
    return newest < time.time() - PART_SECONDS


def _size(folder: Path) -> int:
    """Return the bytes of a folder's files. Another process may delete them meanwhile."""
    total = 0
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                total += path.stat().st_size
    return total


def _access(url: str) -> Access:
    """Return the access for an address that a stranger names: public hosts, and the operator's Hub mirror.

    The operator's token is only sent if it is shared: with it, a request can read the operator's private files.
    """
    token = hub.token_for(url) if os.environ.get("PASTEL_SHARE_TOKEN") == "1" else ""
    return Access(token=token, public=True, own=os.environ.get("HF_ENDPOINT", ""))

"""What requests brought: fetched as anybody may, kept within a bound, the least recently used forgotten first."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from weights_script import hub
from weights_script.download import read_text
from weights_script.fetch import fetch_url, refuse_offline
from weights_script.ledger import Ledger
from weights_script.web import PATIENCE, Refused, SourceFailed

FETCHED = "fetched"
"""The shelf's folder in the cache."""
LARGEST = 2 << 30
"""Bytes of one file: a LoRA of every layer at full rank has less."""
ROOM = 16 << 30
"""Bytes of all files. The manifest's own ControlNets lie elsewhere and do not count: no request can add one to them."""
HURRY = replace(PATIENCE, tries=1, connects=1, timeout=5.0)
"""With a server whose answer is known from before."""


class Shelf:
    """The shelf of one request: what it used stays until its end.

    Each file, and each answer of a listing, lies in a folder of its own, whose time is when it was last used.
    """

    def __init__(self, cache: Path) -> None:
        self._folder = cache / FETCHED
        self._used: set[Path] = set()

    def fetch(self, url: str) -> Path:
        """The file at an address. Raises SourceFailed, also for more than there is room, and other ModelErrors."""
        room = ROOM - sum(path.stat().st_size for path in self._used)
        path = fetch_url(url, self._folder, at_most=max(0, min(LARGEST, room)), token=_token(url))
        self._used.add(path)
        os.utime(path.parent)  # not the file, whose time is a part of what it is known by
        with suppress(FileNotFoundError):  # another container is at it: the next file bounds it again
            self._forget_old()
        return path

    def listed(self, url: str, pick: Callable[[Any], str]) -> str:
        """What `pick` takes of a listing's JSON; what it took the last time, where the server cannot be reached.

        Raises SourceFailed.
        """
        note = self._folder / "urls" / hashlib.sha256(url.encode()).hexdigest()[:16] / "picked"
        known = note.read_text() if note.is_file() else ""
        try:
            refuse_offline()
            text = read_text(url, token=_token(url), patience=HURRY if known else PATIENCE)
        except SourceFailed as failure:
            if isinstance(failure, Refused) or not known:
                raise
        else:
            try:
                known = pick(json.loads(text))
            except (json.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
                raise SourceFailed("answered with something else than a listing") from error
        with suppress(OSError):  # a cache that cannot be written is told with the file
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(known)
            os.utime(note.parent)
        return known

    def _forget_old(self) -> None:
        """Remove what was not used for the longest time, until the rest has room."""
        kept = {path.parent for path in self._used}
        folders = sorted(self._folder.glob("urls/*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
        sizes = accumulate(sum(path.stat().st_size for path in folder.iterdir()) for folder in folders)
        old = [folder for folder, size in zip(folders, sizes, strict=True) if size > ROOM and folder not in kept]
        for folder in old:
            shutil.rmtree(folder, ignore_errors=True)
        if old:
            Ledger(self._folder).forget_missing()


def _token(url: str) -> str:
    """The operator's token, only where it is shared: with it a request sees what is private to the operator."""
    return hub.token_for(url) if os.environ.get("PASTEL_SHARE_TOKEN") == "1" else ""

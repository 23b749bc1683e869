"""Use several connections for one large file: fetch segments ahead and hand them over in the file's order.

A host often limits the speed of one connection. As segments come in order, the file still grows from its start: it is
hashed while it streams, and a partial file can always be continued.
"""

import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from itertools import islice

from weights_script.web import (
    Access,
    Interrupted,
    Patience,
    RangeRefused,
    SourceFailed,
    ask,
    patiently,
    range_start,
    read_chunks,
    refuse_pages,
    version_of,
)

SEGMENT = 16 << 20
CONNECTIONS = 8
"""Memory holds this many segments, plus the one that is being written."""


@dataclass(frozen=True, kw_only=True)
class Segments:
    """The rest of one version of a file, from byte `start` to `end`."""

    url: str
    """Requested again for every segment, even if it redirects to a signed address: such signatures expire."""
    access: Access
    version: str
    """Strong ETag or date."""
    start: int
    end: int
    patience: Patience
    stopped: threading.Event = field(default_factory=threading.Event)

    def in_order(self) -> Generator[bytearray]:
        """Yield one segment after another. Raises SourceFailed if one cannot be fetched or is of another version.

        Close the generator to stop the connections.
        """
        starts = iter(range(self.start, self.end, SEGMENT))
        ahead = deque(self.begin(start) for start in islice(starts, CONNECTIONS))
        try:
            while ahead:
                segment = ahead.popleft().result()
                ahead.extend(self.begin(start) for start in islice(starts, 1))
                yield segment
        finally:
            self.stopped.set()

    def begin(self, start: int) -> "Future[bytearray]":
        """Fetch in a daemon thread: an interrupted program waits for an executor's threads, but not for this one."""
        future: Future[bytearray] = Future()

        def run() -> None:
            try:
                future.set_result(self.fetch(start, min(start + SEGMENT, self.end)))
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future

    def fetch(self, start: int, end: int) -> bytearray:
        """Return the bytes from `start` up to but not including `end`. A cut keeps what has arrived."""
        got = bytearray()

        def attempt() -> None:
            headers = {"Range": f"bytes={start + len(got)}-{end - 1}", "If-Range": self.version}
            try:
                response = ask(self.url, headers, self.access, self.patience.timeout)
            except RangeRefused:
                raise SourceFailed("refused to send a part of the file") from None
            with response:
                refuse_pages(response)
                if range_start(response) != start + len(got) or version_of(response) != self.version:
                    raise SourceFailed("sent something other than the requested part of the file")
                for chunk in read_chunks(response, self.patience, end - start - len(got)):
                    got.extend(chunk)
                    self.pause(0)
            if len(got) < end - start:
                raise Interrupted(f"cut after {len(got)} of {end - start} bytes")

        patiently(attempt, self.patience, lambda: len(got), self.pause)
        return got

    def pause(self, seconds: float) -> None:
        if self.stopped.wait(seconds):
            raise CancelledError

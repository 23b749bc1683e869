"""`weights.lock.json` records size and hash of every fetched file and enforces them afterwards (trust on first use)."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from pipelines.errors import ModelError, redacted
from weights_script.download import Expected

NAME = "weights.lock.json"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One fetched file; `source` is its URL without secrets."""

    size: int
    sha256: str
    source: str


class Ledger:
    """The records of one cache folder. A key is a file's path inside it."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.path = cache / NAME

    def records(self) -> dict[str, Record]:
        """Return all records. Raises ModelError if the lock file is damaged: deleting it would drop its protection."""
        if not self.path.exists():
            return {}
        try:
            return {key: Record(**value) for key, value in json.loads(self.path.read_text()).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ModelError(f"{self.path}: damaged. Restore it, or delete it to trust the next fetch anew.") from error

    def get(self, key: str) -> Record | None:
        return self.records().get(key)

    def expectation(self, key: str, stated: Expected) -> Expected:
        """Return what a fetch must deliver: the manifest's values, completed by those of an earlier fetch."""
        record = self.get(key)
        if record is None or stated.problem(record.size, record.sha256):
            return stated
        return Expected(size=record.size, sha256=record.sha256)

    def vouches(self, key: str, stated: Expected) -> bool:
        """Return whether the file is here and is the expected one.

        A recorded file is trusted by its size (`verify` reads it again); a file without a record is read once.
        """
        try:
            return self._vouches(self.cache / key, key, stated)
        except FileNotFoundError:  # another process deleted it meanwhile
            return False

    def _vouches(self, path: Path, key: str, stated: Expected) -> bool:
        if not path.is_file():
            return False
        record = self.get(key)
        if record is None:
            digest = sha256_of(path)
            if stated.problem(path.stat().st_size, digest):
                return False
            record = self.add(key, digest, "found in the cache")
        return record.size == path.stat().st_size and not stated.problem(record.size, record.sha256)

    def add(self, key: str, sha256: str, source: str) -> Record:
        record = Record(size=(self.cache / key).stat().st_size, sha256=sha256, source=redacted(source))
        with self._alone():
            self._write(self.records() | {key: record})
        return record

    def forget_missing(self) -> None:
        """Drop the records of files that are gone, because their replacements may differ."""
        with self._alone():
            records = self.records()
            here = {key: record for key, record in records.items() if (self.cache / key).exists()}
            if here != records:
                self._write(here)

    def _alone(self) -> FileLock:
        return FileLock(self.path.with_name(f".{NAME}.lock"))

    def _write(self, records: dict[str, Record]) -> None:
        fresh = self.path.with_name(f"{NAME}.new")
        fresh.write_text(json.dumps({name: asdict(value) for name, value in sorted(records.items())}, indent=1))
        fresh.replace(self.path)


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

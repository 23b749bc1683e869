"""`weights.lock.json`: size and hash of every file that was fetched, enforced from then on (trust on first use)."""

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
        """Raises ModelError when the lock file is damaged: deleting it would give up what it enforces."""
        if not self.path.exists():
            return {}
        try:
            return {key: Record(**value) for key, value in json.loads(self.path.read_text()).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ModelError(f"{self.path}: damaged. Restore it, or delete it to trust the next fetch anew.") from error

    def get(self, key: str) -> Record | None:
        return self.records().get(key)

    def expectation(self, key: str, stated: Expected) -> Expected:
        """What a fetch must bring: the manifest's word, completed by what an earlier fetch found."""
        record = self.get(key)
        if record is None or stated.problem(record.size, record.sha256):
            return stated
        return Expected(size=record.size, sha256=record.sha256)

    def vouches(self, key: str, stated: Expected) -> bool:
        """Whether the file is there and is the one expected.

        A recorded file is trusted by its size, `verify` reads it again; one without a record is read once.
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
        """Drop the records of files that are not here any more: what is fetched in their place may be another."""
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

"""Unpacks ZIP and TAR archives of strangers: recognised by their content, counted while they are unpacked.

No file of an archive is written under its own name, so none can leave the folder. Links and devices are left out.
"""

import bz2
import gzip
import lzma
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

PIECE = 1 << 20
"""How many bytes are unpacked at a time, and the most that the headers of an entry of a TAR may take."""
COMMON_MAX = 100
"""How many headers a TAR may have for all its entries. Python copies them for each entry."""
DIRECTORY_MAX = 4 << 20
"""Limit for the bytes of a ZIP's directory, which Python reads as a whole. An entry takes about 100."""
_END, _END_SIZE, _COMMENT_MAX = b"PK\x05\x06", 22, 1 << 16
"""The record at the end of a ZIP, which says how large the directory is."""
_END_64, _LOCATOR_64, _ENDS_64_SIZE = b"PK\x06\x06", b"PK\x06\x07", 56 + 20
"""The record and the locator that a ZIP64 has before it, which count instead."""
_PACKED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open}
"""The first bytes of compressed TARs, and how they are opened. XZ is not among them: a file says how much memory its
unpacking takes, up to 4 GB, and Python's reader has no limit for it."""
_TAR_MARK, _TAR_MARK_AT = b"ustar", 257
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    IndexError,
    lzma.LZMAError,
    zlib.error,
    RecursionError,
    NotImplementedError,
)
"""What Python's readers raise for archives that are broken or of a rare form."""
_CLUTTER = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")
"""Names that file managers leave behind. `._name` is macOS's."""


@dataclass(frozen=True)
class Limits:
    """Limits for an archive: how many entries it has, and the unpacked bytes of one file and of all."""

    entries: int
    file: int
    total: int


@dataclass(frozen=True)
class Unpacked:
    """The files of an archive."""

    files: dict[str, Path]
    """By their names in the archive."""
    left_out: dict[str, str]
    """Names of entries that were not unpacked, and why."""


@dataclass(frozen=True)
class _Entry:
    """An entry of an archive. `problem` says why it is not read; `open` opens it."""

    name: str
    size: int
    problem: str
    open: Callable[[], BinaryIO]


def form_of(path: Path) -> str:
    """Return "zip" or "tar", compressed or not; an empty text for other files. Raises OSError."""
    with path.open("rb") as stream:
        return _kind(stream)


def unpack(path: Path, folder: Path, limits: Limits, wanted: Callable[[str], bool] = lambda name: True) -> Unpacked:
    """Unpack the wanted files into the folder, under numbers. What file managers leave behind is skipped.

    `wanted` gets a file's name in the archive. Raises ValueError if the file is not an archive, or exceeds a limit.
    """
    found = Unpacked({}, {})
    total = 0
    try:
        with path.open("rb") as stream, _opened(stream) as entries:
            for number, entry in enumerate(entries):
                if number >= limits.entries:
                    raise ValueError(f"it has more than {limits.entries:,} entries")
                total += entry.size
                if total > limits.total:  # also for what is skipped: a TAR is unpacked up to its next entry
                    raise ValueError(f"it unpacks to more than {limits.total // 1_000_000:,} MB")
                _take(entry, folder / f"{number:05}", limits, wanted, found)
    except _BROKEN as error:
        raise ValueError(f"it is broken or cut off ({error})") from error
    return found


def _take(entry: _Entry, target: Path, limits: Limits, wanted: Callable[[str], bool], found: Unpacked) -> None:
    """Unpack one entry if it is wanted, or say why it is left out."""
    parts = PurePosixPath(entry.name.replace("\\", "/")).parts
    name = unicodedata.normalize("NFC", "/".join(parts))  # macOS writes an e and its accent apart
    if not name or any(part in _CLUTTER or part.startswith("._") for part in parts):
        return
    if parts[0] == "/" or ".." in parts or ":" in parts[0]:
        found.left_out[name] = "its path leads out of the archive"
    elif entry.problem:
        found.left_out[name] = entry.problem
    elif name in found.files:
        found.left_out[f"{name} (again)"] = "the archive has two files of this name"
    elif wanted(name):
        if entry.size > limits.file:
            found.left_out[name] = f"it has more than {limits.file // 1_000_000:,} MB"
            return
        try:
            _write(entry, target)
        except (RuntimeError, OSError, *_BROKEN) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk is full, or the like
            target.unlink(missing_ok=True)
            found.left_out[name] = f"it cannot be unpacked ({error})"
            return
        found.files[name] = target


def _write(entry: _Entry, target: Path) -> None:
    """Write an entry's content. Raises RuntimeError if it is longer than the archive says."""
    left = entry.size
    with entry.open() as source, target.open("wb") as written:
        while piece := source.read(PIECE):
            left -= len(piece)
            if left < 0:
                raise RuntimeError("it is longer than the archive says")
            written.write(piece)


def _kind(stream: BinaryIO) -> str:
    """Return "zip", "tar" or an empty text. The position is at the start afterwards."""
    start = stream.read(_TAR_MARK_AT + len(_TAR_MARK))
    stream.seek(0)
    if start.startswith((b"PK\x03\x04", _END)):
        return "zip"
    if start[_TAR_MARK_AT:] == _TAR_MARK:
        return "tar"
    for mark, opened in _PACKED.items():
        if start.startswith(mark):
            try:
                with opened(stream, "rb") as unpacked:
                    inside = unpacked.read(_TAR_MARK_AT + len(_TAR_MARK))
            except (OSError, *_BROKEN):
                inside = b""
            stream.seek(0)
            return "tar" if inside[_TAR_MARK_AT:] == _TAR_MARK else ""
    return ""


@contextmanager
def _opened(stream: BinaryIO) -> Iterator[Iterator[_Entry]]:
    """Yield the entries of an archive. Raises ValueError for other files."""
    kind = _kind(stream)
    if kind == "zip":
        _check_directory(stream)
        with zipfile.ZipFile(stream) as archive:
            yield _zipped(archive)
    elif kind == "tar":
        mark = stream.read(6)
        stream.seek(0)
        opened = next((opened for packed, opened in _PACKED.items() if mark.startswith(packed)), None)
        plain = opened(stream, "rb") if opened else stream
        careful = _Careful(plain)
        with plain, tarfile.open(fileobj=cast(BinaryIO, careful), mode="r:") as tar:
            yield _tarred(tar, careful)
    else:
        raise ValueError("it is neither a ZIP nor a TAR archive (.tar, .tar.gz or .tar.bz2)")


class _Careful:
    """A file for tarfile, which reads headers of any length, and any number of them in a row.

    `left` is how many bytes may still be read. Reading more raises TarError.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell
        self.left = PIECE

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= self.left:
            raise tarfile.ReadError("its headers are too long")
        self.left -= count
        return self._file.read(count)


def _check_directory(stream: BinaryIO) -> None:
    """Raise ValueError for a ZIP whose directory is missing or too large to be read."""
    stream.seek(0, 2)
    stream.seek(max(0, stream.tell() - _COMMENT_MAX - _END_SIZE - _ENDS_64_SIZE))
    tail = stream.read()
    stream.seek(0)
    at = tail.rfind(_END)
    if at < 0 or len(tail) < at + _END_SIZE:
        raise ValueError("it is cut off: the directory at its end is missing")
    size, before = int.from_bytes(tail[at + 12 : at + 16], "little"), tail[max(0, at - _ENDS_64_SIZE) : at]
    if before.startswith(_END_64) and before[-20:].startswith(_LOCATOR_64):
        size = max(size, int.from_bytes(before[40:48], "little"))
    if size > DIRECTORY_MAX:
        raise ValueError("it has too many entries")


def _zipped(archive: zipfile.ZipFile) -> Iterator[_Entry]:
    for info in archive.infolist():
        if not info.is_dir():
            mode = info.external_attr >> 16
            odd = stat.S_IFMT(mode) not in (0, stat.S_IFREG)
            problem = "it is a link or a device" if odd else "it is encrypted" if info.flag_bits & 1 else ""
            yield _Entry(
                info.filename, info.file_size, problem, partial(cast(Callable[..., BinaryIO], archive.open), info)
            )


def _tarred(archive: tarfile.TarFile, read: _Careful) -> Iterator[_Entry]:
    """Yield the entries of a TAR. A folder has no name and no content here, so that only its number counts."""
    while (info := _next(archive, read)) is not None:
        odd = not info.isreg() or info.issparse()
        problem = "it is a link or a device" if odd else ""
        name, size = ("", 0) if info.isdir() else (info.name, info.size)
        yield _Entry(name, size, problem, partial(_content, archive, info, read))


def _next(archive: tarfile.TarFile, read: _Careful) -> tarfile.TarInfo | None:
    read.left = PIECE
    info = archive.next()
    archive.members = []  # type: ignore[attr-defined]  # where it keeps every entry that it met
    if len(archive.pax_headers) > COMMON_MAX:
        raise tarfile.ReadError("its headers are too long")
    return info


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo, read: _Careful) -> BinaryIO:
    read.left = info.size + PIECE
    return cast(BinaryIO, archive.extractfile(info))

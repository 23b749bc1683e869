"""Finds the tensors in a pickle written by torch. No code in the pickle is run, and torch is not used.

Both of torch's formats are read: the zip (since 1.6) and the legacy one. `machine.py` runs the pickles inside.
"""

import mmap
import struct
import zipfile
from collections.abc import Mapping
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.files.headers import ITEM_SIZES
from pipelines.files.machine import PICKLE_MAX, Content, Machine, Places, Storage

DIRECTORY_MAX = 2 << 20
"""Limit for the bytes of a zip's table of contents, which is enough for about 20,000 members."""
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_pickle(path: Path) -> Content:
    """Read a pickle's content. Raises OSError and, like zipfile, many kinds of Exception with the reason."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _read_zip(stream, data) if data[:2] == b"PK" else _read_legacy(data)


def _read_zip(stream: BinaryIO, data: mmap.mmap) -> Content:
    with zipfile.ZipFile(_ShortReads(stream)) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise ValueError("two of its members have the same name")
    scripts = [name for name in members if name.endswith("/data.pkl")]
    if len(scripts) != 1:
        raise ValueError("it is a zip, and none that torch wrote")
    prefix = scripts[0].removesuffix("data.pkl")
    places = {name: _place(member, data) for name, member in members.items() if name.startswith(prefix)}
    if f"{prefix}byteorder" in places and _bytes(data, *places[f"{prefix}byteorder"]) != b"little":
        raise ValueError("its numbers are big-endian")
    start, size = places[scripts[0]]
    if size > PICKLE_MAX:
        raise ValueError(f"its pickle has {size} bytes, but at most {PICKLE_MAX} are read")
    storages = {name.removeprefix(f"{prefix}data/"): place for name, place in places.items()}
    return Machine(data, start, start + size, storages).run()


class _ShortReads(RawIOBase):
    """A file for zipfile with a limit for one read: zipfile reads a table of contents of any length at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(min(size, DIRECTORY_MAX + 1) if size >= 0 else DIRECTORY_MAX + 1)
        if len(content) > DIRECTORY_MAX:
            raise ValueError(f"its table of contents has more than {DIRECTORY_MAX} bytes")
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def seekable(self) -> bool:
        return True


def _place(member: zipfile.ZipInfo, data: mmap.mmap) -> tuple[int, int]:
    """Return where a member's bytes are. torch never compresses members."""
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size or member.flag_bits & 1:
        raise ValueError("its members are packed")
    header = _bytes(data, member.header_offset, 30)
    if header[:4] != b"PK\x03\x04":
        raise ValueError("its table of contents is wrong")
    start = member.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    if start + member.file_size > len(data):
        raise ValueError("it is cut")
    return start, member.file_size


def _read_legacy(data: mmap.mmap) -> Content:
    """Read the legacy format: five pickles (a magic number, a version, the writer's system, the content, the storages'
    keys), then for each storage its length and its values."""
    at = 0
    told: list[Any] = []
    for expected in (LEGACY_MAGIC, 1001, None):
        machine = Machine(data, at, len(data), {})
        told.append(machine.run())
        at = machine.at
        if expected is not None and told[-1] != expected:
            raise ValueError("it is a pickle, and none that torch wrote")
    if not isinstance(told[2], dict) or told[2].get("little_endian") is not True:
        raise ValueError("its numbers are big-endian")
    begin = at
    machine = Machine(data, begin, len(data), None)
    machine.run()
    after = Machine(data, machine.at, len(data), {})
    keys = after.run()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("it lists no storages")
    places = _legacy_places(data, after.at, keys, machine.storages)
    return Machine(data, begin, len(data), places).run()


def _legacy_places(data: mmap.mmap, at: int, keys: list[str], storages: Mapping[str, Storage]) -> Places:
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        if key not in storages or key in places:
            raise ValueError("it lists storages that no tensor has")
        size = struct.unpack("<q", _bytes(data, at, 8))[0] * ITEM_SIZES[storages[key].kind]
        if size < 0 or at + 8 + size > len(data):
            raise ValueError("it is cut")
        places[key] = at + 8, size
        at += 8 + size
    return places


def _bytes(data: mmap.mmap, at: int, size: int) -> bytes:
    if at < 0 or at + size > len(data):
        raise ValueError("it is cut")
    return data[at : at + size]

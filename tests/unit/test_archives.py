"""Archives as people make them, and as attackers do."""

import gzip
import io
import lzma
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipelines.files.archives import PIECE, Limits, form_of, unpack

LIMITS = Limits(entries=20, file=2000, total=10_000)


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


FILES = {"a.png": b"a", "in/side/b.png": b"b" * 1500, "c.txt": b"", "__MACOSX/._a.png": b"x", "in/.DS_Store": b"x"}


@pytest.mark.parametrize("mode", ["zip", "w", "w:gz", "w:bz2"])
def test_every_form_is_known_by_its_content(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "presigned-name?x=1"
    zipped(path, FILES) if mode == "zip" else tarred(path, FILES, mode)
    assert form_of(path) == ("zip" if mode == "zip" else "tar")
    found = unpack(path, tmp_path, LIMITS)
    assert {name: file.read_bytes() for name, file in found.files.items()} == {
        "a.png": b"a",
        "in/side/b.png": b"b" * 1500,
        "c.txt": b"",
    }
    assert found.left_out == {}
    assert unpack(path, tmp_path, LIMITS, lambda name: name == "c.txt").files.keys() == {"c.txt"}


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "in/../../a.png", "C:\\a.png", "..\\a.png"])
@pytest.mark.parametrize("make", [zipped, tarred])
def test_nothing_leaves_the_folder(tmp_path: Path, make: object, name: str) -> None:
    found = unpack(make(tmp_path / "a", {name: b"x", "b.png": b"y"}), tmp_path, LIMITS)  # type: ignore[operator]
    assert found.files.keys() == {"b.png"}
    assert list(found.left_out.values()) == ["its path leads out of the archive"]


def test_links_devices_twins_and_encrypted_files_are_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a", "w") as archive:
        for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("pipe", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert set(unpack(tmp_path / "a", tmp_path, LIMITS).left_out) == {"link", "hard", "pipe"}
    with zipfile.ZipFile(tmp_path / "b", "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
        archive.writestr("twice", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("twice", "2")
    content = (tmp_path / "b").read_bytes()
    found = unpack(tmp_path / "b", tmp_path, LIMITS)
    assert found.left_out == {
        "link": "it is a link or a device",
        "twice (again)": "the archive has two files of this name",
    }
    locked = content.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")
    assert locked != content
    (tmp_path / "c").write_bytes(locked)
    assert "it is encrypted" in unpack(tmp_path / "c", tmp_path, LIMITS).left_out.values()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({f"{k}.png": b"x" for k in range(21)}, "more than 20 entries"),
        ({f"{k}.png": b"x" * 2000 for k in range(6)}, "unpacks to more than"),
    ],
)
@pytest.mark.parametrize("make", [zipped, tarred])
def test_bombs_are_refused(tmp_path: Path, make: object, files: dict[str, bytes], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        unpack(make(tmp_path / "a", files), tmp_path, LIMITS)  # type: ignore[operator]


def test_a_file_that_is_too_large_is_left_out(tmp_path: Path) -> None:
    found = unpack(zipped(tmp_path / "a", {"a.png": b"x" * 2001, "b.png": b"y"}), tmp_path, LIMITS)
    assert found.files.keys() == {"b.png"}
    assert found.left_out.keys() == {"a.png"}


def test_a_size_that_lies_unpacks_no_further(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a", {"a.png": b"x" * 1_000_000})
    size = struct.pack("<I", 1_000_000)
    path.write_bytes(path.read_bytes().replace(size, struct.pack("<I", 10)))
    found = unpack(path, tmp_path, LIMITS)
    assert found.files == {}
    assert "a.png" in found.left_out
    assert sum(file.stat().st_size for file in tmp_path.iterdir() if file != path) == 0


def test_a_header_of_megabytes_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("name")
    info.type, info.size = tarfile.XHDTYPE, PIECE + 1
    with gzip.open(tmp_path / "a", "wb") as packed:
        packed.write(info.tobuf() + bytes(PIECE + 1024))
    with pytest.raises(ValueError, match="headers are too long"):
        unpack(tmp_path / "a", tmp_path, LIMITS)


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def common_headers(count: int) -> bytes:
    """A header of a TAR that is for all of its entries."""
    records = b"".join(b"10 %05d=\n" % number for number in range(count))
    return header("all", tarfile.XGLTYPE, len(records)) + records + bytes(-len(records) % 512)


SPARSE = bytearray(header("a", tarfile.GNUTYPE_SPARSE))
SPARSE[386:410], SPARSE[482] = b"00000000001\0" * 2, 1
SPARSE[148:156] = b"%06o\0 " % (sum(SPARSE) - sum(SPARSE[148:156]) + 8 * 32)
"""The first header of a file with holes, which says that more follow."""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header("folder/", tarfile.DIRTYPE) * 21, "more than 20 entries"),
        (common_headers(1000) + header("a"), "headers are too long"),
        (SPARSE + (b"00000000001\0" * 42 + b"\1" + bytes(7)) * 3000, "headers are too long"),
        (bytes(SPARSE), "broken or cut off"),
    ],
)
def test_headers_without_end_are_not_read(tmp_path: Path, content: bytes, said: str) -> None:
    with gzip.open(tmp_path / "a", "wb") as packed:
        packed.write(content)
    with pytest.raises(ValueError, match=said):
        unpack(tmp_path / "a", tmp_path, LIMITS)


def test_the_directory_of_a_zip64_has_the_same_limit(tmp_path: Path) -> None:
    """Its size is in a record of its own; the usual one may say anything."""
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, 5 << 20, 0)
    end += struct.pack("<4sLQL", b"PK\6\7", 0, 5 << 20, 1) + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 47, 0, 0)
    (tmp_path / "a").write_bytes(b"PK\3\4" + bytes((5 << 20) - 4) + end)
    with pytest.raises(ValueError, match="too many entries"):
        unpack(tmp_path / "a", tmp_path, LIMITS)


def test_names_from_a_mac_are_as_one_writes_them(tmp_path: Path) -> None:
    assert unpack(zipped(tmp_path / "a", {"cafe\u0301.png": b"x"}), tmp_path, LIMITS).files.keys() == {"caf\u00e9.png"}


@pytest.mark.parametrize("make", [zipped, tarred])
def test_an_archive_that_is_cut_is_refused(tmp_path: Path, make: object) -> None:
    path: Path = make(tmp_path / "a", FILES)  # type: ignore[operator]
    path.write_bytes(path.read_bytes()[: 1700 if make is tarred else -30])
    with pytest.raises(ValueError, match="cut off"):
        unpack(path, tmp_path, LIMITS)


NO_TAR = gzip.compress(b"no tar", mtime=0)
XZ = lzma.compress(header("a") + bytes(1024))  # may ask for gigabytes of memory


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b broken", b"\x89PNG\r\n", NO_TAR, XZ])
def test_other_files_are_no_archives(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert form_of(tmp_path / "a") == ""
    with pytest.raises(ValueError, match="neither"):
        unpack(tmp_path / "a", tmp_path, LIMITS)

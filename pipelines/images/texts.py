"""Reads the texts in which programs store generation data from a picture's file, with limits and without decoding it.

PNG: the chunks tEXt, zTXt and iTXt with the keyword `parameters`, before or after the pixels, and EXIF in eXIf. Other
formats: EXIF's UserComment, and the format's own comment.
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from PIL import Image

SIGNATURE = 8
"""The number of bytes before a PNG's first chunk."""
KEYWORD = b"parameters"
CHUNKS_MAX = 200_000
"""Limit for the chunks of a PNG. A file of 300 MB has about 40,000 of the usual size."""
EXIF_MAX = 4 << 20
EXIF_IFD = 0x8769
USER_COMMENT = 0x9286


def png_texts(file: BinaryIO, most: int) -> Iterator[tuple[str, Any]]:
    """Yield ("parameters", text) and ("exif", Image.Exif) in the file's order, with `most` characters of each text.

    The file is a PNG whose first chunks were checked. If it is cut off, this ends. Raises ValueError for too many
    chunks.
    """
    size = file.seek(0, os.SEEK_END)
    at = SIGNATURE
    for _ in range(CHUNKS_MAX):
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        at += 12 + length
        if kind == b"IEND" or at > size:
            return
        if kind in _READ:
            text = _READ[kind](file.read(min(length, 8 * most)), most)
            if text is not None:
                yield "parameters", text
        elif kind == b"eXIf" and length <= EXIF_MAX:
            yield "exif", _exif(file.read(length))
    raise ValueError(f"it has more than {CHUNKS_MAX} chunks")


def _plain(content: bytes, most: int) -> str | None:
    """Read tEXt: keyword, 0, text in Latin-1."""
    keyword, _, text = content.partition(b"\0")
    return text[: most + 1].decode("latin-1") if keyword == KEYWORD else None


def _packed(content: bytes, most: int) -> str | None:
    """Read zTXt: keyword, 0, method, compressed text in Latin-1."""
    keyword, _, rest = content.partition(b"\0")
    return _unpacked(rest[1:], most + 1).decode("latin-1") if keyword == KEYWORD else None


def _international(content: bytes, most: int) -> str | None:
    """Read iTXt: keyword, 0, compression flag, method, language, 0, translated keyword, 0, text in UTF-8."""
    keyword, _, rest = content.partition(b"\0")
    parts = rest[2:].split(b"\0", 2)
    if keyword != KEYWORD or len(parts) < 3:
        return None
    text = _unpacked(parts[2], 4 * most + 4) if rest[:1] == b"\1" else parts[2]
    return text.decode("utf-8", errors="replace")[: most + 1]


def _unpacked(content: bytes, most: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(content, most)
    except zlib.error:
        return b""


_READ: Mapping[bytes, Callable[[bytes, int], str | None]] = {
    b"tEXt": _plain,
    b"zTXt": _packed,
    b"iTXt": _international,
}


def _exif(content: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(content)
    return exif


def comment_in(exif: Image.Exif, most: int) -> str:
    """Return EXIF's UserComment, up to `most` + 1 characters; "" if there is none."""
    comment = exif.get_ifd(EXIF_IFD).get(USER_COMMENT)
    if isinstance(comment, str):  # some programs write it as plain text
        return comment[: most + 1]
    return decoded_comment(comment[: 4 * most + 8])[: most + 1] if isinstance(comment, bytes) else ""


def decoded_comment(comment: bytes) -> str:
    """Decode a comment: eight bytes that name the encoding, then the text. Some programs write only the text."""
    kind, content = comment[:8], comment[8:]
    if kind.upper() == b"UNICODE\0":
        return _wide(content)
    if kind == b"JIS\0\0\0\0\0":
        return content.decode("iso2022_jp", errors="replace")
    known = kind in (b"ASCII\0\0\0", bytes(8))
    return (content if known else comment).decode("utf-8", errors="replace").rstrip("\0")


def _wide(content: bytes) -> str:
    """Decode UTF-16 in either byte order. WebUI writes big-endian, other programs their machine's order.

    A byte order mark decides. Without one the zeros decide, which are the high bytes of Latin letters and punctuation.
    """
    marks = {b"\xfe\xff": "utf-16-be", b"\xff\xfe": "utf-16-le"}
    little = content[1::2].count(0) > content[::2].count(0)
    order = marks.get(content[:2], "utf-16-le" if little else "utf-16-be")
    return content.decode(order, errors="replace").removeprefix("\ufeff").rstrip("\0")

"""Reads from a safetensors header where the tensors of the file are. No tensor is read, and torch is not used.

Files are untrusted, so everything is limited before it is used: the header's length, the number of tensors, the length
of their names. The format: https://github.com/huggingface/safetensors#format
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]  # public in fact, missing in typeshed
from pathlib import Path
from typing import Any, TypeGuard

HEADER_MAX = 16 << 20
"""In bytes. A checkpoint of 2,500 tensors has 0.3 MB; a LoRA that lists the tags of its training pictures has more."""
TENSORS_MAX = 20_000
"""An SDXL checkpoint has 2,500 tensors; a LoRA with seven parts per layer has about as many."""
NAME_MAX = 500
"""Limit for the characters of a tensor's name. The longest names in real files have about 150."""
NAME_PARTS_MAX = 50
"""Limit for the dot-separated parts of a name, as layers are looked up by every prefix. Real names have up to 15."""
DIMENSIONS_MAX = 8
_TEXTS_MAX = 10_000
"""Limit for the entries of the metadata. Real files have about 60."""
_DESCRIPTION_MAX = 1000
"""Limit for the characters that describe one tensor's type, shape and place."""

ITEM_SIZES: Mapping[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2": 1,
    "F8_E5M2FNUZ": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
}
"""The size in bytes of one value, by the format's name in safetensors headers."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor inside a file. Its first value is at byte `start`; strides are in values."""

    kind: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int
    content: bytes | None = None
    """Its values, if they are not in the file in plain form."""

    @property
    def extent(self) -> int:
        """The number of values from the first to the last one, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))


@dataclass(frozen=True)
class Header:
    """The tensors of a safetensors file by name, and its metadata."""

    tensors: Mapping[str, Stored]
    texts: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Read and check a safetensors header. Raises OSError, or ValueError with the reason."""
    with path.open("rb") as stream:
        size = path.stat().st_size
        length = int.from_bytes(stream.read(8), "little")
        if length > HEADER_MAX:
            raise ValueError(f"its header claims {length} bytes, but at most {HEADER_MAX} are read")
        content = stream.read(length)
    if size < 8 + length:
        raise ValueError("its header is cut")
    tensors: dict[str, Stored] = {}
    texts: dict[str, str] = {}
    described: list[tuple[int, int]] = []
    cursor = _Cursor(content.decode("utf-8"))
    for name in cursor.keys():  # noqa: SIM118 (not a mapping)
        if name == "__metadata__":
            texts = cursor.texts()
            continue
        check_name(name, tensors)
        tensors[name], place = _described(name, cursor.description(), 8 + length)
        described.append(place)
    cursor.end()
    _check_places(described, size - 8 - length)
    return Header(tensors, texts)


def check_name(name: str, others: Mapping[str, object]) -> None:
    """Raise ValueError if there are too many tensors, or if the name is taken, too long or unprintable."""
    if len(others) >= TENSORS_MAX:
        raise ValueError(f"it holds more than {TENSORS_MAX} tensors")
    if len(name) > NAME_MAX:
        raise ValueError(f"a tensor's name has {len(name)} characters, but at most {NAME_MAX} are read")
    if name.count(".") >= NAME_PARTS_MAX:
        raise ValueError(f"a tensor's name has more than {NAME_PARTS_MAX} parts")
    if not name.isprintable():
        raise ValueError("a tensor's name holds control characters")
    if name in others:
        raise ValueError(f"it holds {name} twice")


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor, whose last dimension has stride 1."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return tuple(strides[: len(shape)])


def is_sizes(value: object) -> TypeGuard[Sequence[int]]:
    """Return whether these can be sizes or strides of a tensor: a few whole numbers, none negative."""
    if not isinstance(value, list | tuple) or len(value) > DIMENSIONS_MAX:
        return False
    return all(type(size) is int and 0 <= size < 1 << 48 for size in value)


def _described(name: str, told: Mapping[str, Any], data: int) -> tuple[Stored, tuple[int, int]]:
    """Return the tensor of one description, and where its bytes begin and end. `data` is the byte that these count
    from."""
    kind, shape, place = told.get("dtype"), told.get("shape"), told.get("data_offsets")
    if not isinstance(kind, str) or kind not in ITEM_SIZES:
        raise ValueError(f"{name} has an unknown number format")
    if not is_sizes(shape) or not is_sizes(place) or len(place) != 2:
        raise ValueError(f"{name} has no readable shape or place")
    begin, end = place
    if end - begin != math.prod(shape) * ITEM_SIZES[kind]:
        raise ValueError(f"{name} has a shape that does not fill its place")
    return Stored(kind, tuple(shape), contiguous(shape), data + begin), (begin, end)


def _check_places(places: list[tuple[int, int]], size: int) -> None:
    """Raise ValueError unless the places cover all bytes of the data without overlapping."""
    reached = 0
    for begin, end in sorted(places):
        if begin != reached:
            raise ValueError("its tensors overlap or leave gaps")
        reached = end
    if reached != size:
        raise ValueError(f"its tensors need {reached} bytes of data, but it has {size}")


class _Cursor:
    """A position in a header's text. A JSON library would build whatever is written there, however deep or large."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def keys(self) -> Iterator[str]:
        """Yield the keys of the object that begins here. The caller must read each value before the next key."""
        self._expect("{")
        if self._found("}"):
            return
        while True:
            key = self._string()
            self._expect(":")
            yield key
            if self._found("}"):
                return
            self._expect(",")

    def texts(self) -> dict[str, str]:
        """Read the object of strings that begins here."""
        found: dict[str, str] = {}
        for key in self.keys():
            if len(found) >= _TEXTS_MAX:
                raise ValueError(f"its metadata has more than {_TEXTS_MAX} entries")
            found[key] = self._string()
        return found

    def description(self) -> dict[str, Any]:
        """Read the object that begins here, which must not contain other objects."""
        match = _DESCRIPTION.match(self._text, self._at)
        if match is None:
            raise ValueError("its header describes a tensor in no known way")
        self._at = match.end()
        told: dict[str, Any] = json.loads(match[0])
        return told

    def end(self) -> None:
        """Raise ValueError unless only spaces follow."""
        if self._text[self._at :].strip(" \t\r\n\0"):
            raise ValueError("something follows its header")

    def _string(self) -> str:
        self._expect('"')
        text, self._at = scanstring(self._text, self._at, True)
        return str(text)

    def _found(self, token: str) -> bool:
        match = _TOKENS[token].match(self._text, self._at)
        self._at = match.end() if match else self._at
        return match is not None

    def _expect(self, token: str) -> None:
        if not self._found(token):
            raise ValueError(f"its header has no {token} where one belongs")


_TOKENS = {token: re.compile(rf"[ \t\r\n]*{re.escape(token)}") for token in '{}:,"'}
"""Patterns of single tokens, which may have spaces before them."""
_DESCRIPTION = re.compile(rf"\s*\{{[^{{}}]{{0,{_DESCRIPTION_MAX}}}\}}")

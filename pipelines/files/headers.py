"""Where the tensors of a safetensors file are, read from its header. No tensor is touched, and torch is not used.

Files come from strangers, so everything is bounded before it is taken: the header's length, how many tensors it
describes, how long their names are. The format: https://github.com/huggingface/safetensors#format
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
"""Bytes. A checkpoint of 2,500 tensors has 0.3 MB; a LoRA that lists the tags of its training pictures, some more."""
TENSORS_MAX = 20_000
"""An SDXL checkpoint has 2,500, a LoRA with seven parts for each of its layers about as many."""
NAME_MAX = 500
"""Characters of a tensor's name; the longest of any real file have about 150."""
NAME_PARTS_MAX = 50
"""Parts of a name between its dots; layers are looked up by every beginning of it. The longest real ones have 15."""
DIMENSIONS_MAX = 8
_TEXTS_MAX = 10_000
"""Entries of the metadata; real files have about 60."""
_DESCRIPTION_MAX = 1000
"""Characters of one tensor's type, shape and place."""

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
"""Bytes of one value of every number format, by its name in safetensors headers."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor inside a file: its first value is at byte `start`; strides are in values."""

    kind: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int
    content: bytes | None = None
    """Its values, where they do not lie in the file as they are."""

    @property
    def extent(self) -> int:
        """Values from the first one to the last one, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))


@dataclass(frozen=True)
class Header:
    """The tensors of a safetensors file by their names, and the texts that its makers put beside them."""

    tensors: Mapping[str, Stored]
    texts: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Read and check a safetensors header. Raises OSError, or ValueError with the reason."""
    with path.open("rb") as stream:
        size = path.stat().st_size
        length = int.from_bytes(stream.read(8), "little")
        if length > HEADER_MAX:
            raise ValueError(f"its header claims {length} bytes, and at most {HEADER_MAX} are read")
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
    """Raise ValueError for one tensor too many, and for a name that is taken, too long or unprintable."""
    if len(others) >= TENSORS_MAX:
        raise ValueError(f"it holds more than {TENSORS_MAX} tensors")
    if len(name) > NAME_MAX:
        raise ValueError(f"a tensor's name has {len(name)} characters, and at most {NAME_MAX} are read")
    if name.count(".") >= NAME_PARTS_MAX:
        raise ValueError(f"a tensor's name has more than {NAME_PARTS_MAX} parts")
    if not name.isprintable():
        raise ValueError("a tensor's name holds control characters")
    if name in others:
        raise ValueError(f"it holds {name} twice")


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a tensor whose values lie one after another, the last dimension's closest together."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return tuple(strides[: len(shape)])


def is_sizes(value: object) -> TypeGuard[Sequence[int]]:
    """Whether these are sizes or strides of a tensor: a few whole numbers, none below zero."""
    if not isinstance(value, list | tuple) or len(value) > DIMENSIONS_MAX:
        return False
    return all(type(size) is int and 0 <= size < 1 << 48 for size in value)


def _described(name: str, told: Mapping[str, Any], data: int) -> tuple[Stored, tuple[int, int]]:
    """The tensor of one description, and where its bytes begin and end, counted from the first byte of `data`."""
    kind, shape, place = told.get("dtype"), told.get("shape"), told.get("data_offsets")
    if not isinstance(kind, str) or kind not in ITEM_SIZES:
        raise ValueError(f"{name} is of a number format that is not known here")
    if not is_sizes(shape) or not is_sizes(place) or len(place) != 2:
        raise ValueError(f"{name} has no readable shape or place")
    begin, end = place
    if end - begin != math.prod(shape) * ITEM_SIZES[kind]:
        raise ValueError(f"{name} has a shape that does not fill its place")
    return Stored(kind, tuple(shape), contiguous(shape), data + begin), (begin, end)


def _check_places(places: list[tuple[int, int]], size: int) -> None:
    """Raise ValueError unless the places fill the data from its first byte to its last one, without overlapping."""
    reached = 0
    for begin, end in sorted(places):
        if begin != reached:
            raise ValueError("its tensors overlap or leave gaps")
        reached = end
    if reached != size:
        raise ValueError(f"its tensors need {reached} bytes of data, and it has {size}")


class _Cursor:
    """A position in a header's text. A JSON library would build whatever is written there, however deep or large."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def keys(self) -> Iterator[str]:
        """Yield the keys of the object that begins here; the caller reads each value before it asks for the next."""
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
        """The object of strings that begins here."""
        found: dict[str, str] = {}
        for key in self.keys():
            if len(found) >= _TEXTS_MAX:
                raise ValueError(f"its metadata has more than {_TEXTS_MAX} entries")
            found[key] = self._string()
        return found

    def description(self) -> dict[str, Any]:
        """The object without inner objects that begins here."""
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
        match = _SPACES.match(self._text, self._at)
        self._at = match.end() if match else self._at
        if not self._text.startswith(token, self._at):
            return False
        self._at += len(token)
        return True

    def _expect(self, token: str) -> None:
        if not self._found(token):
            raise ValueError(f"its header has no {token} where one belongs")


_SPACES = re.compile(r"[ \t\r\n]*")
_DESCRIPTION = re.compile(rf"\s*\{{[^{{}}]{{0,{_DESCRIPTION_MAX}}}\}}")

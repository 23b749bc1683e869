"""Where the tensors of a pickle that torch wrote are. Nothing in the pickle is run, and torch is not used.

A pickle is a program for a stack machine. This machine knows what weights need and refuses the rest: it builds numbers,
texts, lists, tuples, dicts with plain keys, and places of tensors; a name from outside is only a name, and calls of the
few that are known are looked at, not made. Every instruction costs a bounded amount of time and memory, and their
number is bounded. Both of torch's forms are read: the zip (since 1.6) and the legacy one.
The instructions: https://github.com/python/cpython/blob/main/Lib/pickletools.py
"""

import math
import mmap
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.files.headers import ITEM_SIZES, Stored, is_sizes

INSTRUCTIONS_MAX = 300_000
"""A tensor takes about 25; a checkpoint with its optimizer's state has some 60,000."""
STACK_MAX = 10_000
"""Values at once; pickles fill lists and dicts by a thousand items at a time."""
MARKS_MAX = 100
PICKLE_MAX = 16 << 20
"""Bytes that describe the tensors. A checkpoint with its optimizer's state has less than 1 MB of them."""
DIRECTORY_MAX = 2 << 20
"""Bytes of a zip's table of contents: room for about 20,000 members."""
DEPTH_MAX = 16
"""Of tuples in tuples; Python itself crashes on hashing one that is a million deep."""
ARGUMENTS_MAX = 12
"""Of a call; torch passes up to eight."""
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

Content = Any
"""Plain data: dicts, lists, tuples (`Group`), texts, numbers, None, and `Stored` for each tensor."""


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle names."""

    text: str


@dataclass(frozen=True)
class Storage:
    """The bytes that tensors lie in."""

    kind: str
    key: str
    count: int


class Inert:
    """An object that weights do not need and that does no harm: it is named, and never made."""


class Group(tuple[Any, ...]):
    """A tuple that knows how deep the tuples in it are nested."""

    depth: int


Places = Mapping[str, tuple[int, int]]
"""Storage -> its first byte in the file, and how many bytes it has."""

_KINDS = {
    "Double": "F64",
    "Float": "F32",
    "Half": "F16",
    "BFloat16": "BF16",
    "Long": "I64",
    "Int": "I32",
    "Short": "I16",
    "Char": "I8",
    "Byte": "U8",
    "Bool": "BOOL",
    "ComplexFloat": "C64",
}
_STORAGES = {f"torch.{name}Storage": kind for name, kind in _KINDS.items()} | {"torch.storage.UntypedStorage": "U8"}
_NUMBERS = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e4m3fnuz": "F8_E4M3FNUZ",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.float8_e5m2fnuz": "F8_E5M2FNUZ",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.uint16": "U16",
    "torch.uint32": "U32",
    "torch.uint64": "U64",
    "torch.bool": "BOOL",
    "torch.complex64": "C64",
}
_INERT = {
    "_codecs.encode",
    "__builtin__.set",
    "builtins.set",
    "collections.Counter",
    "collections.defaultdict",
    "torch.Size",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.Tensor",
}


def read_pickle(path: Path) -> Content:
    """Read a pickle's content. Raises OSError, and many kinds of Exception with the reason, as zipfile does."""
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
        raise ValueError(f"its pickle has {size} bytes, and at most {PICKLE_MAX} are read")
    storages = {name.removeprefix(f"{prefix}data/"): place for name, place in places.items()}
    return _Machine(data, start, start + size, storages).run()


class _ShortReads(RawIOBase):
    """A file for zipfile, which reads a table of contents as long as the file says, at once."""

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
    """Where a member's bytes are. torch never packs what it stores."""
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
    """Five pickles (a magic number, a version, the writer's system, the content, the storages' keys), then each
    storage: its length, and its values."""
    at = 0
    told: list[Any] = []
    for expected in (LEGACY_MAGIC, 1001, None):
        machine = _Machine(data, at, len(data), {})
        told.append(machine.run())
        at = machine.at
        if expected is not None and told[-1] != expected:
            raise ValueError("it is a pickle, and none that torch wrote")
    if not isinstance(told[2], dict) or told[2].get("little_endian") is not True:
        raise ValueError("its numbers are big-endian")
    begin = at
    machine = _Machine(data, begin, len(data), None)
    machine.run()
    after = _Machine(data, machine.at, len(data), {})
    keys = after.run()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("it lists no storages")
    places = _legacy_places(data, after.at, keys, machine.storages)
    return _Machine(data, begin, len(data), places).run()


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


class _Machine:
    """Runs one pickle from the byte `at`; no byte from `end` on is read.

    `places` says where storages are. Without them (None) no tensor is made, and `storages` tells which are needed.
    """

    def __init__(self, data: mmap.mmap, at: int, end: int, places: Places | None) -> None:
        self._data, self.at, self._end, self._places = data, at, min(end, at + PICKLE_MAX), places
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._left = INSTRUCTIONS_MAX
        self.storages: dict[str, Storage] = {}

    def run(self) -> Content:
        """Run it to its end and return its one result."""
        while (code := self._take(1)) != b".":
            self._spend(1)
            if code not in _INSTRUCTIONS:
                raise ValueError(f"it uses the pickle instruction {code!r}, which weights do not need")
            _INSTRUCTIONS[code](self)
        return self._pop()

    def _spend(self, instructions: int) -> None:
        self._left -= instructions
        if self._left < 0:
            raise ValueError(f"its pickle has more than {INSTRUCTIONS_MAX} instructions")

    # --- reading and the stack ---

    def _take(self, size: int) -> bytes:
        if self.at + size > self._end:
            raise ValueError("its pickle is cut or too long")
        self.at += size
        return self._data[self.at - size : self.at]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _push(self, value: Any) -> None:
        if len(self._stack) >= STACK_MAX:
            raise ValueError(f"its pickle puts more than {STACK_MAX} values on the stack")
        self._stack.append(value)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("its pickle takes more from the stack than is there")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def _mark(self) -> None:
        if len(self._marks) >= MARKS_MAX:
            raise ValueError(f"its pickle is nested more than {MARKS_MAX} deep")
        self._marks.append(len(self._stack))

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise ValueError("its pickle lacks a mark")
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    # --- instructions ---

    def _protocol(self) -> None:
        self._take(1)

    def _text(self, form: str, encoding: str) -> None:
        self._push(self._take(self._number(form)).decode(encoding, "surrogatepass"))

    def _long(self) -> None:
        self._push(int.from_bytes(self._take(self._number("<B")), "little", signed=True))

    def _group(self, items: list[Any]) -> None:
        group = Group(items)
        group.depth = 1 + max((item.depth for item in items if isinstance(item, Group)), default=0)
        if group.depth > DEPTH_MAX:
            raise ValueError(f"it nests tuples more than {DEPTH_MAX} deep")
        self._push(group)

    def _group_of(self, count: int) -> None:
        self._group([self._pop() for _ in range(count)][::-1])

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise ValueError("it adds to what is no list")

    def _set(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict | Inert) or len(items) % 2:
            raise ValueError("it sets items of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int | float | Name | None):
                raise ValueError("a key of one of its dicts is no plain value")
            if isinstance(target, dict):
                target[key] = value

    def _pair(self) -> list[Any]:
        return [self._pop(), self._pop()][::-1]

    def _remember(self, form: str) -> None:
        self._memo[self._number(form)] = self._top()

    def _recall(self, form: str) -> None:
        number = self._number(form)
        if number not in self._memo:
            raise ValueError("its pickle recalls what it did not remember")
        self._push(self._memo[number])

    def _name(self) -> None:
        name = Name(f"{self._line()}.{self._line()}")
        if not any(name.text in known for known in (_CALLS, _STORAGES, _NUMBERS, _INERT)):
            raise ValueError(f"it asks for {name.text}")
        self._push(name)

    def _line(self) -> str:
        end = self._data.find(b"\n", self.at, min(self._end, self.at + 200))
        if end < 0:
            raise ValueError("a name in its pickle is too long")
        text = self._take(end + 1 - self.at)[:-1].decode("ascii")
        if not text.isprintable():
            raise ValueError("a name in its pickle holds control characters")
        return text

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        self._push(self._result(function, arguments))

    def _result(self, function: object, arguments: object) -> Any:
        """What a call of one of the known functions would return."""
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise ValueError("it calls what cannot be called")
        if function.text in _CALLS:
            try:
                if len(arguments) > ARGUMENTS_MAX:
                    raise TypeError
                return _CALLS[function.text](self, *arguments)
            except TypeError as error:
                raise ValueError(f"it calls {function.text} with too many or too few arguments") from error
        if function.text in _INERT:
            return Inert()
        raise ValueError(f"it calls {function.text}")

    def _build(self) -> None:
        """Objects' attributes are of no use to weights."""
        self._pop()
        self._top()

    def _persistent(self) -> None:
        """A storage: ("storage", its type, its key, its device, how many values it has)."""
        told = self._pop()
        plain = isinstance(told, tuple) and (len(told) == 5 or (len(told) == 6 and told[5] is None))
        if not plain or told[0] != "storage":
            raise ValueError("it names storages in no known way")
        kind = _STORAGES.get(told[1].text) if isinstance(told[1], Name) else None
        if kind is None or not isinstance(told[2], str) or not is_sizes((told[4],)):
            raise ValueError("it holds a storage of no known type")
        storage = Storage(kind, told[2], told[4])
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError("it names one storage in two ways")
        self._push(storage)

    # --- the calls that weights need ---

    def _mapping(self, pairs: object = ()) -> dict[Any, Any]:
        """`collections.OrderedDict`, to which Python 2 gave its items as lists of two."""
        self._push({})
        self._spend(len(pairs) if isinstance(pairs, list | tuple) else 0)  # one list could serve many calls
        if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
            raise ValueError("it makes a dict of what are no pairs")
        self._set([part for pair in pairs for part in pair])
        made: dict[Any, Any] = self._pop()
        return made

    def _tensor(self, storage: object, offset: object, shape: object, strides: object, *_: object) -> Stored | None:
        """`torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`."""
        kind = storage.kind if isinstance(storage, Storage) else ""
        return self._tensor_of_kind(storage, offset, shape, strides, kind)

    def _typed_tensor(
        self, storage: object, offset: object, shape: object, strides: object, gradient: object, hooks: object,
        number: object, *_: object
    ) -> Stored | None:  # fmt: skip
        """`torch._utils._rebuild_tensor_v3`."""
        kind = _NUMBERS.get(number.text, "") if isinstance(number, Name) else ""
        return self._tensor_of_kind(storage, offset, shape, strides, kind)

    def _tensor_of_kind(
        self, storage: object, offset: object, shape: object, strides: object, kind: str
    ) -> Stored | None:
        if not isinstance(storage, Storage) or kind not in ITEM_SIZES or not is_sizes((offset,)):
            raise ValueError("one of its tensors is not described as torch does")
        if not (is_sizes(shape) and is_sizes(strides) and isinstance(shape, tuple) and isinstance(strides, tuple)):
            raise ValueError("one of its tensors has no readable shape")
        if len(shape) != len(strides):
            raise ValueError("one of its tensors has more sizes than strides")
        if self._places is None:
            return None
        if storage.key not in self._places:
            raise ValueError("a storage is missing")
        assert isinstance(offset, int)
        start, size = self._places[storage.key]
        tensor = Stored(kind, tuple(shape), tuple(strides), start + offset * ITEM_SIZES[kind])
        if max(math.prod(shape), offset + tensor.extent) * ITEM_SIZES[kind] > size:
            raise ValueError("its tensors claim to be larger than the file, so it is broken, or made to do harm")
        return tensor

    def _first(self, value: Any, *_: object) -> Any:
        """Of a parameter, its tensor."""
        return value

    def _of_type(self, function: object, kind: object, arguments: object, *_: object) -> Any:
        """`torch._tensor._rebuild_from_type_v2`: a tensor of a class of its own."""
        return self._result(function, arguments)


_CALLS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _Machine._mapping,
    "torch._utils._rebuild_tensor": _Machine._tensor,
    "torch._utils._rebuild_tensor_v2": _Machine._tensor,
    "torch._utils._rebuild_tensor_v3": _Machine._typed_tensor,
    "torch._utils._rebuild_parameter": _Machine._first,
    "torch._utils._rebuild_parameter_with_state": _Machine._first,
    "torch._tensor._rebuild_from_type_v2": _Machine._of_type,
}

_INSTRUCTIONS: Mapping[bytes, Callable[[_Machine], None]] = {
    b"\x80": _Machine._protocol,
    b"(": _Machine._mark,
    b"N": lambda machine: machine._push(None),
    b"\x88": lambda machine: machine._push(True),
    b"\x89": lambda machine: machine._push(False),
    b"J": lambda machine: machine._push(machine._number("<i")),
    b"K": lambda machine: machine._push(machine._number("<B")),
    b"M": lambda machine: machine._push(machine._number("<H")),
    b"\x8a": _Machine._long,
    b"G": lambda machine: machine._push(machine._number(">d")),
    b"X": lambda machine: machine._text("<I", "utf-8"),
    b"U": lambda machine: machine._text("<B", "latin-1"),
    b"T": lambda machine: machine._text("<I", "latin-1"),
    b"}": lambda machine: machine._push({}),
    b"]": lambda machine: machine._push([]),
    b")": lambda machine: machine._group([]),
    b"\x85": lambda machine: machine._group_of(1),
    b"\x86": lambda machine: machine._group_of(2),
    b"\x87": lambda machine: machine._group_of(3),
    b"t": lambda machine: machine._group(machine._since_mark()),
    b"a": lambda machine: machine._append([machine._pop()]),
    b"e": lambda machine: machine._append(machine._since_mark()),
    b"s": lambda machine: machine._set(machine._pair()),
    b"u": lambda machine: machine._set(machine._since_mark()),
    b"q": lambda machine: machine._remember("<B"),
    b"r": lambda machine: machine._remember("<I"),
    b"h": lambda machine: machine._recall("<B"),
    b"j": lambda machine: machine._recall("<I"),
    b"c": _Machine._name,
    b"Q": _Machine._persistent,
    b"R": _Machine._call,
    b"\x81": _Machine._call,
    b"b": _Machine._build,
}

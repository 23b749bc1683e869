"""Runs the pickle inside a weight file as plain data.

A pickle is a program for a stack machine. This machine only builds what weights need: numbers, texts, lists, tuples,
dicts with plain keys, and places of tensors. Every other object is inert: nothing is imported, created or called for
it. The time and memory of each instruction, and the number of instructions, are limited.
The instructions: https://github.com/python/cpython/blob/main/Lib/pickletools.py
"""

import math
import mmap
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pipelines.files.headers import ITEM_SIZES, Stored, contiguous, is_sizes
from pipelines.files.names import is_refused

INSTRUCTIONS_MAX = 300_000
"""A tensor takes about 25 instructions; a checkpoint with its optimizer's state has about 60,000."""
STACK_MAX = 10_000
"""Limit for values on the stack. Pickles fill lists and dicts with a thousand items at a time."""
MARKS_MAX = 100
PICKLE_MAX = 16 << 20
"""Limit for the bytes that describe the tensors. A checkpoint with its optimizer's state has less than 1 MB of them."""
DEPTH_MAX = 16
"""Limit for nested tuples. Python itself crashes when it hashes one that is a million levels deep."""
ARGUMENTS_MAX = 12
"""Limit for the arguments of a call. torch passes up to eight."""

Content = Any
"""Plain data: dicts, lists, tuples (`Group`), texts, numbers, None, `Inert`, and `Stored` for each tensor."""


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle names."""

    text: str


@dataclass(frozen=True)
class Storage:
    """The bytes in which tensors are stored."""

    kind: str
    key: str
    count: int


class Inert(dict[Any, Any]):
    """Stands for an object whose class is not used. It stores the items that the pickle adds, so that dicts of other
    classes work as dicts, and the tensors of a torch module."""


class NumpyKind(Inert):
    """A numpy number format."""

    kind: str = ""


class NumpyArray(Inert):
    """A numpy array, which torch writes for tensors of some devices (Apple's in old versions)."""

    tensor: Stored | None = None


@dataclass(frozen=True)
class Encoded:
    """Bytes that Python wrote as text, one character for each byte."""

    text: str


class Group(tuple[Any, ...]):
    """A tuple that knows how deeply the tuples inside it are nested."""

    depth: int


Places = Mapping[str, tuple[int, int]]
"""A storage's key -> its first byte in the file, and its length in bytes."""

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
_FORMATS = {
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
_NUMPY = {
    "f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8", "u1": "U8", "u2": "U16",
    "u4": "U32", "u8": "U64", "b1": "BOOL", "c8": "C64",
}  # fmt: skip
_OF_MODULE = "_parameters", "_buffers", "_modules"
"""The entries of a torch module's state that contain its tensors."""


class Machine:
    """Runs one pickle from the byte `at`, and never reads the byte `end` or beyond.

    `places` says where storages are. If it is None, no tensors are made, and `storages` collects those that are needed.
    """

    def __init__(self, data: mmap.mmap, at: int, end: int, places: Places | None) -> None:
        self._data, self.at, self._end, self._places = data, at, min(end, at + PICKLE_MAX), places
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._left = INSTRUCTIONS_MAX
        self._room = PICKLE_MAX
        self.storages: dict[str, Storage] = {}

    def run(self) -> Content:
        """Run the pickle to its end and return its result. Raises ValueError, and other errors for broken texts."""
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

    def _skip(self, size: int) -> None:
        """Skip a protocol number or the length of a frame."""
        self._take(size)

    def _drop(self) -> None:
        self._pop()

    def _drop_all(self) -> None:
        self._since_mark()

    def _push_number(self, form: str) -> None:
        self._push(self._number(form))

    def _push_text(self, form: str, encoding: str) -> None:
        self._push(self._take(self._number(form)).decode(encoding, "surrogatepass"))

    def _push_bytes(self, form: str) -> None:
        self._push(self._take(self._number(form)))

    def _push_long(self) -> None:
        self._push(int.from_bytes(self._take(self._number("<B")), "little", signed=True))

    def _push_empty(self, kind: type) -> None:
        self._push(kind())

    def _push_set(self) -> None:
        self._since_mark()
        self._push(Inert())

    def _group(self, items: list[Any]) -> None:
        group = Group(items)
        group.depth = 1 + max((item.depth for item in items if isinstance(item, Group)), default=0)
        if group.depth > DEPTH_MAX:
            raise ValueError(f"it nests tuples more than {DEPTH_MAX} deep")
        self._push(group)

    def _group_of(self, count: int) -> None:
        self._group([self._pop() for _ in range(count)][::-1])

    def _group_since_mark(self) -> None:
        self._group(self._since_mark())

    def _append(self) -> None:
        self._extend([self._pop()])

    def _append_all(self) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise ValueError("it adds to what is no list")

    def _set_one(self) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _set_all(self) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("it sets items of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str | float | Name | None) or (isinstance(key, int) and abs(key) < _KEY_MAX):
                target[key] = value
            elif not isinstance(key, int | Group | Inert | Encoded | bytes):  # weights are never stored under these
                raise ValueError("a key of one of its dicts is no plain value")

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._top()

    def _remember(self, form: str) -> None:
        self._memo[self._number(form)] = self._top()

    def _recall(self, form: str) -> None:
        number = self._number(form)
        if number not in self._memo:
            raise ValueError("its pickle recalls what it did not remember")
        self._push(self._memo[number])

    def _push_name(self) -> None:
        self._admit(f"{self._line()}.{self._line()}")

    def _push_name_of_texts(self) -> None:
        name, module = self._pop(), self._pop()
        if not all(isinstance(part, str) and len(part) < _NAME_MAX and part.isprintable() for part in (module, name)):
            raise ValueError("a name in its pickle is no short text")
        self._admit(f"{module}.{name}")

    def _admit(self, name: str) -> None:
        if name not in _CALLS and is_refused(name):
            raise ValueError(f"it asks for {name}")
        self._push(Name(name))

    def _line(self) -> str:
        end = self._data.find(b"\n", self.at, min(self._end, self.at + _NAME_MAX))
        if end < 0:
            raise ValueError("a name in its pickle is too long")
        text = self._take(end + 1 - self.at)[:-1].decode("ascii")
        if not text.isprintable():
            raise ValueError("a name in its pickle holds control characters")
        return text

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        self._push(self._result(function, arguments))

    def _call_with_keywords(self) -> None:
        self._pop()
        self._call()

    def _result(self, function: object, arguments: object) -> Any:
        """Return the result of calling a known function. Any other call gives an inert object."""
        if not isinstance(function, Name | Inert) or not isinstance(arguments, tuple):
            raise ValueError("it calls what cannot be called")
        name = function.text if isinstance(function, Name) else ""
        if name not in _CALLS:
            return Inert()
        try:
            if len(arguments) > ARGUMENTS_MAX:
                raise TypeError
            return _CALLS[name](self, *arguments)
        except TypeError as error:
            raise ValueError(f"it calls {name} with too many or too few arguments") from error

    def _build(self) -> None:
        """Set attributes of the object on the stack, as far as torch modules and numpy arrays need them."""
        state, target = self._pop(), self._top()
        if isinstance(target, NumpyKind):
            big_endian = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"
            target.kind = "" if big_endian else target.kind
        elif isinstance(target, NumpyArray):
            target.tensor = self._array(state)
        elif isinstance(target, Inert) and isinstance(state, dict):
            for part in (state.get(name) for name in _OF_MODULE):
                if isinstance(part, dict):
                    self._spend(len(part))  # the same dict could be used for many objects
                    target.update(part)

    def _persistent(self) -> None:
        """Push a storage: ("storage", type, key, device, number of values). Old files also name classes so."""
        told = self._pop()
        if isinstance(told, tuple) and len(told) == 4 and told[0] == "module":  # a class, with its source as text
            self._push(told[1])
            return
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
        """Stand in for `collections.OrderedDict`, whose items Python 2 passed as lists of two."""
        self._push({})
        self._spend(len(pairs) if isinstance(pairs, list | tuple) else 0)  # the same list could be used for many calls
        if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
            raise ValueError("it makes a dict of what are no pairs")
        self._set([part for pair in pairs for part in pair])
        made: dict[Any, Any] = self._pop()
        return made

    def _default_mapping(self, default: object = None) -> dict[Any, Any]:
        """Stand in for `collections.defaultdict`. Its items are set later."""
        return {}

    def _encoded(self, text: object, encoding: object = "") -> Encoded | Inert:
        """Stand in for `_codecs.encode`, with which protocol 2 writes bytes. The bytes are only made when needed."""
        return Encoded(text) if isinstance(text, str) and encoding == "latin1" else Inert()

    def _numpy_kind(self, name: object, *_: object) -> NumpyKind:
        """Stand in for `numpy.dtype`."""
        made = NumpyKind()
        made.kind = _NUMPY.get(name, "") if isinstance(name, str) else ""
        return made

    def _numpy_array(self, *_: object) -> NumpyArray:
        """Stand in for `numpy.core.multiarray._reconstruct`. Its content is set later."""
        return NumpyArray()

    def _array(self, state: object) -> Stored | None:
        """Return the tensor of a numpy array's state: (version, shape, format, whether columns come first, bytes)."""
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], NumpyKind):
            return None
        _, shape, numpy_kind, columns_first, raw = state
        kind = numpy_kind.kind
        if not kind or not is_sizes(shape) or not isinstance(raw, Encoded | bytes):
            return None
        self._room -= len(raw.text if isinstance(raw, Encoded) else raw)
        if self._room < 0:
            raise ValueError(f"its arrays have more than {PICKLE_MAX} bytes")
        content = raw.text.encode("latin-1") if isinstance(raw, Encoded) else raw
        if len(content) != math.prod(shape) * ITEM_SIZES[kind]:
            raise ValueError("one of its arrays has a shape that its bytes do not fill")
        strides = contiguous(shape[::-1])[::-1] if columns_first else contiguous(shape)
        return Stored(kind, tuple(shape), strides, 0, content)

    def _tensor_of_array(self, array: object, *_: object) -> Stored:
        """Stand in for `torch._utils._rebuild_device_tensor_from_numpy`."""
        if not isinstance(array, NumpyArray) or array.tensor is None:
            raise ValueError("one of its tensors is an array of no known format")
        return array.tensor

    def _tensor(self, *arguments: object) -> Stored | None:
        """Stand in for `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`."""
        storage = arguments[0] if arguments else None
        return self._place(arguments, storage.kind if isinstance(storage, Storage) else "")

    def _typed_tensor(self, *arguments: object) -> Stored | None:
        """Stand in for `torch._utils._rebuild_tensor_v3`, whose seventh argument is the dtype."""
        form = arguments[6] if len(arguments) > 6 else None
        return self._place(arguments, _FORMATS.get(form.text, "") if isinstance(form, Name) else "")

    def _place(self, arguments: Sequence[object], kind: str) -> Stored | None:
        """Return where a tensor is. The first arguments are storage, offset, shape and strides; others are ignored.
        Raises ValueError for a tensor that is not inside its storage."""
        if len(arguments) < 4:
            raise TypeError
        storage, offset, shape, strides = arguments[:4]
        if not isinstance(storage, Storage) or kind not in ITEM_SIZES or not is_sizes((offset,)):
            raise ValueError("one of its tensors is not described as torch does")
        if not (isinstance(shape, tuple) and isinstance(strides, tuple) and is_sizes(shape) and is_sizes(strides)):
            raise ValueError("one of its tensors has no readable shape")
        if len(shape) != len(strides):
            raise ValueError("one of its tensors has more sizes than strides")
        assert isinstance(offset, int)
        return self._inside(storage, offset, Stored(kind, tuple(shape), tuple(strides), 0))

    def _inside(self, storage: Storage, offset: int, tensor: Stored) -> Stored | None:
        if self._places is None:
            return None
        if storage.key not in self._places:
            raise ValueError("a storage is missing")
        start, size = self._places[storage.key]
        item = ITEM_SIZES[tensor.kind]
        if max(math.prod(tensor.shape), offset + tensor.extent) * item > size:
            raise ValueError("its tensors claim to be larger than the file, so it is broken or malicious")
        return replace(tensor, start=start + offset * item)

    def _first(self, value: Any, *_: object) -> Any:
        """Return the tensor inside a parameter, or a tensor from some device."""
        return value

    def _of_type(self, function: object, kind: object, arguments: object, *_: object) -> Any:
        """Stand in for `torch._tensor._rebuild_from_type_v2`: a tensor of a subclass."""
        return self._result(function, arguments)


_NAME_MAX = 200
_KEY_MAX = 1 << 60
"""Below this, Python's hash of a whole number is the number itself. Larger numbers can be chosen to have equal hashes,
and a dict of 100,000 such keys would take minutes."""
_CALLS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": Machine._mapping,
    "collections.defaultdict": Machine._default_mapping,
    "_codecs.encode": Machine._encoded,
    "numpy.dtype": Machine._numpy_kind,
    "numpy.core.multiarray._reconstruct": Machine._numpy_array,
    "numpy._core.multiarray._reconstruct": Machine._numpy_array,
    "torch._utils._rebuild_tensor": Machine._tensor,
    "torch._utils._rebuild_tensor_v2": Machine._tensor,
    "torch._utils._rebuild_tensor_v3": Machine._typed_tensor,
    "torch._utils._rebuild_parameter": Machine._first,
    "torch._utils._rebuild_parameter_with_state": Machine._first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": Machine._first,
    "torch._utils._rebuild_device_tensor_from_numpy": Machine._tensor_of_array,
    "torch._utils._rebuild_xla_tensor": Machine._tensor_of_array,
    "torch._tensor._rebuild_from_type_v2": Machine._of_type,
}

_INSTRUCTIONS: Mapping[bytes, Callable[[Machine], None]] = {
    b"\x80": partial(Machine._skip, size=1),
    b"\x95": partial(Machine._skip, size=8),
    b"(": Machine._mark,
    b"0": Machine._drop,
    b"1": Machine._drop_all,
    b"N": partial(Machine._push, value=None),
    b"\x88": partial(Machine._push, value=True),
    b"\x89": partial(Machine._push, value=False),
    b"J": partial(Machine._push_number, form="<i"),
    b"K": partial(Machine._push_number, form="<B"),
    b"M": partial(Machine._push_number, form="<H"),
    b"G": partial(Machine._push_number, form=">d"),
    b"\x8a": Machine._push_long,
    b"X": partial(Machine._push_text, form="<I", encoding="utf-8"),
    b"U": partial(Machine._push_text, form="<B", encoding="latin-1"),
    b"T": partial(Machine._push_text, form="<I", encoding="latin-1"),
    b"\x8c": partial(Machine._push_text, form="<B", encoding="utf-8"),
    b"B": partial(Machine._push_bytes, form="<I"),
    b"C": partial(Machine._push_bytes, form="<B"),
    b"\x8e": partial(Machine._push_bytes, form="<Q"),
    b"\x96": partial(Machine._push_bytes, form="<Q"),
    b"}": partial(Machine._push_empty, kind=dict),
    b"]": partial(Machine._push_empty, kind=list),
    b"\x8f": partial(Machine._push_empty, kind=Inert),
    b"\x90": Machine._append_all,
    b"\x91": Machine._push_set,
    b")": partial(Machine._group_of, count=0),
    b"\x85": partial(Machine._group_of, count=1),
    b"\x86": partial(Machine._group_of, count=2),
    b"\x87": partial(Machine._group_of, count=3),
    b"t": Machine._group_since_mark,
    b"a": Machine._append,
    b"e": Machine._append_all,
    b"s": Machine._set_one,
    b"u": Machine._set_all,
    b"q": partial(Machine._remember, form="<B"),
    b"r": partial(Machine._remember, form="<I"),
    b"\x94": Machine._memoize,
    b"h": partial(Machine._recall, form="<B"),
    b"j": partial(Machine._recall, form="<I"),
    b"c": Machine._push_name,
    b"\x93": Machine._push_name_of_texts,
    b"Q": Machine._persistent,
    b"R": Machine._call,
    b"\x81": Machine._call,
    b"\x92": Machine._call_with_keywords,
    b"b": Machine._build,
}

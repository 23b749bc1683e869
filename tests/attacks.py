"""Harmful files: small ones that crash a parser, fill the memory, or keep a decoder busy."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

Make = Callable[[], bytes]


def safetensors(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with this header, which may be text that is no JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def of_zeros(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """A safetensors file of half-precision zeros in these shapes."""
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 2 * int(np.prod(shape, dtype=object))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, end]}
        at = end
    return safetensors(header, bytes(at))


@cache  # several tests send it, and it takes a second to write
def empty_tensors(count: int) -> bytes:
    """A safetensors file of tensors that hold nothing."""
    entries = (b'"t%d":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}' % number for number in range(count))
    return safetensors(b"{" + b",".join(entries) + b"}")


def zipped(script: bytes, **members: bytes) -> bytes:
    """A zip as torch writes it, with this pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in ({"data.pkl": script, "version": b"3\n"} | members).items():
            archive.writestr(f"archive/{name}", content)
    return stream.getvalue()


def text(value: str) -> bytes:
    """The pickle instruction that pushes a text."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def storage(count: int, kind: str = "FloatStorage", key: str = "0") -> bytes:
    """The instructions that push a storage of so many values."""
    size = b"\x8a\x08" + struct.pack("<q", count)
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + size + b"tQ"


def tensor(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, count: int = 4) -> bytes:
    """The instructions that push a tensor."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"\x8a\x09" + value.to_bytes(9, "little", signed=True) for value in values) + b"t"

    start = b"\x8a\x09" + offset.to_bytes(9, "little", signed=True)
    call = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return call + storage(count) + start + numbers(shape) + numbers(strides) + b"\x89}tR"


def pickled(value: bytes) -> bytes:
    """A pickle of {"emb_params": value}."""
    return b"\x80\x02}" + text("emb_params") + value + b"s."


def of_one_hash(count: int) -> bytes:
    """A pickle of a dict whose keys are whole numbers with the same hash, a thousand at a time."""
    step = 2**61 - 1  # Python's hash is the rest of a division by it
    keys = [b"\x8a\x14" + (number * step).to_bytes(20, "little") + b"N" for number in range(count)]
    filled = b"".join(b"(" + b"".join(keys[at : at + 1000]) + b"u" for at in range(0, count, 1000))
    return pickled(b"}" + filled)


DEEP = b")" + b"\x85" * 1_000_000


def chained(times: int) -> bytes:
    """A text that is encoded again and again: twice as long each time."""
    value = b"c_codecs\nencode\n" + text("x" * 1000) + text("latin1") + b"\x86R"
    for _ in range(times):
        value = b"c_codecs\nencode\n" + value + text("hex") + b"\x86R"
    return value


def shared(times: int) -> bytes:
    """A dict of many names for one large dict."""
    inner = b"}(" + b"".join(text(str(number)) + b"N" for number in range(times)) + b"u" + b"q\x01"
    return b"\x80\x02}" + text("a") + inner + b"s" + b"".join(text(f"b{k}") + b"h\x01s" for k in range(times)) + b"."


def crowded(members: int) -> bytes:
    """A zip of many empty members."""
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<HHHHHII", 4, 0, 0, 0, 0, 0, 0)
    directory = b"".join(entry + struct.pack("<I", number) for number in range(members))
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, len(directory), 30, 0)
    return b"PK\x03\x04" + bytes(26) + directory + end


def filled(items: list[bytes], code: bytes) -> bytes:
    """The instructions that put these items into the list or dict on the stack, as pickle does: a thousand at once."""
    return b"".join(b"(" + b"".join(items[at : at + 1000]) + code for at in range(0, len(items), 1000))


def arrays(times: int) -> bytes:
    """Numpy arrays of a megabyte that share one text."""
    kind = b"cnumpy\ndtype\n" + text("u1") + b"\x85Rq\x01"
    content = b"c_codecs\nencode\n" + text("x" * 1_000_000) + text("latin1") + b"\x86Rq\x02"
    state = b"(K\x01J" + struct.pack("<i", 1_000_000) + b"\x85h\x01\x89h\x02t"
    array = b"cnumpy.core.multiarray\n_reconstruct\n)R" + state + b"b"
    call = b"ctorch._utils\n_rebuild_device_tensor_from_numpy\n(" + array + b"NN\x89tR"
    return (
        b"\x80\x02" + kind + b"0" + content + b"0}" + filled([text(str(k)) + call for k in range(times)], b"u") + b"."
    )


def modules(times: int) -> bytes:
    """Many objects that share the state of one, which is large."""
    large = b"}" + filled([text(str(k)) + b"N" for k in range(times)], b"u")
    state = b"}" + text("_parameters") + large + b"sq\x010"
    return b"\x80\x02" + state + b"]" + filled([b"ca\nB\n)\x81h\x01b"] * times, b"e") + b"."


def named(times: int) -> bytes:
    """Many dicts inside a dict with a long name."""
    inner = b"}" + filled([text(str(k)) + b"}" for k in range(times)], b"u")
    return b"\x80\x02}" + text("x" * 1_000_000) + inner + b"s."


WEIGHTS: dict[str, Make] = {
    "many arrays of one text": lambda: zipped(arrays(400)),
    "many modules of one state": lambda: zipped(modules(30_000)),
    "inert objects without end": lambda: zipped(pickled(b"]" + filled([b"ca\nB\n)R"] * 200_000, b"e"))),
    "dicts in a circle": lambda: zipped(b"\x80\x02}q\x01" + text("a") + b"h\x01s."),
    "dicts with a long name": lambda: zipped(named(50_000)),
    "tuples a million deep, in a zip": lambda: zipped(pickled(DEEP)),
    "tuples a million deep": lambda: pickled(DEEP),
    "lists a million deep": lambda: zipped(pickled(b"]" * 1_000_000 + b"a" * 999_999)),
    "a million marks": lambda: zipped(pickled(b"(" * 1_000_000)),
    "an array of 4 GB": lambda: zipped(pickled(b"cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\1\x85R")),
    "keys of one hash": lambda: zipped(of_one_hash(70_000)),
    "a deep tuple as a key": lambda: zipped(b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"Ns."),
    "texts encoded in a chain": lambda: zipped(pickled(chained(20))),
    "many names for one dict": lambda: zipped(shared(30_000)),
    "one list for many dicts": lambda: zipped(
        pickled(b"](" + b"](NNe" * 3000 + b"eq\0(" + b"ccollections\nOrderedDict\nh\0\x85R" * 9000 + b"t")
    ),
    "a name of 9 million characters": lambda: safetensors(
        {"x" * 9_000_000: {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}, bytes(2)
    ),
    "a name of 9 million characters in a pickle": lambda: zipped(
        b"\x80\x02}" + text("x" * 9_000_000) + tensor((1,), (1,)) + b"s.", **{"data/0": bytes(16)}
    ),
    "names of 500 dots": lambda: of_zeros({f"{number}{'.' * 490}": (1,) for number in range(20_000)}),
    "900,000 empty tensors": lambda: empty_tensors(900_000),
    "a header of lists": lambda: safetensors(b'{"__metadata__":{"a":' + b"[]," * 33_000_000 + b"[]}}"),
    "a header of lists, shorter": lambda: safetensors(b'{"a":[' + b"[]," * 5_000_000 + b"[]]}"),
    "a header of texts": lambda: safetensors(
        b'{"__metadata__":{' + b",".join(b'"%d":""' % number for number in range(1_200_000)) + b"}}"
    ),
    "a tensor beyond its storage": lambda: zipped(pickled(tensor((4,), (1,), 1)), **{"data/0": bytes(16)}),
    "a tensor far beyond its storage": lambda: zipped(pickled(tensor((2,), (1 << 40,))), **{"data/0": bytes(16)}),
    "a tensor before its storage": lambda: zipped(pickled(tensor((4,), (1,), -4)), **{"data/0": bytes(16)}),
    "strides below zero": lambda: zipped(pickled(tensor((4,), (-1,), 3)), **{"data/0": bytes(16)}),
    "an expanded tensor": lambda: zipped(pickled(tensor((75, 1 << 30), (0, 0))), **{"data/0": bytes(16)}),
    "a storage larger than its member": lambda: zipped(
        pickled(tensor((1 << 30,), (1,), 0, 1 << 30)), **{"data/0": bytes(16)}
    ),
    "a long number": lambda: zipped(pickled(b"\x8b" + struct.pack("<I", 4_000_000) + b"\x7f" * 4_000_000)),
    "a zip of many members": lambda: crowded(500_000),
    "pickled texts without end": lambda: zipped(pickled(text("x" * 20_000_000))),
}
"""Each is refused by every input that takes weights, within a moment."""


def progressive(scans: int, size: tuple[int, int] = (1024, 1024)) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    stream = io.BytesIO()
    Image.new("RGB", size, "red").save(stream, "JPEG", progressive=True)
    content = stream.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * scans + content[-2:]


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def png_header(width: int, height: int, bits: int = 8, kind: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)


def texts(kind: bytes, times: int) -> bytes:
    """A small PNG with texts that unpack to 100 MB each."""
    packed = zlib.compress(bytes(100_000_000))
    named = {b"zTXt": b"parameters\0\0" + packed, b"iTXt": b"parameters\0\1\0\0\0" + packed}[kind]
    pixel = zlib.compress(bytes(4))
    return png(png_header(1, 1), *[(kind, named)] * times, (b"IDAT", pixel), (b"IEND", b""))


SLOW = "a large JPEG of 90 scans"
"""It is decoded, as no rule is broken, and takes seconds."""
PICTURES: dict[str, Make] = {
    "a JPEG of 3,000 scans": lambda: progressive(3000),
    SLOW: lambda: progressive(90, (5700, 5700)),
    "packed texts": lambda: texts(b"zTXt", 100),
    "packed texts, international": lambda: texts(b"iTXt", 100),
    "a packed profile": lambda: png(
        png_header(1, 1), (b"iCCP", b"a\0\0" + zlib.compress(bytes(500_000_000))), (b"IDAT", zlib.compress(bytes(4)))
    ),
    "one row of 30 million pixels": lambda: png(
        png_header(30_000_000, 1), (b"IDAT", zlib.compress(bytes(1 + 3 * 30_000_000)))
    ),
    "pixels that are not there": lambda: png(png_header(5000, 5000), (b"IDAT", zlib.compress(bytes(99)))),
    "16 bits": lambda: png(png_header(5000, 6000, 16, 6), (b"IDAT", zlib.compress(bytes(99)))),
}


def write(folder: Path, name: str, content: bytes, ending: str) -> Path:
    path = folder / f"{name.replace(' ', '-').replace(',', '')}.{ending}"
    path.write_bytes(content)
    return path

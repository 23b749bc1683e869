"""Harmful files, with one small maker for each kind; script/soak sends them, with random variations."""

import base64
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable

from PIL import Image

Maker = Callable[[random.Random], bytes]

WEIGHTS = ("files",)
PICTURES = ("image", "mask")
"""Inputs that accept such files."""


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    """Return a safetensors file with any header."""
    return struct.pack("<Q", len(header)) + header + data


def torch_zip(pickle: bytes) -> bytes:
    """Return a checkpoint as torch.save writes it, around any pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/version", "3")
    return stream.getvalue()


def nested(chance: random.Random) -> bytes:
    """Return a pickle of nested tuples or lists."""
    depth = chance.randint(10_000, 2_000_000)
    script = chance.choice([b")" + b"\x85" * depth, b"]" * depth + b"a" * (depth - 1)])
    whole = b"\x80\x02" + script + b"."
    return whole if chance.random() < 0.5 else torch_zip(whole)


def chained(chance: random.Random) -> bytes:
    """Return a pickle whose calls double a text again and again."""
    double = b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00utf16tR" * chance.randint(100, 50_000)
    return torch_zip(b"\x80\x02(" + double + b"t.")


def long_name(chance: random.Random) -> bytes:
    """Return a tensor whose name has millions of characters, some of them not letters."""
    name = chance.choice(["x", "\n", "\x1b[2J", "\u202e"]) * chance.randint(1_000_000, 9_000_000)
    return safetensors(json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode(), bytes(4))


def many_tensors(chance: random.Random) -> bytes:
    """Return hundreds of thousands of tensors without values."""
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return safetensors(json.dumps({f"{n:x}": empty for n in range(chance.randint(100_000, 900_000))}).encode())


def deep_header(chance: random.Random) -> bytes:
    """Return a header of nested lists."""
    depth = chance.randint(1_000_000, 30_000_000)
    return safetensors(b'{"a":' + b"[" * depth + b"]" * chance.choice([0, depth]) + b"}")


def false_shape(chance: random.Random) -> bytes:
    """Return tensors with the names of a layer, whose shapes multiply to terabytes."""
    part = {"dtype": "F16", "shape": [chance.choice([0, 1, 2**40]), chance.choice([2**20, 2**62])]}
    names = chance.choice(["model.0.weight", "lora_unet_mid.lora_mid.weight", "emb_params", "body.0.weight"])
    return safetensors(json.dumps({names: part | {"data_offsets": [0, 2]}}).encode(), bytes(2))


def cut(chance: random.Random) -> bytes:
    """Return random bytes after the beginning of a known format."""
    start = chance.choice(
        [b"PK\x03\x04", b"\x80\x02", b"GGUF", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF", b""]
    )
    return start + chance.randbytes(chance.randint(0, 5000))


def png_bomb(chance: random.Random) -> bytes:
    """Return a PNG that claims to be large, or whose pixels or texts unpack to far more than their own size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    side = chance.choice([5_000, 30_000, 2**31 - 1])
    size = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(chance.randint(1, 100) * 1_000_000)))
    pixels = chunk(b"IDAT", zlib.compress(bytes(chance.randint(1, 50) * 1_000_000)))
    return b"\x89PNG\r\n\x1a\n" + size + text * chance.randint(0, 20) + pixels + chunk(b"IEND", b"")


def scans(chance: random.Random) -> bytes:
    """Return a progressive JPEG that repeats its last scan thousands of times."""
    stream = io.BytesIO()
    side = chance.choice([64, 512, 2000])
    Image.effect_noise((side, side), 40).convert("RGB").save(stream, "JPEG", progressive=True, quality=20)
    whole = stream.getvalue()
    start = whole.rfind(b"\xff\xda")
    return (
        whole[:start]
        + whole[start:-2] * min(chance.randint(100, 4000), 8_000_000 // (len(whole) - start))
        + b"\xff\xd9"
    )


KINDS: dict[str, tuple[Maker, tuple[str, ...]]] = {
    "nested pickle": (nested, WEIGHTS),
    "chained pickle": (chained, WEIGHTS),
    "long name": (long_name, WEIGHTS),
    "many tensors": (many_tensors, WEIGHTS),
    "deep header": (deep_header, WEIGHTS),
    "false shape": (false_shape, WEIGHTS),
    "cut": (cut, WEIGHTS + PICTURES),
    "PNG bomb": (png_bomb, PICTURES),
    "JPEG of many scans": (scans, PICTURES),
}


def as_uri(content: bytes) -> str:
    """Return the file as a request carries it."""
    return f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"

"""The jobs of the helper process for pictures (isolation.py): an open file -> its pixels or generation parameters.

It imports only Pillow and numpy, so that it starts quickly and stays small.
"""

import mmap
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError  # noqa: F401  (the third reads EXIF)

from pipelines.images.texts import comment_in, png_texts
from pipelines.runtime.isolation import limit_memory

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP")
WITH_PARAMETERS = ("PNG", "WEBP", "JPEG", "AVIF", "GIF")
"""The formats that generation parameters are read from."""
SCANS_MAX = 100
"""Limit for the scans in a JPEG. Encoders write about 10, and each scan covers the whole picture."""
STRIP = 256
"""How many rows are written at a time."""


def pixels(file: BinaryIO, output: BinaryIO, pixels_max: int, side_max: int, deep: bool = False) -> dict[str, Any]:
    """Write the picture's bytes: upright, 8 bits, as L, RGB or RGBA; the first frame of an animation.

    With `deep`, grey of 16 bits is written as I;16. Returns its mode and size, or only its size if it has too many
    pixels or too long a side to be read. Raises ValueError, which says what the file is.
    """
    _check_scans(file)
    with _pillows_errors(file), Image.open(file, formats=_formats(file)) as image:
        if image.width * image.height > pixels_max or max(image.size) > side_max:  # known before any pixel is read
            return {"size": image.size}
        limit_memory((64 << 20) + 24 * image.width * image.height)
        image.load()
        upright = _grey_of_16_bits(image, deep) if image.mode.startswith("I") else _in_8_bits(image)
        ImageOps.exif_transpose(upright, in_place=True)
    for top in range(0, upright.height, STRIP):
        strip = upright.crop((0, top, upright.width, min(top + STRIP, upright.height)))
        output.write(strip.tobytes())
    return {"mode": upright.mode, "size": upright.size}


@contextmanager
def _pillows_errors(file: BinaryIO) -> Iterator[None]:
    """Say what the file is, if Pillow cannot read it. Its decoders raise errors of many kinds, some without a text."""
    try:
        yield
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise ValueError(_what_else(file)) from None
    except Exception as error:
        raise ValueError(f"{_what_else(file)}: {error}") from None


def parameters(file: BinaryIO, output: BinaryIO, characters_max: int) -> str | None:
    """Return the generation parameters of a picture; "" if it has none, and None if the file is not a picture."""
    try:
        with Image.open(file, formats=WITH_PARAMETERS) as image:
            if image.format == "PNG":
                return _of_png(file, characters_max)
            text, comment = comment_in(image.getexif(), characters_max), image.info.get("comment")
    except UnidentifiedImageError:
        return None
    if not text.strip() and isinstance(comment, bytes):
        text = comment[: 4 * characters_max + 4].decode("utf-8", errors="replace")
    return text[: characters_max + 1]


def _of_png(file: BinaryIO, characters_max: int) -> str:
    """Return a PNG's last `parameters` that is not blank, or else its EXIF comment."""
    found = {"parameters": "", "exif": ""}
    for kind, value in png_texts(file, characters_max):
        text = comment_in(value, characters_max) if kind == "exif" else value
        found[kind] = text if text.strip() else found[kind]
    return found["parameters"] or found["exif"]


JOBS: Mapping[str, Callable[..., Any]] = {"pixels": pixels, "parameters": parameters}
Image.init()  # otherwise every child would import Pillow's formats again


HEIC = rb".{4}ftyp(hei[cxms]|hev[cxm]|mif1|msf1)"
"""The beginning of HEIC pictures, as iPhones save them."""
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (HEIC, "a HEIC picture that is cut or broken"),
    (rb".{4}ftyp(avif|avis)", "an AVIF picture that is cut or broken"),
    (rb".{4}ftypcrx", "a camera's raw picture"),
    (rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI |FLV", "a video"),
    (rb"II\*\0.{4}CR|FUJIFILMCCD-RAW|IIU\0", "a camera's raw picture"),
    (rb"II[*+]\0|MM\0[*+]", "a TIFF picture"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (rb"8BPS", "a Photoshop file"),
    (rb"gimp xcf", "a GIMP file"),
    (rb"\0\0[\x01\x02]\0", "an icon"),
    (rb"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (rb"#\?RADIANCE", "a Radiance picture"),
    (rb"DDS ", "a DDS texture"),
    (rb"%PDF", "a PDF document"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\xef?\xbb?\xbf?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg", "an SVG drawing"),
    (rb"(?i)\s*(<!doctype html|<html)", "a web page"),
    (rb"\s*[{\[]", "JSON"),
    (rb"\x89PNG", "a PNG that is cut or broken"),
    (rb"\xff\xd8\xff", "a JPEG that is cut or broken"),
    (rb"RIFF.{4}WEBP", "a WebP picture that is cut or broken"),
    (rb"GIF8", "a GIF that is cut or broken"),
    (rb"BM", "a BMP that is cut, broken or of a rare kind"),
)
"""The first bytes of files that are not read as pictures, and what these files are."""
_BEGINNING = 512
"""How many bytes at the beginning of a file are used to recognise it."""


def _what_else(file: BinaryIO) -> str:
    """Describe a file that cannot be read as a picture."""
    file.seek(0)
    start = file.read(_BEGINNING)
    if not start:
        return "it is empty"
    what = next((what for sign, what in _OTHERS if re.match(sign, start, re.DOTALL)), None)
    return f"it is {what}" if what else "it is not in a supported format, or cut off at its beginning"


def _formats(file: BinaryIO) -> tuple[str, ...]:
    """Return the formats to try. Pillow is only taught HEIC if the file is one, because few are."""
    start = file.read(_BEGINNING)
    file.seek(0)
    if not re.match(HEIC, start, re.DOTALL):
        return FORMATS
    import pillow_heif

    pillow_heif.options.DECODE_THREADS = 1  # the stacks of more threads count towards the limit of memory
    pillow_heif.register_heif_opener()
    return (*FORMATS, "HEIF")


def _check_scans(file: BinaryIO) -> None:
    """Raise ValueError for a JPEG with too many scans. Data inside a scan never contains the bytes of a marker."""
    if file.read(3) == b"\xff\xd8\xff":
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            scans = sum(1 for _ in re.finditer(rb"\xff\xda", content))
        if scans > SCANS_MAX:
            raise ValueError(f"it has {scans} scans, but a JPEG has about 10")
    file.seek(0)


def _grey_of_16_bits(image: Image.Image, deep: bool) -> Image.Image:
    """Return 16-bit grey as it is, in mode I;16, if `deep`; otherwise in 8 bits."""
    values = np.asarray(image).astype(np.int64).clip(0, 65535).astype(np.uint16)
    grey = Image.fromarray(values if deep else (values // 257).astype(np.uint8))
    grey.info, grey.getexif = image.info, image.getexif  # type: ignore[method-assign]
    return grey


def _in_8_bits(image: Image.Image) -> Image.Image:
    transparent = "A" in image.mode.upper() or "transparency" in image.info
    mode = "RGBA" if transparent else "L" if image.mode in ("1", "L") else "RGB"
    return image if image.mode == mode and "transparency" not in image.info else image.convert(mode)

"""Pictures as people upload them, and as attackers do."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import InvalidInput
from pipelines.images.reading import flat, read, resize


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    ("mode", "name", "expected"),
    [
        ("RGB", "a.png", "RGB"),
        ("RGB", "a.gif", "RGB"),
        ("RGB", "a.webp", "RGB"),
        ("RGBA", "a.png", "RGBA"),
        ("LA", "a.png", "RGBA"),
        ("L", "a.png", "L"),
        ("1", "a.png", "L"),
        ("P", "a.png", "RGB"),
        ("CMYK", "a.jpg", "RGB"),
    ],
)
def test_every_kind_of_pixel(tmp_path: Path, mode: str, name: str, expected: str) -> None:
    image = read(saved(Image.new("RGB", (20, 10), "white").convert(mode), tmp_path / name), "image")
    assert (image.mode, image.size) == (expected, (20, 10))
    assert np.asarray(flat(image)).min() >= 254


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture"),
        (b"\0\0\0\x24ftypmif1\0\0\0\0heic", "a HEIC picture"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "a video"),
        (b"\0\0\0\x18ftypcrx isom", "a camera's raw picture"),
        (b"II*\0\x08\0\0\0", "a TIFF picture"),
        (b"MM\0*\0\0\0\x08", "a TIFF picture"),
        (b"\xff\x0a\xfa\x7f", "a JPEG XL picture"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"%PDF-1.7", "a PDF document"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x">', "an SVG drawing"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b'{"error": "not found"}', "JSON"),
        (b"\x89PNG\r\n\x1a\n\0\0", "a PNG that is cut or broken"),
        (b"", "it is empty"),
        (b"hello", "it is not in a supported format"),
    ],
)
def test_what_is_no_picture_that_is_read_is_named(tmp_path: Path, start: bytes, what: str) -> None:
    path = tmp_path / "tmpab12_xyzholiday.heic"
    path.write_bytes(start + bytes(100) * bool(start))
    with pytest.raises(InvalidInput) as refused:
        read(path, "image")
    assert what in str(refused.value)
    assert str(refused.value).startswith("image='holiday.heic': cannot be read as a picture (it is ")
    assert "convert other formats to one of these" in str(refused.value)


def test_sixteen_bits_keep_their_greys(tmp_path: Path) -> None:
    values = np.array([[0, 257 * 100, 65535]], np.uint16)
    image = read(saved(Image.fromarray(values), tmp_path / "a.png"), "mask")
    assert np.asarray(image).tolist() == [[0, 100, 255]]


def test_pictures_are_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = read(saved(Image.new("RGB", (20, 10)), tmp_path / "a.jpg", exif=exif), "image")
    assert image.size == (10, 20)


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    path = saved(red, tmp_path / "a.gif", save_all=True, append_images=[blue])
    assert flat(read(path, "image")).getpixel((0, 0)) == (255, 0, 0)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    pixels = np.asarray(flat(read(saved(image, tmp_path / "a.png"), "image")))
    assert pixels.tolist() == [[[255, 255, 255], [10, 20, 30]]]


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds next to nothing."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99)))]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot be read as a picture"),
        (b"no picture", "cannot be read as a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read as a picture"),
        (png_header(64, 64), "cannot be read as a picture"),
        (png_header(6000, 6000), "at most 33.6 million pixels are read"),
        (png_header(1, 30_000_000), "and 32768 per side"),
        (png_header(32_769, 1), "and 32768 per side"),
        (png_header(100_000, 100_000), "cannot be read as a picture"),
        (png_header(0, 64), "cannot be read as a picture"),
    ],
)
def test_what_is_no_picture_is_refused_by_the_inputs_name(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InvalidInput, match=rf"^mask=.*{told}"):
        read(tmp_path / "a.png", "mask")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    path = saved(noise, tmp_path / "a.png")
    whole = path.read_bytes()
    for size in (5000, 40, 30, 20):
        path.write_bytes(whole[:size])
        with pytest.raises(InvalidInput, match=r"cannot be read as a picture \(it is a PNG that is cut or broken"):
            read(path, "image")


HALVES = Image.new("RGB", (200, 100), "blue")
HALVES.paste("red", (0, 0, 100, 100))
RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_stretch_distorts() -> None:
    image = resize(HALVES, (64, 64), "stretch")
    assert (image.getpixel((5, 60)), image.getpixel((60, 5))) == (RED, BLUE)


def test_crop_covers_and_cuts_both_sides_off() -> None:
    image = np.asarray(resize(HALVES, (64, 64), "crop"))
    assert image.shape == (64, 64, 3)
    assert tuple(image[0, 20]) == RED
    assert tuple(image[63, 44]) == BLUE


@pytest.mark.parametrize("size", [(64, 64), (64, 72), (200, 40)])
def test_fill_fits_and_continues_the_edges(size: tuple[int, int]) -> None:
    image = np.asarray(resize(HALVES, size, "fill"))
    assert tuple(image[0, 0]) == tuple(image[-1, 0]) == RED
    assert tuple(image[0, -1]) == tuple(image[-1, -1]) == BLUE


def test_an_aspect_that_would_take_all_memory_is_refused() -> None:
    with pytest.raises(InvalidInput, match="image='2x30000'"):
        resize(Image.new("RGB", (2, 30_000)), (2048, 2048), "crop")
    assert resize(Image.new("RGB", (2, 30_000)), (64, 64), "fill").size == (64, 64)

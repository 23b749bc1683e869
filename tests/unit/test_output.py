"""Files of every format contain the picture and its generation parameters."""

import io
import os
import resource
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import InvalidInput, OutputError
from pipelines.images.files import FileFormat, OutputFolder, parameters_in, read_parameters
from pipelines.images.texts import EXIF_IFD, USER_COMMENT

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
TEXT = "a café, 海\nSteps: 20, Sampler: DPM++ 2M"


@pytest.fixture
def folder() -> OutputFolder:
    return OutputFolder()


def comment(image: Image.Image) -> str:
    """EXIF's UserComment: eight bytes that name the encoding, then the text."""
    raw = image.getexif().get_ifd(EXIF_IFD)[USER_COMMENT]
    assert raw.startswith(b"UNICODE\0")
    return raw[8:].decode("utf-16-be")


def test_png_is_exact(folder: OutputFolder) -> None:
    with Image.open(folder.save(PIXELS, "x", FileFormat("png"), TEXT)) as image:
        assert image.info["parameters"] == TEXT
        assert np.array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("name", ["webp", "jpg"])
def test_others_hold_the_text_in_exif(folder: OutputFolder, name: str) -> None:
    with Image.open(folder.save(PIXELS, "x", FileFormat(name, 95), TEXT)) as image:
        assert comment(image) == TEXT
        assert image.size == (24, 16)


@pytest.mark.parametrize("name", ["webp", "jpg"])
def test_lower_quality_makes_smaller_files(folder: OutputFolder, name: str) -> None:
    high, low = (folder.save(PIXELS, f"q{q}", FileFormat(name, q), "").stat().st_size for q in (95, 10))
    assert low < high


def test_parameters_too_long_for_a_jpeg_are_left_out_and_said(
    folder: OutputFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    longest = "🌸" * 20_000
    with Image.open(folder.save(PIXELS, "x", FileFormat("jpg"), longest)) as image:
        assert not image.getexif().get_ifd(EXIF_IFD)
    assert "too long for a JPEG" in capsys.readouterr().out
    with Image.open(folder.save(PIXELS, "x", FileFormat("png"), longest)) as image:
        assert image.info["parameters"] == longest


def test_clearing_deletes_the_files(folder: OutputFolder) -> None:
    path: Path = folder.save(PIXELS, "x", FileFormat(), TEXT)
    folder.clear()
    assert not path.parent.exists()


def test_pictures_of_several_predictions_can_lie_in_one_folder() -> None:
    """Cog stores files under their own names: those of a later prediction must not take the place of others."""
    first, second = (OutputFolder().save(PIXELS, "picture-0-seed-5", FileFormat(), TEXT) for _ in range(2))
    assert first.name != second.name
    assert all(path.name.startswith("picture-0-seed-5-") and path.suffix == ".png" for path in (first, second))


@pytest.mark.parametrize("name", ["png", "webp", "jpg"])
def test_what_is_written_into_a_picture_is_read_from_it(folder: OutputFolder, name: str) -> None:
    text = "a pink sun, \u6d77 \U0001f305\nSteps: 20, Sampler: Euler, Seed: 1"
    path = folder.save(np.zeros((8, 8, 3), np.uint8), "x", FileFormat(name), text)
    assert read_parameters(path) == text


def test_other_programs_write_the_other_byte_order(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + "a\nSteps: 20".encode("utf-16-le")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_parameters(tmp_path / "a.jpg") == "a\nSteps: 20"


def test_a_picture_without_parameters_and_a_text(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(InvalidInput, match="holds no generation parameters"):
        read_parameters(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("Steps: 20")
    assert read_parameters(tmp_path / "a.txt") == "Steps: 20"


@pytest.mark.parametrize("name", ["png", "webp", "jpg"])
def test_a_picture_that_finds_no_room_leaves_nothing(folder: OutputFolder, name: str) -> None:
    kept = folder.save(PIXELS, "kept", FileFormat(name), TEXT)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kept.stat().st_size - 1, before[1]))
    try:
        with pytest.raises(OutputError, match=rf"^{tempfile.gettempdir()}: .*File too large.*set TMPDIR"):
            folder.save(PIXELS, "lost", FileFormat(name), TEXT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(kept.parent.iterdir()) == [kept]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG of declared size with hardly any pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(bytes(200)))


BOMB = zlib.compress(bytes(20_000_000), 9)
HOSTILE = {
    "a png of 100000 x 100000": (png(100_000, 100_000), "exceeds limit"),
    "a webp of 2^48 pixels": (b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6, "exceeds limit"),
    "a packed text that inflates": (png(8, 8, chunk(b"zTXt", b"parameters\0\0" + BOMB)), "too large"),
    "a packed utf-8 text that inflates": (png(8, 8, chunk(b"iTXt", b"parameters\0\1\0\0\0" + BOMB)), "too large"),
    "many texts": (png(8, 8, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000)))] * 80), "Too much memory"),
    "a long text": (png(8, 8, chunk(b"tEXt", b"parameters\0" + b"a" * 1_000_001)), "more than 1000000 characters"),
    "a cut png": (png(8, 8)[:30], "cannot be read"),
    "a chunk longer than the file": (png(8, 8)[:33] + b"\x7f\xff\xff\xfftEXt", "cannot be read"),
    "a broken gif": (b"GIF89a" + bytes(range(256)), ""),
    "an empty file": (b"", "holds no generation parameters"),
    "a long text file": (b"a" * 1_000_001, "more than 1000000 characters"),
    "no text": (bytes(range(256)), "cannot be read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures_are_named(tmp_path: Path, name: str) -> None:
    content, said = HOSTILE[name]
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InvalidInput, match=f"a.png.*{said}"):
        read_parameters(tmp_path / "a.png")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", tmp_path, Path("/dev/zero")):
        with pytest.raises(InvalidInput, match="no such file"):
            read_parameters(path)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"ASCII\0\0\0a\nSteps: 20", "a\nSteps: 20"),
        (bytes(8) + b"a\nSteps: 20", "a\nSteps: 20"),
        (b"caf\xc3\xa9\nSteps: 20", "café\nSteps: 20"),
        (b"UNICODE\0" + "\ufeffa\nSteps: 20".encode("utf-16-le"), "a\nSteps: 20"),
        (b"UNICODE\0" + "a\nSteps: 20".encode("utf-16-be") + b"x", "a\nSteps: 20\ufffd"),
        (b"UNICODE\0" + "1girl, \u6d77 without the word".encode("utf-16-le"), "1girl, \u6d77 without the word"),
        (b"UNICODE\0" + "1girl, \u6d77 without the word".encode("utf-16-be"), "1girl, \u6d77 without the word"),
        (b"Unicode\0" + "\ufeff\u6d77\u6d77\u6d77 Steps".encode("utf-16-be"), "\u6d77\u6d77\u6d77 Steps"),
        (b"UNICODE\0" + "\u6d77\u6d77\nSteps: 20".encode("utf-16-le"), "\u6d77\u6d77\nSteps: 20"),
        (b"JIS\0\0\0\0\0" + "\u6d77\nSteps: 20".encode("iso2022_jp"), "\u6d77\nSteps: 20"),
    ],
)
@pytest.mark.parametrize("ending", ["jpg", "webp", "avif", "png"])
def test_other_encodings_of_the_comment(tmp_path: Path, raw: bytes, text: str, ending: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = raw
    Image.new("RGB", (8, 8)).save(tmp_path / f"a.{ending}", exif=exif.tobytes())
    assert read_parameters(tmp_path / f"a.{ending}") == text


TEXTS: dict[str, Callable[[str], bytes]] = {
    "tEXt": lambda text: chunk(b"tEXt", b"parameters\0" + text.encode("latin-1")),
    "zTXt": lambda text: chunk(b"zTXt", b"parameters\0\0" + zlib.compress(text.encode("latin-1"))),
    "iTXt": lambda text: chunk(b"iTXt", b"parameters\0\0\0en\0word\0" + text.encode()),
    "packed iTXt": lambda text: chunk(b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(text.encode())),
}


def written(tmp_path: Path, before: bytes = b"", after: bytes = b"") -> Path:
    """A whole PNG with chunks before its pixels and after them."""
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(stream, "PNG")
    content = stream.getvalue()
    end = len(content) - 12
    path = tmp_path / "a.png"
    path.write_bytes(content[:33] + before + content[33:end] + after + content[end:])
    return path


@pytest.mark.parametrize("kind", TEXTS)
def test_parameters_are_found_before_the_pixels_and_after_them(tmp_path: Path, kind: str) -> None:
    text = "caf\xe9\nSteps: 20, Sampler: Euler, Seed: 1"
    other = chunk(b"tEXt", b"Software\0parameters") + chunk(b"zTXt", b"parameters\0\0broken")
    for place in ("before", "after"):
        path = written(tmp_path, **{place: TEXTS[kind](text) + other})
        assert read_parameters(path) == parameters_in(path) == text
    path = written(tmp_path, TEXTS["tEXt"]("before"), TEXTS[kind]("after"))
    assert read_parameters(path) == "after", "the last one counts, as in Pillow"
    path.write_bytes(path.read_bytes()[:-12])
    assert read_parameters(path) == "after", "the end is missing"


def test_hostile_texts_after_the_pixels_are_bounded(tmp_path: Path) -> None:
    for kind, head in ((b"zTXt", b"parameters\0\0"), (b"iTXt", b"parameters\0\1\0\0\0")):
        path = written(tmp_path, after=chunk(kind, head + BOMB))
        with pytest.raises(InvalidInput, match="more than 1000000 characters"):
            read_parameters(path)
    path = written(tmp_path, after=chunk(b"tEXt", b"") * 300_000)
    with pytest.raises(InvalidInput, match="more than 200000 chunks"):
        read_parameters(path)


def test_a_comment_of_a_gif_is_read(tmp_path: Path) -> None:
    Image.new("P", (8, 8)).save(tmp_path / "a.gif", comment=b"a\nSteps: 20")
    assert read_parameters(tmp_path / "a.gif") == "a\nSteps: 20"

"""Pictures -> files: a name of its own for each, with its generation parameters inside; and those read from a picture.

PNG holds them in the text chunk `parameters`, WebP and JPEG in EXIF's UserComment: where WebUI writes them, so that
WebUI, CivitAI and metadata readers find them.
"""

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from pipelines.errors import InvalidInput, OutputError
from pipelines.picture import Pixels

EXIF_IFD = 0x8769
USER_COMMENT = 0x9286
PARAMETERS_MAX = 1_000_000
"""Characters; prompts have a hundredth of that."""
JPEG_SEGMENT = 65_533
"""Bytes that fit into a JPEG's EXIF segment."""


@dataclass(frozen=True)
class FileFormat:
    """`name` is the file's ending: png, webp or jpg. `quality` 1 to 100 matters to the last two."""

    name: str = "png"
    quality: int = 95


class OutputFolder:
    """The files of one prediction, written in the background. Cog reads a file after it was handed out and deletes
    none, so they live until the next prediction's folder replaces them."""

    def __init__(self) -> None:
        """Raises OutputError."""
        with _explained():
            self._folder = tempfile.TemporaryDirectory(prefix="pastel-", ignore_cleanup_errors=True)
        self._writers = ThreadPoolExecutor(4)
        self._begun: deque[Future[Path]] = deque()

    def clear(self) -> None:
        """Delete the files; those that are still to be written are not."""
        self._writers.shutdown(cancel_futures=True)
        self._folder.cleanup()

    def begin(self, pixels: Pixels, name: str, file_format: FileFormat, parameters: str) -> None:
        """Begin to `save`; what that prints belongs to the prediction that asks for it."""
        self._begun.append(self._writers.submit(copy_context().run, self.save, pixels, name, file_format, parameters))

    def saved(self, wait: bool) -> Iterator[Path]:
        """The files that are written by now, or with `wait` all that were begun, in the order in which they were
        begun. Raises OutputError."""
        while self._begun and (wait or self._begun[0].done()):
            yield self._begun.popleft().result()

    def save(self, pixels: Pixels, name: str, file_format: FileFormat, parameters: str) -> Path:
        """Write the picture as `name` with the format's ending; returns the path. Raises OutputError."""
        path = Path(self._folder.name) / f"{name}.{file_format.name}"
        with _explained():
            try:
                write(pixels, path, file_format, parameters)
            except OSError:
                path.unlink(missing_ok=True)  # half a picture
                raise
        return path


@contextmanager
def _explained() -> Iterator[None]:
    """What the system refuses, as OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{tempfile.gettempdir()}: a picture cannot be written there ({error.strerror}). Free some space in that "
            "folder, or set TMPDIR to one that exists, can be written to and has room."
        ) from error


def write(pixels: Pixels, path: Path, file_format: FileFormat, parameters: str) -> None:
    """Write the picture to a path, its generation parameters inside.

    It is encoded in memory: Pillow's JPEG writer takes a file that is cut short, as on a full disk, for written.
    """
    encoded = BytesIO()
    WRITERS[file_format.name](Image.fromarray(pixels), encoded, file_format.quality, parameters)
    path.write_bytes(encoded.getvalue())


def _write_png(image: Image.Image, stream: BytesIO, quality: int, parameters: str) -> None:
    """Lossless: quality has no meaning. The fastest compression, as files leave the machine at once."""
    info = PngInfo()
    info.add_text("parameters", parameters)
    image.save(stream, format="PNG", pnginfo=info, compress_level=1)


def _write_webp(image: Image.Image, stream: BytesIO, quality: int, parameters: str) -> None:
    image.save(stream, format="WEBP", quality=quality, exif=_exif(parameters))


def _write_jpeg(image: Image.Image, stream: BytesIO, quality: int, parameters: str) -> None:
    exif = _exif(parameters)
    if len(exif.tobytes()) > JPEG_SEGMENT:
        print("The generation parameters are too long for a JPEG and are left out of it; PNG has room.")
        exif = Image.Exif()
    image.save(stream, format="JPEG", quality=quality, exif=exif)


def _exif(parameters: str) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + parameters.encode("utf-16-be")
    return exif


WRITERS: dict[str, Callable[[Image.Image, BytesIO, int, str], None]] = {
    "png": _write_png,
    "webp": _write_webp,
    "jpg": _write_jpeg,
}


def read_parameters(path: Path) -> str:
    """The generation parameters inside a picture of ours or WebUI's, or of a text file. Raises InvalidInput."""
    try:
        text = _inside(path)
    except Exception as error:  # Pillow raises many kinds at broken pictures, and at those made to take all memory
        raise _unreadable(path, f"cannot be read ({error})") from error
    if not text.strip():
        raise _unreadable(path, "holds no generation parameters")
    if len(text) > PARAMETERS_MAX:
        raise _unreadable(path, f"holds more than {PARAMETERS_MAX} characters")
    return text


def parameters_in(path: Path) -> str:
    """The generation parameters inside an input picture; "" where it has none that can be read."""
    try:
        return read_parameters(path).strip()
    except InvalidInput:
        return ""


def _unreadable(path: Path, rule: str) -> InvalidInput:
    return InvalidInput(
        "infotext", path.name, rule, "Give the picture as WebUI saved it, or its parameters as UTF-8 text."
    )


def _inside(path: Path) -> str:
    """The text of a picture, "" for none, or of a text file; not much more of it than is allowed."""
    if not path.is_file():  # a pipe would be waited for
        raise OSError("no such file")
    try:
        with Image.open(path, formats=("PNG", "WEBP", "JPEG", "AVIF")) as image:
            text, comment = image.info.get("parameters"), image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    except UnidentifiedImageError:
        with path.open(encoding="utf-8") as stream:
            return stream.read(PARAMETERS_MAX + 1)
    if isinstance(text, str) and text.strip():
        return text
    return _comment(comment) if isinstance(comment, bytes) else ""


def _comment(comment: bytes) -> str:
    """EXIF's UserComment: eight bytes that name the encoding, then the text; some programs write the text alone."""
    kind, content = comment[:8], comment[8:]
    if kind == b"UNICODE\0":
        # big-endian as WebUI writes it; in other programs' little-endian "Steps" begins at an even place
        little = content.find("Steps".encode("utf-16-le")) % 2 == 0
        return content.decode("utf-16-le" if little else "utf-16-be", errors="replace").removeprefix("\ufeff")
    known = kind in (b"ASCII\0\0\0", bytes(8))
    return (content if known else comment).decode("utf-8", errors="replace")

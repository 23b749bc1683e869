"""Saves pictures as files with unique names and generation parameters inside, and reads these parameters back.

PNG stores them in the text chunk `parameters`, WebP and JPEG in EXIF's UserComment. That is where WebUI writes them, so
WebUI, CivitAI and metadata readers find them.
"""

import secrets
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.errors import InvalidInput, OutputError
from pipelines.images.reading import DECODER, Pixels, limits
from pipelines.images.texts import EXIF_IFD, USER_COMMENT
from pipelines.runtime.isolation import Failed
from pipelines.runtime.worker import Task, Worker, stop_if_asked

PARAMETERS_MAX = 1_000_000
"""In characters. Prompts have a hundredth of that."""
JPEG_SEGMENT = 65_533
"""The most bytes that fit into a JPEG's EXIF segment."""


@dataclass(frozen=True)
class FileFormat:
    """The format of a file. `name` is its extension: png, webp or jpg. `quality` (1 to 100) is for webp and jpg."""

    name: str = "png"
    quality: int = 95


class OutputFolder:
    """The files of one prediction, written in the background.

    Cog reads a file after it was handed out and does not delete it, so files are kept until the next prediction clears
    the folder.
    """

    def __init__(self) -> None:
        """Create the folder. Raises OutputError."""
        self._writers = Worker(threads=4)
        self._begun: deque[Task[Path]] = deque()
        self._folder, self._id = _new_folder(), _new_id()

    def clear(self) -> None:
        """Delete the files and create a new folder. Raises OutputError."""
        self.stop()
        self._folder.cleanup()
        self._folder, self._id = _new_folder(), _new_id()

    def stop(self) -> None:
        """Cancel files that are not yet started. Do not wait for those that are being written."""
        for task in self._begun:
            task.stop()
        self._begun.clear()

    @property
    def writing(self) -> bool:
        """Whether there are files that were started and not yet handed out."""
        return bool(self._begun)

    def begin(self, pixels: Pixels, name: str, file_format: FileFormat, parameters: str) -> None:
        """Start to `save` in the background. What it prints goes to the log of the calling prediction."""
        self._begun.append(self._writers.begin(self.save, pixels, name, file_format, parameters))

    def saved(self, wait: bool) -> Iterator[Path]:
        """Yield the files written so far, or with `wait` all that were started, in the order of their start.

        Raises OutputError.
        """
        while self._begun and (wait or self._begun[0].done):
            self._begun[0].wait()
            yield self._begun.popleft().outcome()

    def make(self, name: str, suffix: str, write: Callable[[Path], None]) -> Path:
        """Let `write` make a file of this prediction in the background, wait for it, and return its path."""
        path = Path(self._folder.name) / f"{name}-{self._id}.{suffix}"
        self._writers.run(write, path)
        return path

    def save(self, pixels: Pixels, name: str, file_format: FileFormat, parameters: str) -> Path:
        """Write the picture under `name` with this prediction's id and the format's extension. Return the path.

        The id makes names unique, so that pictures of several predictions can be stored together. Raises OutputError.
        """
        path = Path(self._folder.name) / f"{name}-{self._id}.{file_format.name}"
        with explained():
            try:
                write(pixels, path, file_format, parameters)
            except OSError:
                path.unlink(missing_ok=True)  # it may be incomplete
                raise
        return path


def _new_id() -> str:
    """Return a random id that makes the names of one prediction's files unique."""
    return secrets.token_hex(4)


def _new_folder() -> tempfile.TemporaryDirectory[str]:
    with explained():
        return tempfile.TemporaryDirectory(prefix="pastel-", ignore_cleanup_errors=True)


@contextmanager
def explained() -> Iterator[None]:
    """Turn the system's errors into OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{tempfile.gettempdir()}: a picture cannot be written there ({error.strerror}). Free some space in that "
            "folder, or set TMPDIR to one that exists, can be written to and has room."
        ) from error


class _Encoded(BytesIO):
    """An encoded picture in memory. Pillow writes PNGs to it piece by piece, and the work can stop in between."""

    def write(self, data: Any) -> int:
        stop_if_asked()
        return super().write(data)


def write(pixels: Pixels, path: Path, file_format: FileFormat, parameters: str) -> None:
    """Write the picture with its generation parameters to a path.

    It is encoded in memory, because Pillow's JPEG writer does not notice if a file is cut short, as on a full disk.
    """
    encoded = _Encoded()
    WRITERS[file_format.name](Image.fromarray(pixels), encoded, file_format.quality, parameters)
    path.write_bytes(encoded.getvalue())


def _write_png(image: Image.Image, stream: BytesIO, quality: int, parameters: str) -> None:
    """Write a PNG, which is lossless and ignores quality. It is compressed fast, because files are sent right away."""
    info = PngInfo()
    info.add_text("parameters", parameters)
    image.save(stream, format="PNG", pnginfo=info, compress_level=1)


def _write_webp(image: Image.Image, stream: BytesIO, quality: int, parameters: str) -> None:
    image.save(stream, format="WEBP", quality=quality, exif=exif_with(parameters))


def _write_jpeg(image: Image.Image, stream: BytesIO, quality: int, parameters: str) -> None:
    exif = exif_with(parameters)
    if len(exif.tobytes()) > JPEG_SEGMENT:
        print("The generation parameters are too long for a JPEG and were left out. PNG has room for them.")
        exif = Image.Exif()
    image.save(stream, format="JPEG", quality=quality, exif=exif)


def exif_with(parameters: str) -> Image.Exif:
    """Return EXIF data with generation parameters, as WebUI writes them."""
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + parameters.encode("utf-16-be")
    return exif


WRITERS: dict[str, Callable[[Image.Image, BytesIO, int, str], None]] = {
    "png": _write_png,
    "webp": _write_webp,
    "jpg": _write_jpeg,
}


def read_parameters(path: Path) -> str:
    """Read the generation parameters inside a picture (ours or WebUI's) or from a text file. Raises InvalidInput."""
    try:
        text = _inside(path)
    except (OSError, ValueError, Failed) as error:
        raise _unreadable(path, f"cannot be read ({error})") from error
    if not text.strip():
        raise _unreadable(path, "holds no generation parameters")
    if len(text) > PARAMETERS_MAX:
        raise _unreadable(path, f"holds more than {PARAMETERS_MAX} characters")
    return text


def parameters_in(path: Path) -> str:
    """Return the generation parameters inside an input picture; "" if it has none that can be read."""
    try:
        return read_parameters(path).strip()
    except InvalidInput:
        return ""


def _unreadable(path: Path, rule: str) -> InvalidInput:
    return InvalidInput(
        "infotext", path.name, rule, "Give the picture as WebUI saved it, or its parameters as UTF-8 text."
    )


def _inside(path: Path) -> str:
    """Return the text inside a picture ("" if there is none) or of a text file, up to about the allowed length."""
    if not path.is_file():  # reading a pipe would block
        raise OSError("no such file")
    with path.open("rb") as stream:
        answer, output = DECODER.run("parameters", stream, limits(path), characters_max=PARAMETERS_MAX)
    output.close()
    if answer is not None:
        return str(answer)
    with path.open(encoding="utf-8") as text:
        return text.read(PARAMETERS_MAX + 1)

"""Writes films from the files of their frames: mp4 and webm by PyAV, gif and animated webp by Pillow.

Frames are read one by one, so that a long film needs no more memory than a short one. PyAV is imported at first use.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pipelines.images.files import exif_with, explained
from pipelines.images.reading import Pixels
from pipelines.runtime.worker import stop_if_asked

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext

GIF_COLOURS = 256
BT709 = 1
"""The colours of HDTV, by their number in H.273. Players would guess others for small films."""
LIMITED_RANGE = 1
KEY_FRAME_SECONDS = 2
"""A player can jump to any place that is at most this far apart."""


@dataclass(frozen=True)
class FilmFile:
    """How to write a film."""

    suffix: str
    """mp4, webm, gif or webp."""
    rate: int
    """Frames per second."""
    quality: int
    """1 to 100."""
    text: str
    """Its generation data."""


def write_film(frames: Sequence[Path], path: Path, film: FilmFile) -> None:
    """Write the film that shows the pictures in these files in turn. Raises OutputError; then there is no file.

    The pictures have one size. Sides that video cannot have are rounded up: their last pixels are repeated.
    """
    with explained():
        try:
            WRITERS[film.suffix](frames, path, film)
        except BaseException:
            path.unlink(missing_ok=True)  # it is incomplete
            raise


def durations(count: int, rate: int, unit: int) -> list[int]:
    """Return how long each frame is shown, in units of 1/unit second. What rounding leaves is carried over, so that a
    film is as long as it should be."""
    ends = [round(Fraction(frame * unit, rate)) for frame in range(count + 1)]
    return [end - start for start, end in pairwise(ends)]


def _pixels(path: Path) -> Pixels:
    """Read a frame, with even sides."""
    stop_if_asked()
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


# --- video ------------------------------------------------------------------------------------------------------------


def _write_mp4(frames: Sequence[Path], path: Path, film: FilmFile) -> None:
    """Write H.264 that every browser plays: 4:2:0, and its index at the beginning."""
    options = {"crf": str(round(45 - film.quality / 3)), "preset": "medium"}
    _write_video(frames, path, film, ("libx264", options, "mp4", {"movflags": "+faststart"}))


def _write_webm(frames: Sequence[Path], path: Path, film: FilmFile) -> None:
    """Write VP9 of constant quality."""
    options = {"crf": str(round(60 - film.quality * 0.45)), "b": "0", "row-mt": "1", "cpu-used": "4"}
    _write_video(frames, path, film, ("libvpx-vp9", options, "webm", {}))


Encoding = tuple[str, dict[str, str], str, dict[str, str]]
"""The encoder and its options, the container and its options."""


def _write_video(frames: Sequence[Path], path: Path, film: FilmFile, encoding: Encoding) -> None:
    import av
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    encoder, options, container, container_options = encoding
    height, width = _pixels(frames[0]).shape[:2]
    with av.open(path, "w", format=container, options=container_options) as output:
        output.metadata["comment"] = film.text
        stream = output.add_stream(encoder, rate=film.rate, options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        _set_up(stream.codec_context, film.rate)
        for number, file in enumerate(frames):
            frame = VideoFrame.from_ndarray(_pixels(file), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.pts, frame.time_base = number, Fraction(1, film.rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def _set_up(context: "VideoCodecContext", rate: int) -> None:
    context.color_primaries = context.color_trc = context.colorspace = BT709
    context.color_range = LIMITED_RANGE
    context.gop_size = KEY_FRAME_SECONDS * rate


# --- pictures that move -----------------------------------------------------------------------------------------------


class _Frames(Image.Image):
    """The files of a film's frames as one picture with many frames, which Pillow writes one by one."""

    def __init__(self, files: Sequence[Path], change: Callable[[Image.Image], Image.Image]) -> None:
        super().__init__()
        self._files, self._change, self._place = files, change, -1
        self.seek(0)

    @property
    def n_frames(self) -> int:
        """The number of frames."""
        return len(self._files)

    @property
    def is_animated(self) -> bool:
        """Whether there is more than one frame."""
        return len(self._files) > 1

    def seek(self, frame: int) -> None:
        """Read a frame. Raises EOFError after the last one."""
        if frame == self._place:
            return
        if frame >= len(self._files):
            raise EOFError
        stop_if_asked()
        with Image.open(self._files[frame]) as image:
            shown: Any = self._change(image.convert("RGB"))
        self.im, self._mode, self._size = shown.im, shown.mode, shown.size
        self.palette, self._place = shown.palette, frame

    def tell(self) -> int:
        """Return the number of the present frame."""
        return self._place


def _write_gif(frames: Sequence[Path], path: Path, film: FilmFile) -> None:
    """Write a GIF, whose frames are shown for whole hundredths of a second and have 256 colours each."""
    shown = [10 * hundredths for hundredths in durations(len(frames), film.rate, 100)]
    moving = _Frames(frames, lambda image: image.quantize(GIF_COLOURS))
    moving.save(path, format="GIF", save_all=True, duration=shown, loop=0, comment=film.text.encode())


def _write_webp(frames: Sequence[Path], path: Path, film: FilmFile) -> None:
    moving = _Frames(frames, lambda image: image)
    moving.save(
        path,
        format="WEBP",
        save_all=True,
        duration=durations(len(frames), film.rate, 1000),
        loop=0,
        quality=film.quality,
        exif=exif_with(film.text),
    )


WRITERS: dict[str, Callable[[Sequence[Path], Path, FilmFile], None]] = {
    "mp4": _write_mp4,
    "webm": _write_webm,
    "gif": _write_gif,
    "webp": _write_webp,
}

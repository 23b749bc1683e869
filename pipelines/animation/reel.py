"""The files of a film's frames, and the film that is made of them."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.animation.frames import Frame
from pipelines.animation.inbetween import Interpolator, with_computed
from pipelines.animation.video import FilmFile, write_film
from pipelines.ask.animation import CIRCLE, AnimationSettings, played
from pipelines.errors import OutputError
from pipelines.images.files import FileFormat, OutputFolder
from pipelines.images.reading import Pixels
from pipelines.runtime.worker import Worker

LOSSLESS = FileFormat("png")
QUICK_PIXELS = {"mp4": 12_000_000, "webm": 12_000_000, "gif": 3_000_000, "webp": 24_000_000}
"""What a core writes in about three seconds, by the film's format: of pictures with fine grain, 48 frames of 512 x 512
pixels took 3.1 s, 2.9 s, 16.2 s and 1.5 s of processor time."""


@dataclass
class Reel:
    """Collects the frames of one film as they are written. They are drawn in any order."""

    outputs: OutputFolder
    settings: AnimationSettings
    suffix: str | None
    """The film's format; None: only its frames are asked for."""
    quality: int
    """Of the film, from 1 to 100."""
    _pixels: int = 0
    """Of one frame."""
    _places: dict[str, float] = field(default_factory=dict[str, float])
    """Of the frames that were begun, by the names of their files."""
    _written: dict[float, Path] = field(default_factory=dict[float, Path])
    _computed: list[Path] = field(default_factory=list[Path])

    @property
    def frames(self) -> list[Path]:
        """The frames written so far, in the film's order, with those computed between them."""
        return self._computed or [self._written[place] for place in sorted(self._written)]

    @property
    def _quick(self) -> bool:
        """Whether the film of the frames so far is written within seconds, in which a cancelled request must end."""
        shown = len(played(len(self.frames), self.settings.loop))
        return self.suffix is not None and shown * self._pixels <= QUICK_PIXELS[self.suffix]

    def begin(self, frame: Frame, file_format: FileFormat, text: str) -> None:
        """Start to write a frame with its generation data."""
        place = f"{int(frame.place):03}" if frame.place == int(frame.place) else f"{frame.place:08.4f}"
        name = f"frame-{place}-seed-{frame.seed}"
        self._places[name] = frame.place
        self._pixels = frame.pixels.size // 3
        self.outputs.begin(frame.pixels, name, file_format, text)

    def collect(self, wait: bool) -> Iterator[Path]:
        """Yield the frames written so far, or with `wait` all that were begun. Raises OutputError; another call goes on
        behind the frame that could not be written."""
        for path in self.outputs.saved(wait):
            name, _, _ = path.stem.rpartition("-")  # behind it comes the prediction's id
            self._written[self._places[name]] = path
            yield path

    def rescue(self, text: str, hurry: bool) -> Iterator[Path]:
        """After an error or a cancel, yield the frames that are still being written, and the film of all so far.

        What cannot be written is left out, so that the first error is the one that is told. In a `hurry` the film is
        left out, too, if it takes longer than seconds.
        """
        while self.outputs.writing:
            with suppress(OutputError):
                yield from self.collect(wait=True)
        if not hurry or self._quick:
            with suppress(OutputError):
                yield from self.film(text)

    def compute(self, interpolator: Interpolator, worker: Worker) -> None:
        """Add the frames between the drawn ones, on the networks' thread."""
        closed = self.settings.loop == CIRCLE

        def save(pixels: Pixels, number: int) -> Path:
            return self.outputs.save(pixels, f"computed-{number:04}", LOSSLESS, "")

        self._computed = worker.run(with_computed, self.frames, interpolator, self.settings.computed, closed, save)

    def film(self, text: str) -> Iterator[Path]:
        """Write the film of the frames so far, with this generation data, and yield its path. Yield nothing if it has
        no format or no frames. Raises OutputError."""
        if self.suffix is None or not self.frames:
            return
        file = FilmFile(self.suffix, self.settings.frames_per_second, self.quality, text)
        frames = self.frames
        shown = [frames[place] for place in played(len(frames), self.settings.loop)]
        yield self.outputs.make("film", file.suffix, lambda path: write_film(shown, path, file))

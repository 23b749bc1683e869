"""The files of a film's frames, and the film that is made of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.animation.inbetween import Interpolator, with_computed
from pipelines.animation.video import FilmFile, write_film
from pipelines.ask.animation import CIRCLE, AnimationSettings, played
from pipelines.images.files import FileFormat, OutputFolder
from pipelines.images.reading import Pixels
from pipelines.runtime.worker import Worker

LOSSLESS = FileFormat("png")


@dataclass
class Reel:
    """Collects the frames of one film as they are written."""

    outputs: OutputFolder
    settings: AnimationSettings
    suffix: str | None
    """The film's format; None: only its frames are asked for."""
    quality: int
    """Of the film, from 1 to 100."""
    frames: list[Path] = field(default_factory=list[Path])

    def collect(self, wait: bool) -> Iterator[Path]:
        """Yield the frames written so far, or with `wait` all that were begun."""
        for path in self.outputs.saved(wait):
            self.frames.append(path)
            yield path

    def compute(self, interpolator: Interpolator, worker: Worker) -> None:
        """Add the frames between the drawn ones, on the networks' thread."""
        closed = self.settings.loop == CIRCLE

        def save(pixels: Pixels, number: int) -> Path:
            return self.outputs.save(pixels, f"computed-{number:04}", LOSSLESS, "")

        self.frames = worker.run(with_computed, self.frames, interpolator, self.settings.computed, closed, save)

    def film(self, text: str) -> Iterator[Path]:
        """Write the film of the frames so far, with this generation data, and yield its path. Yield nothing if it has
        no format or no frames. Raises OutputError."""
        if self.suffix is None or not self.frames:
            return
        file = FilmFile(self.suffix, self.settings.frames_per_second, self.quality, text)
        shown = [self.frames[place] for place in played(len(self.frames), self.settings.loop)]
        yield self.outputs.make("film", file.suffix, lambda path: write_film(shown, path, file))

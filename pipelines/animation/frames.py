"""Draws the frames of a film, in their order, and says what each of them is."""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from types import TracebackType

from tqdm import tqdm

from pipelines.ask.film import Film, Shot
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest
from pipelines.drawing.cast import Cast
from pipelines.drawing.phases import BASE, FINAL, NOTHING_BESIDE, Beside, Notice, PassResult, Picture, Step, render
from pipelines.errors import say
from pipelines.images.reading import Pixels
from pipelines.infotext.writing import of_picture
from pipelines.models.model import Model


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A finished frame: uint8 (height, width, 3)."""

    number: int
    pixels: Pixels
    seed: int
    embeddings: tuple[tuple[str, str], ...]
    """Names and SHA-256 of the embeddings that its prompts use."""


Event = Step | Notice | Frame


def draw_frames(model: Model, shots: Sequence[Shot], beside: Beside = NOTHING_BESIDE) -> Generator[Event]:
    """Draw the shots in turn. Yield steps, messages and each frame as soon as it is decoded."""
    for shot in shots:
        embeddings: tuple[tuple[str, str], ...] = ()
        for event in render(model, shot.request, shot.plan, beside=beside):
            if isinstance(event, PassResult) and event.phase == BASE:
                embeddings = event.prompts.embeddings
            elif isinstance(event, Picture) and event.kind == FINAL:
                number, seed = shot.frames[event.index], shot.plan.seeds[event.index]
                yield Frame(number=number, pixels=event.pixels, seed=seed, embeddings=embeddings)
            elif isinstance(event, (Step, Notice)):
                yield event


class FrameTexts:
    """The generation data of a film and its frames."""

    def __init__(self, film: Film, cast: Cast) -> None:
        self._film, self._cast = film, cast
        self._embeddings: dict[tuple[str, str], None] = {}

    def of(self, frame: Frame) -> str:
        """Return the generation data that draws a frame again alone."""
        self._embeddings |= dict.fromkeys(frame.embeddings)
        return self._of(self._film.infotext_request(frame.number), frame.embeddings)

    @property
    def of_film(self) -> str:
        """The generation data that draws the film again."""
        return self._of(self._film.base, tuple(self._embeddings))

    def _of(self, request: GenerationRequest, embeddings: Sequence[tuple[str, str]]) -> str:
        cast = self._cast
        return of_picture(request, make_plan(request), cast.model.identity, 0, embeddings, cast.identities)


class Progress:
    """Shows how many frames are done, and says after the first one how long the others will take."""

    def __init__(self, frames: int) -> None:
        self._frames, self._started = frames, time.perf_counter()
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._started

    def advance(self) -> None:
        """Count a frame."""
        if self._bar is None:
            if self._frames > 1:
                left = self.seconds * (self._frames - 1)
                say(f"The first frame took {self.seconds:.1f} s, so the others take about {left:.0f} s.")
            self._bar = tqdm(total=self._frames, desc="Frames", unit="frame", mininterval=0.5)
        self._bar.update()

"""Draws the frames of a film, and says what each of them is."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType

import numpy as np
from PIL import Image
from tqdm import tqdm

from pipelines.ask.film import Film, Shot, frames_of
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest
from pipelines.drawing.cast import Cast
from pipelines.drawing.phases import FINAL, NOTHING_BESIDE, Beside, Notice, Picture, Step, render
from pipelines.errors import say
from pipelines.images.reading import Pixels
from pipelines.infotext.writing import of_picture
from pipelines.models.model import Model
from pipelines.sampling.between import COMPUTED, Beginning, Blended, Recording


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A finished frame: uint8 (height, width, 3)."""

    place: float
    """In the film, as in its shot."""
    pixels: Pixels
    seed: int
    embeddings: tuple[tuple[str, str], ...]
    """Names and SHA-256 of the embeddings that its prompts use."""
    refined: bool = False
    """Whether its generation data names the refiner."""


Event = Step | Notice | Frame


@dataclass(frozen=True)
class _Key:
    """What is kept of a key frame until the frames beside it are drawn."""

    shown: Pixels
    """A small copy."""
    beginning: Recording


def draw_film(model: Model, film: Film, beside: Beside = NOTHING_BESIDE) -> Generator[Event]:
    """Draw a film: each key frame, and after the second of two the frames between them. Or draw the one frame that is
    asked for. Yield steps, messages and each frame as soon as it is decoded.

    With even motion, later frames between two key frames are drawn where the earlier ones differ most.
    """
    if not film.settings.whole:
        yield from _one_frame(model, film, beside)
        return
    keys: dict[int, _Key] = {}
    for number, frames in film.timeline.between():
        keys = {key: keys[key] for key in (0, number) if key in keys}
        for key in film.ends(number):
            if key not in keys:
                keys[key] = yield from _draw_key(model, film.key(key), beside)
        start, end = (keys[key] for key in film.ends(number))
        first, last = film.timeline.keys[number].frame, film.timeline.keys[number + 1].frame
        motion = Motion({first: start.shown, last: end.shown})
        placed = motion.placed(len(frames), film.batch(number)) if film.settings.even_motion else [frames]
        for places in placed:
            for shot in film.between(number, places):
                yield from motion.watch(_draw_between(model, shot, beside, start.beginning, end.beginning))


def _one_frame(model: Model, film: Film, beside: Beside) -> Generator[Event]:
    """Draw a frame alone. If it is between key frames, they are begun for it, as far as it blends their beginnings."""
    (shot,) = film.shots()
    if shot.plan.between is None or not shot.blended:
        yield from _draw(model, shot, beside)
        return
    begun = []
    for number in shot.keys:
        recording = Recording(shot.blended)
        with closing(_draw(model, film.key(number), beside, recording)) as events:
            for event in events:
                if recording.done or isinstance(event, Frame):
                    break
                yield event
        begun.append(recording)
    yield from _draw_between(model, shot, beside, *begun)


def _draw_key(model: Model, shot: Shot, beside: Beside) -> Generator[Event, None, _Key]:
    beginning, shown = Recording(shot.blended), None
    for event in _draw(model, shot, beside, beginning):
        if isinstance(event, Frame):
            shown = small(event.pixels)
        yield event
    assert shown is not None
    return _Key(shown, beginning)


def _draw_between(model: Model, shot: Shot, beside: Beside, start: Recording, end: Recording) -> Generator[Event]:
    assert shot.plan.between is not None
    return _draw(model, shot, beside, Blended(start, end, shot.blended, shot.plan.between.shares))


def _draw(model: Model, shot: Shot, beside: Beside, beginning: Beginning = COMPUTED) -> Generator[Event]:
    for event in render(model, shot.request, shot.plan, beside=beside, beginning=beginning):
        if isinstance(event, Picture) and event.kind == FINAL:
            place, seed = shot.frames[event.index], shot.plan.seeds[event.index]
            yield Frame(place=place, pixels=event.pixels, seed=seed, embeddings=event.embeddings, refined=event.refined)
        elif isinstance(event, (Step, Notice)):
            yield event


AT_ONCE = 4
"""Frames that are placed at once, and fewer towards the end. With 8, too few are left to be placed by what the others
show: in a film of 24 frames the largest step grew from 3.4 to 3.9 times the median."""


class Motion:
    """The frames between two key frames that are drawn so far, and where more are needed."""

    def __init__(self, ends: Mapping[float, Pixels]) -> None:
        """Take the places of both key frames, and what `small` makes of them."""
        self._seen = dict(ends)

    def watch(self, events: Iterator[Event]) -> Iterator[Event]:
        """Pass the events on, and remember their frames."""
        for event in events:
            if isinstance(event, Frame):
                self._seen[event.place] = small(event.pixels)
            yield event

    def placed(self, count: int, batch: int) -> Iterator[list[float]]:
        """Yield the places of `count` frames, at most `batch` at once. Those at which frames were seen meanwhile decide
        where the next ones are."""
        while count:
            places = self.widest(min(count, batch, AT_ONCE, max(2, count // 3)))
            count -= len(places)
            yield places

    def widest(self, count: int) -> list[float]:
        """Return `count` places for further frames. They divide the gaps between neighbours that differ most."""
        pairs = list(pairwise(sorted(self._seen)))
        parts, wide = [1] * len(pairs), [self._difference(*pair) for pair in pairs]
        for _ in range(count):
            ranks = [
                (_width(pair) >= NARROWEST * (part + 1), difference / part, _width(pair) / part)
                for pair, part, difference in zip(pairs, parts, wide, strict=True)
            ]
            parts[ranks.index(max(ranks))] += 1
        places = []
        for (start, end), part in zip(pairs, parts, strict=True):
            places += [round(start + (end - start) * step / part, DIGITS) for step in range(1, part)]
        return places

    def _difference(self, start: float, end: float) -> float:
        first, second = (self._seen[place].astype(np.float32) for place in (start, end))
        return float(np.sqrt(np.square(first - second).mean()))


DIGITS = 4
"""Of a frame's place, which its generation data names."""
NARROWEST = 0.002
"""Frames are not placed closer together than this: what changes on a shorter way is a jump of the model."""
LOOK = 64
"""Pixels per side, about, of what is compared."""


def _width(pair: tuple[float, float]) -> float:
    return pair[1] - pair[0]


def small(pixels: Pixels) -> Pixels:
    """Return a small copy of a picture for comparisons."""
    factor = max(1, min(pixels.shape[:2]) // LOOK)
    return np.asarray(Image.fromarray(pixels).reduce(factor))


class FrameTexts:
    """The generation data of a film and its frames."""

    def __init__(self, film: Film, cast: Cast) -> None:
        self._film, self._cast = film, cast
        self._embeddings: dict[tuple[str, str], None] = {}
        self._refined = False

    def of(self, frame: Frame) -> str:
        """Return the generation data that draws a frame again alone."""
        self._embeddings |= dict.fromkeys(frame.embeddings)
        self._refined = self._refined or frame.refined
        return self._of(self._film.infotext_request(frame.place).as_drawn(frame.refined), frame.embeddings)

    @property
    def of_film(self) -> str:
        """The generation data that draws the film again."""
        return self._of(self._film.base.as_drawn(self._refined), tuple(self._embeddings))

    def _of(self, request: GenerationRequest, embeddings: Sequence[tuple[str, str]]) -> str:
        cast = self._cast
        return of_picture(request, make_plan(request), cast.model.identity, 0, embeddings, cast.identities)


class Progress:
    """Shows how many frames are done, and says after the first one how long the others will take."""

    def __init__(self, shots: Sequence[Shot]) -> None:
        self._frames, self._started = frames_of(shots), time.perf_counter()
        self._left = sum(shot.steps for shot in shots) / max(1, shots[0].steps) - 1
        """How many times as long as the first frame the others take: some of their steps are blended, not computed."""
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
                left = self.seconds * self._left
                say(f"The first frame took {self.seconds:.1f} s, so the others take about {left:.0f} s.")
            self._bar = tqdm(total=self._frames, desc="Frames", unit="frame", mininterval=0.5)
        self._bar.update()

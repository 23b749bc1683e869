"""How a training is watched: lines in the log, a progress bar with the loss and the time that is left, and metrics."""

from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from pipelines.errors import counted, say
from pipelines.training.loop import Drawn, Event, Finished, Looked, Saved, Stepped
from pipelines.training.settings import Course

SMOOTHED = 0.05
"""How much of a step's loss goes into the number that is shown: single losses jump with the noise level."""
EVERY = 10
"""Steps between two metrics of the loss."""


def follow(events: Iterable[Event], record: Callable[[str, float], None]) -> Finished:
    """Show the events of a training and return the last one. `record` gets metrics by name."""
    finished: Finished | None = None
    with closing(_Log(record)) as log:
        for event in events:
            log.show(event)
            finished = event if isinstance(event, Finished) else None
    if finished is None:
        raise RuntimeError("the training ended without a result")
    if finished.stopped:
        say(f"Stopped early: {finished.stopped}.")
    return finished


class _Log:
    """Lines, and below them one bar at a time: for the pictures of the class, and then for the steps."""

    def __init__(self, record: Callable[[str, float], None]) -> None:
        self._record = record
        self._bar: tqdm[None] | None = None
        self._trains = False
        self._loss: float | None = None

    def show(self, event: Event) -> None:
        if isinstance(event, Looked):
            self._say(f"{event.report}{_plan(event.course)}")
        elif isinstance(event, Drawn):
            self._drawn(event)
        elif isinstance(event, Stepped):
            self._stepped(event)
        elif isinstance(event, Saved):
            self._say(f"Step {event.step}: saved {shown_path(event.archive)}")

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            if self._trains:
                self._bar.set_description("Training", refresh=False)
            self._bar.close()
        self._bar = None

    def _say(self, text: str) -> None:
        """Print lines above the bar, which would else stand before them."""
        with tqdm.external_write_mode():
            say(text)

    def _drawn(self, event: Drawn) -> None:
        if self._trains and self._bar is not None:
            self._bar.set_description(f"Drawing {event.what}, {event.number}/{event.total}")
            return
        if self._bar is None:
            self._bar = tqdm(total=event.total, desc=f"Drawing {event.what}", unit="picture", mininterval=0.5)
        self._bar.update()

    def _stepped(self, event: Stepped) -> None:
        if not self._trains or self._bar is None:
            self.close()
            self._trains = True
            done = event.number - 1
            self._bar = tqdm(total=event.total, initial=done, desc="Training", unit="step", mininterval=0.5)
        self._loss = event.loss if self._loss is None else self._loss + SMOOTHED * (event.loss - self._loss)
        self._bar.set_description("Training", refresh=False)  # it may have told about previews
        self._bar.set_postfix(loss=f"{self._loss:.4f}", refresh=False)
        self._bar.update()
        if event.number % EVERY == 0 or event.number == event.total:
            self._record("step", event.number)
            self._record("loss", round(self._loss, 5))


def shown_path(path: Path) -> str:
    """Return a path as people may use it, relative to the working folder if it is below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _plan(course: Course) -> str:
    """Return the training in one line."""
    each = (
        f"{course.batch_size} x {course.gradient_accumulation}"
        if course.gradient_accumulation > 1
        else course.batch_size
    )
    text = f", text {course.text_learning_rate:g}" if course.text_learning_rate else ""
    own = course.word_learning_rate not in (0, course.learning_rate)
    word = f", word {course.word_learning_rate:g}" if own else ""
    rank = f", rank {course.rank}" if course.rank else ""
    drawn = f", {counted(course.class_images, 'picture')} of the class" if course.class_images else ""
    return (
        f"Plan: {course.task} of {course.token}{rank}, {counted(course.steps, 'step')} of batch size {each}{drawn}, "
        f"learning rate {course.learning_rate:g}{text}{word}, resolution {course.resolution}, seed {course.seed}"
    )

"""How a training is watched: lines in the log, a progress bar with the loss and the time that is left, and metrics."""

from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from pipelines.errors import say
from pipelines.training.loop import Event, Finished, Looked, Saved, Stepped
from pipelines.training.settings import Course

SMOOTHED = 0.05
"""How much of a step's loss goes into the number that is shown: single losses jump with the noise level."""
EVERY = 10
"""Steps between two metrics of the loss."""


def follow(events: Iterable[Event], record: Callable[[str, float], None]) -> Finished:
    """Show the events of a training and return the last one. `record` gets metrics by name."""
    bar: tqdm[None] | None = None
    shown: float | None = None
    finished: Finished | None = None
    try:
        for event in events:
            if isinstance(event, Looked):
                say(f"{event.report}{_plan(event.course)}")
            elif isinstance(event, Stepped):
                if bar is None:
                    bar = tqdm(
                        total=event.total, initial=event.number - 1, desc="Training", unit="step", mininterval=0.5
                    )
                shown = event.loss if shown is None else shown + SMOOTHED * (event.loss - shown)
                bar.set_postfix(loss=f"{shown:.4f}", refresh=False)
                bar.update()
                if event.number % EVERY == 0 or event.number == event.total:
                    record("step", event.number)
                    record("loss", round(shown, 5))
            elif isinstance(event, Saved):
                say(f"Step {event.step}: saved {shown_path(event.archive)}")
            else:
                finished = event
    finally:
        if bar is not None:
            bar.close()
    if finished is None:
        raise RuntimeError("the training ended without a result")
    if finished.stopped:
        say(f"Stopped early: {finished.stopped}.")
    return finished


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
    return (
        f"Plan: {course.task} of {course.token}{rank}, {course.steps} steps of batch size {each}, learning rate "
        f"{course.learning_rate:g}{text}{word}, resolution {course.resolution}, seed {course.seed}"
    )

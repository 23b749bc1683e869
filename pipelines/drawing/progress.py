"""A progress bar per phase, in the log."""

from types import TracebackType

from tqdm import tqdm

from pipelines.drawing.phases import BASE, REFINE, UPSCALE, Step

TITLES = {BASE: "Draft", UPSCALE: "Upscaling", REFINE: "Refinement"}


class Bars:
    """Follows the steps of a prediction; on leaving, an unfinished bar stays where it stood."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def advance(self, step: Step) -> None:
        """Show how far a phase is; its beginning opens the bar, its last step closes it."""
        if step.number == 0 or self._bar is None:
            self.close()
            self._bar = tqdm(total=step.total, desc=TITLES[step.phase], unit="step", mininterval=0.5)
        self._bar.update(step.number - self._bar.n)
        if step.number == step.total:
            self.close()

    def close(self) -> None:
        """The phase is over, however many steps it had."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

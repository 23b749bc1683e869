"""A progress bar per phase, in the log."""

from types import TracebackType

from tqdm import tqdm

from pipelines.drawing.phases import BASE, REFINE, UPSCALE, Step

TITLES = {BASE: "Draft", UPSCALE: "Upscaling", REFINE: "Refinement"}


class Bars:
    """Shows the steps of a prediction. If it is left early, the unfinished bar stays as it is."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def advance(self, step: Step) -> None:
        """Show the progress of a phase. Its beginning opens the bar, and its last step closes it."""
        if step.number == 0 or self._bar is None:
            self.close()
            self._bar = tqdm(total=step.total, desc=TITLES[step.phase], unit="step", mininterval=0.5)
        self._bar.update(step.number - self._bar.n)
        if step.number == step.total:
            self.close()

    def close(self) -> None:
        """Close the bar at the end of the phase, however many steps it had."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

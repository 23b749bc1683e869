"""The one thread in which networks run.

A server calls setup and every prediction in threads of its own choice, and torch keeps much per thread: CUDA's library
handles and their workspaces, cuDNN's plans, OpenMP's team. What setup warmed up would be cold again; and a cancelled
prediction, whose exception Python raises at any place of its thread, could leave a CUDA graph half recorded. Here it
only stops waiting.
"""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, ParamSpec, TypeVar

Params = ParamSpec("Params")
Result = TypeVar("Result")


class Worker:
    """A thread that does what it is given, one thing after another."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="networks")

    def run(self, work: Callable[Params, Result], *args: Params.args, **options: Params.kwargs) -> Result:
        """Do it there and wait for it. Raises what it raises."""
        context = copy_context()  # by which the server tells the logs of predictions apart
        return self._thread.submit(lambda: context.run(work, *args, **options)).result()

    def each(self, events: Generator[Result, Any, Any]) -> Generator[Result]:
        """What the generator yields, each made there. However this ends, the generator is closed there."""
        try:
            while (event := self.run(next, events, None)) is not None:
                yield event
        finally:
            self.run(events.close)

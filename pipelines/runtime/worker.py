"""Threads in which work is done for a thread that may be cancelled while it waits.

A server calls setup and every prediction in threads of its own choice, and torch keeps much per thread: CUDA's library
handles and their workspaces, cuDNN's plans, OpenMP's team. What setup warmed up would be cold again, so all networks
run in one thread of ours. And a cancelled prediction, whose exception Python raises at any place of its thread, could
leave a CUDA graph half recorded. Here it is raised in a thread that only waits; the work itself is told to stop, and
does so where it calls `stop_if_asked`.

The waiting thread may be cancelled inside any Python function, so it shares no lock with the workers that Python code
holds: no Condition, Event, Future or executor, which a cancel at the wrong moment would leave locked for good.
"""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, ParamSpec, TypeVar

Params = ParamSpec("Params")
Result = TypeVar("Result")

POLL_SECONDS = 0.05
"""A thread that waits in C is cancelled only when it returns to Python."""
PATIENCE_SECONDS = 1.0
"""How long a cancelled prediction waits for its work to stop. An operation that takes longer (encoding a WebP of 30
million pixels) ends by itself in its thread; whatever comes next there begins after it."""


class Stopped(BaseException):
    """Raised inside work whose result nobody waits for any more. No `except Exception` catches it."""


class Task(Generic[Result]):
    """One piece of work in a worker's thread."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._context = copy_context()  # by which the server tells the logs of predictions apart
        self._ended = threading.Lock()
        self._ended.acquire()
        self._result: Result
        self._error: BaseException | None = None
        self.stopping = False
        self.done = False

    def do(self) -> None:
        """Do the work, in the thread that calls this."""
        _here.task = self
        try:
            stop_if_asked()
            self._result = self._context.run(self._work)
        except BaseException as error:
            self._error = error
        finally:
            _here.task = None
            del self._work  # and what it holds
            self.done = True
            self._ended.release()

    def stop(self) -> None:
        """Tell the work to stop. Work that has not begun never does."""
        self.stopping = True

    def wait(self, seconds: float | None = None) -> None:
        """Return when the work is done or the time is up."""
        polls = None if seconds is None else round(seconds / POLL_SECONDS)
        while not self.done and polls != 0:
            self._ended.acquire(timeout=POLL_SECONDS)
            polls = None if polls is None else polls - 1

    def outcome(self) -> Result:
        """What the finished work returned. Raises what it raised."""
        if self._error is None:
            return self._result
        error, self._error = self._error, None
        try:
            raise error
        finally:
            del error  # whose traceback leads to this frame: a circle that would keep all that the work held


class _Here(threading.local):
    """What the current thread is doing."""

    task: Task[Any] | None = None


_here = _Here()


def stop_if_asked() -> None:
    """Raise Stopped where the current thread's work was told to stop. Does nothing in threads that are no workers'.

    It raises once, so that the clean-up of what is stopped runs to its end.
    """
    task = _here.task
    if task is not None and task.stopping:
        task.stopping = False
        raise Stopped


def pause(seconds: float) -> None:
    """Sleep. Raises Stopped as soon as the current thread's work is told to stop."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        stop_if_asked()
        time.sleep(min(left, POLL_SECONDS))


class Worker:
    """Threads that do what they are given in its order: one after another where there is one thread."""

    def __init__(self, threads: int = 1, within: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        """Each thread does all its work inside one context of `within`."""
        self._tasks: SimpleQueue[Task[Any]] = SimpleQueue()
        for number in range(threads):
            threading.Thread(target=_work, args=(self._tasks, within), name=f"worker {number}", daemon=True).start()

    def begin(self, work: Callable[Params, Result], *args: Params.args, **options: Params.kwargs) -> Task[Result]:
        """Have the work done; returns at once."""
        task = Task(partial(work, *args, **options))
        self._tasks.put(task)
        return task

    def run(self, work: Callable[Params, Result], *args: Params.args, **options: Params.kwargs) -> Result:
        """Have the work done, wait for it and return its result. Raises what it raises.

        Where the waiting thread is cancelled the work is told to stop.
        """
        task = self.begin(work, *args, **options)
        try:
            task.wait()
        except BaseException:
            task.stop()
            task.wait(PATIENCE_SECONDS)
            raise
        return task.outcome()

    def each(self, events: Generator[Result, Any, Any]) -> Generator[Result]:
        """Yield what the generator yields, each made in a worker's thread. However this ends, it is closed there."""
        finished = False
        try:
            while (event := self.run(next, events, None)) is not None:
                yield event
            finished = True
        finally:
            closing = self.begin(events.close)
            closing.wait(None if finished else PATIENCE_SECONDS)
            if closing.done:
                closing.outcome()


def _work(tasks: SimpleQueue[Task[Any]], within: Callable[[], AbstractContextManager[object]]) -> None:
    with within():
        while True:
            tasks.get().do()

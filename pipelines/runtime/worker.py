"""Worker threads that do work for a thread that may be cancelled while it waits.

A server calls setup and predictions in threads of its own choice, but torch keeps much state per thread: CUDA's library
handles and their workspaces, cuDNN's plans, OpenMP's team. Everything that setup warmed up would be cold again, so all
networks run in one thread of ours, which has a helper on a CPU (`threads.py`). Also, Python raises the exception of a
cancelled prediction at any place in its thread, which could leave a CUDA graph half recorded. Here it is raised in a
thread that only waits. The work itself is asked to stop, and does so when it calls `stop_if_asked`.

The waiting thread may be cancelled inside any Python function. So it shares no lock with the workers that is held by
Python code (no Condition, Event, Future or executor): a cancel at the wrong moment would leave it locked forever.
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
"""How often waiting returns to Python: a thread that waits in C is cancelled only then."""
PATIENCE_SECONDS = 1.0
"""How long a cancelled prediction waits for its work to stop. An operation that takes longer (encoding a WebP of 30
million pixels) finishes in its thread, and the next work there starts after it."""


class Stopped(BaseException):
    """Raised inside work whose result is no longer needed. `except Exception` does not catch it."""


class Task(Generic[Result]):
    """One piece of work in a worker's thread."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._context = copy_context()  # the server uses it to assign logs to predictions
        self._ended = threading.Lock()
        self._ended.acquire()
        self._result: Result
        self._error: BaseException | None = None
        self.stopping = False
        self.done = False

    def do(self) -> None:
        """Do the work in the calling thread."""
        _here.task = self
        try:
            stop_if_asked()
            self._result = self._context.run(self._work)
        except BaseException as error:
            self._error = error
        finally:
            _here.task = None
            del self._work  # and everything that it holds
            self.done = True
            self._ended.release()

    def stop(self) -> None:
        """Ask the work to stop. Work that has not begun will never run."""
        self.stopping = True

    def wait(self, seconds: float | None = None) -> None:
        """Return when the work is done or the time is up."""
        polls = None if seconds is None else round(seconds / POLL_SECONDS)
        while not self.done and polls != 0:
            self._ended.acquire(timeout=POLL_SECONDS)
            polls = None if polls is None else polls - 1

    def outcome(self) -> Result:
        """Return what the finished work returned, or re-raise what it raised."""
        if self._error is None:
            return self._result
        error, self._error = self._error, None
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame: a reference cycle that would keep everything the work held


class _Here(threading.local):
    """What the current thread is doing."""

    task: Task[Any] | None = None


_here = _Here()


def stop_if_asked() -> None:
    """Raise Stopped if the current thread's work was asked to stop. Do nothing in other threads.

    It raises only once, so that the clean-up of stopped work can finish.
    """
    task = _here.task
    if task is not None and task.stopping:
        task.stopping = False
        raise Stopped


def pause(seconds: float) -> None:
    """Sleep. Raises Stopped as soon as the current thread's work is asked to stop."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        stop_if_asked()
        time.sleep(min(left, POLL_SECONDS))


class Worker:
    """Threads that do tasks in the order in which they are given; with one thread, one after another."""

    def __init__(self, threads: int = 1, within: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        """Start the threads. Each does all its work inside one context made by `within`."""
        self._tasks: SimpleQueue[Task[Any]] = SimpleQueue()
        for number in range(threads):
            threading.Thread(target=_work, args=(self._tasks, within), name=f"worker {number}", daemon=True).start()

    def begin(self, work: Callable[Params, Result], *args: Params.args, **options: Params.kwargs) -> Task[Result]:
        """Start the work and return at once."""
        task = Task(partial(work, *args, **options))
        self._tasks.put(task)
        return task

    def run(self, work: Callable[Params, Result], *args: Params.args, **options: Params.kwargs) -> Result:
        """Run the work on a worker thread; return its result or re-raise.

        If the waiting thread is cancelled, the work is asked to stop.
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
        """Run the generator on a worker thread and yield what it yields. However this ends, it is closed there."""
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

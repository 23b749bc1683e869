"""Threads that work for a thread that may be cancelled."""

import ctypes
import gc
import threading
import weakref
from collections.abc import Callable, Generator
from contextvars import ContextVar

import pytest

from pipelines.runtime import worker as module
from pipelines.runtime.worker import Stopped, Worker, pause, stop_if_asked

ASKED_BY: ContextVar[str] = ContextVar("asked_by")
LONG = 60.0
"""Seconds after which a test that hangs ends."""


class Cancelled(BaseException):
    """What the server raises in the thread of a cancelled prediction."""


class Asking:
    """A thread that asks for work, and can be cancelled as the server cancels a prediction's thread."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask
        self.ended = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._ask()
            self.ended = "normally"
        except Cancelled:
            self.ended = "cancelled"

    def cancel(self) -> None:
        assert self._thread.ident
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), ctypes.py_object(Cancelled))

    def end(self) -> str:
        self._thread.join(LONG)
        return self.ended


def here() -> str:
    return threading.current_thread().name


def numbered(names: list[str], closed: list[str]) -> Generator[int]:
    try:
        for number in range(1, 4):
            names.append(here())
            yield number
    finally:
        closed.append(here())


def test_everything_runs_in_one_thread_whoever_asks() -> None:
    worker, names, closed = Worker(), list[str](), list[str]()
    found: list[list[int]] = []
    for _ in range(2):
        asking = threading.Thread(target=lambda: found.append(list(worker.each(numbered(names, closed)))))
        asking.start()
        asking.join()
    assert found == [[1, 2, 3]] * 2
    assert {*names, *closed, worker.run(here)} == {worker.run(here)}
    assert worker.run(here) != here()


def test_work_that_is_left_is_closed_there() -> None:
    worker, names, closed = Worker(), list[str](), list[str]()
    events = worker.each(numbered(names, closed))
    assert next(events) == 1
    events.close()
    assert closed == [worker.run(here)]


def test_errors_come_back_and_the_thread_goes_on() -> None:
    worker = Worker()

    def broken() -> Generator[int]:
        yield 1
        raise ValueError("broken")

    events = worker.each(broken())
    assert next(events) == 1
    with pytest.raises(ValueError, match="broken"):
        next(events)
    assert worker.run(sum, [1, 2]) == 3


def test_it_works_in_the_context_of_whoever_asks() -> None:
    ASKED_BY.set("a prediction")
    assert Worker().run(lambda: ASKED_BY.get()) == "a prediction"


def test_a_cancel_stops_the_work_and_closes_its_generator() -> None:
    """One event would never end. Its clean-up is not interrupted, though it looks whether it should stop as well."""
    worker, begun, closed = Worker(), threading.Event(), list[str]()

    def endless() -> Generator[int]:
        try:
            begun.set()
            while True:
                stop_if_asked()
            yield 1
        finally:
            stop_if_asked()
            closed.append(here())

    asking = Asking(lambda: list(worker.each(endless())))
    begun.wait(LONG)
    asking.cancel()
    assert asking.end() == "cancelled"
    assert closed == [worker.run(here)]


def test_work_that_cannot_be_stopped_is_left_and_what_comes_next_begins_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.1)
    worker, begun, going_on, done = Worker(), threading.Event(), threading.Event(), list[str]()

    def stubborn() -> None:
        begun.set()
        going_on.wait(LONG)
        done.append("stubborn")

    asking = Asking(lambda: worker.run(stubborn))
    begun.wait(LONG)
    asking.cancel()
    assert asking.end() == "cancelled"
    assert done == []
    following = worker.begin(done.append, "next")
    going_on.set()
    following.wait(LONG)
    assert done == ["stubborn", "next"]


def test_two_cancels_leave_the_worker_as_one_does() -> None:
    """As when a client cancels and then hangs up: the second may come while the first one's clean-up waits."""
    worker, begun = Worker(), threading.Event()

    def endless() -> None:
        begun.set()
        pause(LONG)

    for _ in range(20):
        begun.clear()
        asking = Asking(lambda: worker.run(endless))
        begun.wait(LONG)
        asking.cancel()
        asking.cancel()
        assert asking.end() == "cancelled"
    assert worker.run(sum, [1, 2]) == 3


def test_work_that_is_stopped_before_it_begins_never_does() -> None:
    worker, going_on, done = Worker(), threading.Event(), list[str]()
    worker.begin(going_on.wait, LONG)
    second = worker.begin(done.append, "second")
    second.stop()
    going_on.set()
    second.wait(LONG)
    with pytest.raises(Stopped):
        second.outcome()
    assert done == []


def test_failed_work_keeps_nothing_alive() -> None:
    """Without the help of the garbage collector, which lets gigabytes lie for a while."""

    class Large:
        pass

    found: list[weakref.ref[Large]] = []

    def broken() -> None:
        large = Large()
        found.append(weakref.ref(large))
        raise ValueError

    worker = Worker()
    gc.disable()
    try:
        with pytest.raises(ValueError):  # noqa: PT011
            worker.run(broken)
        worker.run(here)
        assert found[0]() is None
    finally:
        gc.enable()


def test_outside_of_a_worker_nothing_stops() -> None:
    stop_if_asked()
    pause(0)

"""The one thread in which networks run."""

import threading
from collections.abc import Generator
from contextvars import ContextVar

import pytest

from pipelines.worker import Worker

ASKED_BY: ContextVar[str] = ContextVar("asked_by")


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

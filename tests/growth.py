"""Checks that work grows no faster than its size, and what it costs, on any machine and under any load."""

import gc
import time
from collections.abc import Callable

LARGER, LINEAR, NOISE = 4, 10, 0.5
"""Four times the size: linear work takes four times as long, quadratic work sixteen times. Half a second is for what is
over so fast that anything else on the machine takes longer."""


def grows_linearly(use: Callable[[int], object], size: int) -> bool:
    """Whether `use` of this size takes about as much longer as it is larger, in seconds of the processor."""
    small, large = (_seconds(use, each) for each in (size // LARGER, size))
    return large < LINEAR * small + NOISE


def rounds(use: Callable[[], object]) -> float:
    """What `use` costs the processor, in millions of rounds of a plain loop: both are slow on a slow machine."""
    spent = _seconds(lambda _: use(), 0)
    return spent / _seconds(_count, 1_000_000)


def _count(size: int) -> None:
    for _ in range(size):
        pass


def _seconds(use: Callable[[int], object], size: int) -> float:
    """Without Python's search for garbage: what that costs depends on all that other tests keep in memory."""
    gc.disable()
    started = time.process_time()
    try:
        use(size)
        return time.process_time() - started
    finally:
        gc.enable()

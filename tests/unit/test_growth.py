"""The measure of growth itself."""

import gc

from tests.growth import grows_linearly


def test_linear_and_quadratic_work_are_told_apart() -> None:
    assert grows_linearly(lambda size: sum(range(size)), 100_000)
    assert not grows_linearly(lambda size: [sum(range(size)) for _ in range(size)], 6000)


def test_what_other_tests_keep_in_memory_makes_no_difference() -> None:
    """Python's search for garbage looks at all of it, and starts in the larger work sooner than in the smaller."""
    searching: list[bool] = []
    assert grows_linearly(lambda size: searching.append(gc.isenabled()), 100)
    assert searching == [False, False]
    assert gc.isenabled()

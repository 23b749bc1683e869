"""The measure of growth itself."""

import gc

from tests.growth import grows_linearly


def test_work_that_grows_faster_is_found() -> None:
    """Here with the cube: 64 times as much in the larger size. The limit is ten times and half a second."""
    assert not grows_linearly(lambda size: sum(range(800_000 * (size // 3000) ** 3)), 12_000)
    assert grows_linearly(lambda size: sum(range(100 * size)), 12_000)


def test_what_other_tests_keep_in_memory_makes_no_difference() -> None:
    """Python's search for garbage looks at all of it, and starts in the larger work sooner than in the smaller."""
    searching: list[bool] = []
    assert grows_linearly(lambda size: searching.append(gc.isenabled()), 100)
    assert searching == [False, False]
    assert gc.isenabled()

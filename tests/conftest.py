"""Mark every test with its group, and list at the end of a run what could not be tested on this machine.

No test depends on how fast the machine is.
"""

import gc
import signal
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

signal.signal(signal.SIGINT, signal.default_int_handler)
"""A shell's background jobs ignore Ctrl-C, and so would the processes that tests start."""

TESTS = Path(__file__).parent
NOT_IN_A_BROWSER = "The form was not tested in a browser: there is no chromium on this machine."

# Both limits are seconds of a clock that runs on while others have the processor.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collectstart() -> None:
    """Stop the search for garbage, which takes a tenth of the time of imports. predict.py turns it on when imported."""
    gc.disable()


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the ring. A file's tests share a worker, or both workers would make the models of its fixtures."""
    for item in items:
        file = item.path.relative_to(TESTS)
        item.add_marker(file.parts[0])
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(file.as_posix()))


def pytest_collection_finish() -> None:
    """Leave what was imported out of the search: a tenth of the tests' time would go into it."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Print what was skipped, after pytest's own summary. The workers of pytest-xdist have no reporter."""
    if reporter := config.pluginmanager.get_plugin("terminalreporter"):
        for line in untested(reporter.stats.get("skipped", [])):
            reporter.write_line(line, yellow=True)


def untested(skipped: Iterable[Any]) -> list[str]:
    """Lines that tell every reason why tests were skipped, from pytest's reports of them."""
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    lines = [f"  {count} test{'s' if count > 1 else ''}: {reason}" for reason, count in reasons.items()]
    return ["Not everything was tested:", *lines] if lines else []

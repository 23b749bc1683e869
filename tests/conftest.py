"""Every test is marked with its ring, the directory that it lives in. None depends on how fast the machine is."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent
NOT_IN_A_BROWSER = "The form was not tested in a browser: there is no chromium on this machine."

# Both limits are seconds of a clock that runs on while others have the processor.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(item.path.relative_to(TESTS).parts[0])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in the last lines what this machine could not test."""
    skipped = terminalreporter.getreports("skipped")
    if any(NOT_IN_A_BROWSER in str(report.longrepr) for report in skipped):
        terminalreporter.write_line(NOT_IN_A_BROWSER, yellow=True)

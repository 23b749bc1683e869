"""Mark every test with its ring, and say in the last lines of a run what could not be tested on this machine."""

from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(item.path.relative_to(TESTS).parts[0])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Print after pytest's own summary: a line for every reason why tests were skipped.

    The workers of pytest-xdist have no reporter and print nothing.
    """
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    if reasons:
        reporter.write_line("Not everything was tested:", yellow=True, bold=True)
    for reason, count in reasons.items():
        reporter.write_line(f"  {count} skipped: {reason}", yellow=True)

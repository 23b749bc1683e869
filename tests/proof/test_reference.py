"""A missing proof is reported: it fails in CI, and elsewhere appears at the end of a run."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import untested
from tests.proof.reference import require


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "there").touch()
    return tmp_path


def test_what_is_there_is_tested(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    require("there", folder=folder)


@pytest.mark.parametrize(("name", "missing"), [("gone", "gone is missing in "), ("there", "elsewhere is not there")])
def test_a_missing_file_or_folder_skips_the_test_with_its_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, missing: str
) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=f"WebUI's cases were not compared: .*{missing}"):
        require(name, folder=folder if name == "gone" else folder / "elsewhere")


def test_in_ci_a_missing_file_fails_the_test(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"gone is missing in .*In CI .* every case must be compared"):
        require("there", "gone", folder=folder)


def test_every_reason_is_told_once_with_its_tests_counted() -> None:
    reasons = ["Skipped: no GPU", "Skipped: no case", "Skipped: no GPU"]
    reports = [SimpleNamespace(longrepr=("test.py", 1, reason)) for reason in reasons]
    assert untested(reports) == ["Not everything was tested:", "  2 tests: no GPU", "  1 test: no case"]
    assert untested([]) == []

"""Jobs in a child process: what comes back, and what happens to those that misbehave."""

import _thread
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import psutil
import pytest

from pipelines.errors import ModelError
from pipelines.runtime import isolation
from pipelines.runtime.isolation import Failed, Helper, Limits
from pipelines.upscalers.esrgan import Trials
from script.schema import ROOT

LIMITS = Limits(memory=100 << 20, processor=5, seconds=30)


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    helper = Helper("tests.unit.jobs")
    yield helper
    helper.stop()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a"
    path.write_bytes(b"content")
    return path


def helpers() -> list[psutil.Process]:
    """The helper of these tests. This process may have other children, such as the server of tests/contract."""
    return [child for child in psutil.Process().children() if "tests.unit.jobs" in child.cmdline()]


def run(helper: Helper, job: str, file: Path, limits: Limits = LIMITS, **arguments: object) -> tuple[object, bytes]:
    with file.open("rb") as stream:
        answer, output = helper.run(job, stream, limits, **arguments)
    with output:
        return answer, output.read()


def test_an_answer_and_bytes_come_back(helper: Helper, file: Path) -> None:
    for word in "ab":
        assert run(helper, "copied", file, word=word) == ([word, "☃"], b"contentcontent")


@pytest.mark.parametrize(
    ("job", "limits", "told"),
    [
        ("crash", LIMITS, "crashed"),
        ("hoard", LIMITS, "more memory than its limit"),
        ("spin", replace(LIMITS, processor=1), "limits for memory or time"),
        ("sleep", replace(LIMITS, seconds=0.2), "takes too long"),
        ("fail", LIMITS, "^it is wrong$"),
        ("chatter", LIMITS, "says too much"),
    ],
)
def test_one_that_misbehaves_fails_alone(helper: Helper, file: Path, job: str, limits: Limits, told: str) -> None:
    run(helper, "copied", file, word="a")
    before = helpers()
    with pytest.raises(Failed, match=told):
        run(helper, job, file, limits)
    assert run(helper, "copied", file, word="b")[0] == ["b", "☃"]
    assert helpers() == before != []


def test_a_cancel_ends_the_wait_and_the_child(helper: Helper, file: Path) -> None:
    shared, made = [], isolation.shared_file

    def remembered() -> object:
        shared.append(made())
        return open(shared[0].fileno(), "w+b", buffering=0, closefd=False)

    threading.Timer(1, _thread.interrupt_main).start()
    with mock.patch.object(isolation, "shared_file", remembered), pytest.raises(KeyboardInterrupt):
        run(helper, "sleep", file)
    shared[0].seek(0)
    child, end = int(shared[0].read()), time.monotonic() + 60
    while psutil.pid_exists(child):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_helper_that_was_killed_starts_again(helper: Helper, file: Path) -> None:
    run(helper, "copied", file, word="a")
    (killed,) = helpers()
    killed.kill()
    assert run(helper, "copied", file, word="b")[0] == ["b", "☃"]
    assert killed not in helpers()


def test_without_files_in_memory_a_temporary_one_serves(helper: Helper, file: Path) -> None:
    with mock.patch.object(isolation.os, "memfd_create", None, create=True):
        del isolation.os.memfd_create
        assert run(helper, "copied", file, word="a")[1] == b"contentcontent"


@pytest.mark.tiny
def test_an_upscaler_is_tried_once(tmp_path: Path) -> None:
    trials, path = Trials(), tmp_path / "a.safetensors"
    path.write_bytes((ROOT / "tests" / "data" / "upscalers" / "4x-tiny.safetensors").read_bytes())
    trials.check(path)
    with mock.patch.object(Helper, "run", side_effect=AssertionError):
        trials.check(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="not an upscaler"):
        trials.check(path)

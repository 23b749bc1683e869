"""One real Cog server with the embedded model serves all tests that do not need their own.

The tests of that server share a worker, so only one is started, and so do those of the one browser. Tests with servers
of their own wait a lot: each of their files goes to any worker.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipelines.models.loader import load
from pipelines.models.model import Model
from script.cog_server import CogServer
from script.schema import ROOT
from weights_script.resolve import resolve

HERE = Path(__file__).parent
StartServer = Callable[[Mapping[str, str]], CogServer]


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            used = getattr(item, "fixturenames", ())
            name = next((name for name in ("shared_server", "page") if name in used), item.path.stem)
            item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture(scope="session", autouse=True)
def embedded_default() -> Iterator[None]:
    """No model is named by the environment of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("COG_", "PASTEL_"))]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """Where the shared server's predictions leave their files."""
    with tempfile.TemporaryDirectory(prefix="contract-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def shared_server(
    embedded_default: None, scratch: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CogServer]:
    """With the LoRA and the embedding of tests/data in its cache's folders."""
    # One arena: else the memory of a server tells more of the allocator's threads than of what is held.
    cache = tmp_path_factory.mktemp("cache")
    for folder in ("loras", "embeddings"):
        shutil.copytree(ROOT / "tests" / "data" / folder, cache / folder)
    with CogServer({"TMPDIR": str(scratch), "PASTEL_CACHE": str(cache)}, log=lambda line: None) as server:
        server.wait_until_ready()
        yield server
        assert server.process.poll() is None, f"before it was told to: {server.end(3000)}"
    assert server.process.returncode == 0, server.end(3000)


@pytest.fixture(scope="session")
def networks(embedded_default: None) -> Model:
    """The embedded model in this process, for files that fit it. Nobody changes it."""
    return load(resolve(None, None).files)


@pytest.fixture
def server(shared_server: CogServer) -> CogServer:
    """The shared server, done with the test before."""
    shared_server.wait_until_ready()
    return shared_server


@pytest.fixture
def start_server(embedded_default: None) -> Iterator[StartServer]:
    """Start a server with this environment; it ends with the test."""
    with ExitStack() as servers:
        yield lambda environment: servers.enter_context(CogServer(environment, log=lambda line: None))

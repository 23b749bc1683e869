"""The embedded model, loaded once per worker: real networks that draw in seconds on a CPU. Also a test web server."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from pipelines.models.loader import load
from pipelines.models.model import Model
from tests.tiny.misbehaving import Server, running
from weights_script.resolve import ResolvedModel, resolve


@pytest.fixture(scope="session")
def embedded() -> ResolvedModel:
    return resolve(None, None)


@pytest.fixture(scope="session")
def networks(embedded: ResolvedModel) -> Model:
    return load(embedded.files)


@pytest.fixture
def server() -> Generator[Server]:
    with running() as running_server:
        yield running_server


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy, token or setting of the machine that runs the tests."""
    for name in list(os.environ):
        if name.startswith(("HF_", "PASTEL_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

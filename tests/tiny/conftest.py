"""The embedded model, loaded once a worker: real networks that draw in seconds on a CPU."""

import pytest

from pipelines.loader import Networks, load
from weights_script.resolve import ResolvedModel, resolve


@pytest.fixture(scope="session")
def embedded() -> ResolvedModel:
    return resolve(None, None)


@pytest.fixture(scope="session")
def networks(embedded: ResolvedModel) -> Networks:
    return load(embedded.files)

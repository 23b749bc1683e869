"""The embedded model, whose networks diffusers and transformers draw with as well."""

from tests.tiny.conftest import embedded, networks  # noqa: F401

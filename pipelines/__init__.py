"""The engine: from a request to pictures. `docs/architecture.md` shows its rooms."""

__version__ = "0.1.0"

"""Packages for comparisons, installed in a folder of their own, and the embedded model's networks."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / ".venv" / "proof"))  # requirements-proof.txt says why

from tests.tiny.conftest import embedded, networks  # noqa: F401

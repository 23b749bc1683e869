"""The engine: from a request to pictures. `docs/architecture.md` shows its rooms."""

import sys

__version__ = "0.1.0"

# diffusers and transformers look for accelerate once, when they are imported. If they find it, they import all of it
# (docs/performance.md says what that costs at start-up) and load models differently. With None here, Python reports
# that there is no such package. Code of ours that needs accelerate removes the None first.
sys.modules.setdefault("accelerate", None)  # type: ignore[arg-type]  # "import: None" is documented with sys.modules

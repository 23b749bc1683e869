"""The engine: from a request to pictures. `docs/architecture.md` shows its rooms."""

import sys

__version__ = "0.1.0"

# diffusers and transformers look for accelerate and peft once, when they are imported. If they find them, they import
# all of both (docs/performance.md says what that costs at start-up) and load models differently. With None here, Python
# reports that there is no such package. Code of ours that needs one of them removes the None first.
for _name in ("accelerate", "peft"):
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]  # "import: None" is documented with sys.modules

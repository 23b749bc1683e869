"""k-diffusion's samplers, which WebUI runs, by the authors of most of them. Loaded without unneeded parts.

The package first imports its training code, which needs twenty more packages. So only its `sampling` is imported, with
a stand-in for torchvision, from which `utils` imports a name for pictures that no sampler uses.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from pipelines.upscalers.esrgan import torchvision_or_a_stand_in


def load() -> Any:
    """The module `k_diffusion.sampling`. It has no types."""
    found = find_spec("k_diffusion")
    assert found is not None
    package = ModuleType("k_diffusion")
    package.__path__ = list(found.submodule_search_locations or ())
    sys.modules["k_diffusion"] = package
    with torchvision_or_a_stand_in():
        return import_module("k_diffusion.sampling")


sampling = load()

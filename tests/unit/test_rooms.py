"""The pure rooms stay pure: what is checked before work starts must not need torch, cog or the network."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PURE = (
    "pasted",
    "pickles",
    "catalog",
    "errors",
    "extras",
    "headers",
    "infotext",
    "model",
    "parameters",
    "plan",
    "prompt",
    "reproduce",
    "request",
    "units",
    "wildcards",
)


def imported(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names.add(module)
            names |= {f"{module}.{alias.name}" for alias in node.names if module == "pipelines"}
    return names


@pytest.mark.parametrize("room", PURE)
def test_a_pure_room_imports_the_standard_library_and_pure_rooms(room: str) -> None:
    for name in imported(ROOT / "pipelines" / f"{room}.py"):
        package, _, rest = name.removeprefix(".").partition(".")
        if package == "pipelines" or name.startswith("."):
            assert not rest or rest.split(".")[0] in (*PURE, "__version__"), f"{room} imports {name}"
        else:
            assert package in sys.stdlib_module_names, f"{room} imports {name}"


def test_predict_has_no_tensors() -> None:
    assert not {"torch", "numpy", "diffusers", "transformers"} & imported(ROOT / "predict.py")

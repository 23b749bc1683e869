"""The pure rooms stay pure: what is checked before work starts must not need torch, cog or the network."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PURE = (
    "asked",
    "catalog",
    "errors",
    "extras",
    "headers",
    "infotext",
    "inputs",
    "model",
    "obstacles",
    "parameters",
    "pasted",
    "pickles",
    "plan",
    "prompt",
    "request",
    "settings",
    "sizes",
    "table",
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


def test_what_comes_before_work_starts_needs_no_tensors_and_no_network() -> None:
    """Files that are sent are looked into with torch, and those that are named fetched: imported only then."""
    heavy = ("torch", "numpy", "PIL", "httpx", "requests", "filelock", "huggingface_hub", "urllib.request")
    modules = ", ".join([*(f"pipelines.{room}" for room in PURE), "weights_script.extras", "weights_script.uploads"])
    program = f"import sys, {modules}\nfound = set({heavy}) & set(sys.modules)\nassert not found, found"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=20)


def test_predict_has_no_tensors() -> None:
    assert not {"torch", "numpy", "diffusers", "transformers"} & imported(ROOT / "predict.py")

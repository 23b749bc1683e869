"""Checks before work starts need no torch, no cog and no network."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PURE = ("errors", "files", "ask", "infotext")
"""Rooms for which pyproject.toml has a contract; import-linter, which script/test runs, holds all rooms to theirs."""


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


def test_what_comes_before_work_starts_needs_no_tensors_and_no_network() -> None:
    """Files that are sent are looked into with torch, and those that are named fetched: imported only then."""
    heavy = ("torch", "numpy", "PIL", "httpx", "requests", "filelock", "huggingface_hub", "urllib.request")
    files = (path for room in PURE for path in (ROOT / "pipelines").glob(f"{room}*/*.py"))
    rooms = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    modules = ", ".join(["pipelines.errors", *rooms, "weights_script.extras", "weights_script.uploads"])
    program = f"import sys, {modules}\nfound = set({heavy}) & set(sys.modules)\nassert not found, found"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=20)


def test_predict_has_no_tensors() -> None:
    assert not {"torch", "numpy", "diffusers", "transformers"} & imported(ROOT / "predict.py")

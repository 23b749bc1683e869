"""Links and names in the documents exist, and their tables are complete."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = {path.name for path in ROOT.glob("*/**/*.py") if ".venv" not in path.parts} | {"predict.py"}
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_sections_lead_to_one(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for path, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", text):
        target = (document.parent / path).read_text(encoding="utf-8") if path else text
        assert anchor in anchors(target), f"{path}#{anchor}"


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.casefold()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_row_of_a_table_has_the_cells_of_its_head(document: Path) -> None:
    """GitHub cuts a row off at a bar that is not escaped."""
    tables = re.findall(r"(?:^\|.*\n)+", document.read_text(encoding="utf-8"), re.MULTILINE)
    for lines in map(str.splitlines, tables):
        bars = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
        assert [line for line, count in zip(lines, bars, strict=True) if count != bars[0]] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_and_file_that_is_named_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    modules = re.findall(r"python -m ((?:pipelines|weights_script|script|bench|pastel_tiny)[\w.]*\b)", text)
    paths = re.findall(r"\b((?:pipelines|weights_script|script|bench|pastel_tiny|tests|docs|deploy)/[\w./-]*\w)", text)
    missing = [path for path in paths if not (ROOT / path).exists()]
    missing += [name for name in re.findall(r"`(\w+\.py)`", text) if name not in MODULES]
    assert missing + [module for module in modules if not is_module(module)] == []


SOURCES = [path for path in ROOT.glob("**/*.py") if ".venv" not in path.parts]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_name_modules_that_exist(source: Path) -> None:
    nodes = ast.walk(ast.parse(source.read_text(encoding="utf-8")))
    texts = [node.value.value for node in nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    named = {name for text in texts if isinstance(text, str) for name in re.findall(r"`([\w./]+\.py)`", text)}
    assert [name for name in named if Path(name).name not in MODULES] == []


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()

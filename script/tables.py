"""The tables of docs/inputs.md and docs/training.md: all inputs and settings, made from the schema and the rows."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipelines.ask.settings import Choice, Flag, Number, Setting, Whole
from pipelines.ask.table import BY_KEY, PAIRS, ROWS
from script.compatibility import inputs

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT, TRAINING_DOCUMENT = ROOT / "docs" / "inputs.md", ROOT / "docs" / "training.md"
MARKS = {"form": "the form", "settings": "settings of generation data", "training": "the form of trainings"}
BEGIN, END = "<!-- {}: made by script/schema -->\n", "<!-- end -->"

Json = dict[str, Any]


def with_tables(document: str, schema: Json) -> str:
    """Return the document with current tables between their marks."""
    fields = inputs(schema)
    for name, rows in (("form", form_rows(fields)), ("settings", setting_rows(fields))):
        document = _with_table(document, name, rows)
    return document


def with_training_table(document: str, schema: Json) -> str:
    """Return the document with a current table of the inputs of trainings."""
    return _with_table(document, "training", form_rows(inputs(schema, "TrainingInput")))


def _with_table(document: str, name: str, rows: Iterable[tuple[str, ...]]) -> str:
    before, begin, rest = document.partition(BEGIN.format(MARKS[name]))
    _, end, after = rest.partition(END)
    return f"{before}{begin}{table(rows)}{end}{after}"


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Return the rows as a Markdown table; the first is the header. Bars are escaped: they would end the cell."""
    head, *others = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *others]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# --- the form ---------------------------------------------------------------------------------------------------------


def form_rows(fields: dict[str, Json]) -> Iterator[tuple[str, ...]]:
    yield "input", "default", "values", "what it does"
    for name, field in sorted(fields.items(), key=lambda item: item[1]["x-order"]):
        about = f"Deprecated. {field['description']}" if field.get("deprecated") else field["description"]
        yield f"`{name}`", default(field), values(field), about


def default(field: Json) -> str:
    return "" if field.get("default") in (None, "", []) else code(field["default"])


def values(field: Json) -> str:
    """Return the allowed values."""
    if "enum" in field:
        return ", ".join(map(code, field["enum"]))
    if "minimum" in field:
        return f"{field['minimum']} to {field['maximum']}"
    if field["type"] == "array":
        return "files"
    return "a file" if field.get("format") == "uri" else {"boolean": "true, false", "string": "text"}[field["type"]]


def code(value: object) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}`"


# --- generation data --------------------------------------------------------------------------------------------------


def setting_rows(fields: dict[str, Json]) -> Iterator[tuple[str, ...]]:
    yield "key", "default", "values", "what it does"
    for key, row in BY_KEY.items():
        yield f"`{key}`", written(row), allowed(row, fields), row.about
    for key, names in PAIRS.items():
        about = " ".join(ROWS[name].about for name in names)
        yield f"`{key}`", "", "two whole numbers: `512x768`", about


def written(row: Setting) -> str:
    """Return the default as generation data writes it; empty if there is none."""
    if isinstance(row.rule, Flag):
        return code(row.rule.yes if row.default else row.rule.no)
    if row.default in (None, "") or isinstance(row.default, tuple):
        return ""
    return code(str(row.default))


def allowed(row: Setting, fields: dict[str, Json]) -> str:
    """Return the allowed values, or the input of the form that has the same ones."""
    rule = row.rule
    if row.name in fields:
        return f"as {code(row.name)}"
    if isinstance(rule, Choice):
        if (first_pass := row.name.removeprefix("hires_")) in fields:
            return f"{code(rule.names[0])}, or as {code(first_pass)}"
        return ", ".join(map(code, rule.names))
    if isinstance(rule, Flag):
        return f"{code(rule.yes)}, {code(rule.no)}"
    return f"{rule.low} to {rule.high}" if isinstance(rule, Number | Whole) else rule.words

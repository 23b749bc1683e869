"""The OpenAPI schema of predict.py and train.py as `cog build` makes it: from the source text, without running it.

Cog's generator (`pkg/schema` of replicate/cog, in Go) reads single literals and silently drops or garbles everything
else: two adjacent string literals keep the quotes between them, a literal in parentheses is lost, an escape stays two
characters, a computed bound is ignored. This module writes the same document for the forms that this project uses and
refuses every other form, so that the committed schema is the one that Cog will serve.
"""

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from script.tables import DOCUMENT, TRAINING_DOCUMENT, with_tables, with_training_table

ROOT = Path(__file__).resolve().parent.parent
PREDICTOR, TRAINER = ROOT / "predict.py", ROOT / "train.py"
COMMITTED = ROOT / ".cog" / "openapi_schema.json"
FRAME = Path(__file__).with_name("openapi_frame.json")
"""The part of the schema that is the same for every predictor."""
TRAINING_NAMES = {
    "#/components/schemas/Input": "#/components/schemas/TrainingInput",
    "#/components/schemas/Output": "#/components/schemas/TrainingOutput",
    "#/components/schemas/PredictionRequest": "#/components/schemas/TrainingRequest",
    "#/components/schemas/PredictionResponse": "#/components/schemas/TrainingResponse",
    "PredictionRequest": "TrainingRequest",
    "PredictionResponse": "TrainingResponse",
    "/predictions": "/trainings",
    "/predictions/{prediction_id}/cancel": "/trainings/{training_id}/cancel",
    "prediction_id": "training_id",
    "Prediction Id": "Training Id",
    "predict_predictions_post": "train_trainings_post",
    "cancel_predictions__prediction_id__cancel_post": "cancel_trainings__training_id__cancel_post",
    "Predict": "Train",
    "Run a single prediction on the model": "Run a single training on the model",
}
"""What the frame's texts are called in the schema of a training (`buildOpenAPISpec` in Cog's pkg/schema)."""

Json = dict[str, Any]

TYPES: Mapping[str, Json] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "Path": {"type": "string", "format": "uri"},
    "Secret": {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True},
}
OUTPUTS: Mapping[str, Json] = {
    "Iterator[Path]": {
        "items": {"format": "uri", "type": "string"},
        "title": "Output",
        "type": "array",
        "x-cog-array-type": "iterator",
    },
}
CONSTRAINTS = {
    "ge": "minimum",
    "le": "maximum",
    "min_length": "minLength",
    "max_length": "maxLength",
    "regex": "pattern",
}


NAMED = ("default", "description", "choices")
"""Arguments of Input() for which Cog looks up a module constant."""
Assignment = ast.Assign | ast.AnnAssign
Node = ast.expr | ast.stmt | ast.keyword | ast.arg
"""Nodes with a position in the text."""


class SchemaError(Exception):
    """predict.py has a form that Cog's static generator would drop, garble or refuse."""


@dataclass(frozen=True)
class Source:
    """A parsed file, its text (literals are checked as they are written) and its module constants."""

    text: str
    module: ast.Module

    @cached_property
    def lines(self) -> list[bytes]:
        return self.text.encode().splitlines(keepends=True)

    def segment(self, node: Node) -> str:
        """Return the node's text. `ast.get_source_segment` splits the whole file for each node, which takes seconds."""
        last = node.end_lineno or node.lineno
        lines = self.lines[node.lineno - 1 : last]
        lines[-1] = lines[-1][: node.end_col_offset]  # in bytes; the end first, as both cuts may be in one line
        lines[0] = lines[0][node.col_offset :]
        return b"".join(lines).decode()

    def value(self, keyword: ast.keyword) -> Any:
        """Return the literal of an argument, or of the module constant that it names if Cog looks names up."""
        if isinstance(keyword.value, ast.Name) and keyword.arg in NAMED:
            return self.constant(keyword.value.id, keyword)
        if isinstance(keyword.value, ast.BinOp) and keyword.arg == "choices":
            return self.joined(keyword.value, keyword)
        if keys_of := re.fullmatch(r"list\((\w+)\.keys\(\)\)", self.segment(keyword.value)):
            return list(self.constant(keys_of[1], keyword))
        return self.literal(keyword)

    def constant(self, name: str, user: Node) -> Any:
        for statement in reversed(self.module.body):
            if isinstance(statement, Assignment) and name in map(self.segment, targets(statement)):
                return self.literal(statement)
        raise self.refusal(user, f"{name} is no constant of this file, and Cog reads only this file")

    def joined(self, node: ast.BinOp, user: Node) -> list[Any]:
        """Return the items of `FIRST + SECOND`, two module constants that are lists."""
        if (
            not isinstance(node.op, ast.Add)
            or not isinstance(node.left, ast.Name)
            or not isinstance(node.right, ast.Name)
        ):
            raise self.refusal(user, "join constants of this file with + and nothing else")
        return [*self.constant(node.left.id, user), *self.constant(node.right.id, user)]

    def literal(self, owner: "ast.keyword | Assignment") -> Any:
        """Return the literal after the `=` of `owner`, if Cog reads its text as Python does."""
        node = owner.value
        if node is None or self.segment(owner).split("=", 1)[1].strip() != self.segment(node):
            raise self.refusal(owner, "put the literal right after the =, without parentheses")
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and not reads_the_same(part.value, self.segment(part)):
                raise self.refusal(part, "use one plain literal: Cog joins nothing and knows no escapes and no 1_000")
        if has_comment(self.segment(node)):
            raise self.refusal(node, "move the comment out: Cog reads no list with a comment inside")
        try:
            return ast.literal_eval(node)
        except ValueError:
            raise self.refusal(node, "Cog reads literals only") from None

    def refusal(self, node: Node, fix: str) -> SchemaError:
        shown = " ".join(self.segment(node).split())[:60]
        return SchemaError(f"line {getattr(node, 'lineno', '?')}: {shown}: {fix}")


def targets(statement: Assignment) -> list[ast.expr]:
    return statement.targets if isinstance(statement, ast.Assign) else [statement.target]


def reads_the_same(value: object, text: str) -> bool:
    """Return whether Cog, which takes the text between a string's quotes as it is, sees the same value as Python."""
    if isinstance(value, str):
        quotes = 3 if text[:3] in ('"""', "'''") else 1
        return text[quotes:-quotes] == value
    return value is None or isinstance(value, bool) or re.fullmatch(r"\d+(\.\d+)?", text) is not None


def has_comment(text: str) -> bool:
    tokens = tokenize.generate_tokens(io.StringIO(f"({text})").readline)
    return any(token.type == tokenize.COMMENT for token in tokens)


def number(value: Any) -> Any:
    """Write 7.0 as 7, as Go does."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def ordered(properties: Json) -> Json:
    return dict(sorted(properties.items()))


def input_type(annotation: str) -> Json:
    """Return `int`, `Optional[int]`, `int | None` or `list[int]` as a schema. Raises KeyError for other annotations."""
    if annotation.startswith("Optional["):
        return TYPES[annotation[9:-1]] | {"nullable": True}
    if annotation.endswith(" | None"):
        return TYPES[annotation[:-7]] | {"nullable": True}
    if annotation.startswith("list["):
        return {"type": "array", "items": TYPES[annotation[5:-1]]}
    return TYPES[annotation]


@dataclass(frozen=True)
class Field:
    """One parameter of predict() or train() as a property of the schema, and its choices as a component."""

    name: str
    schema: Json
    choices: Json | None


def read_field(source: Source, order: int, parameter: ast.arg, call: ast.expr) -> Field:
    """Read one input. Raises SchemaError if Cog would see less than is written."""
    name = parameter.arg
    try:
        kind = input_type(ast.unparse(parameter.annotation) if parameter.annotation else "")
    except KeyError:
        raise source.refusal(parameter, f"use one of {', '.join(TYPES)}, Optional[...] or list[...]") from None
    if not isinstance(call, ast.Call) or source.segment(call.func) != "Input":
        raise source.refusal(parameter, "give every input an Input(...)")
    given = {keyword.arg or "**": keyword for keyword in call.keywords}
    if unknown := given.keys() - CONSTRAINTS.keys() - {"default", "description", "choices", "deprecated"}:
        raise source.refusal(call, f"{', '.join(sorted(unknown))} is not supported here")
    choices = source.value(given.pop("choices")) if "choices" in given else None
    values = {key: number(source.value(keyword)) for key, keyword in given.items()}
    if values.get("default", 0) is None and "nullable" not in kind:
        raise source.refusal(parameter, "a default of None needs Optional[...]: Cog would make the input required")
    schema = {CONSTRAINTS.get(key, key): value for key, value in values.items()} | {"x-order": order}
    if choices is None:
        return Field(name, ordered(schema | kind | {"title": title(name)}), None)
    nullable = {"nullable": True} if "nullable" in kind else {}
    reference = {"allOf": [{"$ref": f"#/components/schemas/{name}"}]}
    component = {"description": "An enumeration.", "enum": choices, "title": name, "type": kind["type"]}
    return Field(name, ordered(schema | nullable | reference), component)


def title(name: str) -> str:
    return " ".join(word[:1].upper() + word[1:] for word in name.split("_"))


def predict_method(source: Source) -> ast.FunctionDef:
    for statement in source.module.body:
        if isinstance(statement, ast.ClassDef) and statement.name == "Predictor":
            for member in statement.body:
                if isinstance(member, ast.FunctionDef) and member.name == "predict":
                    return member
    raise SchemaError("there is no Predictor.predict")


def train_function(source: Source) -> ast.FunctionDef:
    for statement in source.module.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "train":
            return statement
    raise SchemaError("there is no function train")


def read_fields(source: Source, method: ast.FunctionDef, inputs: Sequence[ast.arg]) -> list[Field]:
    calls = method.args.defaults
    if len(inputs) != len(calls) or method.args.kwonlyargs or method.args.vararg or method.args.kwarg:
        raise SchemaError(f"{method.name}() takes inputs that are each an Input(...), and no * or **")
    return [read_field(source, order, *pair) for order, pair in enumerate(zip(inputs, calls, strict=True))]


def generate(text: str, training: str = "") -> Json:
    """Return the schema of the predictor in `text`, with keys in the order of Cog's generator.

    With a file for trainings, it is merged with that file's schema. Then all keys are in alphabetical order.
    """
    source = Source(text, ast.parse(text))
    method = predict_method(source)
    fields = read_fields(source, method, method.args.args[1:])
    returned = ast.unparse(method.returns) if method.returns else "nothing"
    if returned not in OUTPUTS:
        raise SchemaError(f"predict() returns {returned}: only {', '.join(OUTPUTS)} is supported here")
    frame: Json = json.loads(FRAME.read_text(encoding="utf-8"))
    frame["components"]["schemas"] = {
        "Input": input_schema(fields),
        "Output": OUTPUTS[returned],
        **{field.name: field.choices for field in fields if field.choices},
        **frame["components"]["schemas"],
    }
    if any(re.fullmatch(r"(cog\.)?streaming(\(\))?", source.segment(each)) for each in method.decorator_list):
        frame["paths"]["/predictions"]["post"]["x-cog-streaming"] = True
    return merged(frame, of_training(training)) if training else frame


def of_training(text: str) -> Json:
    """Return the schema of the function `train` in the text."""
    source = Source(text, ast.parse(text))
    function = train_function(source)
    fields = read_fields(source, function, function.args.args)
    frame: Json = renamed(json.loads(FRAME.read_text(encoding="utf-8")), TRAINING_NAMES)
    frame["components"]["schemas"] |= {
        "TrainingInput": input_schema(fields, "TrainingInput"),
        "TrainingOutput": output_model(source, ast.unparse(function.returns) if function.returns else "nothing"),
        **{field.name: field.choices for field in fields if field.choices},
    }
    return frame


def renamed(document: Any, names: Mapping[str, str]) -> Any:
    """Return a document with these keys and texts renamed, at any depth."""
    if isinstance(document, dict):
        return {names.get(key, key): renamed(value, names) for key, value in document.items()}
    if isinstance(document, list):
        return [renamed(value, names) for value in document]
    return names.get(document, document) if isinstance(document, str) else document


def output_model(source: Source, name: str) -> Json:
    """Return the schema of a BaseModel of this file whose fields are plain types."""
    for statement in source.module.body:
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            fields = [each for each in statement.body if isinstance(each, ast.AnnAssign)]
            properties = {
                source.segment(each.target): ordered(
                    TYPES[ast.unparse(each.annotation)] | {"title": title(source.segment(each.target))}
                )
                for each in fields
            }
            required = [source.segment(each.target) for each in fields]
            return {"properties": properties, "required": required, "title": "Output", "type": "object"}
    raise SchemaError(f"train() returns {name}: only a BaseModel of the same file is supported here")


def merged(predict: Json, train: Json) -> Json:
    """Join both schemas as Cog does, with sorted keys. Raises SchemaError where a part would be lost."""
    components, theirs = predict["components"]["schemas"], train["components"]["schemas"]
    pairs = ((predict["paths"], train["paths"]), (components, theirs))
    for part, others in pairs:
        for name in part.keys() & others.keys():
            if part[name] != others[name]:
                raise SchemaError(f"{name}: predict.py and train.py both have it, with other choices; rename one")
    whole = {
        **predict,
        "paths": train["paths"] | predict["paths"],
        "components": {"schemas": theirs | components},
    }
    sorted_keys: Json = json.loads(json.dumps(whole, sort_keys=True))
    return sorted_keys


def input_schema(fields: Sequence[Field], name: str = "Input") -> Json:
    properties = {field.name: field.schema for field in fields}
    schema: Json = {"properties": properties, "title": name, "type": "object"}
    if required := [field.name for field in fields if not field.schema.keys() & {"default", "nullable"}]:
        schema["required"] = required
    return ordered(schema)


def render(schema: Json) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/schema", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file differs")
    check = parser.parse_args().check
    try:
        schema = generate(*(path.read_text(encoding="utf-8") for path in (PREDICTOR, TRAINER)))
    except (SchemaError, SyntaxError) as error:
        print(f"script/schema: predict.py or train.py, {error}", file=sys.stderr)
        return 1
    wanted = {
        COMMITTED: render(schema),
        DOCUMENT: with_tables(DOCUMENT.read_text(encoding="utf-8"), schema),
        TRAINING_DOCUMENT: with_training_table(TRAINING_DOCUMENT.read_text(encoding="utf-8"), schema),
    }
    if not check:
        COMMITTED.parent.mkdir(exist_ok=True)
        for path, text in wanted.items():
            path.write_text(text, encoding="utf-8")
    elif drifted := [path.name for path, text in wanted.items() if not same(path, text)]:
        print(f"script/schema: {', '.join(drifted)} differs from predict.py; run script/schema", file=sys.stderr)
        return 1
    return 0


def same(path: Path, text: str) -> bool:
    """Return whether the file has this content. A schema may be formatted differently, as `cog build` does."""
    if not path.exists():
        return False
    present = path.read_text(encoding="utf-8")
    return (render(json.loads(present)) if path.suffix == ".json" else present) == text


if __name__ == "__main__":
    sys.exit(main())

"""The committed schema equals what Cog's static generator makes of predict.py, and matches the intended inputs."""

import ast
import json
from pathlib import Path

import pytest

from pipelines.ask.table import BY_KEY, PAIRS
from script import schema
from script.schema import COMMITTED, PREDICTOR, ROOT, TRAINER, SchemaError, generate, render
from script.tables import DOCUMENT, TRAINING_DOCUMENT, table, with_tables, with_training_table

DATA = ROOT / "tests" / "data"
COMMITTED_SCHEMA = json.loads(COMMITTED.read_text(encoding="utf-8"))
INPUTS = COMMITTED_SCHEMA["components"]["schemas"]["Input"]["properties"]

PREDICT = """
from typing import Iterator, Optional
from cog import BasePredictor, Input, Path, streaming

{constants}

class Predictor(BasePredictor):
    def predict(self, {parameters}) -> Iterator[Path]: ...
"""


def schema_of(parameters: str, constants: str = "") -> dict[str, object]:
    document = generate(PREDICT.format(parameters=parameters, constants=constants))
    return document["components"]["schemas"]


def test_reproduces_the_generator_of_cog() -> None:
    pair = DATA / "cog_static_schema"
    made = render(generate((pair / "predict.py").read_text(encoding="utf-8")))
    assert made == (pair / "openapi.json").read_text(encoding="utf-8")


def test_committed_schema_is_up_to_date() -> None:
    expected = render(generate(*(path.read_text(encoding="utf-8") for path in (PREDICTOR, TRAINER))))
    assert COMMITTED.read_text(encoding="utf-8") == expected, "run script/schema and commit what it writes"


def test_the_document_shows_the_present_inputs_and_settings() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert with_tables(document, COMMITTED_SCHEMA) == document, "run script/schema and commit what it writes"
    assert [name for name in (*INPUTS, *BY_KEY, *PAIRS) if f"| `{name}` |" not in document] == []


def test_a_bar_inside_a_cell_does_not_end_it() -> None:
    assert table([("a", "b"), ("{x|y}", "z")]) == "| a | b |\n| --- | --- |\n| {x\\|y} | z |\n"


TRAIN = """
from cog import BaseModel, Input, Path

class TrainingOutput(BaseModel):
    weights: Path

def train(
    pictures: Path = Input(description="Some."), kind: str = Input(default="x", choices=["x", "y"])
) -> TrainingOutput: ...
"""


def test_a_training_is_merged_as_cog_does_it() -> None:
    """Cog's MergeSchemas (pkg/schema/generator.go) reads both documents into maps, which Go writes in sorted order."""
    predict = PREDICT.format(parameters="a: int = Input(default=1)", constants="")
    document = generate(predict, TRAIN)
    schemas = document["components"]["schemas"]
    assert schemas["TrainingOutput"] == {
        "properties": {"weights": {"format": "uri", "title": "Weights", "type": "string"}},
        "required": ["weights"],
        "title": "Output",  # of a training, too
        "type": "object",
    }
    assert schemas["TrainingInput"]["title"] == "TrainingInput"
    assert schemas["TrainingInput"]["required"] == ["pictures"]
    assert schemas["kind"]["enum"] == ["x", "y"]
    assert schemas["TrainingRequest"]["title"] == "TrainingRequest"
    assert schemas["TrainingRequest"]["properties"]["input"] == {"$ref": "#/components/schemas/TrainingInput"}
    assert schemas["TrainingResponse"]["properties"]["output"] == {"$ref": "#/components/schemas/TrainingOutput"}
    assert schemas["PredictionRequest"]["properties"]["input"] == {"$ref": "#/components/schemas/Input"}
    post = document["paths"]["/trainings"]["post"]
    assert (post["summary"], post["operationId"]) == ("Train", "train_trainings_post")
    assert post["description"] == "Run a single training on the model"
    cancel = document["paths"]["/trainings/{training_id}/cancel"]["post"]
    assert cancel["operationId"] == "cancel_trainings__training_id__cancel_post"
    assert cancel["parameters"][0] == {
        "in": "path",
        "name": "training_id",
        "required": True,
        "schema": {"title": "Training Id", "type": "string"},
    }
    assert render(document) == json.dumps(document, sort_keys=True, indent=2)


def test_choices_that_a_prediction_would_overwrite_are_refused() -> None:
    predict = PREDICT.format(parameters='kind: str = Input(default="x", choices=["x"])', constants="")
    with pytest.raises(SchemaError, match=r"kind: predict\.py and train\.py both have it"):
        generate(predict, TRAIN)


def test_the_form_of_trainings() -> None:
    inputs = COMMITTED_SCHEMA["components"]["schemas"]["TrainingInput"]["properties"]
    assert len(inputs) <= 20
    assert [name for name, field in inputs.items() if not field["description"].endswith(".")] == []
    document = TRAINING_DOCUMENT.read_text(encoding="utf-8")
    assert with_training_table(document, COMMITTED_SCHEMA) == document, "run script/schema and commit what it writes"


@pytest.mark.parametrize("name", INPUTS)
def test_every_input_has_a_description_and_a_default(name: str) -> None:
    assert INPUTS[name]["description"].endswith(".")
    assert "default" in INPUTS[name]


def test_the_form_shows_inputs_in_the_order_of_the_signature() -> None:
    tree = ast.parse(PREDICTOR.read_text(encoding="utf-8"))
    predict = next(each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef) and each.name == "predict")
    parameters = [argument.arg for argument in predict.args.args[1:]]
    assert sorted(INPUTS) == sorted(parameters)
    assert [INPUTS[name]["x-order"] for name in parameters] == list(range(len(parameters)))


@pytest.mark.parametrize(
    ("parameters", "constants", "said"),
    [
        ('a: str = Input(description="one " "two", default="")', "", "Cog joins nothing"),
        ('a: str = Input(description=("one"), default="")', "", "without parentheses"),
        (r'a: str = Input(description="a \"b\"", default="")', "", "no escapes"),
        ("a: int = Input(default=1_000)", "", "no 1_000"),
        ("a: int = Input(default=2**32)", "", "literals only"),
        ("a: int = Input(default=1, ge=LOW)", "LOW = 0", "literals only"),
        ("a: int = Input(default=None)", "", "Optional"),
        ("a: int = Input(default=DEFAULT)", "from pipelines.ask.catalog import DEFAULT", "no constant of this file"),
        ('a: str = Input(default="x", choices=list(NAMES))', "NAMES = {}", "literals only"),
        ('a: str = Input(default="x", choices=[\n"x",  # best\n])', "", "comment"),
        ("a: dict = Input(default={})", "", "use one of str"),
        ("a: int = 3", "", "Input(...)"),
        ("a: int", "", "Input(...)"),
        ("a: int = Input(default=1, default_factory=int)", "", "default_factory is not supported"),
        ("*, a: int = Input(default=1)", "", "no * or **"),
    ],
)
def test_what_cog_would_lose_is_refused(parameters: str, constants: str, said: str) -> None:
    with pytest.raises(SchemaError, match=r".") as error:
        schema_of(parameters, constants)
    assert said in str(error.value)


def test_constants_of_the_file_are_followed() -> None:
    made = schema_of(
        'a: str = Input(description=TEXT, default="x", choices=list(KEYS.keys()))', 'TEXT = "t"\nKEYS = {"x": 1}'
    )
    assert made["a"] == {"description": "An enumeration.", "enum": ["x"], "title": "a", "type": "string"}
    assert made["Input"]["properties"]["a"]["description"] == "t"


def test_an_input_without_default_is_required() -> None:
    made = schema_of("a: int = Input(ge=1.0), b: Optional[int] = Input(), c: int = Input(default=2)")
    assert made["Input"]["required"] == ["a"]
    assert made["Input"]["properties"]["a"]["minimum"] == 1


def test_the_command_fails_on_drift(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "inputs.md"
    document.write_text(DOCUMENT.read_text(encoding="utf-8").replace("| `seed` |", "| `seeds` |"), encoding="utf-8")
    monkeypatch.setattr(schema, "DOCUMENT", document)
    training = tmp_path / "training.md"
    training.write_text(TRAINING_DOCUMENT.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(schema, "TRAINING_DOCUMENT", training)
    monkeypatch.setattr(schema, "COMMITTED", tmp_path / "openapi_schema.json")
    monkeypatch.setattr("sys.argv", ["script/schema", "--check"])
    assert schema.main() == 1
    assert capsys.readouterr().err == (
        "script/schema: openapi_schema.json, inputs.md differs from predict.py; run script/schema\n"
    )
    assert sorted(tmp_path.iterdir()) == [document, training]

    monkeypatch.setattr("sys.argv", ["script/schema"])
    assert schema.main() == 0
    monkeypatch.setattr("sys.argv", ["script/schema", "--check"])
    assert schema.main() == 0

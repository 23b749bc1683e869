"""Several models in one container, one of them broken."""

from collections.abc import Iterator

import pytest
from safetensors.torch import load_file

from pastel_tiny.forms import FILES, FORMS, compose
from script.cog_server import CogServer, reasons
from tests.contract.pictures import DRAFT, HIRES, ask, draw, parameters, picture

BOAT = DRAFT | {"prompt": "a boat", "negative_prompt": " ", "guidance_scale": 4}


@pytest.fixture(scope="module")
def server(embedded_default: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CogServer]:
    """It serves the embedded model, its form of SDXL and a refiner, beside a file that is none."""
    folder = tmp_path_factory.mktemp("models")
    files = {"sdxl": folder / "second.safetensors", "refiner": folder / "third.safetensors"}
    for name, file in files.items():
        compose(load_file(FILES / f"{name}.safetensors"), file, FORMS[name])
    (folder / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{ not a header ")
    models = f"pastel-tiny, {files['sdxl']},{folder / 'broken.safetensors'},{files['refiner']}"
    with CogServer({"PASTEL_MODEL": models}, log=lambda line: None) as running:
        running.wait_until_ready()
        yield running


def title(text: str) -> str:
    """The name and hash of the model in generation data."""
    fields = dict(field.split(": ", 1) for field in text.rpartition("\n")[2].split(", "))
    return f"{fields['Model']} [{fields['Model hash']}]"


def test_setup_tells_which_models_there_are(server: CogServer) -> None:
    logs = server.request("GET", "/health-check").body["setup"]["logs"]
    assert "Models: pastel-tiny, second, third." in logs
    assert "The model broken cannot be used: " in logs


def test_models_are_switched_by_name_and_by_generation_data(server: CogServer) -> None:
    (first,) = draw(server, BOAT)["output"]
    (second,) = draw(server, BOAT | {"model": "Second.safetensors"})["output"]
    assert second != first
    texts = {uri: parameters(picture(uri)) for uri in (first, second)}
    assert title(texts[second]).startswith("second [")
    for uri in (first, second, first):
        again = draw(server, {"generation_data": texts[uri]})
        assert again["output"] == [uri]
        assert again["metrics"]["not_honoured"] == []
    assert draw(server, {"generation_data": f"{texts[second]}, Strict: False", "model": "pastel-tiny"})["output"] == [
        first
    ], "the input wins"


def test_defaults_are_the_models_own(server: CogServer) -> None:
    """The embedded model's example prompt is not another's."""
    for model, own in (("", "masterpiece"), ("second", "Steps: 2")):
        (uri,) = draw(server, DRAFT | {"model": model})["output"]
        assert parameters(picture(uri)).partition("\n")[0].partition(",")[0] == own


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (
            {"model": "secnd"},
            ["model='secnd': is not one of this container's models. ", "second, pastel-tiny, third."],
        ),
        ({"model": "broken"}, ["model='broken': this model cannot be used here: ", "safetensors", "pastel-tiny"]),
        (
            {"generation_data": "Refiner: other"},
            ["generation_data='Refiner: other': is not one of this container's models"],
        ),
    ],
)
def test_a_model_that_is_not_here(server: CogServer, inputs: dict[str, str], words: list[str]) -> None:
    said = " ".join(reasons(ask(server, BOAT | inputs).body))
    assert [word for word in words if word not in said] == [], said


def test_another_model_refines_and_draws_the_hires_pass(server: CogServer) -> None:
    (third,) = draw(server, BOAT | {"model": "third"})["output"]
    named = title(parameters(picture(third)))
    asked = HIRES | {
        "model": "second",
        "prompt": "a boat",
        "num_inference_steps": 4,
        "hires_steps": 3,
        "hires_scale": 1,
    }
    data = f"Hires checkpoint: {named}, Refiner: third, Refiner switch at: 0.5, Hires refiner: first pass"
    (plain,) = draw(server, asked)["output"]
    (drawn,) = draw(server, asked | {"generation_data": data})["output"]
    text = parameters(picture(drawn))
    assert drawn != plain
    assert f"Hires checkpoint: {named}, " in text
    assert f"Refiner: {named}, Refiner switch at: 0.5" in text
    again = draw(server, {"generation_data": text})
    assert again["output"] == [drawn]
    assert again["metrics"]["not_honoured"] == []

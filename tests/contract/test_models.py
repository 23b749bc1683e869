"""Several models in one container, one of them broken. Base and refiner in relay, as docs/families.md has it."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pastel_tiny import forms
from script.client import read_inputs
from script.cog_server import CogServer, reasons
from script.compatibility import inputs as schema_inputs
from script.schema import ROOT
from tests.contract.pictures import DRAFT, HIRES, ask, draw, parameters, picture

BOAT = DRAFT | {"prompt": "a boat", "negative_prompt": " ", "guidance_scale": 4}
SDXL, REFINER = "pastel-tiny-sdxl", "pastel-tiny-refiner"
PAGE = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
RELAY = PAGE.partition("\n## SDXL and its refiner in relay")[2].partition("\n## ")[0]
COMMANDS = "".join(re.findall(r"^    (.+\n)", RELAY, flags=re.M)).replace("\\\n", " ").splitlines()
COMPOSE, EXPORT, *REQUESTS = map(shlex.split, COMMANDS)


@pytest.fixture(scope="module")
def server(embedded_default: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CogServer]:
    """It serves the embedded model, and beside a file that is none its form of SDXL and a refiner, from the page."""
    folder = tmp_path_factory.mktemp("models")
    assert COMPOSE[:3] == [".venv/bin/python", "-m", "pastel_tiny.forms"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", COMPOSE[2:])
        forms.main()
    sdxl, refiner = (folder / file for file in EXPORT[1].removeprefix("PASTEL_MODEL=").split(","))
    (folder / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{ not a header ")
    models = f"pastel-tiny, {sdxl},{folder / 'broken.safetensors'},{refiner}"
    with CogServer({"PASTEL_MODEL": models}, log=lambda line: None) as running:
        running.wait_until_ready()
        yield running


def title(text: str) -> str:
    """The name and hash of the model in generation data."""
    fields = dict(field.split(": ", 1) for field in text.rpartition("\n")[2].split(", "))
    return f"{fields['Model']} [{fields['Model hash']}]"


def test_setup_tells_which_models_there_are(server: CogServer) -> None:
    logs = server.request("GET", "/health-check").body["setup"]["logs"]
    assert f"Models: pastel-tiny, {SDXL}, {REFINER}." in logs
    assert "The model broken cannot be used: " in logs


def test_models_are_switched_by_name_and_by_generation_data(server: CogServer) -> None:
    (first,) = draw(server, BOAT)["output"]
    (second,) = draw(server, BOAT | {"model": "Pastel-Tiny-SDXL.safetensors"})["output"]
    assert second != first
    texts = {uri: parameters(picture(uri)) for uri in (first, second)}
    assert title(texts[second]).startswith(f"{SDXL} [")
    for uri in (first, second, first):
        again = draw(server, {"generation_data": texts[uri]})
        assert again["output"] == [uri]
        assert again["metrics"]["not_honoured"] == []
    assert draw(server, {"generation_data": f"{texts[second]}, Strict: False", "model": "pastel-tiny"})["output"] == [
        first
    ], "the input wins"


def test_defaults_are_the_models_own(server: CogServer) -> None:
    """The embedded model's example prompt is not another's."""
    for model, own in (("", "masterpiece"), (SDXL, "Steps: 2")):
        (uri,) = draw(server, DRAFT | {"model": model})["output"]
        assert parameters(picture(uri)).partition("\n")[0].partition(",")[0] == own


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (
            {"model": "pastel-tiny-sdx"},
            ["model='pastel-tiny-sdx': is not one of this container's models. ", f"{SDXL}, pastel-tiny, {REFINER}."],
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
    (alone,) = draw(server, BOAT | {"model": REFINER})["output"]
    named = title(parameters(picture(alone)))
    asked = HIRES | {
        "model": SDXL,
        "prompt": "a boat",
        "num_inference_steps": 4,
        "hires_steps": 3,
        "hires_scale": 1,
    }
    data = f"Hires checkpoint: {named}, Refiner: {REFINER}, Refiner switch at: 0.5, Hires refiner: first pass"
    (plain,) = draw(server, asked)["output"]
    (drawn,) = draw(server, asked | {"generation_data": data})["output"]
    text = parameters(picture(drawn))
    assert drawn != plain
    assert f"Hires checkpoint: {named}, " in text
    assert f"Refiner: {named}, Refiner switch at: 0.5" in text
    again = draw(server, {"generation_data": text})
    assert again["output"] == [drawn]
    assert again["metrics"]["not_honoured"] == []


def test_the_relays_of_the_page_are_drawn(server: CogServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer steps; the first of the server's models is another one than the page's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    schema = schema_inputs(server.request("GET", "/openapi.json").body)
    made = []
    for (command, *words), told in zip(
        REQUESTS,
        (
            rf"Steps: 6, .*Size: 160x160, .*Model: {SDXL}, .*Refiner: {REFINER} \[\w+\], Refiner switch at: 0\.8",
            rf"Steps: 6, .*Model: {SDXL}, Denoising strength: 0\.3, .*Hires checkpoint: {REFINER} \[\w+\]",
            rf"Steps: 6, .*Model: {REFINER}, Denoising strength: 0\.3",
        ),
        strict=True,
    ):
        assert (command, *words[::2]) == ("script/predict", *["-i"] * (len(words) // 2))
        inputs: dict[str, Any] = {"model": SDXL} | read_inputs(words[1::2], schema) | {"num_inference_steps": 6}
        reply = draw(server, inputs)
        image = picture(*reply["output"])
        assert re.search(told, parameters(image)), parameters(image)
        assert image.size == (160, 160)
        assert "never took over" not in reply["logs"]
        image.save(tmp_path / "outputs" / "1.png")
        made.append(image.tobytes())
    assert len(set(made)) == 3

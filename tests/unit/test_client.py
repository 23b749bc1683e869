"""script/predict: what it asks for where its user did not say."""

import pytest

from script.client import BEST, with_best


@pytest.fixture(autouse=True)
def no_model_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COG_WEIGHTS", "PASTEL_MODEL"):
        monkeypatch.delenv(name, raising=False)


def test_the_embedded_model_is_asked_for_what_suits_it_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert with_best({"seed": 1}) == BEST | {"seed": 1}
    assert "guidance_scale=5" in capsys.readouterr().err


def test_what_was_given_stays() -> None:
    assert with_best({"guidance_scale": 3.0}) == {"guidance_scale": 3.0}
    assert with_best({"generation_data": "x"}) == {"generation_data": "x"}


def test_other_models_keep_the_forms_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASTEL_MODEL", "pastel-mix")
    assert with_best({"seed": 1}) == {"seed": 1}

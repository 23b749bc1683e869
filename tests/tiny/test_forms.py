"""Small models of other families, trained from the embedded one, do what the families are for.

Each measure stands beside a control that must fail. The judge saw drawn scenes only (`pastel_tiny/judge.py`).
"""

import numpy as np
import pytest
from PIL import Image

from pastel_tiny.forms import FILES, FORMS
from pastel_tiny.judge import Judge, load_judge
from pastel_tiny.measure import accuracy, detail, drawn, share
from pastel_tiny.measure_forms import (
    HEART,
    SHORT,
    kept,
    loaded,
    overlaps,
    relayed,
    sources,
    variations,
    with_subjects,
)
from pipelines.ask.request import ImageSettings, RefinerSettings
from pipelines.drawing.phases import Beside
from pipelines.families.prediction import VPrediction
from pipelines.models.model import Model
from script.schema import ROOT
from tests.alike import alike
from tests.films import alone, distance, film_of, frames_of, request

LARGER = {"width": 96, "height": 96}
"""Smaller pictures in so few steps are no pictures of anything, and then neighbours can differ as much as the ends."""

pytestmark = pytest.mark.xdist_group("forms")  # whose checkpoints are composed once


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge(ROOT / "tests" / "data")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    return {name: loaded(name, FILES, tmp_path_factory.mktemp(name)) for name in FORMS}


def test_families_are_detected(models: dict[str, Model]) -> None:
    families = {name: model.family for name, model in models.items()}
    assert families == {form.name: form.family for form in FORMS.values()}
    v = {name: isinstance(model.prediction, VPrediction) for name, model in models.items()}
    assert v == {form.name: form.v for form in FORMS.values()}


def test_files_are_small() -> None:
    sizes = {file.stem: file.stat().st_size for file in FILES.iterdir()}
    assert sizes.keys() == FORMS.keys()
    assert max(sizes.values()) < 3_400_000


def test_prompts_are_followed(models: dict[str, Model], judge: Judge) -> None:
    """The prompts name pairs that were never trained on. The control compares with other prompts."""
    asked = with_subjects(8)
    pictures = np.stack(list(drawn(models["sd2"], [each.prompt for each in asked], SHORT)))
    found, others = accuracy(judge, pictures, asked), accuracy(judge, pictures, [*asked[1:], asked[0]])
    assert found["subject"] >= 0.75
    for name in ("sky", "ground_colour", "subject"):
        assert found[name] >= 0.5, name
        assert others[name] < found[name] - 0.3, name


def test_sdxl_follows_prompts_and_its_refiner_adds_detail(models: dict[str, Model], judge: Judge) -> None:
    """The prompts are as above. tests/tiny/test_sdxl.py shows that a refiner of the base's own weights adds nothing."""
    asked, base, refiner = with_subjects(4), models["sdxl"], models["refiner"]
    alone = relayed(base, None, asked)
    found, others = accuracy(judge, alone, asked), accuracy(judge, alone, [*asked[1:], asked[0]])
    for name in ("sky", "subject"):
        assert found[name] >= 0.75, name
        assert others[name] < found[name] - 0.4, name
    refined = relayed(base, refiner, asked)
    assert detail(refined) > 1.1 * detail(alone)
    assert accuracy(judge, refined, asked)["subject"] == 1


def test_subjects_stand_where_the_depth_map_has_them(models: dict[str, Model]) -> None:
    """Red lies where the map has the heart, and not where another map has it."""
    right, wrong = overlaps(models["depth"], 5)
    assert right > 0.55
    assert wrong < 0.3


def test_every_family_draws_films(models: dict[str, Model]) -> None:
    """Ends are the single pictures, and a frame is the same drawn alone and with others: the map and the picture that
    some families are shown, SDXL's vectors and its refiner are every frame's."""
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    depth = Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64))
    seen = {
        "unclip": {"image": ImageSettings(picture=grey, denoising_strength=1)},
        "depth": {"image": ImageSettings(picture=grey, denoising_strength=1, depth=depth)},
        "sdxl": {"refiner": RefinerSettings(name="refiner", switch_at=0.5), "num_inference_steps": 3, **LARGER},
    }
    beside = Beside(others={"refiner": models["refiner"]})
    for name in ("sd2", "sdxl", "unclip", "depth"):
        fields: dict[str, object] = {"num_inference_steps": 2, **seen.get(name, {})}
        ends = request("a red heart over the sea", **fields), request("a boat", **fields)
        found = frames_of(models[name], film_of(4, *ends), beside)
        assert np.array_equal(found[0], alone(models[name], ends[0], beside)), name
        assert np.array_equal(found[3], alone(models[name], ends[1], beside)), name
        (second,) = frames_of(models[name], film_of(4, *ends, frame=2), beside).values()
        assert alike(second, found[2]), name
        assert distance(found[1], found[2]) < distance(found[0], found[3]), name
        assert distance(found[1], found[2]) > 0, name


def test_a_variation_keeps_sky_ground_and_subject(models: dict[str, Model], judge: Judge) -> None:
    """The scenes were never trained on. The control compares with other scenes."""
    of = sources(8)
    made = variations(models["unclip"], of)
    found, others = kept(judge, made, of), kept(judge, made, [*of[1:], of[0]])
    for name in ("sky", "ground_colour", "subject"):
        assert found[name] >= 0.75, name
        assert others[name] < found[name] - 0.4, name


def test_a_prompt_leads_a_variation(models: dict[str, Model], judge: Judge) -> None:
    """The prompt adds a heart to pictures without one, and their sky stays."""
    of = sources(6)
    led = variations(models["unclip"], of, HEART)
    assert share(judge, led, "subject", "heart") >= 0.75
    assert kept(judge, led, of)["sky"] >= 0.5

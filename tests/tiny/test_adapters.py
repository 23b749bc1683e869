"""A LoRA and an embedding at work: with them the embedded model draws what it cannot draw without."""

from collections.abc import Iterator

import numpy as np
import pytest

from pastel_tiny.adapt import AFTERGLOW, SNOWMAN, TEST_SEED
from pastel_tiny.judge import Judge, load_judge
from pastel_tiny.measure import Pictures, drawn
from pastel_tiny.probe import (
    NEAREST_WORDS,
    WITH_AFTERGLOW,
    WITH_SNOWMAN,
    Probe,
    drawings,
    from_coral,
    noise,
    snowmen,
)
from pastel_tiny.scenes import scene
from pipelines.ask.networks import NO_EXTRAS, Extras, in_folders
from pipelines.models.model import Model
from script.schema import ROOT

DATA = ROOT / "tests" / "data"
UNSEEN = TEST_SEED + 5000

pytestmark = pytest.mark.xdist_group("adapters")  # one worker loads the model and the judge for all of them


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge(DATA)


@pytest.fixture(scope="module")
def probe(judge: Judge) -> Probe:
    return Probe(judge)


@pytest.fixture(scope="module")
def extras() -> Extras:
    return in_folders(DATA / "loras", DATA / "embeddings")


@pytest.fixture(autouse=True)
def clean(networks: Model) -> Iterator[None]:
    """Other tests share the networks: no LoRA stays in them."""
    yield
    networks.adapters.apply([])


def pictures(
    networks: Model, prompts: tuple[str, ...], extras: Extras = NO_EXTRAS, negative: str = "", count: int = 6
) -> Pictures:
    """Of several seeds, the prompts in turn."""
    asked = [prompts[seed % len(prompts)] for seed in range(count)]
    return np.stack(list(drawn(networks, asked, 5.0, negative, steps=10, extras=extras)))


def tagged(weight: float) -> tuple[str, ...]:
    return tuple(f"{prompt} <lora:{SNOWMAN}:{weight:g}>" for prompt in WITH_SNOWMAN)


def test_the_probe_knows_unseen_drawings_and_takes_noise_for_nothing(probe: Probe) -> None:
    assert probe.share(snowmen(UNSEEN, 40)) >= 0.95
    assert probe.share(drawings([scene(UNSEEN + k) for k in range(40)])) <= 0.05
    assert probe.share(noise(10, seed=1)) == 0


def test_a_lora_draws_what_the_model_cannot(networks: Model, judge: Judge, probe: Probe, extras: Extras) -> None:
    plain, with_it = pictures(networks, WITH_SNOWMAN), pictures(networks, tagged(1), extras)
    assert probe.share(plain) == 0
    assert probe.share(with_it) >= 0.8
    asked = ["blue", "pink", "orange"] * 2
    assert sum(seen["sky"] == word for seen, word in zip(judge.see(with_it), asked, strict=True)) >= 5
    assert np.array_equal(pictures(networks, tagged(0), extras, count=1), plain[:1])


def test_an_embedding_draws_what_no_word_names(networks: Model, extras: Extras) -> None:
    def away(word: str, extras: Extras = NO_EXTRAS) -> float:
        prompts = tuple(prompt.replace(AFTERGLOW, word) for prompt in WITH_AFTERGLOW)
        return from_coral(pictures(networks, prompts, extras, count=3))

    assert away(AFTERGLOW, extras) < 0.75 * min(away(word) for word in (AFTERGLOW, *NEAREST_WORDS))


def test_an_embedding_in_the_negative_prompt_takes_it_away(networks: Model, extras: Extras) -> None:
    """Where the prompt leaves the sky open, its colour is farther from coral."""
    open_sky = ("a white house on the green hills", "a red boat on the sea")
    plain, against = (pictures(networks, open_sky, extras, negative) for negative in ("", f"{AFTERGLOW} sky"))
    assert from_coral(against) > from_coral(plain) + 0.05

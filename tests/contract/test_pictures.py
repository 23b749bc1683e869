"""Successful predictions: files, their parameters, batches, phases, and the order in which they arrive."""

import re
from pathlib import Path

import numpy as np
import pytest

from script.cog_server import CogServer
from tests.alike import alike
from tests.contract.pictures import DRAFT, HIRES, draw, parameters, picture


@pytest.mark.parametrize(("output_format", "kind"), [("png", "PNG"), ("webp", "WEBP"), ("jpg", "JPEG")])
def test_each_format_holds_the_picture_and_its_parameters(server: CogServer, output_format: str, kind: str) -> None:
    inputs = DRAFT | {"output_format": output_format, "prompt": "a pink sun, \u6d77 \U0001f305"}
    (uri,) = draw(server, inputs)["output"]
    image = picture(uri)
    assert (image.format, image.size, image.mode) == (kind, (64, 64), "RGB")
    text = parameters(image)
    assert text.startswith("a pink sun, \u6d77 \U0001f305\n")
    assert "Steps: 2, Sampler: DPM++ 2M" in text
    assert "Seed: 5, Size: 64x64" in text


def test_quality_makes_smaller_files(server: CogServer) -> None:
    low, high = (
        len(draw(server, DRAFT | {"output_format": "jpg", "output_quality": quality})["output"][0])
        for quality in (5, 100)
    )
    assert low < high / 2


def test_hires_doubles_the_picture(server: CogServer) -> None:
    (uri,) = draw(server, HIRES)["output"]
    assert picture(uri).size == (128, 128)
    assert "Hires upscale: 2, Hires steps: 2, Hires upscaler: Lanczos" in parameters(picture(uri))


def test_each_picture_of_a_batch_is_that_of_its_seed(server: CogServer) -> None:
    batch = [picture(uri) for uri in draw(server, DRAFT | {"num_outputs": 3})["output"]]
    seeds = [re.search(r"Seed: (\d+)", parameters(image)) for image in batch]
    assert [match[1] for match in seeds if match] == ["5", "6", "7"]
    (alone,) = draw(server, DRAFT | {"seed": 6})["output"]
    assert alike(np.asarray(batch[1]), np.asarray(picture(alone)))
    assert not alike(np.asarray(batch[0]), np.asarray(batch[1]))


def test_the_same_request_gives_the_same_file(server: CogServer) -> None:
    """To the last bit: one process runs the same code on memory that is aligned in the same way."""
    assert draw(server, HIRES)["output"] == draw(server, HIRES)["output"]


def test_without_a_seed_a_random_one_is_told(server: CogServer) -> None:
    inputs = {name: value for name, value in DRAFT.items() if name != "seed"}
    first, second = draw(server, inputs), draw(server, inputs)
    assert first["metrics"]["seed"] != second["metrics"]["seed"]
    assert f"Seed: {first['metrics']['seed']}" in first["logs"]
    assert draw(server, inputs | {"seed": first["metrics"]["seed"]})["output"] == first["output"]


def test_metrics_and_log(server: CogServer) -> None:
    done = draw(server, HIRES)
    metrics = done["metrics"]
    assert (metrics["seed"], metrics["image_output_count"]) == (5, 1)
    assert set(metrics["timing"]) == {"base", "upscale", "refine", "decode"}
    assert all(0 <= seconds <= metrics["predict_time"] for seconds in metrics["timing"].values())
    positions = [done["logs"].index(word) for word in ("Seed:", "Plan:", "Draft:", "Refinement:", "Time:")]
    assert positions == sorted(positions)


def test_phases_come_in_their_order_each_as_soon_as_it_is_done(server: CogServer) -> None:
    events = list(server.events("phases", HIRES | {"show_phases": True}))
    assert (events[0].name, events[-1].name) == ("start", "completed")
    pictures = [picture(event.data["chunk"]) for event in events if event.name == "output"]
    assert [image.size for image in pictures] == [(64, 64), (128, 128), (128, 128)]

    log = [
        "".join(e.data["data"] for e in events[:i] if e.name == "log")
        for i, e in enumerate(events)
        if e.name == "output"
    ]
    assert "Seed: 5" in log[0]
    assert ["Refinement:" in text for text in log] == [False, False, True]
    assert [event.data["index"] for event in events if event.name == "output"] == [0, 1, 2]
    assert events[-1].data["output"] == [event.data["chunk"] for event in events if event.name == "output"]


def test_the_draft_of_the_phases_is_the_picture_without_hires(server: CogServer) -> None:
    draft, *_ = draw(server, HIRES | {"show_phases": True})["output"]
    (alone,) = draw(server, DRAFT)["output"]
    assert np.array_equal(np.asarray(picture(draft)), np.asarray(picture(alone)))


def test_phases_of_several_pictures_are_files_of_their_own(server: CogServer) -> None:
    uris = draw(server, HIRES | {"show_phases": True, "num_outputs": 2})["output"]
    images = [picture(uri) for uri in uris]
    assert [image.size for image in images] == [(64, 64)] * 2 + [(128, 128)] * 4
    assert len(set(uris)) == 6
    seeds = ["Seed: 5," in parameters(image) for image in images]
    assert seeds == [True, False] * 3


def test_a_cancelled_prediction_leaves_no_more_files_than_one(server: CogServer, scratch: Path) -> None:
    events = server.events("with-files", HIRES | {"show_phases": True, "hires_steps": 150})
    next(event for event in events if event.name == "output")
    assert server.cancel("with-files").status == 200
    list(events)
    draw(server, DRAFT)
    # in the folders that are ours: uploads that Cog could not fetch leave a file of Cog's (docs/reliability.md)
    assert len([path for path in scratch.glob("pastel-*/*") if path.is_file()]) == 1

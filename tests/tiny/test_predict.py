"""The predictor's own part, without a server."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest

import predict
from pipelines.ask.request import GenerationRequest
from pipelines.drawing.cast import Cast
from pipelines.drawing.phases import FINAL, Picture
from pipelines.errors import NonFiniteError, OutOfMemory
from pipelines.images.files import FileFormat, OutputFolder
from pipelines.runtime.worker import Worker


def test_a_picture_that_is_being_written_outlives_a_later_failure() -> None:
    """Where the device works by itself, the next picture may fail before the file of the one before it is there."""

    def events(*_: Any, **__: Any) -> Iterator[Picture]:
        yield Picture(FINAL, 0, np.zeros((512, 512, 3), np.uint8))
        raise NonFiniteError("the second one")

    predictor: Any = predict.Predictor()
    predictor.outputs, predictor.record_metric = OutputFolder(), mock.Mock()
    predictor.worker = predictor.fetchers = Worker()
    predictor.roster = mock.Mock()
    model: Any = SimpleNamespace(device=SimpleNamespace(queues=True), identity=None)
    request = GenerationRequest(prompt="", seed=1, width=64, height=64, num_outputs=2, hires=None)
    with (
        mock.patch.object(predict, "render", events),
        mock.patch.object(predict.parameters, "of_picture", return_value=""),
        mock.patch.object(predict, "remarks", return_value=[]),
        mock.patch.object(OutputFolder, "saved", autospec=True, side_effect=late),
    ):
        drawing = predictor.draw(Cast(model=model, others={}, checked=False), request, FileFormat(), None, False)
        assert next(drawing).name.startswith("picture-0-seed-1-")
        with pytest.raises(NonFiniteError):
            next(drawing)


saved = OutputFolder.saved


def late(outputs: OutputFolder, wait: bool) -> Iterator[Any]:
    """As if files were never there before they are waited for."""
    return saved(outputs, wait) if wait else iter(())


def test_a_model_that_the_host_has_no_memory_for_is_not_loaded_and_does_not_stop_the_others() -> None:
    predictor: Any = predict.Predictor()
    predictor.worker = Worker()
    model = mock.Mock(settings={"width": 64, "height": 64})
    chosen: Any = {
        name: SimpleNamespace(files=SimpleNamespace(name=name), settings={}, safety_checker=None) for name in "abc"
    }
    with (
        mock.patch("pipelines.models.room.without_room", return_value={"a": "no room"}) as asked,
        mock.patch.object(predict, "load", return_value=model) as loaded,
        mock.patch.object(predict, "compile_model", side_effect=lambda each, *_: each),
        mock.patch.object(predict, "put_away", side_effect=[None, OutOfMemory("no room to wait")]),
    ):
        roster, _ = predictor._loaded(chosen, {}, mock.Mock())
    assert list(asked.call_args.args[0]) == ["a", "b", "c"], "the first of the list comes first"
    assert loaded.call_count == 2
    assert list(roster.members) == ["c"]
    assert roster.broken == {"a": "no room", "b": "no room to wait"}

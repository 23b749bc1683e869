"""Films by the predictor, without a server: what is left of a film that fails, and how FILM's weights come here."""

import errno
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Never
from unittest.mock import Mock

import av
import numpy as np
import pytest
import torch
from cog import CancelationException

import predict
from pipelines.animation.frames import Event, Frame
from pipelines.animation.reel import QUICK_PIXELS
from pipelines.animation.video import WRITERS
from pipelines.ask.film import Film
from pipelines.drawing.cast import Cast
from pipelines.errors import ModelError, NonFiniteError, OutputError
from pipelines.images import files
from pipelines.images.files import FileFormat, OutputFolder
from pipelines.runtime.worker import Worker
from tests.films import film_of, request
from tests.tiny.misbehaving import Answer, Server
from tests.tiny.test_animation import StandIn
from weights_script.manifest import Source, load_manifest

SHADES = {0: 10, 7: 220, 3: 100, 2: 70, 5: 150}
"""The frames in the order of their drawing: their places and how bright they are."""
Draw = Callable[..., Iterator[Path]]


def drawn(*_: object) -> Iterator[Event]:
    """Frames of even motion, in which the picture gets brighter."""
    for place, shade in SHADES.items():
        yield Frame(place=place, pixels=np.full((64, 64, 3), shade, np.uint8), seed=5, embeddings=())


def broken(*_: object) -> Iterator[Event]:
    yield from drawn()
    raise NonFiniteError("the sixth frame")


def never(*_: object) -> Never:
    raise AssertionError("drawn before its networks were here")


def shades(film: Path) -> list[int]:
    """How bright the frames of a film are, to the nearest known shade."""
    with av.open(film) as opened:
        means = [frame.to_ndarray(format="rgb24").mean() for frame in opened.decode(video=0)]
    return [min(SHADES.values(), key=lambda shade: abs(shade - mean)) for mean in means]


@pytest.fixture(params=[False, True], ids=["CPU", "GPU"])
def queues(request: pytest.FixtureRequest) -> bool:
    """Whether the device works by itself, so that frames are drawn while others are written."""
    return bool(request.param)


@pytest.fixture
def animate(monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Draw a film by the predictor, with these events in the place of networks."""
    kept = list[Any]()  # with its predictor a film's folder disappears

    def animated(draw: Callable[..., Iterator[Event]], queues: bool = False, **settings: object) -> Iterator[Path]:
        monkeypatch.setattr(predict, "draw_film", draw)
        monkeypatch.setattr("pipelines.animation.frames.of_picture", Mock(return_value="how it was drawn"))
        predictor: Any = predict.Predictor()
        kept.append(predictor)
        predictor.outputs, predictor.roster, predictor.record_metric = OutputFolder(), Mock(), Mock()
        predictor.worker = predictor.fetchers = Worker()
        device = SimpleNamespace(place=torch.device("cpu"), dtype=torch.float32, queues=queues)
        model: Any = SimpleNamespace(device=device, identity=None)
        film: Film = film_of(8, request("a"), request("b"), **settings)
        return predictor.animate(Cast(model=model, others={}, checked=False), film, FileFormat(), "mp4", None)

    return animated


def scattered(*_: object) -> Iterator[Event]:
    """Frames between others, at places that are computed: they are no integers."""
    for place in (0, 7, 3.0, 3.25, 2.0):
        yield Frame(place=place, pixels=np.zeros((64, 64, 3), np.uint8), seed=5, embeddings=())


def test_the_names_of_frames_have_the_order_of_the_film(animate: Draw) -> None:
    *frames, _ = animate(scattered)
    names = [path.name.partition("-seed")[0] for path in sorted(frames)]
    assert names == ["frame-000", "frame-002", "frame-003", "frame-003.2500", "frame-007"]


# --- what is left of a film that fails --------------------------------------------------------------------------------


def test_an_error_midway_leaves_the_film_so_far(animate: Draw, queues: bool) -> None:
    found = []
    with pytest.raises(NonFiniteError, match="the sixth frame"):
        found.extend(animate(broken, queues))
    *_, film = found
    assert len(found) == len(SHADES) + 1
    assert shades(film) == sorted(SHADES.values())


def full_disk(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """There is no room for files whose names begin so."""
    write_bytes = Path.write_bytes

    def written(path: Path, content: bytes) -> int:
        if path.name.startswith(names):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, content)

    monkeypatch.setattr(files.Path, "write_bytes", written)


def test_a_frame_that_cannot_be_written_leaves_the_film_of_the_others(
    animate: Draw, queues: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU frames are written in the background: those after the broken one are there, too, and in their places."""
    full_disk(monkeypatch, "frame-003", "frame-002")
    found = []
    with pytest.raises(OutputError, match="No space left on device"):
        found.extend(animate(drawn, queues))
    *frames, film = found
    assert film.suffix == ".mp4"
    assert [path.name[:9] for path in frames][:2] == ["frame-000", "frame-007"]
    assert shades(film) == sorted(SHADES[int(path.name[6:9])] for path in frames)


def test_a_disk_without_room_for_the_film_still_tells_the_first_error(
    animate: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> Never:
        raise OutputError("no room for the film")

    monkeypatch.setattr("pipelines.animation.reel.write_film", no_room)
    found = []
    with pytest.raises(NonFiniteError, match="the sixth frame"):
        found.extend(animate(broken))
    assert {path.suffix for path in found} == {".png"}


@pytest.mark.parametrize(
    ("frames", "loop", "film"), [(3, "no", [10, 100, 220]), (2, "no", None), (3, "ping-pong", None)]
)
def test_a_cancel_midway_leaves_a_short_film(
    animate: Draw, monkeypatch: pytest.MonkeyPatch, frames: int, loop: str, film: list[int] | None
) -> None:
    """It is written if it shows no more than so many frames."""
    monkeypatch.setitem(QUICK_PIXELS, "mp4", frames * 64 * 64)
    outputs: Any = animate(drawn, loop=loop)
    first = [next(outputs) for _ in range(3)]

    def rest() -> Iterator[Path]:
        yield outputs.throw(CancelationException())
        yield from outputs

    with pytest.raises(CancelationException):
        first.extend(rest())
    assert [path.suffix for path in first] == [".png"] * 3 + [".mp4"] * (film is not None)
    assert film is None or shades(first[3]) == film


def test_every_film_has_a_length_that_is_written_after_a_cancel() -> None:
    assert QUICK_PIXELS.keys() == WRITERS.keys()


# --- FILM -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> bytes:
    torch.jit.script(StandIn().half()).save(tmp_path / "stand-in.pt")
    return (tmp_path / "stand-in.pt").read_bytes()


@pytest.fixture
def interpolated(
    animate: Draw, server: Server, weights: bytes, no_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Path]]:
    """Draw a film with FILM, whose manifest names a file on the test server, which answers so."""
    own = replace(
        load_manifest()["film"],
        sources=(Source(url=f"{server.address}/film.pt"),),
        sha256=hashlib.sha256(weights).hexdigest(),
        about=None,
    )
    monkeypatch.setenv("PASTEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("weights_script.resolve.load_manifest", lambda: {"film": own})

    def outputs(answer: Answer, draw: Callable[..., Iterator[Event]] = never) -> list[Path]:
        server.script["/film.pt"] = [answer]
        return list(animate(draw, interpolation="FILM", computed=1))

    return outputs


def test_film_is_fetched_at_its_first_use(
    interpolated: Callable[..., list[Path]], server: Server, weights: bytes
) -> None:
    for _ in range(2):
        *frames, film = interpolated(Answer(body=weights), drawn)
        assert len(frames) == len(SHADES)
        with av.open(film) as opened:
            assert len(list(opened.decode(video=0))) == 2 * len(SHADES) - 1
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer(status=404), r"^Interpolation: FILM: film cannot be fetched\. Tried .*404.*leave Interpolation out"),
        (Answer(body=b"\x80another program"), r"^Interpolation: FILM: film cannot be fetched\. Tried .*SHA-256"),
    ],
    ids=["gone", "another file"],
)
def test_without_film_nothing_is_drawn(
    interpolated: Callable[..., list[Path]], tmp_path: Path, answer: Answer, told: str
) -> None:
    with pytest.raises(ModelError, match=told):
        interpolated(answer)
    assert not list((tmp_path / "cache").rglob("*.pt"))


def test_without_room_for_film_nothing_is_drawn(
    interpolated: Callable[..., list[Path]], weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", Mock(return_value=SimpleNamespace(free=1000)))
    with pytest.raises(ModelError, match=r"^Interpolation: FILM: .* 1 kB are free"):
        interpolated(Answer(body=weights))


def test_a_film_whose_computed_frames_fail_is_one_of_the_drawn_ones(
    animate: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpolator = Mock(between=Mock(side_effect=RuntimeError("out of memory")))
    monkeypatch.setattr(predict.Predictor, "_interpolator", lambda *_: interpolator)
    found = []
    with pytest.raises(RuntimeError, match="out of memory"):
        found.extend(animate(drawn, interpolation="FILM"))
    assert shades(found[-1]) == sorted(SHADES.values())

"""Films over HTTP: frames as they are done, then the film; and what is left of one that is stopped."""

import base64
import io
import re

import av
import numpy as np

from script.cog_server import CogServer
from tests.alike import alike
from tests.contract.pictures import DRAFT, assert_ready_soon, draw, parameters, picture

FILM = DRAFT | {"animation": "a sun | a moon", "generation_data": "Animation frames: 4"}


def test_a_film_follows_its_frames(server: CogServer) -> None:
    (alone,) = draw(server, DRAFT | {"prompt": "a moon"})["output"]
    first, last, *between, film = draw(server, FILM)["output"]
    assert last == alone
    frames = [first, *between, last]
    head, _, data = film.partition(";base64,")
    assert head == "data:video/mp4"
    with av.open(io.BytesIO(base64.b64decode(data))) as opened:
        assert len(list(opened.decode(video=0))) == len(frames) == 4
        told = opened.metadata["comment"]
    place = re.search(r"Animation frame: [0-9.]+, ", parameters(picture(frames[1])))
    assert place is not None
    assert parameters(picture(frames[1])).replace(place[0], "") == told
    (again,) = draw(server, {"generation_data": parameters(picture(frames[1]))})["output"]
    assert parameters(picture(again)) == parameters(picture(frames[1]))
    assert alike(np.asarray(picture(again)), np.asarray(picture(frames[1])))


def test_a_film_can_be_cancelled(server: CogServer) -> None:
    events = server.events("film", FILM | {"num_inference_steps": 20, "generation_data": "Animation frames: 24"})
    next(event for event in events if event.name == "output")
    assert server.cancel("film").status == 200
    *_, done = events
    assert done.data["status"] == "canceled"
    *frames, film = done.data["output"]
    assert {uri.partition(";")[0] for uri in frames} == {"data:image/png"}
    with av.open(io.BytesIO(base64.b64decode(film.partition(";base64,")[2]))) as opened:
        assert len(list(opened.decode(video=0))) == len(frames)
    assert_ready_soon(server)

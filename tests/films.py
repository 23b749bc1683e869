"""Short films of small pictures: as requests, drawn whole, and frame by frame."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipelines.animation.frames import Frame, draw_film
from pipelines.ask.animation import AnimationSettings
from pipelines.ask.film import Film, make_film
from pipelines.ask.inputs import Inputs
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest
from pipelines.drawing.phases import FINAL, NOTHING_BESIDE, Beside, Picture, render
from pipelines.infotext.asked import read_data, request_from, settle, settle_keys
from pipelines.infotext.writing import of_picture
from pipelines.models.model import Model

Pixels = NDArray[np.uint8]
SIZE = {"width": 64, "height": 64}


def request(prompt: str, **fields: object) -> GenerationRequest:
    told = {**SIZE, "seed": 5, "num_inference_steps": 4, "hires": None, "guidance_scale": 5, **fields}
    return GenerationRequest(prompt=prompt, negative_prompt="lowres", **told)  # type: ignore[arg-type]


def film_of(frames: int, *keys: GenerationRequest, **settings: object) -> Film:
    """A film with evenly spread key frames."""
    text = " | ".join(key.prompt for key in keys)
    animation = AnimationSettings(text=text, frames=frames, **settings)  # type: ignore[arg-type]
    return make_film([replace(keys[0], animation=animation), *keys])


def frames_of(model: Model, film: Film, beside: Beside = NOTHING_BESIDE) -> dict[float, Pixels]:
    """What a film's frames show, in order and equally spaced."""
    settings = replace(film.settings, even_motion=False)
    events = draw_film(model, replace(film, base=replace(film.base, animation=settings)), beside)
    found = {each.place: each.pixels for each in events if isinstance(each, Frame)}
    return {place: found[place] for place in sorted(found)}


def alone(model: Model, asked: GenerationRequest, beside: Beside = NOTHING_BESIDE) -> Pixels:
    """The single picture of a request."""
    events = render(model, asked, make_plan(asked), beside=beside)
    return next(event.pixels for event in events if isinstance(event, Picture) and event.kind == FINAL)


def again(model: Model, film: Film, frame: float) -> Pixels:
    """What the generation data of a frame draws alone, with the same files."""
    asked = film.infotext_request(frame)
    data = read_data(of_picture(asked, make_plan(asked), model.identity, 0))
    told = settle(Inputs(), data, SIZE)
    keys = settle_keys(told, Inputs(), SIZE)
    base, *others = (request_from(each, extras=film.base.extras) for each in (told, *keys))
    (found,) = frames_of(model, make_film([base, *others])).values()
    return found


def distance(a: Pixels, b: Pixels) -> float:
    """The root of the mean squared difference."""
    return float(np.sqrt(((a.astype(float) - b.astype(float)) ** 2).mean()))

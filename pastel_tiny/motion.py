"""Measure how evenly the embedded model's films move: the largest step between neighbouring frames, and the median.

    python -m pastel_tiny.motion --blended 0 0.5 [--data "Sampler: Euler a"] [--sheets FOLDER]

A step is the mean difference of two frames' values. The films are of the prompts in PAIRS, with 24 frames and the
model's own settings, apart from those that are named.
"""

import argparse
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.animation.frames import Frame, draw_film
from pipelines.ask.film import Film, make_film
from pipelines.ask.inputs import Inputs
from pipelines.ask.settings import Values
from pipelines.images.reading import Pixels
from pipelines.infotext.asked import read_data, request_from, settle, settle_keys
from pipelines.models.loader import load
from pipelines.models.model import Model
from weights_script.resolve import resolve

PAIRS = (
    ("a yellow sun over the sea", "a pink moon over the sea", 5),
    ("a yellow sun over the sea", "a pink moon over the sea", 1),
    ("a red house", "a red boat", 2),
    ("a red house on the green hills under a blue sky", "a red boat on the blue sea under a blue sky", 5),
    ("a castle on a hill at sunset", "a lighthouse by the sea at night", 3),
    ("1girl with red hair in a white dress on the beach", "1girl with blue hair in a pink dress in the forest", 5),
    ("a mountain with snow under a pink sky", "a green tree on a meadow under a blue sky", 11),
    ("a blue cat on the beach", "an orange balloon over the mountains", 21),
    ("cherry trees by a lake in the morning", "stars over the snowy mountains at night", 9),
)
"""Prompts of the first and the last frame, and the seed of both."""
COLUMNS = 8


def film_of(start: str, end: str, data: str, defaults: Values) -> Film:
    """Return the film that the form makes of two prompts and these generation data."""
    inputs = Inputs(animation=f"{start} | {end}", generation_data=data)
    asked = settle(inputs, read_data(data), defaults)
    return make_film([request_from(each) for each in (asked, *settle_keys(asked, inputs, defaults))])


def drawn(model: Model, film: Film) -> list[Pixels]:
    """Return the frames of a film in order."""
    found = {event.place: event.pixels for event in draw_film(model, film) if isinstance(event, Frame)}
    return [found[place] for place in sorted(found)]


def steps(frames: Sequence[Pixels]) -> list[float]:
    """Return the mean difference of the values of each two neighbours."""
    return [float(np.abs(a.astype(float) - b).mean()) for a, b in pairwise(frames)]


def sheet(frames: Sequence[Pixels]) -> Image.Image:
    """Return all frames in rows."""
    rows = [frames[start : start + COLUMNS] for start in range(0, len(frames), COLUMNS)]
    blank = np.zeros_like(frames[0])
    whole = [np.concatenate([*row, *[blank] * (COLUMNS - len(row))], axis=1) for row in rows]
    return Image.fromarray(np.concatenate(whole))


def main() -> None:
    """Draw the films and print a line for each."""
    parser = argparse.ArgumentParser(prog="pastel_tiny.motion", description="Measure how evenly films move.")
    parser.add_argument("--blended", type=float, nargs="+", default=[0.0, 0.5], help="blended beginnings to compare")
    parser.add_argument("--data", default="", help="other settings as generation data, such as Sampler: Euler a")
    parser.add_argument("--sheets", type=Path, help="the folder for contact sheets")
    options = parser.parse_args()
    resolved = resolve(None, None)
    model = load(resolved.files)
    defaults = {**model.settings, **resolved.settings}
    for number, (start, end, seed) in enumerate(PAIRS):
        for blended in options.blended:
            started = time.process_time()
            data = ", ".join(filter(None, (f"Seed: {seed}, Blended beginning: {blended:g}", options.data)))
            frames = drawn(model, film_of(start, end, data, defaults))
            seconds, found = time.process_time() - started, steps(frames)
            largest, median = max(found), float(np.median(found))
            told = f"largest / median {largest / median:4.1f}   median {median:4.1f}   {seconds:4.0f} s"
            print(f"{blended:4g}  {told}   {start} | {end}", flush=True)
            if options.sheets:
                options.sheets.mkdir(parents=True, exist_ok=True)
                sheet(frames).save(options.sheets / f"{number}-{blended:g}.png")


if __name__ == "__main__":
    main()

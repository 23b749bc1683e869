"""Pictures that the model draws during a training: previews, and the class pictures of prior preservation."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

from pipelines.ask.plan import make_plan
from pipelines.ask.prompt import cut_networks
from pipelines.ask.request import OUTPUTS_MAX, GenerationRequest
from pipelines.drawing.phases import FINAL, Picture, render
from pipelines.errors import InvalidInput, NonFiniteError, PastelError
from pipelines.images.reading import Pixels
from pipelines.models.model import Model
from pipelines.training.settings import Course

log = logging.getLogger(__name__)

TAKEN = ("negative_prompt", "guidance_scale", "num_inference_steps", "sampler", "schedule_type", "clip_skip")
"""The model's own settings that these pictures use."""


def preview_requests(course: Course, own: Mapping[str, Any]) -> tuple[GenerationRequest, ...]:
    """Return a request for a picture of each preview prompt. Raises InvalidInput."""
    return _requests("preview_prompts", ((prompt, 1) for prompt in course.preview_prompts), course, own)


def class_requests(course: Course, own: Mapping[str, Any]) -> tuple[GenerationRequest, ...]:
    """Return requests for all pictures of the class, which take its prompts in turn. Raises InvalidInput.

    Pictures of the same prompt are drawn together where there are several, because that is faster.
    """
    counts = Counter(islice(cycle(course.class_prompts), course.class_images))
    asked = (
        (prompt, min(OUTPUTS_MAX, count - before))
        for prompt, count in counts.items()
        for before in range(0, count, OUTPUTS_MAX)
    )
    return _requests("class_prompt", asked, course, own)


def _requests(
    field: str, asked: Iterable[tuple[str, int]], course: Course, own: Mapping[str, Any]
) -> tuple[GenerationRequest, ...]:
    """Return a request for each prompt and its number of pictures, which are square and without the hires pass.

    Tags of LoRAs are removed: the one in training is part of the model. Raises InvalidInput, which names the field.
    """
    taken = {name: own[name] for name in TAKEN if name in own}
    side, found = course.resolution, []
    for number, (prompt, count) in enumerate(asked):
        text, _ = cut_networks(prompt)
        taken |= {"seed": course.random(field, number) >> 33, "num_outputs": count}  # with room for the next seeds
        try:
            found.append(GenerationRequest(prompt=text, width=side, height=side, hires=None, **taken))
        except InvalidInput as error:
            raise InvalidInput(field if error.field == "prompt" else error.field, *_reasons(error)) from None
    return tuple(found)


def _reasons(error: InvalidInput) -> tuple[object, str, str]:
    return error.value, error.rule, error.fix


def drawn(
    model: Model, asked: Iterable[GenerationRequest], missed: type[PastelError] = NonFiniteError
) -> Iterator[tuple[str, Pixels]]:
    """Draw the requests. Yield each picture with its prompt. A picture with an error of the kind `missed` is left out,
    and logged."""
    for request in asked:
        done = 0
        try:
            for event in render(model, request, make_plan(request)):
                if isinstance(event, Picture) and event.kind == FINAL:
                    yield request.prompt, event.pixels
                    done += 1
        except missed as error:
            log.warning("No picture of %r: %s", request.prompt, error)
            if left := request.num_outputs - done - 1:
                yield from drawn(model, [replace(request, seed=request.seed + done + 1, num_outputs=left)], missed)

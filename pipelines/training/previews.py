"""Pictures that the model draws during a training: previews, and the class pictures of prior preservation."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.ask.plan import make_plan
from pipelines.ask.prompt import cut_networks
from pipelines.ask.request import GenerationRequest
from pipelines.drawing.phases import FINAL, Picture, render
from pipelines.errors import InvalidInput, NonFiniteError
from pipelines.images.reading import Pixels
from pipelines.models.model import Model
from pipelines.training.settings import Course

log = logging.getLogger(__name__)

TAKEN = ("negative_prompt", "guidance_scale", "num_inference_steps", "sampler", "schedule_type", "clip_skip")
"""The model's own settings that these pictures use."""


def requests(
    field: str, prompts: Sequence[str], course: Course, own: Mapping[str, Any]
) -> tuple[GenerationRequest, ...]:
    """Return a request for a square picture of each prompt, without the hires pass.

    Tags of LoRAs are removed: the one in training is part of the model. Raises InvalidInput, which names the field.
    """
    taken = {name: own[name] for name in TAKEN if name in own}
    side = course.resolution
    found = []
    for number, prompt in enumerate(prompts):
        text, _ = cut_networks(prompt)
        seed = course.random(field, number) >> 32
        try:
            found.append(GenerationRequest(prompt=text, seed=seed, width=side, height=side, hires=None, **taken))
        except InvalidInput as error:
            raise InvalidInput(field if error.field == "prompt" else error.field, *_reasons(error)) from None
    return tuple(found)


def _reasons(error: InvalidInput) -> tuple[object, str, str]:
    return error.value, error.rule, error.fix


def drawn(model: Model, asked: Sequence[GenerationRequest]) -> Iterator[tuple[str, Pixels]]:
    """Draw the requests. Yield each picture with its prompt. A picture that is not finite is left out, and logged."""
    for request in asked:
        try:
            for event in render(model, request, make_plan(request)):
                if isinstance(event, Picture) and event.kind == FINAL:
                    yield request.prompt, event.pixels
        except NonFiniteError as error:
            log.warning("No picture of %r: %s", request.prompt, error)

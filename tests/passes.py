"""What the passes of a prediction make, for tests that look at nothing after them."""

from contextlib import closing
from itertools import islice

from torch import Tensor

from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest
from pipelines.drawing.phases import PassResult, render
from pipelines.models.model import Model


def latents(model: Model, request: GenerationRequest) -> list[Tensor]:
    """Latents (B, 4, h, w) of every pass. It ends there: to decode a picture takes as long as three steps."""
    plan = make_plan(request)
    with closing(render(model, request, plan)) as events:
        results = (event.latents for event in events if isinstance(event, PassResult))
        return list(islice(results, 2 if plan.hires else 1))

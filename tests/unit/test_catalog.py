"""The form offers, the request accepts and the engine supports the same names."""

import json
from pathlib import Path

from pipelines.animation import video
from pipelines.ask import animation, catalog, formats, request
from pipelines.ask.inputs import ASPECT_RATIOS, AUTOMATIC, OFF, ON, OWN_ASPECT
from pipelines.ask.settings import Number, Whole
from pipelines.ask.table import ROWS
from pipelines.drawing.phases import START
from pipelines.images.files import WRITERS
from pipelines.infotext.asked import RANDOM
from pipelines.sampling.noise import SOURCES
from pipelines.sampling.samplers import ALGORITHMS
from pipelines.sampling.schedules import SCHEDULES
from pipelines.upscalers.interpolation import LATENT, PIXEL

SCHEMAS = json.loads((Path(__file__).parents[2] / ".cog/openapi_schema.json").read_text())["components"]["schemas"]


def test_every_name_has_its_algorithm() -> None:
    assert tuple(ALGORITHMS) == tuple(catalog.SAMPLERS)
    assert {"Automatic", *SCHEDULES} == set(catalog.SCHEDULE_TYPES)
    assert tuple(LATENT) == catalog.LATENT_UPSCALERS
    assert tuple(PIXEL) == catalog.PIXEL_UPSCALERS
    assert set(SOURCES) == set(catalog.NOISE_SOURCES)
    assert set(START) == {info.timesteps for info in catalog.SAMPLERS.values()}
    assert {info.automatic for info in catalog.SAMPLERS.values()} <= set(SCHEDULES)


def test_the_form_offers_all_of_them() -> None:
    assert SCHEMAS["sampler"]["enum"] == list(catalog.SAMPLERS)
    assert SCHEMAS["schedule_type"]["enum"] == list(catalog.SCHEDULE_TYPES)
    assert SCHEMAS["hires_upscaler"]["enum"] == list(catalog.UPSCALERS)
    assert SCHEMAS["masked_content"]["enum"] == list(catalog.MASKED_CONTENTS)
    assert SCHEMAS["inpaint_area"]["enum"] == list(catalog.INPAINT_AREAS)
    assert SCHEMAS["aspect_ratio"]["enum"] == [OWN_ASPECT, *ASPECT_RATIOS]
    assert SCHEMAS["highres_fix"]["enum"] == [AUTOMATIC, ON, OFF]
    assert SCHEMAS["output_format"]["enum"] == [formats.AUTOMATIC, *formats.PICTURES, *formats.FILMS]
    assert set(formats.PICTURES) == set(WRITERS)
    assert set(formats.FILMS.values()) == set(video.WRITERS)
    assert SCHEMAS["loop"]["enum"] == list(animation.LOOPS)


def test_the_forms_ranges_are_the_requests() -> None:
    """Cog refuses what the request would refuse, so that a client gets one 422 that lists everything."""
    fields = SCHEMAS["Input"]["properties"]
    for name in fields.keys() & ROWS.keys():
        rule = ROWS[name].rule
        if isinstance(rule, Number | Whole):
            low = RANDOM if name == "seed" else rule.low
            assert (fields[name]["minimum"], fields[name]["maximum"]) == (low, rule.high), name
    assert fields["prompt"]["maxLength"] == fields["negative_prompt"]["maxLength"] == request.PROMPT_MAX

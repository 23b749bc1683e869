"""The form and generation data become one request, and obstacles to a picture are reported."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines.ask.catalog import (
    EMPHASES,
    INPAINT_AREAS,
    MASKED_CONTENTS,
    NOISE_SCHEDULES,
    NOISE_SOURCES,
    SAMPLERS,
    SCHEDULE_TYPES,
    UPSCALERS,
)
from pipelines.ask.identity import ModelIdentity
from pipelines.ask.inputs import ASPECT_RATIOS, ON, SIDE_STEP, SMALL_STEP, Inputs, size_of_aspect
from pipelines.ask.models import ModelNames
from pipelines.ask.networks import NO_EXTRAS, ExtraFile, Extras
from pipelines.ask.plan import make_plan
from pipelines.ask.prompt import schedule
from pipelines.ask.request import (
    SAME_SAMPLER,
    SAME_SCHEDULE,
    AddedNoise,
    FreeU,
    GenerationRequest,
    HiresSettings,
    ImageSettings,
    MaskSettings,
    NoiseSettings,
    ScheduleSettings,
    SkippedGuidance,
)
from pipelines.errors import InvalidInput
from pipelines.families.sd1 import SD1
from pipelines.infotext.asked import (
    NO_DATA,
    NO_PICTURES,
    Asked,
    Fetched,
    Pictures,
    read_data,
    settle,
    with_networks,
)
from pipelines.infotext.asked import request_from as request_of
from pipelines.infotext.blocks import pasted
from pipelines.infotext.obstacle import Obstacle
from pipelines.infotext.obstacles import drop_unsupported
from pipelines.infotext.obstacles import obstacles as found_obstacles
from pipelines.infotext.other_models import model_of, others_by_key, with_models
from pipelines.infotext.unused import unused_inputs
from pipelines.infotext.writing import of_picture
from pipelines.sampling.schedules import as_set, sigmas, timesteps
from tests.unit.sized import Sized
from weights_script.extras import name_of_upscaler

MODEL = ModelIdentity(name="pastelmix-better-vae-fp16", sha256="0f0eaaa61e" + "0" * 54)
PLAIN = "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64"
HIRES = "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, Denoising strength: 0.5, Hires upscale: 2"
PUBLISHED = """dreamlike fantasy landscape where everything is a shade of pink, <lora:NAI-cutesexyrobutts:1>
Negative prompt: (worst quality:1.4), (low quality:1.4) , (monochrome:1.1)
Steps: 40, Sampler: DPM++ 2M Karras, CFG scale: 12, Seed: 2416682767, Size: 640x512, Model hash: 0f0eaaa61e, \
Model: pastelmix-better-vae-fp16, Denoising strength: 0.55, Clip skip: 2, ENSD: 31337, Hires upscale: 2, \
Hires steps: 20, Hires upscaler: Latent"""

HERE = Extras(loras={"NAI-cutesexyrobutts": ExtraFile(Path("x.safetensors"), 0, 0)})


IMAGE = Sized((640, 480))
MODELS_OWN = {"width": 448, "height": 640, "clip_skip": 2}
Upscalers = dict[str, Path]


def asked(text: str, pictures: Pictures = NO_PICTURES, upscalers: Upscalers | None = None, **said: Any) -> Asked:
    """What the form with these inputs over this generation data asks for."""
    found = settle(Inputs(**said), read_data(text), MODELS_OWN, pictures)
    return with_networks(found, Fetched(controls=found.settings.controls, upscalers=upscalers or {}))


def request_from(
    text: str,
    pictures: Pictures = NO_PICTURES,
    upscalers: Upscalers | None = None,
    extras: Extras = NO_EXTRAS,
    **said: Any,
) -> GenerationRequest:
    return request_of(asked(text, pictures, upscalers, **said), pictures=pictures, extras=extras)


def obstacles(
    text: str,
    model: ModelIdentity = MODEL,
    upscalers: Upscalers | None = None,
    pictures: Pictures = NO_PICTURES,
    **said: Any,
) -> list[Obstacle]:
    return found_obstacles(asked(text, pictures, upscalers, **said), model, pictures)


def test_a_published_block() -> None:
    request = request_from(PUBLISHED, extras=HERE)
    assert request.hires is not None
    assert (request.width, request.height, request.seed) == (640, 512, 2416682767)
    assert (request.num_inference_steps, request.guidance_scale, request.clip_skip) == (40, 12, 2)
    assert (request.sampler, request.schedule_type) == ("DPM++ 2M", "Karras")
    assert (request.noise.source, request.noise.ensd) == ("GPU", 31337)
    assert (request.hires.scale, request.hires.steps, request.hires.denoising_strength) == (2, 20, 0.55)


@pytest.mark.parametrize(
    "request_",
    [
        GenerationRequest(
            prompt="a, (b:1.2)", width=128, height=192, seed=7, hires=None, schedule_type="Karras", emphasis="No norm"
        ),
        GenerationRequest(prompt="", negative_prompt="c", width=64, height=64, seed=0, clip_skip=2, sampler="DDIM"),
        GenerationRequest(
            prompt="a",
            width=128,
            height=128,
            seed=1,
            sampler="Euler a",
            schedule_type="Beta",
            noise=NoiseSettings(source="CPU", ensd=5, variation_seed=9, variation_strength=0.25),
            hires=HiresSettings(width=256, height=192, upscaler="Lanczos", steps=3, prompt="x, y", sampler="Heun"),
        ),
    ],
)
def test_what_is_written_is_read_back_as_the_same_request(request_: GenerationRequest) -> None:
    written = of_picture(request_, make_plan(request_), MODEL, 0)
    assert request_from(written) == request_
    assert obstacles(written) == []


@pytest.mark.parametrize(
    ("block", "told"),
    [
        (PUBLISHED, "<lora:NAI-cutesexyrobutts:1>"),
        (
            f"a\n{PLAIN}, Model hash: deadbeef00, Model: other",
            "made with the checkpoint other",
        ),
        (
            f"a\n{PLAIN}, VAE hash: 735e4c3a44, VAE: x.pt",
            "made with the VAE x.pt",
        ),
        (
            f"a\n{PLAIN}, Denoising strength: 0.5",
            "made from another picture",
        ),
        (
            f'a\n{PLAIN}, TI hashes: "easy: 0123456789ab"',
            "the embedding easy",
        ),
        (
            f"a\n{PLAIN}, Emphasis: Loud",
            "the emphasis Loud is not available",
        ),
        (
            f"a\n{PLAIN}, Token merging ratio: 0.5",
            "Token merging ratio: 0.5",
        ),
        ("a\nSteps: 20, Sampler: Turbo, CFG scale: 7, Seed: 1, Size: 64x64", "the sampler Turbo is not available"),
        (
            f"a\n{HIRES}, Hires upscaler: 4x-UltraSharp",
            "the hires upscaler 4x-UltraSharp is not available (instead: Lanczos); send its weights",
        ),
        (f"a\n{HIRES}, Hires prompt: <lora:x:1>", "<lora:x:1>"),
    ],
)
def test_what_makes_another_picture_is_told(block: str, told: str) -> None:
    found = [each.text for each in obstacles(block, MODEL) if each.other_picture]
    assert len(found) == 1
    assert told in found[0]


@pytest.mark.parametrize(
    ("version", "prompt", "old_editing", "downcast"),
    [
        ("v1.5.2", "[a:b:5]", True, True),
        ("v1.5.2", "a\nNegative prompt: [x:y:0.5]", True, True),  # WebUI looks for brackets in the prompt alone
        ("v1.5.2", "a", False, True),
        ("v1.6.0", "[a:b:5]", False, True),
        ("v1.7.0-224-gabc", "a", False, True),
        ("v1.7.0-225-gabc", "[a:b:5]", False, False),
        ("v1.10.1", "[a:b:5]", False, False),
        ("f0.0.17", "[a:b:5]", False, False),
    ],
)
def test_what_an_old_version_did_is_done(version: str, prompt: str, old_editing: bool, downcast: bool) -> None:
    block = f"{prompt}\n{PLAIN}, Version: {version}"
    made = request_from(block)
    assert (made.old_editing, made.schedule.downcast) == (old_editing, downcast)
    assert not obstacles(block, MODEL)


@pytest.mark.parametrize(
    "end",
    [
        "Mood: fine",
        "PAG scale: 3",
        "CFG end: 0.8",
        "ToMe: 0.5",
        "Detailer: face-yolo8n",
        "Color correction: True",
        "CFG end: 0",  # 0 is a choice there, and 1 the usual
        "Sampler low order: False",  # so is False here
        "Image guidance mode: 0",
        "Hires CFG Scale: 3",
        "Styles: anime",
        "Parser: compel",
    ],
)
def test_a_key_that_nobody_here_knows_stops_a_strict_request(end: str) -> None:
    (found,) = obstacles(f"a\n{PLAIN}, {end}", MODEL)
    assert (found.text, found.other_picture) == (f"{end} is not understood", True)


@pytest.mark.parametrize("end", ["Hires checkpoint: other", "Refiner: other [0123456789], Refiner switch at: 0.8"])
@pytest.mark.parametrize("block", [f"a\n{PLAIN}", f"a\n{HIRES}"])
def test_a_model_that_is_not_here_stops_a_strict_request(block: str, end: str) -> None:
    (found,) = obstacles(f"{block}, {end}", MODEL)
    what, name = end.partition(",")[0].split(": ")
    assert found.text.lower().startswith(f"made with the {what.lower()} {name}; it is not one of this container's")
    assert found.other_picture


OTHERS = ModelNames(
    identities={
        "first": MODEL,
        "fine": ModelIdentity(name="fine-xl", sha256="7440042bbd" + "1" * 54),
    },
    broken={"worse": "the file ends early. Fetch it again."},
)


def test_other_models_are_called_as_the_container_calls_them() -> None:
    block = f"a\n{HIRES}, Refiner: x/FINE-XL.safetensors [7440042bbd], Refiner switch at: 0.7, Hires checkpoint: first"
    found = with_models(asked(block), OTHERS)
    assert found.settings.hires is not None
    assert (found.settings.refiner.name, found.settings.hires.checkpoint) == ("fine", "first")
    assert found_obstacles(found, MODEL, models=OTHERS) == []


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("Refiner: fine-xl [0123456789]", "made with the refiner fine-xl [0123456789]; fine here is 7440042bbd"),
        ("Refiner: other", "made with the refiner other; it is not one of this container's models (first, fine)"),
        (
            "Hires checkpoint: worse",
            "made with the hires checkpoint worse; it cannot be used: the file ends early. Fetch it again",
        ),
    ],
)
def test_other_models_that_differ_or_are_missing(end: str, told: str) -> None:
    found = found_obstacles(with_models(asked(f"a\n{HIRES}, {end}"), OTHERS), MODEL, models=OTHERS)
    assert told in [each.text for each in found if each.other_picture]


FINE = OTHERS.identities["fine"]


@pytest.mark.parametrize(
    "end",
    [
        "Model: fine-xl",
        "Model: fine",
        "Model: FINE.safetensors",
        "Model: 7440042bbd",
        "Model: fine-xl.safetensors [7440042bbd]",
        "Model: another [7440042BBD]",
        "Model hash: 7440042bbd",
        "Model hash: 7440042bbd, Model: other",
    ],
)
def test_a_block_that_means_the_model(end: str) -> None:
    found = asked(f"a\n{PLAIN}, {end}")
    assert model_of(found.data, OTHERS) == "fine"
    assert found_obstacles(found, FINE, models=OTHERS) == []


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("Model: fine [0123456789]", "made with the checkpoint fine (0123456789); this model is fine-xl (7440042bbd)"),
        (
            "Model: fine [0123456789], Model hash: 7440042bbd",
            "made with the checkpoint fine (0123456789); this model is fine-xl (7440042bbd)",
        ),
        ("Model: fine, Model hash: 7", "made with the checkpoint fine (7); this model is fine-xl (7440042bbd)"),
        ("Model: first", "made with the checkpoint first; this model is fine-xl (7440042bbd)"),
        ("Model: worse", "the model worse of this container cannot be used: the file ends early. Fetch it again"),
        ("Model: worse.ckpt [0123456789]", "the model worse.ckpt of this container cannot be used: the file ends ear"),
    ],
)
def test_a_block_that_means_another_model(end: str, told: str) -> None:
    """It is told once, and in whole sentences."""
    made = asked(f"a\n{PLAIN}, {end}")
    (found,) = obstacles_of = found_obstacles(made, FINE, models=OTHERS)
    assert found.text.startswith(told)
    with pytest.raises(InvalidInput) as caught:
        drop_unsupported(made, obstacles_of, strict=True)
    assert ".." not in str(caught.value)


def test_other_models_that_are_missing_are_dropped_if_not_strict() -> None:
    made = with_models(asked(f"a\n{HIRES}, Refiner: other, Hires checkpoint: another"), OTHERS)
    kept = drop_unsupported(made, found_obstacles(made, MODEL, models=OTHERS), strict=False).settings
    assert kept.hires is not None
    assert (kept.refiner.name, kept.hires.checkpoint) == ("", "")


@pytest.mark.parametrize("end", ["Refiner: fine", "Hires checkpoint: fine"])
def test_another_model_that_does_not_fit_is_dropped_if_not_strict(end: str) -> None:
    names = replace(OTHERS, unfit={"fine": "SDXL cannot continue"})
    made = with_models(asked(f"a\n{HIRES}, {end}"), names)
    found = found_obstacles(made, MODEL, models=names)
    assert [each.text for each in found] == [
        f"made with the {end[0].lower()}{end[1:].replace(':', '')}; SDXL cannot continue"
    ]
    kept = drop_unsupported(made, found, strict=False).settings
    assert kept.hires is not None
    assert (kept.refiner.name, kept.hires.checkpoint) == ("", "")
    with pytest.raises(InvalidInput, match=f"'{end}': SDXL cannot continue. Name a text-to-image model or refiner"):
        with_models(asked(end), names)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Refiner: fina", "'Refiner: fina': is not one of this container's models. The models here are fine, first."),
        ("Hires checkpoint: worse", "'Hires checkpoint: worse': this model cannot be used here: the file ends early."),
        ("Refiner: fine [0123456789]", "'Refiner: fine [0123456789]': fine here is 7440042bbd. Leave out"),
        ("Hires checkpoint: x/Fine-XL [0123456789]", "'Hires checkpoint: x/Fine-XL [0123456789]': fine here is 7440"),
    ],
)
def test_a_single_setting_that_names_no_model_is_refused(text: str, told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        with_models(asked(text), OTHERS)
    assert told in str(caught.value)


def test_a_refiner_that_never_takes_over_need_not_be_here() -> None:
    for text in ("Refiner: other, Refiner switch at: 1", f"a\n{PLAIN}, Refiner: other, Refiner switch at: 1"):
        found = with_models(asked(text), OTHERS)
        assert others_by_key(found) == []
        assert not any("efiner" in each.text for each in found_obstacles(found, MODEL, models=OTHERS))


@pytest.mark.parametrize(
    ("block", "label"),
    [
        ("Model hash: 7440042bbd, Model: first", "fine"),
        ("Model hash: 0123456789, Model: Fine-XL", "fine"),
        ("Model hash: 0123456789, Model: other", None),
        ("Clip skip: 1", None),
        ("Model hash: 7", None),
        ("Model hash: 7440042", None),
        ("Model hash: 7440042b", "fine"),
        ("Model: 7440042b", "fine"),
    ],
)
def test_the_model_that_a_block_names(block: str, label: str | None) -> None:
    assert model_of(read_data(f"a\n{PLAIN}, {block}"), OTHERS) == label


@pytest.mark.parametrize(
    ("version", "by_steps"), [("v1.7.0", True), ("v1.8.0", False), ("v1.10.1", False), (None, False)]
)
def test_old_versions_switched_to_the_refiner_by_sampling_steps(version: str | None, by_steps: bool) -> None:
    end = f", Version: {version}" if version else ""
    block = f"a\n{PLAIN}, Refiner: fine-xl [7440042bbd], Refiner switch at: 0.7{end}"
    assert request_of(with_models(asked(block), OTHERS)).refiner.by_steps == by_steps


@pytest.mark.parametrize(
    "end",
    [
        "Version: v1.10.1",
        "User: me",
        "Created Date: 2024-05-01T10:11:12.0000000Z",
        "Time taken: 5.1 sec.",
        "Batch size: 4, Batch pos: 1",
        "PAG scale: 0",
        "CFG end: 1.0",
        "ToMe: 0.0",
        "Detailer: None",
        "Color correction: False",
        "Conditional mask weight: 1",
        "ADetailer version: 23.11.1",
        "Dynamic thresholding enabled: False",
        "Parser: native",
        "Hires CFG Scale: 7.0",
        "Refiner: None",
        "Token merging ratio: 0",
    ],
)
def test_keys_that_ask_for_nothing_are_known(end: str) -> None:
    assert obstacles(f"a\n{PLAIN}, {end}", MODEL) == []


def test_what_was_done_to_a_finished_picture_is_told_and_stops_nothing() -> None:
    (found,) = obstacles(f"a\n{PLAIN}, Postprocess upscaler: R-ESRGAN 4x+", MODEL)
    assert not found.other_picture
    assert "Postprocess upscaler: R-ESRGAN 4x+ was done to the finished picture" in found.text


def test_what_cannot_be_drawn_names_its_field() -> None:
    with pytest.raises(InvalidInput, match="generation_data='Hires upscaler: 4x-UltraSharp'"):
        request_from(PUBLISHED.replace("upscaler: Latent", "upscaler: 4x-UltraSharp"))
    with pytest.raises(InvalidInput, match="generation_data='Sampler: Turbo'"):
        request_from("a\nSteps: 20, Sampler: Turbo, CFG scale: 7, Seed: 1, Size: 64x64")


# --- what a request and its infotext say is the same picture

TEXTS = st.text(st.sampled_from("ab (),:[]|"), max_size=12).map(str.strip)


@st.composite
def requests(draw: st.DrawFn) -> GenerationRequest:
    width, height = draw(st.sampled_from([(0, 0), (256, 0), (192, 256)]))
    hires = HiresSettings(
        scale=draw(st.sampled_from([1, 1.5, 2])),
        width=width,
        height=height,
        upscaler=draw(st.sampled_from(UPSCALERS)),
        steps=draw(st.integers(0, 30).filter(lambda steps: steps == 0 or steps > 3)),
        denoising_strength=draw(st.sampled_from([0.4, 0.75, 1, 1.0])),
        prompt=draw(TEXTS),
        negative_prompt=draw(TEXTS),
        sampler=draw(st.sampled_from([SAME_SAMPLER, *SAMPLERS])),
        schedule_type=draw(st.sampled_from([SAME_SCHEDULE, *SCHEDULE_TYPES])),
    )
    return GenerationRequest(
        prompt=draw(TEXTS),
        negative_prompt=draw(TEXTS),
        width=draw(st.sampled_from([128, 136, 200])),
        height=128,
        seed=draw(st.integers(0, 2**32 - 1)),
        num_inference_steps=draw(st.integers(20, 40)),
        guidance_scale=draw(st.sampled_from([1, 7, 7.0, 7.5])),
        guidance_rescale=draw(st.sampled_from([0, 0.7])),
        freeu=draw(st.sampled_from([None, FreeU(1.5, 1.6, 0.9, 0.2)])),
        sampler=draw(st.sampled_from(list(SAMPLERS))),
        schedule_type=draw(st.sampled_from(SCHEDULE_TYPES)),
        clip_skip=draw(st.integers(1, 3)),
        emphasis=draw(st.sampled_from(EMPHASES)),
        pad_conds=draw(st.booleans()),
        schedule=ScheduleSettings(
            sigma_min=draw(st.sampled_from([0, 0.1])),
            sigma_max=draw(st.sampled_from([0, 10])),
            rho=draw(st.sampled_from([0, 3])),
            discard_penultimate=draw(st.booleans()),
            kind=draw(st.sampled_from(NOISE_SCHEDULES)),
            downcast=draw(st.booleans()),
        ),
        noise=NoiseSettings(
            source=draw(st.sampled_from(NOISE_SOURCES)),
            ensd=draw(st.sampled_from([0, 31337, -1])),
            variation_seed=draw(st.integers(0, 9)),
            variation_strength=draw(st.sampled_from([0, 0.3])),
            resize_width=draw(st.sampled_from([0, 64])),
            resize_height=draw(st.sampled_from([0, 96])),
        ),
        old_editing=draw(st.booleans()),
        tiling=draw(st.booleans()),
        sgm_noise=draw(st.booleans()),
        extra_noise=draw(st.sampled_from([0, 0.1])),
        added_noise=AddedNoise(
            eta=draw(st.sampled_from([0, 0.5, 1])),
            eta_ddim=draw(st.sampled_from([0, 0.5])),
            churn=draw(st.sampled_from([0, 5.0])),
            tmin=draw(st.sampled_from([0, 0.1])),
            tmax=draw(st.sampled_from([0, 9])),
            scale=draw(st.sampled_from([1, 1.1])),
        ),
        skipped_guidance=SkippedGuidance(
            early=draw(st.sampled_from([0, 0.1])),
            minimum_sigma=draw(st.sampled_from([0, 3])),
            all_steps=draw(st.booleans()),
        ),
        hires=draw(st.none() | st.just(hires)),
    )


def drawn(request: GenerationRequest) -> list[object]:
    """All that decides on the picture."""
    plan, noise = make_plan(request), request.noise
    found: list[object] = [request.guidance_scale, request.clip_skip, request.pad_conds, plan.seeds, plan.upscale]
    found += [noise.source, plan.variation_seeds if noise.variation_strength else None, noise.variation_strength]
    found += [noise.ensd if any(part and part.draws for part in (plan.first, plan.hires)) else 0]
    found += [noise.resized_from, request.tiling]
    texts = [request.prompt, request.negative_prompt]
    if request.hires:
        texts += [request.hires.prompt or request.prompt, request.hires.negative_prompt or request.negative_prompt]
    found += [*texts, request.emphasis if any(bracket in "".join(texts) for bracket in "([") else None]
    counts = [plan.first.calls_of(request.num_inference_steps), plan.hires.calls if plan.hires else None]
    old, skipped = request.old_editing, request.skipped_guidance
    found += [schedule(text, counts[0] or 0, count, old=old) for text in texts for count in (None, counts[1])]
    known = as_set(SD1.noise, request.schedule)
    for part in filter(None, (plan.first, plan.hires)):
        found += [part.latent_shape, part.sampler, part.asked, part.first_step, part.added_noise, skipped.early]
        found += [request.extra_noise if part.refines else None]
        if not part.sampler.timesteps:
            found += [request.sgm_noise if not part.refines else None]
            found += [skipped.minimum_sigma, skipped.all_steps if skipped.minimum_sigma else None]
        if part.sampler.timesteps:
            found.append(timesteps(part.schedule_steps + part.schedule.discard_penultimate))
        else:
            found.append(sigmas(known, part.schedule_type, part.schedule_steps, part.sampler, part.schedule))
    return found


@st.composite
def images(draw: st.DrawFn) -> ImageSettings:
    outpaint = draw(st.sampled_from([(0, 0, 0, 0), (8, 0, 64, 1)]))
    mask = MaskSettings(
        picture=draw(st.sampled_from([IMAGE, None] if any(outpaint) else [IMAGE])),
        invert=draw(st.booleans()),
        blur=draw(st.sampled_from([(0, 0), (4, 4)])),
        content=draw(st.sampled_from(MASKED_CONTENTS)),
        area=draw(st.sampled_from(INPAINT_AREAS)),
        padding=draw(st.sampled_from([32])),
    )
    return ImageSettings(
        picture=IMAGE,
        denoising_strength=draw(st.sampled_from([0.4, 0.75, 1])),
        mask=mask if any(outpaint) else draw(st.sampled_from([None, mask])),
        noise_multiplier=draw(st.sampled_from([0, 1, 1.1])),
        exact_steps=draw(st.booleans()),
        outpaint=outpaint,
    )


@given(requests(), images())
def test_a_request_from_a_picture_reads_back_with_the_picture(
    request_: GenerationRequest, image: ImageSettings
) -> None:
    request_ = replace(request_, image=image)
    try:
        plan = make_plan(request_)
    except InvalidInput:
        assume(False)
    written = of_picture(request_, plan, MODEL, 0)
    pictures = Pictures(image=IMAGE, mask=image.mask.picture if image.mask else None)
    again = request_from(written, pictures)
    assert again.image == image
    assert drawn(again) == drawn(request_)
    assert not [each for each in obstacles(written, pictures=pictures) if each.other_picture]
    assert any("another picture" in each.text for each in obstacles(written))


@given(requests())
@settings(max_examples=300)
def test_any_request_reads_back_to_the_same_picture(request_: GenerationRequest) -> None:
    try:
        plan = make_plan(request_)
    except InvalidInput:
        assume(False)
    written = of_picture(request_, plan, MODEL, 0)
    again = request_from(written)
    assert drawn(again) == drawn(request_)
    assert of_picture(again, make_plan(again), MODEL, 0) == written


@pytest.mark.parametrize("prompt", ["a :[]", 'a: {"b": 1}', 'a "b: []', 'a: "b", c: []'])
def test_a_quoted_prompt_holds_no_other_fields(prompt: str) -> None:
    """What looks like JSON in it is text."""
    hires = HiresSettings(prompt=prompt, negative_prompt=prompt, steps=5)
    request = GenerationRequest(prompt="a", width=512, height=512, seed=1, hires=hires)
    again = request_from(of_picture(request, make_plan(request), MODEL, 0))
    assert again.hires is not None
    assert (again.hires.prompt, again.hires.negative_prompt) == (prompt, prompt)


@pytest.mark.parametrize("field", ['Foo: {"a": 1}, Bar: [ "x", "y:" ]', 'Foo: "bar'])
def test_json_after_quotes_that_enclose_no_value_is_read(field: str) -> None:
    assert pasted(f'a\nSteps: 20, {field}, Baz: {{"k": "v"}}').lifted["Baz"] == {"k": "v"}


# --- inputs over a block


def block(**said: Any) -> GenerationRequest:
    return request_from(PUBLISHED, extras=HERE, **said)


def test_the_form_wins_over_the_block() -> None:
    assert block(seed=7, guidance_scale=5.0, sampler="Euler a") == replace(
        block(), seed=7, guidance_scale=5, sampler="Euler a"
    )
    assert (block(width=512).width, block(width=512).height) == (512, 512)
    assert (block(aspect_ratio="1:1").width, block(aspect_ratio="1:1").height) == (512, 512)
    assert (block(aspect_ratio="2:3", width=640).width, block(aspect_ratio="2:3").height) == (640, 640)


def test_an_empty_form_leaves_the_block_as_it_is() -> None:
    assert block() == block(seed=None, width=None, prompt="")
    assert (block().clip_skip, block().noise.source) == (2, "GPU")
    silent = request_from(f"a\n{PLAIN}")
    assert (silent.clip_skip, silent.noise.source, silent.negative_prompt) == (1, "GPU", "")  # as WebUI would have it


def test_without_a_block_the_models_own_settings_hold() -> None:
    made = request_from("", prompt="a", seed=3)
    assert made == GenerationRequest(prompt="a", width=448, height=640, seed=3, clip_skip=2)
    assert request_from("RNG: CPU", prompt="a", seed=3) == replace(made, noise=NoiseSettings(source="CPU"))
    assert request_from("Clip skip: 1", prompt="a", seed=3, clip_skip=3).clip_skip == 3


@pytest.mark.parametrize(("ratio", "size"), [("1:1", (512, 512)), ("16:9", (704, 384)), ("9:16", (384, 704))])
def test_an_aspect_ratio_keeps_the_models_count_of_pixels(ratio: str, size: tuple[int, int]) -> None:
    made = request_from("", prompt="a", aspect_ratio=ratio)
    assert (made.width, made.height) == size


@pytest.mark.parametrize("ratio", ASPECT_RATIOS)
@pytest.mark.parametrize("model", [(128, 128), (448, 640), (512, 512)])
def test_every_aspect_ratio_is_near_and_of_sides_that_networks_like(ratio: str, model: tuple[int, int]) -> None:
    width, height = size_of_aspect(ratio, model) or (0, 0)
    across, down = ASPECT_RATIOS[ratio]
    step = SMALL_STEP if model == (128, 128) else SIDE_STEP
    assert width % step == height % step == 0
    assert width * height == pytest.approx(model[0] * model[1], rel=0.2)
    assert width / height == pytest.approx(across / down, rel=0.15)


def test_an_aspect_ratio_wins_over_the_images_and_a_side_over_both() -> None:
    def size(**said: Any) -> tuple[int, int]:
        made = asked("", Pictures(image=IMAGE), **said)
        return made.settings.width, made.settings.height

    assert size() == IMAGE.size
    assert size(aspect_ratio="1:1") == (512, 512)
    assert size(aspect_ratio="1:1", height=64) == (512, 64)


def test_a_space_is_a_negative_prompt_that_says_nothing() -> None:
    own = {**MODELS_OWN, "prompt": "a sun", "negative_prompt": "text"}

    def made(text: str, **said: Any) -> GenerationRequest:
        return request_of(settle(Inputs(**said), read_data(text), own))

    assert (made("").prompt, made("").negative_prompt) == ("a sun", "text")
    assert made("", negative_prompt=" ").negative_prompt == ""
    assert made("", prompt="\n ").prompt == ""
    block = f"a\nNegative prompt: blue\n{PLAIN}"
    assert made(block, negative_prompt="").negative_prompt == "blue"
    assert made(block, negative_prompt=" ").negative_prompt == ""
    assert made(f"a\n{PLAIN}").negative_prompt == ""  # as WebUI would have it, and not as the model would


@pytest.mark.parametrize(
    ("ratio", "size"), [("1:1", (1024, 1024)), ("2:3", (832, 1216)), ("4:3", (1152, 896)), ("16:9", (1344, 768))]
)
@pytest.mark.parametrize("own", [(1024, 1024), (832, 1216)])
def test_sdxl_draws_in_the_sizes_of_its_training(ratio: str, size: tuple[int, int], own: tuple[int, int]) -> None:
    assert size_of_aspect(ratio, own) == size


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("right 64", (0, 0, 64, 0)),
        ("Right: 64, TOP=32", (0, 32, 64, 0)),
        ("bottom 8; left 16\ntop 1", (16, 1, 0, 8)),
        ("1 2 3 4", (1, 2, 3, 4)),
    ],
)
def test_sides_to_outpaint(text: str, sides: tuple[int, ...]) -> None:
    assert Inputs(outpaint=text).filled_in()["outpaint"] == sides


@pytest.mark.parametrize(
    "text", ["64", "right", "right 64, up 3", "right 64 right 3", "right -8", "right 6.5", "1 2 3"]
)
def test_sides_that_are_none_are_named(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"^outpaint=.*sides with whole numbers from 0 to 512, such as right 64"):
        Inputs(outpaint=text).filled_in()


def test_a_setting_of_how_a_request_is_handled_can_stand_in_either_form() -> None:
    assert asked("").handling.strict is True
    assert asked("Strict: False").handling.strict is False
    assert asked(f"a\n{PLAIN}, Strict: off").handling.strict is False
    assert asked("").handling.upscale_only is False
    assert asked("Upscale only: True, Hires upscaler: Lanczos").handling.upscale_only is True


@pytest.mark.parametrize("seed", [None, -1])
def test_no_seed_is_a_random_one(seed: int | None) -> None:
    assert request_from("", prompt="a", seed=seed).seed != request_from("Seed: -1", prompt="a", seed=seed).seed


def test_the_hires_pass_can_be_turned_off_on_and_changed() -> None:
    assert block(highres_fix="Off").hires is None
    first_pass = f"a\n{PLAIN}"
    assert request_from(first_pass).hires is None
    assert request_from(first_pass, hires_scale=1.5).hires == HiresSettings(scale=1.5)
    assert request_from(first_pass, highres_fix="On").hires == HiresSettings()
    assert request_from("", highres_fix="Automatic").hires == HiresSettings()
    assert request_from("", highres_fix="Automatic", pictures=Pictures(image=IMAGE)).hires is None
    resized = f"a\n{HIRES.replace('upscale: 2', 'resize: 256x192')}"
    assert request_from(resized, hires_scale=3.0).hires == HiresSettings(scale=3, denoising_strength=0.5)
    assert request_from("Hires resize: 512x0").hires == HiresSettings(width=512)


def test_single_settings_reach_the_request() -> None:
    text = "ENSD: 31337, Hires sampler: Euler a, Variation seed: 5, Variation seed strength: 0.1\nHires prompt: a, b"
    made = request_from(text, prompt="c")
    assert made.noise == NoiseSettings(ensd=31337, variation_seed=5, variation_strength=0.1)
    assert made.hires == HiresSettings(sampler="Euler a", prompt="a, b")
    assert request_from("Hires denoising strength: 0.4").hires == HiresSettings(denoising_strength=0.4)


RARER = (
    "Eta: 0.5, Sigma noise: 1.05, Seed resize from: 256x320, Tiling: True, NGMS: 2, NGMS all steps: True\n"
    "Skip Early CFG: 0.1, Noise Schedule: Zero Terminal SNR, Downcast alphas_cumprod: True, Extra noise: 0.1\n"
    "Sigma churn: 3, Sigma tmin: 0.1, Sigma tmax: 9, Eta DDIM: 0.2, Old prompt editing timelines: True\n"
    "SGM noise multiplier: True, Tiling: True"
)


def test_rarer_options_reach_the_request_as_single_settings() -> None:
    made = request_from(RARER, prompt="a", seed=1)
    assert made.added_noise == AddedNoise(eta=0.5, eta_ddim=0.2, churn=3, tmin=0.1, tmax=9, scale=1.05)
    assert made.skipped_guidance == SkippedGuidance(early=0.1, minimum_sigma=2, all_steps=True)
    assert made.schedule == ScheduleSettings(kind="Zero Terminal SNR", downcast=True)
    assert made.noise.resized_from == (256, 320)
    assert (made.tiling, made.sgm_noise, made.old_editing, made.extra_noise) == (True, True, True, 0.1)
    pictures = Pictures(image=IMAGE)
    image = request_from("Noise multiplier: 1.1, img2img_fix_steps: True", pictures, prompt="a").image
    assert image is not None
    assert (image.noise_multiplier, image.exact_steps) == (1.1, True)


def test_a_block_of_rarer_options_is_honoured() -> None:
    block = f"a\n{HIRES}, " + RARER.replace("\n", ", ")
    assert not obstacles(block, MODEL)
    assert read_data(block).values["eta_ddim"] == 0.2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Eta: nan", "Eta must be a number from 0 to 1"),
        ("Eta: 2", "must be a number from 0 to 1. 1 is usual, 0 adds none."),
        ("Eta DDIM: -0.1", "must be a number from 0 to 1"),
        ("Sigma churn: 1e9", "must be a number from 0 to 100"),
        ("Sigma tmin: 5, Sigma tmax: 2", "'Sigma tmin: 5': must not be more than Sigma tmax, which is 2"),
        ("Sigma noise: loud", "Sigma noise must be a number from 0 to 2"),
        ("NGMS: inf", "NGMS must be a number from 0 to 1000"),
        ("Skip Early CFG: 1.5", "must be a number from 0 to 1"),
        ("Noise Schedule: Loud", "Noise Schedule must be one of Default, Zero Terminal SNR"),
        ("Downcast alphas_cumprod: perhaps", "must be True or False"),
        ("Seed resize from: 512", "Seed resize from must be two whole numbers"),
        ("Seed resize from: 4096x512", "'Seed resize from, width: 4096': must be a whole number from 0 to 2048"),
        ("Noise multiplier: 9", "must be a number from 0 to 1.5"),  # also without an image, where it does nothing
        ("Extra noise: -1", "must be a number from 0 to 1"),
    ],
)
def test_rarer_options_out_of_their_range_are_named(text: str, told: str) -> None:
    with pytest.raises(InvalidInput, match=r"^generation_data=") as caught:
        request_from(text, prompt="a")
    assert told in str(caught.value)


def test_exact_steps_need_a_strength() -> None:
    with pytest.raises(InvalidInput, match=r"denoising_strength=0.*at least 0.01 with exact steps.*Exact steps: False"):
        request_from("Exact steps: True", Pictures(image=IMAGE), prompt="a", denoising_strength=0.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ENDS: 3", "generation_data='ENDS: 3': there is no setting ENDS. Did you mean ENSD?"),
        ("Frobnicate: 3", "docs/inputs.md lists the settings"),
        ("ENSD: 1, and so on, RNG: CPU", "generation_data='and so on': belongs to no setting"),
        ("RNG: TPU", "generation_data='RNG: TPU': RNG must be one of NV, CPU, GPU"),
        ("Strict: perhaps", "Strict must be True or False"),
        ("Model: other", "there is no setting Model. The input model chooses one, by its name, title or hash."),
        ("ControlNet 0: canny", "there is no setting ControlNet 0"),
    ],
)
def test_single_settings_that_cannot_be_read_are_named(text: str, told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_data(text)
    assert told in str(caught.value)


def test_dynamic_prompts_pick_by_the_seed() -> None:
    text = "a {red|blue} sun\n" + PLAIN
    assert asked(text).settings.prompt == "a {red|blue} sun"
    resolved = asked(text + ", Dynamic prompts: True")
    assert resolved.settings.prompt in ("a red sun", "a blue sun")
    assert resolved == asked(text + ", Dynamic prompts: True")
    wild = asked("Wildcard hue: red | red", prompt="a __hue__ sun")
    assert wild.settings.prompt == "a red sun"
    assert request_of(wild).seed == wild.settings.seed  # a random one is kept, and draws what was picked


def test_what_comes_from_a_block_is_told() -> None:
    told = asked(PUBLISHED, seed=9).taken
    assert (told["num_inference_steps"], told["ensd"]) == (40, 31337)
    assert not told.keys() & {"seed", "prompt", "negative_prompt"}


@pytest.mark.parametrize(
    ("chosen", "pictures", "told"),
    [
        (
            ["mask_blur", "inpaint_area"],
            Pictures(image=IMAGE),
            ["a mask or outpainting, inpaint_area, mask_blur do nothing."],
        ),
        (["mask_blur", "resize_mode"], Pictures(image=IMAGE, mask=IMAGE), []),
        (["resize_mode"], Pictures(), ["Without an image, resize_mode does nothing."]),
        (
            ["hires_refiner"],
            Pictures(image=IMAGE),
            ["the highres fix (highres_fix), hires_refiner", "a refiner, hires_refiner"],
        ),
        (["hires_scale"], Pictures(image=IMAGE), ["Without the highres fix (highres_fix), hires_scale does nothing."]),
        (["denoising_strength", "steps"], Pictures(), ["an image or the highres fix, denoising_strength does nothing"]),
    ],
)
def test_inputs_that_do_nothing_are_told(chosen: list[str], pictures: Pictures, told: list[str]) -> None:
    data = replace(asked(f"a\n{PLAIN}", pictures), chosen=frozenset(chosen))
    lines = list(unused_inputs(data, request_of(data, pictures=pictures)))
    assert len(lines) == len(told)
    assert all(words in line for words, line in zip(told, lines, strict=True))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Variation seed: 5", "Without a variation seed strength, Variation seed does nothing."),
        ("Soft mask: True, Mask blur: 8", "Without a mask or outpainting, Mask blur, Soft mask do nothing."),
        ("Refiner switch at: 0.5", "Without a refiner, Refiner switch at does nothing."),
    ],
)
def test_settings_of_the_data_that_do_nothing_are_told(text: str, told: str) -> None:
    data = asked(text)
    assert told in list(unused_inputs(data, request_of(data)))


@pytest.mark.parametrize("text", ["just a prompt", "Steps=20", "Guidance rescale 0.7", "a tree\nby the sea"])
def test_what_is_no_generation_data_is_told_by_its_own_words(text: str) -> None:
    with pytest.raises(InvalidInput, match="there is no line of parameters in it") as caught:
        read_data(text)
    shown = " ".join(text.split())
    assert str(caught.value).startswith(f"generation_data={shown!r}: ")


def test_a_prompt_of_the_hires_pass_alone_is_a_setting() -> None:
    assert read_data("Hires prompt: a snowman <lora:snowman:0.5>").values == {
        "hires_prompt": "a snowman <lora:snowman:0.5>"
    }


def test_what_the_form_overrides_does_not_come_from_the_data() -> None:
    told = asked(f"a\n{PLAIN}", width=128).taken
    assert "width" not in told
    assert told["height"] == 64


def test_what_belongs_to_a_picture_needs_one() -> None:
    with pytest.raises(InvalidInput, match=r"^mask=.*there is no image"):
        request_from("", pictures=Pictures(mask=IMAGE))
    with pytest.raises(InvalidInput, match=r"^outpaint=.*there is no image"):
        request_from("", outpaint="top 8")


def test_a_block_of_a_masked_picture_needs_the_mask() -> None:
    data = f"a\n{PLAIN}, Denoising strength: 0.5, Mask blur: 4"
    (found,) = obstacles(data, pictures=Pictures(image=IMAGE))
    assert "with a mask" in found.text
    assert obstacles(data, pictures=Pictures(image=IMAGE, mask=IMAGE)) == []


@pytest.mark.parametrize(
    ("text", "said", "pictures"),
    [
        (f"a\n{PLAIN}", {"mask_blur": 8}, Pictures(image=IMAGE)),
        (f"a\n{PLAIN}", {"outpaint": "left 8"}, Pictures(image=IMAGE)),
    ],
)
def test_what_the_form_asks_for_is_not_taken_for_what_the_block_was_made_with(
    text: str, said: dict[str, Any], pictures: Pictures
) -> None:
    assert obstacles(text, pictures=pictures, **said) == []


@pytest.mark.parametrize(
    ("end", "blur"),
    [
        ("", 4),
        (", Denoising strength: 0.5, Hires upscale: 2", 4),
        (", Denoising strength: 0.5", 0),
        (", Mask blur: 9", 9),
    ],
)
def test_a_mask_over_a_block_that_was_made_from_no_picture_has_the_forms_blur(end: str, blur: int) -> None:
    request = request_from(f"a\n{PLAIN}{end}", Pictures(image=IMAGE, mask=IMAGE))
    assert request.image is not None
    assert request.image.mask == MaskSettings(picture=IMAGE, blur=(blur, blur))


@pytest.mark.parametrize("said", [{}, {"hires_scale": 1.5}])
def test_an_image_leaves_out_the_highres_fix_of_a_block_that_was_made_from_none(said: dict[str, object]) -> None:
    text, pictures = f"a\n{HIRES}", Pictures(image=IMAGE)
    assert request_from(text, pictures, **said).hires is None
    (told,) = obstacles(text, pictures=pictures, **said)
    assert (told.text, told.other_picture) == (
        "its highres fix is skipped, as there is an image (highres_fix=On turns it on)",
        False,
    )
    assert request_from(text, pictures, highres_fix="On").hires == HiresSettings(denoising_strength=0.5)
    assert obstacles(text, pictures=pictures, highres_fix="On") == []


def test_with_an_image_the_strength_is_its_own_and_the_highres_fix_may_have_another() -> None:
    pictures, text = Pictures(image=IMAGE), f"a\n{PLAIN}"
    request = request_from(text, pictures, denoising_strength=0.3)
    assert request.image is not None
    assert (request.image.denoising_strength, request.hires) == (0.3, None)
    enlarged = request_from(text, pictures, denoising_strength=0.3, highres_fix="On")
    assert enlarged.hires == HiresSettings(denoising_strength=0.3)
    other = request_from("Hires denoising strength: 0.5", pictures, denoising_strength=0.3, highres_fix="On")
    assert other.hires == HiresSettings(denoising_strength=0.5)


def test_the_size_is_the_images_with_what_is_added_or_the_models_own() -> None:
    def size(pictures: Pictures = NO_PICTURES, **said: Any) -> tuple[int, int]:
        found = asked("", pictures, **said)
        return found.settings.width, found.settings.height

    wider, part = {"outpaint": "64 64 64 64"}, {"inpaint_area": "Only masked"}
    image, masked = Pictures(image=IMAGE), Pictures(image=IMAGE, mask=IMAGE)
    assert size() == (448, 640)
    assert size(image, **wider) == (768, 608)
    assert size(image, **wider, **part) == (448, 640)
    assert size(masked, **part) == (448, 640)
    assert size(image, **part) == IMAGE.size  # there is no part


@pytest.mark.parametrize("end", ["Masked content: black", "Inpaint area: all", "Outpaint: 1 2 3x", "Mask blur: a"])
def test_keys_of_inpainting_that_cannot_be_read(end: str) -> None:
    with pytest.raises(InvalidInput, match=f"generation_data='{end}'"):
        read_data(f"a\n{PLAIN}, {end}")


# --- strict


def test_strict_refuses_another_picture_and_says_all_of_it() -> None:
    data = asked(f"a\n{HIRES}, Hires upscaler: 4x-UltraSharp, Model hash: deadbeef00, Mood: fine")
    found = found_obstacles(data, MODEL)
    assert len(found) == 3
    with pytest.raises(InvalidInput) as refused:
        drop_unsupported(data, found, strict=True)
    assert "4x-UltraSharp" in str(refused.value)
    assert "deadbeef00" in str(refused.value)
    assert "Mood: fine" in str(refused.value)
    drawn_anyway = request_of(drop_unsupported(data, found, strict=False))
    assert drawn_anyway.hires is not None
    assert drawn_anyway.hires.upscaler == "Lanczos"


def test_an_upscaler_that_is_brought_is_no_obstacle() -> None:
    brought = {"4x-UltraSharp": Path("/x/4x-UltraSharp.pth")}
    text = f"a\n{HIRES}, Hires upscaler: 4x-UltraSharp"
    assert obstacles(text, upscalers=brought) == []
    hires = request_from(text, upscalers=brought).hires
    assert hires is not None
    assert (hires.upscaler, hires.upscaler_file) == ("4x-UltraSharp", brought["4x-UltraSharp"])


# --- what a block does not say, or says in another way


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ("a\nSteps: 20, Sampler: Euler, CFG scale: 7, Size: 64x64", "it does not say Seed"),
        ("a\nSteps: 20, Sampler: Undefined, CFG scale: 7, Seed: -1, Size: 64x64", "it does not say Sampler, Seed"),
        (f'a\n{PLAIN}, Lora hashes: "foo: aabbccddee"', "the LoRA foo"),
        (f'a\n{PLAIN}, Hashes: {{"lora:foo": "aabbccddee"}}', "the LoRA foo"),
        (f"a\n{PLAIN}, Model: dreamshaper_8", "made with the checkpoint dreamshaper_8; this model is pastelmix"),
        (f"a\n{PLAIN}, VAE: kl-f8-anime2.ckpt", "made with the VAE kl-f8-anime2.ckpt (no hash)"),
        (f"a\n{PLAIN}, Script: SD upscale", "Script: SD upscale"),
        (f"a\n{PLAIN}, sag_enabled: True", "sag_enabled: True"),
        (f"a\n{PLAIN}, CFG rescale: 0.7", "CFG rescale: 0.7"),  # of others, who rescale the noise
        (f"a\n{PLAIN}, Conditional mask weight: 0.5", "Conditional mask weight: 0.5"),
        (f"a\n{PLAIN}, Init image hash: 0123", "Init image hash: 0123"),
    ],
)
def test_what_is_refused(block: str, told: str) -> None:
    (found,) = obstacles(block, MODEL)
    assert found.other_picture
    assert told in found.text


@pytest.mark.parametrize(
    "end",
    [
        "Model hash: 0f0eaaa61e, Model: a name of its own",
        "Model: pastelmix-better-vae-fp16.safetensors",
        "Model: anime\\PastelMix-Better-VAE-fp16 [0f0eaaa61e]".partition(" [")[0],
        "Variation seed: -1, Variation seed strength: 0",
        "Conditional mask weight: 1.0",  # WebUI writes it for every picture of an inpainting checkpoint
        "Seed resize from: -1x-1",
        "Noise multiplier: 1.0",
    ],
)
def test_what_is_fine(end: str) -> None:
    assert obstacles(f"a <lora:x:0>\n{PLAIN}, {end}", MODEL) == []


def test_the_hash_of_the_image_is_told_where_one_was_sent() -> None:
    data = f"a\n{PLAIN}, Denoising strength: 0.5, Init image hash: 0123"
    (found,) = obstacles(data, pictures=Pictures(image=IMAGE))
    assert (found.text, found.other_picture) == ("Init image hash: 0123 is not understood", False)


def test_a_folders_hash_is_not_compared() -> None:
    folder = replace(MODEL, name="pastel-mix", sha256="c" * 64, folder=True, vae_name="vae", vae_folder=True)
    block = f"a\n{PLAIN}, Model hash: 0f0eaaa61e, Model: pastelmix, VAE hash: 735e4c3a44, VAE: x.pt"
    found = obstacles(block, folder)
    assert [each.other_picture for each in found] == [False, False]
    assert all("; this " in each.text for each in found)


def test_an_old_hash_is_told_and_no_more() -> None:
    (found,) = obstacles(f"a\n{PLAIN}, Model hash: 45dee52b", MODEL)
    assert not found.other_picture
    assert "8 digits" in found.text


def test_a_better_vae_that_a_block_does_not_name() -> None:
    better = replace(MODEL, vae_name="better.safetensors", vae_sha256="b" * 64)
    (found,) = obstacles(f"a\n{PLAIN}, Model hash: 0f0eaaa61e, Version: v1.10.1", better)
    assert found.other_picture
    (found,) = obstacles(f"a\n{PLAIN}, Model hash: 0f0eaaa61e", better)
    assert not found.other_picture


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("Clip skip: 13", "generation_data='Clip skip: 13': must be a whole number from 1 to 12"),
        ("Denoising strength: 0, Hires upscale: 2", "generation_data='Denoising strength: 0'"),
        ("Denoising strength: 1, Hires resize: 4x4", "generation_data='Hires resize: 4x4': 64 x 64 would become 4 x 4"),
        (
            "Denoising strength: 0.5, Hires upscale: 2, Hires denoising strength: 3",
            "generation_data='Hires denoising strength: 3'",
        ),
        ("Variation seed: -2, Variation seed strength: 0.5", "generation_data='Variation seed: -2'"),
        ("Schedule rho: -1", "generation_data='Schedule rho: -1'"),
        ("FreeU: 1 2", "generation_data='FreeU: 1 2': FreeU must be the four numbers"),
    ],
)
def test_a_value_of_the_block_that_cannot_be_drawn_is_shown_as_it_was_pasted(end: str, told: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(told)):
        request_from(f"a\n{PLAIN}, {end}")


def test_an_input_that_cannot_be_drawn_is_called_by_its_name() -> None:
    text = f"a\n{PLAIN}"
    with pytest.raises(InvalidInput, match=r"^clip_skip=13"):
        request_from(text, clip_skip=13)
    with pytest.raises(InvalidInput, match=r"^denoising_strength=0.005: below 0.01"):
        request_from(text, denoising_strength=0.005, highres_fix="On")
    with pytest.raises(InvalidInput, match=r"^generation_data='Hires denoising strength: 0.005': below 0.01"):
        request_from(f"{text}, Hires denoising strength: 0.005", Pictures(image=IMAGE), highres_fix="On")


@pytest.mark.parametrize(
    ("stem", "called", "name"),
    [
        ("tmpgx3nd64y4x-UltraSharp", "", "4x-UltraSharp"),
        ("tmpj7499_b2file", "4x-UltraSharp", "4x-UltraSharp"),
        ("4x-UltraSharp", "Latent", "4x-UltraSharp"),
        ("Latent", "", "Latent (uploaded)"),
    ],
)
def test_names_of_uploaded_upscalers(stem: str, called: str, name: str) -> None:
    assert name_of_upscaler(stem, called) == name


def test_a_file_never_takes_the_place_of_an_upscaler_without_weights() -> None:
    hires = request_from(f"a\n{HIRES}, Hires upscaler: Lanczos", upscalers={"Lanczos": Path("/x/Lanczos.pth")}).hires
    assert hires is not None
    assert hires.upscaler_file is None


UNCLIP = {"width": 768, "height": 768, "denoising_strength": 1}
"""The own settings of a model of variations."""


def test_a_models_own_strength_is_for_an_image_and_not_for_a_hires_pass() -> None:
    drawn = settle(Inputs(prompt="a"), NO_DATA, UNCLIP)
    assert request_of(drawn).hires == HiresSettings(denoising_strength=0.6)
    pictures = Pictures(image=Sized((128, 128)))
    for said in ({}, {"hires_upscaler": "Lanczos"}):
        varied = settle(Inputs(prompt="a", highres_fix=ON, **said), NO_DATA, UNCLIP, pictures)
        request = request_of(varied, pictures)
        assert request.image is not None
        assert request.hires is not None
        assert (request.image.denoising_strength, request.hires.denoising_strength) == (1, 0.6)


@pytest.mark.parametrize(
    ("text", "said", "strength"),
    [
        ("", {}, 0.4),
        ("RNG: CPU", {"hires_scale": 1.5}, 0.4),
        ("", {"denoising_strength": 0.55}, 0.55),
        ("Denoising strength: 0.55", {}, 0.55),
        ("Hires denoising strength: 0.5", {}, 0.5),
        ("", {"hires_upscaler": "Lanczos"}, 0.4),
        ("Hires upscaler: Lanczos", {}, 0.4),
        ("", {"hires_upscaler": "Latent"}, 0.6),
        ("Hires upscaler: Latent", {}, 0.6),
    ],
)
def test_a_models_own_strength_of_the_hires_pass_is_for_its_own_upscaler(
    text: str, said: dict[str, Any], strength: float
) -> None:
    own = {**MODELS_OWN, "hires_upscaler": "Lanczos", "hires_denoising_strength": 0.4}
    hires = request_of(settle(Inputs(prompt="a", **said), read_data(text), own)).hires
    assert hires is not None
    assert hires.denoising_strength == strength
    assert hires.upscaler == ("Lanczos" if strength != 0.6 else "Latent")


@pytest.mark.parametrize(
    ("image", "said", "size"),
    [
        ((16, 16), {}, (768, 768)),
        ((1600, 1200), {}, (896, 640)),
        ((1600, 1200), {"width": 512, "height": 512}, (512, 512)),
        ((1600, 1200), {"denoising_strength": 0.5}, (1600, 1200)),  # something of the picture is kept
        ((20, 4000), {}, (64, 2048)),
    ],
)
def test_a_variation_has_the_models_number_of_pixels(
    image: tuple[int, int], said: dict[str, Any], size: tuple[int, int]
) -> None:
    asked = settle(Inputs(prompt="a", **said), NO_DATA, UNCLIP, Pictures(image=Sized(image)))
    assert (asked.settings.width, asked.settings.height) == size
    plain = settle(
        Inputs(denoising_strength=1), NO_DATA, {"width": 512, "height": 512}, Pictures(image=Sized((64, 72)))
    )
    assert (plain.settings.width, plain.settings.height) == (64, 72)  # a model that draws over pictures

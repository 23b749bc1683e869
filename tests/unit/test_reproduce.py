"""Pasted generation data becomes a request; what stands in its way is told."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines import infotext
from pipelines.catalog import EMPHASES, NOISE_SOURCES, SAMPLERS, SCHEDULE_TYPES, UPSCALERS
from pipelines.errors import InvalidInput
from pipelines.infotext import Parameters
from pipelines.model import ModelIdentity
from pipelines.parameters import of_picture
from pipelines.plan import make_plan
from pipelines.reproduce import honour, obstacles, request_from, with_inputs
from pipelines.request import (
    SAME_SAMPLER,
    SAME_SCHEDULE,
    GenerationRequest,
    HiresSettings,
    NoiseSettings,
    ScheduleSettings,
)
from pipelines.schedules import sigmas, timesteps

MODEL = ModelIdentity(name="pastelmix-better-vae-fp16", sha256="0f0eaaa61e" + "0" * 54)
HIRES = "Steps: 20, Sampler: Euler, Seed: 1, Denoising strength: 0.5, Hires upscale: 2"
PUBLISHED = """dreamlike fantasy landscape where everything is a shade of pink, <lora:NAI-cutesexyrobutts:1>
Negative prompt: (worst quality:1.4), (low quality:1.4) , (monochrome:1.1)
Steps: 40, Sampler: DPM++ 2M Karras, CFG scale: 12, Seed: 2416682767, Size: 640x512, Model hash: 0f0eaaa61e, \
Model: pastelmix-better-vae-fp16, Denoising strength: 0.55, Clip skip: 2, ENSD: 31337, Hires upscale: 2, \
Hires steps: 20, Hires upscaler: Latent"""


def test_a_published_block() -> None:
    request = request_from(infotext.read(PUBLISHED))
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
            hires=HiresSettings(resize_to=(256, 192), upscaler="Lanczos", steps=3, prompt="x, y", sampler="Heun"),
        ),
    ],
)
def test_what_is_written_is_read_back_as_the_same_request(request_: GenerationRequest) -> None:
    written = of_picture(request_, make_plan(request_), MODEL, 0)
    read = infotext.read(written)
    assert request_from(read) == request_
    assert obstacles(read, MODEL) == []


@pytest.mark.parametrize(
    ("block", "told"),
    [
        (PUBLISHED, "<lora:NAI-cutesexyrobutts:1>"),
        (
            "a\nSteps: 20, Sampler: Euler, Seed: 1, Model hash: deadbeef00, Model: other",
            "made with the checkpoint other",
        ),
        ("a\nSteps: 20, Sampler: Euler, Seed: 1, VAE hash: 735e4c3a44, VAE: x.pt", "made with the VAE x.pt"),
        ("a\nSteps: 20, Sampler: Euler, Seed: 1, Denoising strength: 0.5", "made from another picture"),
        ('a\nSteps: 20, Sampler: Euler, Seed: 1, TI hashes: "easy: 0123456789ab"', "the embedding easy"),
        ("a\nSteps: 20, Sampler: Euler, Seed: 1, Emphasis: Loud", "the emphasis Loud is not here"),
        ("a\nSteps: 20, Sampler: Euler, Seed: 1, Token merging ratio: 0.5", "Token merging ratio: 0.5"),
        ("a\nSteps: 20, Sampler: Turbo, Seed: 1", "the sampler Turbo is not here"),
        (
            f"a\n{HIRES}, Hires upscaler: 4x-UltraSharp",
            "the hires upscaler 4x-UltraSharp is not here (Latent is)",
        ),
        (f"a\n{HIRES}, Hires prompt: <lora:x:1>", "<lora:x:1>"),
        ("[a:b:5]\nSteps: 20, Sampler: Euler, Seed: 1, Version: v1.5.2", "other rules for prompt editing"),
    ],
)
def test_what_makes_another_picture_is_told(block: str, told: str) -> None:
    found = [each.text for each in obstacles(infotext.read(block), MODEL) if each.other_picture]
    assert len(found) == 1
    assert told in found[0]


def test_old_versions_weaken_with_brackets_as_now() -> None:
    data = infotext.read("[blurry]\nSteps: 20, Sampler: Euler, Seed: 1, Version: v1.5.2")
    assert not any(each.other_picture for each in obstacles(data, MODEL))
    assert any("half precision" in each.text for each in obstacles(data, MODEL))


def test_unknown_keys_are_told_but_do_no_harm() -> None:
    (found,) = obstacles(infotext.read("a\nSteps: 20, Sampler: Euler, Seed: 1, Mood: fine"), MODEL)
    assert (found.text, found.other_picture) == ("Mood: fine is not understood", False)


def test_what_cannot_be_drawn_names_its_field() -> None:
    with pytest.raises(InvalidInput, match="hires_upscaler='4x-UltraSharp'"):
        request_from(infotext.read(PUBLISHED.replace("upscaler: Latent", "upscaler: 4x-UltraSharp")))
    with pytest.raises(InvalidInput, match="sampler="):
        request_from(infotext.read("a\nSteps: 20, Sampler: Turbo, Seed: 1"))


# --- what a request and its infotext say is the same picture

TEXTS = st.text(st.sampled_from("ab (),:[]|"), max_size=12).map(str.strip)


@st.composite
def requests(draw: st.DrawFn) -> GenerationRequest:
    hires = HiresSettings(
        scale=draw(st.sampled_from([1, 1.5, 2])),
        resize_to=draw(st.sampled_from([(0, 0), (256, 0), (192, 256)])),
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
        ),
        noise=NoiseSettings(
            source=draw(st.sampled_from(NOISE_SOURCES)),
            ensd=draw(st.sampled_from([0, 31337, -1])),
            variation_seed=draw(st.integers(0, 9)),
            variation_strength=draw(st.sampled_from([0, 0.3])),
        ),
        hires=draw(st.none() | st.just(hires)),
    )


def drawn(request: GenerationRequest) -> list[object]:
    """All that decides on the picture."""
    plan, noise = make_plan(request), request.noise
    found: list[object] = [request.guidance_scale, request.clip_skip, request.pad_conds, plan.seeds, plan.upscale]
    found += [noise.source, plan.variation_seeds if noise.variation_strength else None, noise.variation_strength]
    found += [noise.ensd if plan.first.sampler.ancestral else 0, request.prompt, request.negative_prompt]
    texts = [request.prompt, request.negative_prompt]
    if request.hires:
        texts += [request.hires.prompt or request.prompt, request.hires.negative_prompt or request.negative_prompt]
    found += [*texts, request.emphasis if any(bracket in "".join(texts) for bracket in "([") else None]
    for part in filter(None, (plan.first, plan.hires)):
        found += [part.latent_shape, part.sampler, part.asked, part.first_step]
        if part.sampler.timesteps:
            found.append(timesteps(part.schedule_steps + part.schedule.discard_penultimate))
        else:
            found.append(sigmas(part.schedule_type, part.schedule_steps, part.sampler, part.schedule))
    return found


@given(requests())
@settings(max_examples=300)
def test_any_request_reads_back_to_the_same_picture(request_: GenerationRequest) -> None:
    try:
        plan = make_plan(request_)
    except InvalidInput:
        assume(False)
    written = of_picture(request_, plan, MODEL, 0)
    again = request_from(infotext.read(written))
    assert drawn(again) == drawn(request_)
    assert of_picture(again, make_plan(again), MODEL, 0) == written


# --- inputs over a block


def block(**changes: object) -> GenerationRequest:
    return request_from(with_inputs(infotext.read(PUBLISHED), changes))


def test_an_input_wins_over_the_block() -> None:
    assert block(seed=7, guidance_scale=5.0, sampler="Euler a") == replace(
        block(), seed=7, guidance_scale=5, sampler="Euler a"
    )
    assert (block(width=512).width, block(width=512).height) == (512, 512)
    assert block(rng="CPU", ensd=0).noise == NoiseSettings(source="CPU")


def test_no_input_leaves_the_block_as_it_is() -> None:
    assert block() == block(seed=None, width=None) == request_from(infotext.read(PUBLISHED))


def test_the_hires_pass_can_be_turned_off_on_and_changed() -> None:
    assert block(hires=False).hires is None
    first_pass = infotext.read("a\nSteps: 20, Sampler: Euler, Seed: 1, Size: 64x64")
    assert request_from(first_pass).hires is None
    turned_on = request_from(with_inputs(first_pass, {"hires_scale": 1.5})).hires
    assert turned_on == HiresSettings(scale=1.5)
    resized = infotext.read(f"a\n{HIRES.replace('upscale: 2', 'resize: 256x192')}")
    assert request_from(with_inputs(resized, {"hires_scale": 3.0})).hires == HiresSettings(
        scale=3, denoising_strength=0.5
    )
    assert request_from(with_inputs(resized, {"hires_width": 512})).hires == HiresSettings(
        resize_to=(512, 192), denoising_strength=0.5
    )


def test_a_picture_without_a_block_is_the_inputs() -> None:
    made = request_from(with_inputs(Parameters(), {"prompt": "a", "seed": 3, "rng": "NV", "hires": False}, (448, 640)))
    assert made == GenerationRequest(prompt="a", width=448, height=640, seed=3, hires=None)


# --- strict


def test_strict_refuses_another_picture_and_says_all_of_it() -> None:
    data = infotext.read(f"a\n{HIRES}, Hires upscaler: 4x-UltraSharp, Model hash: deadbeef00, Mood: fine")
    found = obstacles(data, MODEL)
    assert len(found) == 3
    with pytest.raises(InvalidInput) as refused:
        honour(data, found, strict=True)
    assert "4x-UltraSharp" in str(refused.value)
    assert "deadbeef00" in str(refused.value)
    assert "Mood" not in str(refused.value)
    drawn_anyway = request_from(honour(data, found, strict=False))
    assert drawn_anyway.hires is not None
    assert drawn_anyway.hires.upscaler == "Latent"


def test_an_upscaler_that_is_brought_is_no_obstacle() -> None:
    brought = {"4x-UltraSharp": Path("/x/4x-UltraSharp.pth")}
    data = infotext.read(f"a\n{HIRES}, Hires upscaler: 4x-UltraSharp")
    assert obstacles(data, MODEL, brought) == []
    hires = request_from(data, upscalers=brought).hires
    assert hires is not None
    assert (hires.upscaler, hires.upscaler_file) == ("4x-UltraSharp", brought["4x-UltraSharp"])

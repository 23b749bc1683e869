"""Pasted generation data becomes a request; what stands in its way is told."""

import pytest

from pipelines import infotext
from pipelines.errors import InvalidInput
from pipelines.model import ModelIdentity
from pipelines.parameters import of_picture
from pipelines.plan import make_plan
from pipelines.reproduce import obstacles, request_from
from pipelines.request import GenerationRequest, HiresSettings, NoiseSettings

MODEL = ModelIdentity(name="pastelmix-better-vae-fp16", sha256="0f0eaaa61e" + "0" * 54)
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
        GenerationRequest(prompt="a, (b:1.2)", width=128, height=192, seed=7, hires=None),
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
        ("a\nSteps: 20, Sampler: Euler, Seed: 1, Emphasis: No norm", "Emphasis: No norm"),
        ("[a:b:5]\nSteps: 20, Sampler: Euler, Seed: 1, Version: v1.5.2", "other rules for prompt editing"),
    ],
)
def test_what_makes_another_picture_is_told(block: str, told: str) -> None:
    found = [each.text for each in obstacles(infotext.read(block), MODEL) if each.other_picture]
    assert len(found) == 1
    assert told in found[0]


def test_old_versions_weaken_with_brackets_as_now() -> None:
    data = infotext.read("[blurry]\nSteps: 20, Sampler: Euler, Seed: 1, Version: v1.5.2")
    assert [each.other_picture for each in obstacles(data, MODEL)] == [False]


def test_unknown_keys_are_told_but_do_no_harm() -> None:
    (found,) = obstacles(infotext.read("a\nSteps: 20, Sampler: Euler, Seed: 1, Mood: fine"), MODEL)
    assert (found.text, found.other_picture) == ("Mood: fine is not understood", False)


def test_what_cannot_be_drawn_names_its_field() -> None:
    with pytest.raises(InvalidInput, match="hires_upscaler='4x-UltraSharp'"):
        request_from(infotext.read(PUBLISHED.replace("upscaler: Latent", "upscaler: 4x-UltraSharp")))
    with pytest.raises(InvalidInput, match="sampler="):
        request_from(infotext.read("a\nSteps: 20, Sampler: Turbo, Seed: 1"))

"""The infotext of a picture, key for key as WebUI writes it."""

import re

import pytest

from pipelines.ask.identity import ModelIdentity
from pipelines.ask.plan import make_plan
from pipelines.ask.request import (
    SAME_SAMPLER,
    SAME_SCHEDULE,
    GenerationRequest,
    HiresSettings,
    NoiseSettings,
    ScheduleSettings,
)
from pipelines.infotext import reading as pasted
from pipelines.infotext.writing import VERSION, of_picture

MODEL = ModelIdentity(name="tiny_sd15", sha256="89aa3d4988" + "0" * 54)


def text(model: ModelIdentity = MODEL, index: int = 0, **fields: object) -> str:
    request = GenerationRequest(
        **{"prompt": "1girl", "negative_prompt": "lowres", "width": 128, "height": 128, "seed": 1234, **fields}  # type: ignore[arg-type]
    )
    return of_picture(request, make_plan(request), model, index)


def test_first_pass_only() -> None:
    made = text(hires=None, schedule_type="Karras", noise=NoiseSettings(source="CPU"))
    assert made == (
        "1girl\nNegative prompt: lowres\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1234, Size: 128x128, "
        f"Model hash: 89aa3d4988, Model: tiny_sd15, RNG: CPU, Version: {VERSION}"
    )


def test_hires_fix_in_a_batch() -> None:
    made = text(
        index=1, num_outputs=2, sampler="Euler a", hires=HiresSettings(steps=10), noise=NoiseSettings(source="GPU")
    )
    assert made == (
        "1girl\nNegative prompt: lowres\n"
        "Steps: 20, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7, Seed: 1235, Size: 128x128, "
        "Model hash: 89aa3d4988, Model: tiny_sd15, Denoising strength: 0.6, Hires upscale: 2, Hires steps: 10, "
        f"Hires upscaler: Latent, Version: {VERSION}"
    )


def test_everything_else_in_its_place() -> None:
    model = ModelIdentity(name="m", sha256="a" * 64, vae_name="better.vae.safetensors", vae_sha256="b" * 64)
    made = text(
        model,
        sampler="Euler a",
        clip_skip=2,
        guidance_scale=7.5,
        noise=NoiseSettings(ensd=31337, variation_seed=99, variation_strength=0.3),
        hires=HiresSettings(width=256, height=256, prompt="a, b", negative_prompt="c", sampler="DDIM"),
    )
    assert made.endswith(
        "CFG scale: 7.5, Seed: 1234, Size: 128x128, Model hash: aaaaaaaaaa, Model: m, VAE hash: bbbbbbbbbb, "
        "VAE: better.vae.safetensors, Variation seed: 99, Variation seed strength: 0.3, Denoising strength: 0.6, "
        'Clip skip: 2, ENSD: 31337, RNG: NV, Hires sampler: DDIM, Hires prompt: "a, b", Hires negative prompt: c, '
        f"Hires resize: 256x256, Hires upscaler: Latent, Version: {VERSION}"
    )


def test_it_reads_back() -> None:
    read = pasted.read(text(hires=HiresSettings(scale=1.5, upscaler="Lanczos", denoising_strength=0.4)))
    assert read.hires
    assert read.values.items() >= {"prompt": "1girl", "seed": 1234, "width": 128, "height": 128}.items()
    assert read.values.items() >= {"hires_scale": 1.5, "hires_upscaler": "Lanczos", "denoising_strength": 0.4}.items()
    assert (read.unknown, read.warnings) == ({}, ())


# --- schedule types


def last_line(**fields: object) -> str:
    return text(**fields).rpartition("\n")[2]


def test_automatic_is_written_as_what_the_sampler_uses_then() -> None:
    assert "Sampler: DPM++ 2M, Schedule type: Karras, " in last_line()
    assert "Sampler: DPM++ 2M SDE, Schedule type: Exponential, " in last_line(sampler="DPM++ 2M SDE")
    assert "Sampler: Euler a, Schedule type: Automatic, " in last_line(sampler="Euler a")
    assert "Sampler: Euler, Schedule type: Uniform, " in last_line(sampler="Euler", schedule_type="Uniform")
    assert "Sampler: DDIM, Schedule type: Karras, " in last_line(sampler="DDIM", schedule_type="Karras")


@pytest.mark.parametrize(
    ("first", "schedule", "hires", "hires_schedule", "told"),
    [
        ("DPM++ 2M", "Karras", SAME_SAMPLER, SAME_SCHEDULE, None),
        ("DPM++ 2M", "Automatic", "DPM++ SDE", SAME_SCHEDULE, None),
        ("DPM++ 2M", "Karras", "Euler a", SAME_SCHEDULE, None),
        ("Euler a", "Automatic", "DPM++ 2M", SAME_SCHEDULE, "Karras"),
        ("Euler a", "Automatic", SAME_SAMPLER, "Beta", "Beta"),
        ("DDIM", "Karras", "DPM++ 2M", SAME_SCHEDULE, "Karras"),
        ("DPM++ 2M", "Karras", "DDIM", "Exponential", None),
        ("DPM++ 2M", "Automatic", "Euler a", SAME_SCHEDULE, "Automatic"),
    ],
)
def test_the_hires_schedule_is_told_where_it_differs(
    first: str, schedule: str, hires: str, hires_schedule: str, told: str | None
) -> None:
    settings = HiresSettings(sampler=hires, schedule_type=hires_schedule)
    made = last_line(sampler=first, schedule_type=schedule, hires=settings)
    found = re.search(r"Hires schedule type: ([\w ]+)", made)
    assert (found and found[1]) == told


def test_what_equals_the_first_pass_is_left_out() -> None:
    settings = HiresSettings(prompt="1girl", negative_prompt="lowres", sampler="DPM++ 2M")
    assert re.findall(r"Hires [\w ]+", last_line(hires=settings)) == ["Hires upscale", "Hires upscaler"]


def test_beta_tells_its_parameters_before_pad_conds() -> None:
    ends = {"schedule_type": "Beta", "pad_conds": True, "hires": None}
    assert last_line(**ends).endswith(
        f"RNG: NV, Beta schedule alpha: 0.6, Beta schedule beta: 0.6, Pad conds: True, Version: {VERSION}"
    )
    hires = HiresSettings(schedule_type="Beta")
    assert "Hires upscaler: Latent, Beta schedule alpha: 0.6" in last_line(hires=hires)


def test_discarding_is_told_where_the_sampler_does_not_do_it_anyway() -> None:
    assert "Discard penultimate sigma: True" in last_line(schedule=ScheduleSettings(discard_penultimate=True))
    assert "Discard" not in last_line(schedule=ScheduleSettings(discard_penultimate=True), sampler="DPM2 a")


def test_emphasis_is_told_where_a_prompt_has_brackets() -> None:
    assert "Emphasis: No norm" in last_line(prompt="(a:1.2)", emphasis="No norm")
    assert "Emphasis" not in last_line(emphasis="No norm")
    assert "Emphasis" not in last_line(prompt="(a:1.2)")


def test_numbers_are_written_as_they_came() -> None:
    assert "CFG scale: 7, " in last_line(guidance_scale=7)
    assert "CFG scale: 7.0, " in last_line(guidance_scale=7.0)
    assert "Denoising strength: 1.0, " in last_line(hires=HiresSettings(denoising_strength=1.0))


def test_a_schedule_set_by_hand_is_told_where_it_counts() -> None:
    by_hand = ScheduleSettings(sigma_min=0.1, sigma_max=10, rho=5)
    told = "Schedule min sigma: 0.1, Schedule max sigma: 10, Schedule rho: 5, Version"
    assert told in last_line(schedule=by_hand, hires=None)
    assert "Schedule rho" not in last_line(schedule=by_hand, schedule_type="Beta")
    assert "Schedule rho" not in last_line(schedule=ScheduleSettings(rho=7))
    assert "sigma" not in last_line(schedule=by_hand, sampler="Euler a")

"""The infotext of a picture, key for key as WebUI writes it."""

import re

import pytest

from pipelines.ask.identity import ModelIdentity
from pipelines.ask.plan import make_plan
from pipelines.ask.request import (
    SAME_SAMPLER,
    SAME_SCHEDULE,
    AddedNoise,
    GenerationRequest,
    HiresSettings,
    ImageSettings,
    MaskSettings,
    NoiseSettings,
    ScheduleSettings,
    SkippedGuidance,
)
from pipelines.infotext import reading as pasted
from pipelines.infotext.writing import VERSION, of_picture
from tests.unit.sized import Sized

PICTURE = Sized((128, 128))
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


# --- rarer options

SKIPPED = SkippedGuidance(early=0.1, minimum_sigma=3, all_steps=True)
RESIZED = NoiseSettings(source="CPU", resize_width=64, resize_height=96)
ZERO_SNR = ScheduleSettings(kind="Zero Terminal SNR", downcast=True, sigma_min=0.1)


def test_rarer_options_stand_in_webuis_order() -> None:
    made = last_line(
        prompt="[a:b:1.5]",
        sampler="Euler",
        schedule_type="Karras",
        noise=RESIZED,
        schedule=ZERO_SNR,
        added_noise=AddedNoise(churn=2, tmin=0.5, tmax=9, scale=1.05),
        skipped_guidance=SKIPPED,
        extra_noise=0.05,
        old_editing=True,
        tiling=True,
        sgm_noise=True,
        pad_conds=True,
        hires=HiresSettings(),
    )
    assert made.partition("Model: tiny_sd15, ")[2] == (
        "Seed resize from: 64x96, Denoising strength: 0.6, RNG: CPU, Tiling: True, Downcast alphas_cumprod: True, "
        "Noise Schedule: Zero Terminal SNR, Hires upscale: 2, Hires upscaler: Latent, "
        "Old prompt editing timelines: True, Schedule min sigma: 0.1, SGM noise multiplier: True, Sigma churn: 2, "
        "Sigma tmin: 0.5, Sigma tmax: 9, Sigma noise: 1.05, Skip Early CFG: 0.1, Pad conds: True, NGMS: 3, "
        f"NGMS all steps: True, Extra noise: 0.05, Version: {VERSION}"
    )


def test_options_of_passes_from_a_picture_stand_in_webuis_order() -> None:
    image = ImageSettings(picture=PICTURE, noise_multiplier=1.1, exact_steps=True, mask=MaskSettings(picture=PICTURE))
    made = last_line(
        image=image,
        sampler="Euler a",
        extra_noise=0.05,
        added_noise=AddedNoise(eta=0.5),
        schedule=ScheduleSettings(downcast=True),
        noise=NoiseSettings(source="GPU"),
        hires=None,
    )
    assert made.partition("Model: tiny_sd15, ")[2] == (
        "Denoising strength: 0.6, Downcast alphas_cumprod: True, Mask blur: 4, Exact steps: True, "
        f"Noise multiplier: 1.1, Extra noise: 0.05, Eta: 0.5, Version: {VERSION}"
    )


@pytest.mark.parametrize(
    ("sampler", "told"),
    [
        ("Euler a", ["Eta"]),
        ("DPM adaptive", ["Eta"]),
        ("DPM++ 2M SDE Heun", ["Eta", "Sigma noise"]),
        ("DPM2 a", ["Eta", "Sigma noise"]),
        ("Heun", ["Sigma churn", "Sigma tmin", "Sigma tmax", "Sigma noise"]),
        ("DDIM", ["Eta DDIM"]),
        ("DDIM CFG++", ["Eta DDIM"]),
        *((name, []) for name in ("DPM++ 2M", "LMS", "PLMS", "UniPC", "Restart", "LCM")),
    ],
)
def test_only_what_the_sampler_takes_is_told(sampler: str, told: list[str]) -> None:
    everything = AddedNoise(eta=0.5, eta_ddim=0.5, churn=1, tmin=0.1, tmax=9, scale=0.9)
    made = last_line(sampler=sampler, added_noise=everything, hires=None)
    assert re.findall(r"(Eta DDIM|Eta|Sigma \w+): ", made) == told


def test_options_that_do_nothing_are_not_told() -> None:
    made = last_line(
        prompt="[a:b:0.5] [c]",
        sampler="DDIM",
        noise=NoiseSettings(resize_width=64),
        skipped_guidance=SkippedGuidance(minimum_sigma=3, all_steps=True),
        extra_noise=0.1,
        sgm_noise=True,
        old_editing=True,
        hires=None,
    )
    assert made.endswith(f"Model: tiny_sd15, RNG: NV, Version: {VERSION}")
    assert "SGM" not in last_line(image=ImageSettings(picture=PICTURE), sgm_noise=True, hires=None)


def test_ensd_is_told_where_churn_or_eta_draws() -> None:
    """WebUI leaves it out there, and then draws another picture from its own text."""
    noise = NoiseSettings(ensd=31337)
    assert "ENSD" not in last_line(sampler="Euler", noise=noise, hires=None)
    assert "ENSD: 31337" in last_line(sampler="Euler", noise=noise, added_noise=AddedNoise(churn=1), hires=None)
    assert "ENSD: 31337" in last_line(sampler="DDIM", noise=noise, added_noise=AddedNoise(eta_ddim=1), hires=None)

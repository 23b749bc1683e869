"""The infotext of a picture, key for key as WebUI writes it."""

from pipelines import infotext
from pipelines.model import ModelIdentity
from pipelines.parameters import VERSION, of_picture
from pipelines.plan import make_plan
from pipelines.request import GenerationRequest, HiresSettings, NoiseSettings

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
        hires=HiresSettings(resize_to=(256, 256), prompt="a, b", negative_prompt="c", sampler="DDIM"),
    )
    assert made.endswith(
        "CFG scale: 7.5, Seed: 1234, Size: 128x128, Model hash: aaaaaaaaaa, Model: m, VAE hash: bbbbbbbbbb, "
        "VAE: better.vae.safetensors, Variation seed: 99, Variation seed strength: 0.3, Denoising strength: 0.6, "
        'Clip skip: 2, ENSD: 31337, RNG: NV, Hires sampler: DDIM, Hires prompt: "a, b", Hires negative prompt: c, '
        f"Hires resize: 256x256, Hires upscaler: Latent, Version: {VERSION}"
    )


def test_it_reads_back() -> None:
    read = infotext.read(text(hires=HiresSettings(scale=1.5, upscaler="Lanczos", denoising_strength=0.4)))
    assert (read.prompt, read.seed, read.size, read.hires) == ("1girl", 1234, (128, 128), True)
    assert (read.hires_upscale, read.hires_upscaler, read.denoising_strength) == (1.5, "Lanczos", 0.4)
    assert (read.unknown, read.warnings) == ({}, ())

"""The latent upscaler, with a small trained network of the same structure, matches diffusers and improves pictures."""

import json
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionLatentUpscalePipeline, UNet2DConditionModel
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from pastel_tiny.dataset import SHAPES, TEST_SEED, halve
from pastel_tiny.measure import detail
from pastel_tiny.render import render as paint
from pastel_tiny.scenes import scene
from pipelines.ask.catalog import LATENT_NETWORK
from pipelines.ask.identity import TOKENIZER
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest, HiresSettings
from pipelines.drawing.phases import REFINE, UPSCALE, Beside, PassResult, Picture, Step, render
from pipelines.errors import ModelError
from pipelines.images.reading import Pixels
from pipelines.models.model import Model
from pipelines.runtime.device import Device
from pipelines.sampling.noise import Noise
from pipelines.upscalers.interpolation import load_upscaler
from pipelines.upscalers.latent import LatentUpscaler

CPU = Device(torch.device("cpu"), torch.float32)
FOLDER = Path(__file__).parents[1] / "data" / "upscalers" / "x2-tiny"
"""Made by `pastel_tiny.latent_upscaler` for the embedded model's latents."""


@pytest.fixture(scope="module")
def upscaler() -> LatentUpscaler:
    loaded = load_upscaler(FOLDER, CPU)
    assert isinstance(loaded, LatentUpscaler)
    return loaded


def noise(shape: tuple[int, int, int], seeds: tuple[int, ...] = (1, 2)) -> Noise:
    return Noise(seeds, shape, device=torch.device("cpu"))


def enlarged(upscaler: LatentUpscaler, latents: torch.Tensor, seeds: tuple[int, ...]) -> torch.Tensor:
    shape = latents.shape[1], latents.shape[2] * 2, latents.shape[3] * 2
    with torch.inference_mode():
        *_, last = upscaler.steps(latents, noise(shape, seeds))
    return last


def test_it_is_diffusers(networks: Model, upscaler: LatentUpscaler) -> None:
    """Twenty steps of the same network: each rounds values of up to 15 (an ulp is 1e-6) in its own order, and a step
    can enlarge the difference that the one before left. The control has another seed's noise."""
    pipeline = StableDiffusionLatentUpscalePipeline(
        vae=networks.vae.network,
        text_encoder=CLIPTextModel.from_pretrained(FOLDER / "text_encoder", dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        unet=UNet2DConditionModel.from_pretrained(FOLDER / "unet", torch_dtype=torch.float32),
        scheduler=EulerDiscreteScheduler.from_pretrained(FOLDER / "scheduler"),
    )
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(3))
    begun = noise((4, 16, 24))
    begun.initial()
    expected = pipeline(
        prompt=["", ""],
        image=latents,
        num_inference_steps=20,
        guidance_scale=0,
        latents=begun.draw(),
        output_type="latent",
    ).images
    assert torch.allclose(enlarged(upscaler, latents, (1, 2)), expected, atol=1e-4)
    assert not torch.allclose(enlarged(upscaler, latents, (1, 3))[1], expected[1], atol=1e-2)


def encoded(networks: Model, pictures: Sequence[Pixels]) -> torch.Tensor:
    """(B, 4, h, w)."""
    one_by_one = []
    for picture in pictures:
        pixels = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
        one_by_one.append(networks.vae.encode(pixels, torch.zeros(4, picture.shape[0] // 8, picture.shape[1] // 8)))
    return torch.stack(one_by_one)


@torch.inference_mode()
def test_it_enlarges_better_than_interpolation(networks: Model, upscaler: LatentUpscaler) -> None:
    """Scenes that it never saw, against the same scenes painted at twice the size.

    Decoding them is what takes time, so they are two. Their measures are near those of the first twelve, where the
    network's error is 0.81 of the best other one, and its detail 1.05 of the drawn scenes'.
    """
    numbers = (1, 4)
    painted = np.stack([paint(scene(TEST_SEED + 900 + k), *SHAPES[0]) for k in numbers])
    small, large = encoded(networks, halve(painted)), encoded(networks, painted)
    made = {mode: F.interpolate(small, scale_factor=2, mode=mode) for mode in ("bilinear", "bicubic")}
    made |= {"network": enlarged(upscaler, small, numbers), "drawn": large}
    shown = {name: np.stack([networks.vae.decode(each) for each in latents]) for name, latents in made.items()}
    off = {name: float(np.square(pictures.astype(float) - painted).mean()) for name, pictures in shown.items()}
    others = [name for name in off if name not in ("network", "drawn")]
    assert off["network"] < 0.85 * min(off[name] for name in others)
    assert all((made["network"] - large).square().mean() < (made[name] - large).square().mean() for name in others)
    assert detail(shown["network"]) == pytest.approx(detail(shown["drawn"]), rel=0.1)
    assert detail(shown["bilinear"]) < 0.85 * detail(shown["drawn"])


@pytest.mark.parametrize("size", [(8, 8), (9, 10), (11, 13)])
def test_any_size_is_doubled(upscaler: LatentUpscaler, size: tuple[int, int]) -> None:
    latents = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(3))
    found = enlarged(upscaler, latents, (1,))
    assert found.shape[2:] == (size[0] * 2, size[1] * 2)
    assert found.isfinite().all()


@pytest.mark.parametrize(("scale", "side"), [(2, 128), (1.5, 96), (3, 192)])
def test_it_is_the_second_phase_and_fits_any_scale(
    networks: Model, upscaler: LatentUpscaler, scale: float, side: int
) -> None:
    hires = HiresSettings(scale=scale, steps=1, upscaler=LATENT_NETWORK)
    request = GenerationRequest(
        prompt="", width=64, height=64, seed=1, num_outputs=2, num_inference_steps=3, hires=hires
    )
    drawn = render(networks, request, make_plan(request), beside=Beside(upscaler=upscaler))
    events = list(takewhile(lambda event: not isinstance(event, Picture), drawn))  # which takes longest, to decode
    steps = [event.number for event in events if isinstance(event, Step) and event.phase == UPSCALE]
    assert steps == list(range(21))
    first, refined = (event for event in events if isinstance(event, PassResult))
    assert refined.phase == REFINE
    assert refined.start is not None
    assert refined.start.shape == (2, 4, side // 8, side // 8)
    if scale == 2:
        assert torch.allclose(refined.start, enlarged(upscaler, first.latents, (1, 2)), atol=1e-4)  # as in WebUI's VAE
        assert not torch.allclose(refined.start, enlarged(upscaler, first.latents, (2, 1)), atol=1e-1)


def test_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "unet").symlink_to(FOLDER / "unet")
    (tmp_path / "scheduler").mkdir()
    config = json.loads((FOLDER / "scheduler" / "scheduler_config.json").read_text())
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | {"prediction_type": "epsilon"}))
    with pytest.raises(ModelError, match="prediction type"):
        load_upscaler(tmp_path, CPU)
    (tmp_path / "unet").unlink()
    another = UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        cross_attention_dim=8,
    )
    another.save_pretrained(tmp_path / "unet")
    with pytest.raises(ModelError, match="not a latent upscaler"):
        load_upscaler(tmp_path, CPU)

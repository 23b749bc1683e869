"""The latent upscaler, on a network of its form with random weights: the same latents as diffusers' pipeline."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionLatentUpscalePipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipelines.catalog import LATENT_NETWORK
from pipelines.device import Device
from pipelines.errors import ModelError
from pipelines.highres import REFINE, UPSCALE, PassResult, Step, render
from pipelines.latent_upscaler import LatentUpscaler
from pipelines.loader import Networks
from pipelines.model import TOKENIZER
from pipelines.noise import Noise
from pipelines.plan import make_plan
from pipelines.request import GenerationRequest, HiresSettings
from pipelines.upscale import load_upscaler

CPU = Device(torch.device("cpu"), torch.float32)
WIDTH = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of sd-x2-latent-upscaler's form, small."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("x2")
    unet = UNet2DConditionModel(
        in_channels=8,
        out_channels=5,
        act_fn="gelu",
        attention_head_dim=8,
        norm_num_groups=None,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        time_cond_proj_dim=128 + WIDTH,
        conv_in_kernel=1,
        conv_out_kernel=1,
        mid_block_type=None,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        down_block_types=("KDownBlock2D", *["KCrossAttnDownBlock2D"] * 3),
        up_block_types=(*["KCrossAttnUpBlock2D"] * 3, "KUpBlock2D"),
    )
    unet.save_pretrained(folder / "unet")
    EulerDiscreteScheduler(prediction_type="sample", beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )
    text = CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=2,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def upscaler(folder: Path) -> LatentUpscaler:
    loaded = load_upscaler(folder, CPU)
    assert isinstance(loaded, LatentUpscaler)
    return loaded


def noise(shape: tuple[int, int, int], seeds: tuple[int, ...] = (1, 2)) -> Noise:
    return Noise(seeds, shape, device=torch.device("cpu"))


def enlarged(upscaler: LatentUpscaler, latents: torch.Tensor, seeds: tuple[int, ...]) -> torch.Tensor:
    shape = latents.shape[1], latents.shape[2] * 2, latents.shape[3] * 2
    with torch.inference_mode():
        *_, last = upscaler.steps(latents, noise(shape, seeds))
    return last


def test_it_is_diffusers(networks: Networks, folder: Path, upscaler: LatentUpscaler) -> None:
    pipeline = StableDiffusionLatentUpscalePipeline(
        vae=networks.vae.network,
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=EulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
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


@pytest.mark.parametrize("size", [(8, 8), (9, 10), (11, 13)])
def test_any_size_is_doubled(upscaler: LatentUpscaler, size: tuple[int, int]) -> None:
    latents = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(3))
    found = enlarged(upscaler, latents, (1,))
    assert found.shape[2:] == (size[0] * 2, size[1] * 2)
    assert found.isfinite().all()


@pytest.mark.parametrize(("scale", "side"), [(2, 256), (1.5, 192), (3, 384)])
def test_it_is_the_second_phase_and_fits_any_scale(
    networks: Networks, upscaler: LatentUpscaler, scale: float, side: int
) -> None:
    hires = HiresSettings(scale=scale, steps=1, upscaler=LATENT_NETWORK)
    request = GenerationRequest(
        prompt="", width=128, height=128, seed=1, num_outputs=2, num_inference_steps=3, hires=hires
    )
    events = list(render(networks, request, make_plan(request), upscaler=upscaler))
    steps = [event.number for event in events if isinstance(event, Step) and event.phase == UPSCALE]
    assert steps == list(range(21))
    first, refined = (event for event in events if isinstance(event, PassResult))
    assert refined.phase == REFINE
    assert refined.start is not None
    assert refined.start.shape == (2, 4, side // 8, side // 8)
    if scale == 2:
        assert torch.equal(refined.start, enlarged(upscaler, first.latents, (1, 2)))


def test_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "unet").symlink_to(folder / "unet")
    (tmp_path / "scheduler").mkdir()
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
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
    with pytest.raises(ModelError, match="none of a latent upscaler"):
        load_upscaler(tmp_path, CPU)

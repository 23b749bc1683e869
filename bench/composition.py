"""The three-pipeline composition that people build with diffusers, as in the first container of this kind.

It consists of text to image, the latent upscaler's network and image to image. Each is a pipeline of its own that reads
and returns 8-bit pictures, with sliced attention. This is written from its description. The upscaler's weights are
random, because only their shapes matter for time.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_latent_upscale import (
    StableDiffusionLatentUpscalePipeline,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

from bench import peers
from bench.full_size import SCHEDULER
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest
from pipelines.models.model import Model

UPSCALER_STEPS = 20
NOISE_LEVEL_WIDTH = 128
"""Width of the vector that tells the upscaler how noisy its picture is; the text's vector follows it."""


def upscaler_unet(text_width: int, scale: float = 1.0) -> UNet2DConditionModel:
    """Return a network with sd-x2-latent-upscaler's structure; `scale` narrows it in proportion to a smaller model.

    Its channels must be multiples of 32, and slicing attention needs two heads.
    """
    width = max(32, round(384 * scale / 32) * 32)
    return UNet2DConditionModel(
        in_channels=8,
        out_channels=5,
        block_out_channels=(width, width, 2 * width, 2 * width),
        layers_per_block=4,
        attention_head_dim=min(64, width // 2),
        cross_attention_dim=text_width,
        cross_attention_norm="layer_norm",
        time_cond_proj_dim=NOISE_LEVEL_WIDTH + text_width,
        down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3),
        mid_block_type=None,
        up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
        act_fn="gelu",
        norm_num_groups=None,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        conv_in_kernel=1,
        conv_out_kernel=1,
    )


def scale_of(unet: UNet2DConditionModel) -> float:
    """Return how much narrower than Stable Diffusion's a UNet is."""
    return unet.config.block_out_channels[0] / 320


def composition(networks: Model, request: GenerationRequest) -> Callable[[], Any]:
    """Return a function that draws one picture with the request's sizes and steps. It only enlarges by 2."""
    plan = make_plan(request)
    hires = plan.hires
    assert hires
    assert (hires.width, hires.height) == (plan.first.width * 2, plan.first.height * 2)
    first, third = peers.pipelines(networks)
    torch.manual_seed(0)
    unet = upscaler_unet(networks.unet.network.config.cross_attention_dim, scale_of(networks.unet.network))
    second = StableDiffusionLatentUpscalePipeline(
        vae=networks.vae.network,
        text_encoder=networks.text.towers[0].model,
        tokenizer=first.tokenizer,
        unet=unet.to(networks.device.place, networks.device.dtype).eval(),
        scheduler=EulerDiscreteScheduler(**SCHEDULER),
    )
    second.set_progress_bar_config(disable=True)
    first.enable_attention_slicing()
    second.enable_attention_slicing()
    texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}

    def draw() -> Any:
        generator = torch.Generator().manual_seed(request.seed)
        draft = first(
            **texts,
            width=plan.first.width,
            height=plan.first.height,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            generator=generator,
        ).images
        enlarged = second(
            prompt=request.prompt,
            image=draft,
            num_inference_steps=UPSCALER_STEPS,
            guidance_scale=0,
            generator=generator,
        ).images
        return third(
            **texts,
            image=enlarged,
            guidance_scale=request.guidance_scale,
            generator=generator,
            **peers.refinement(hires),
        ).images

    return draw

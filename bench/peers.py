"""The programs we are compared with: diffusers as a plain program uses it, with the very weights that we draw with."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch.nn import functional as F
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from bench.full_size import SCHEDULER, checkpoint
from pipelines.ask.identity import TOKENIZER, ModelFiles
from pipelines.ask.plan import PassPlan, make_plan
from pipelines.ask.request import GenerationRequest
from pipelines.drawing.compiling import compile_model
from pipelines.models.loader import load
from pipelines.models.model import Model
from pipelines.runtime.device import best_device
from weights_script.resolve import resolve


def networks(full: bool) -> Model:
    """Return our networks: the embedded model, or a full-size Stable Diffusion 1.5 with random weights."""
    if full:
        return load(ModelFiles(name="random", checkpoint=checkpoint(), vae=None, sha256="0"), best_device())
    return load(resolve(None, None).files, best_device())


def both(full: bool, side: int) -> tuple[Model, Model]:
    """Return our networks as setup leaves them, and the peers' networks: the same objects if nothing is compiled."""
    plain = networks(full)
    return (compile_model(networks(full), side, side), plain) if plain.device.compiled else (plain, plain)


def plain_unet(networks: Model) -> UNet2DConditionModel:
    """Return diffusers' own UNet, without our changes, with the same tensors."""
    with torch.device("meta"):
        config = networks.unet.network.config
        unet = UNet2DConditionModel.from_config(config, sample_size=64)  # the pipelines compare the size
    unet.load_state_dict(networks.unet.network.state_dict(), assign=True)
    return unet.eval()


def scheduler() -> DPMSolverMultistepScheduler:
    """Return diffusers' DPM++ 2M Karras."""
    return DPMSolverMultistepScheduler(**SCHEDULER, use_karras_sigmas=True)


def pipelines(networks: Model) -> tuple[StableDiffusionPipeline, StableDiffusionImg2ImgPipeline]:
    """Return the pipelines for text to image and image to image, which share everything."""
    first = StableDiffusionPipeline(
        vae=networks.vae.network,
        text_encoder=networks.text.towers[0].model,
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER, local_files_only=True),
        unet=plain_unet(networks),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    second = StableDiffusionImg2ImgPipeline(**first.components, requires_safety_checker=False)
    for pipeline in (first, second):
        pipeline.set_progress_bar_config(disable=True)
    return first, second


def refinement(part: PassPlan) -> dict[str, Any]:
    """Return steps and strength with which image to image runs exactly the steps of our second pass."""
    return {"num_inference_steps": part.schedule_steps, "strength": min(1, (part.asked + 0.5) / part.schedule_steps)}


def fused(networks: Model, request: GenerationRequest) -> Callable[[], Any]:
    """Return a function that draws our three phases in diffusers: latents stay latents, prompts are encoded once."""
    first, second = pipelines(networks)
    plan = make_plan(request)
    assert plan.hires

    def draw(part: PassPlan) -> Any:
        positive, negative = first.encode_prompt(
            request.prompt, networks.device.place, request.num_outputs, True, request.negative_prompt
        )
        shared = {
            "prompt_embeds": positive,
            "negative_prompt_embeds": negative,
            "guidance_scale": request.guidance_scale,
            "generator": torch.Generator().manual_seed(request.seed),
        }
        latents = first(
            width=plan.first.width,
            height=plan.first.height,
            num_inference_steps=request.num_inference_steps,
            output_type="latent",
            **shared,
        ).images
        enlarged = F.interpolate(latents, size=part.latent_shape[1:], mode="bilinear")
        return second(image=enlarged, **refinement(part), **shared).images

    return partial(draw, plan.hires)

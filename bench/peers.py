"""The programs we are compared with: diffusers as a plain program uses it, with the very weights that we draw with."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch.nn import functional as F
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from bench.full_size import SCHEDULER, checkpoint
from pipelines.ask.identity import TOKENIZER, ModelFiles
from pipelines.ask.plan import PassPlan, make_plan
from pipelines.ask.request import GenerationRequest
from pipelines.drawing.compiling import compile_model
from pipelines.families.layouts import ADDED, CLASSES
from pipelines.families.sdxl import SDXL
from pipelines.models.loader import load
from pipelines.models.model import Model
from pipelines.runtime.device import best_device
from weights_script.resolve import resolve

EMBEDDED = "embedded"
"""The model that is not one of `full_size`."""


def networks(model: str) -> Model:
    """Return our networks of one of the models."""
    if model == EMBEDDED:
        return load(resolve(None, None).files, best_device())
    return load(ModelFiles(name="random", checkpoint=checkpoint(model), vae=None, sha256="0"), best_device())


def both(model: str, side: int) -> tuple[Model, Model]:
    """Return our networks as setup leaves them, and the peers' networks: the same objects if nothing is compiled."""
    plain = networks(model)
    return (compile_model(networks(model), side, side), plain) if plain.device.compiled else (plain, plain)


def plain_unet(networks: Model) -> UNet2DConditionModel:
    """Return diffusers' own UNet, without our changes, with the same tensors."""
    changed: dict[str, Any] = {"sample_size": 64}  # the pipelines compare the size
    weights = networks.unet.network.state_dict()
    if networks.family is SDXL:
        changed |= {"class_embed_type": None, "addition_embed_type": "text_time", "addition_time_embed_dim": 256}
        weights = {name.replace(CLASSES, ADDED): weight for name, weight in weights.items()}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(networks.unet.network.config, **changed)
    unet.load_state_dict(weights, assign=True)
    return unet.eval()


def scheduler() -> DPMSolverMultistepScheduler:
    """Return diffusers' DPM++ 2M Karras."""
    return DPMSolverMultistepScheduler(**SCHEDULER, use_karras_sigmas=True)


Pipelines = (
    tuple[StableDiffusionPipeline, StableDiffusionImg2ImgPipeline]
    | tuple[StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline]
)


def pipelines(networks: Model) -> Pipelines:
    """Return the pipelines for text to image and image to image, which share everything."""
    towers, tokenizer = networks.text.towers, CLIPTokenizer.from_pretrained(TOKENIZER, local_files_only=True)
    parts = {
        "vae": networks.vae.network,
        "text_encoder": towers[0].model,
        "tokenizer": tokenizer,
        "unet": plain_unet(networks),
        "scheduler": scheduler(),
        "feature_extractor": None,
    }
    made: Pipelines
    if networks.family is SDXL:
        large = StableDiffusionXLPipeline(
            **parts, text_encoder_2=towers[1].network, tokenizer_2=tokenizer, add_watermarker=False
        )
        made = large, StableDiffusionXLImg2ImgPipeline(**large.components, add_watermarker=False)
    else:
        first = StableDiffusionPipeline(**parts, safety_checker=None, requires_safety_checker=False)
        made = first, StableDiffusionImg2ImgPipeline(**first.components, requires_safety_checker=False)
    for pipeline in made:
        pipeline.set_progress_bar_config(disable=True)
    return made


EMBEDDINGS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
"""What diffusers calls encoded prompts; only SDXL has the last two."""


def refinement(part: PassPlan) -> dict[str, Any]:
    """Return steps and strength with which image to image runs exactly the steps of our second pass."""
    return {"num_inference_steps": part.schedule_steps, "strength": min(1, (part.asked + 0.5) / part.schedule_steps)}


def fused(networks: Model, request: GenerationRequest) -> Callable[[], Any]:
    """Return a function that draws our three phases in diffusers: latents stay latents, prompts are encoded once."""
    first, second = pipelines(networks)
    plan = make_plan(request)
    assert plan.hires

    def draw(part: PassPlan) -> Any:
        encoded = first.encode_prompt(
            prompt=request.prompt,
            device=networks.device.place,
            num_images_per_prompt=request.num_outputs,
            do_classifier_free_guidance=True,
            negative_prompt=request.negative_prompt,
        )
        shared = dict(zip(EMBEDDINGS, encoded, strict=False)) | {
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

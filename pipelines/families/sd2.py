"""Stable Diffusion 2.0 and 2.1: OpenCLIP ViT-H as text encoder, linear projections, heads of 64 channels.

Base models (512 px) predict noise, the others (768 px) predict v. Their single files do not say which.
"""

from dataclasses import replace

from pipelines.families.family import TextTower
from pipelines.families.prediction import VPrediction
from pipelines.families.sd1 import CLIP_L, SD1

OPENCLIP_H = TextTower(
    prefix="cond_stage_model.model.",
    folder="text_encoder",
    activation="gelu",
    lora_prefixes=CLIP_L.lora_prefixes,
    openclip=True,
    layers=23,
    clip_skip=1,
)

SD2 = replace(
    SD1,
    name="Stable Diffusion 2.x",
    texts=(OPENCLIP_H,),
    unet_heads=None,
    context=1024,
    probed=True,
    own_alphas=True,
    v_settings={"width": 768, "height": 768},
)

UNCLIP = replace(
    SD2,
    name="Stable unCLIP",
    prediction=VPrediction(),
    channels=(4,),
    probed=False,
    settings={"width": 768, "height": 768, "guidance_scale": 10, "num_inference_steps": 20, "denoising_strength": 1},
)
"""Stable unCLIP 2.1, which also takes the CLIP embedding of a picture."""

DEPTH = replace(SD2, name="Stable Diffusion 2.x depth", channels=(5,), probed=False)
"""Stable Diffusion 2 depth, whose UNet also takes a depth map."""

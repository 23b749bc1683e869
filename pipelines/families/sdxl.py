"""SDXL (Podell et al. 2023, https://arxiv.org/abs/2307.01952) and the models trained from it, and its refiner.

SDXL has two text encoders. Its UNet also takes a vector: the pooled text, and the picture's sizes.
"""

from dataclasses import replace

from pipelines.families.family import Family, TextTower
from pipelines.families.noise_schedule import scaled_linear
from pipelines.families.prediction import NoisePrediction
from pipelines.families.sd1 import CLIP_L

ALIGNED = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)

OPENCLIP_G = TextTower(
    prefix="conditioner.embedders.1.model.",
    folder="text_encoder_2",
    activation="gelu",
    lora_prefixes=("lora_te2_text_model_", "text_encoder_2_text_model_", "text_encoder_2_"),
    openclip=True,
    layers=32,
    clip_skip=2,
    final_norm=False,
    pooled=True,
    embedding="clip_g",
)

SDXL = Family(
    name="SDXL",
    texts=(
        replace(
            CLIP_L,
            prefix="conditioner.embedders.0.transformer.",
            lora_prefixes=("lora_te1_text_model_", "text_encoder_text_model_", "text_encoder_"),
            clip_skip=2,
            final_norm=False,
            embedding="clip_l",
        ),
        OPENCLIP_G,
    ),
    prediction=NoisePrediction(),
    noise=scaled_linear(0.00085, 0.012, ALIGNED),
    channels=(4, 9),
    unet_heads=None,
    context=2048,
    latent_scale=0.13025,
    smallest=512,
    sizes=("height", "width", "top", "left", "height", "width"),
    zero_negative=True,
    rounds_mask=True,
    settings={"width": 1024, "height": 1024},
)

REFINER = replace(
    SDXL,
    name="SDXL refiner",
    texts=(replace(OPENCLIP_G, prefix="conditioner.embedders.0.model.", lora_prefixes=(), embedding=""),),
    channels=(4,),
    context=1280,
    sizes=("height", "width", "top", "left", "score"),
)
"""The refiner, which finishes what a base model began. It has only the second of the text encoders."""

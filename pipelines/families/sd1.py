"""Stable Diffusion 1.x (Rombach et al. 2022, https://arxiv.org/abs/2112.10752) and everything trained from it."""

from pipelines.families.family import Family, TextTower
from pipelines.families.noise_schedule import scaled_linear
from pipelines.families.prediction import NoisePrediction

ALIGNED = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)

CLIP_L = TextTower(
    prefix="cond_stage_model.transformer.",
    folder="text_encoder",
    activation="quick_gelu",
    lora_prefixes=(
        "lora_te_text_model_",
        "lora_te1_text_model_",
        "text_encoder_text_model_",
        "text_encoder_",
        "text_model_",
    ),
)

SD1 = Family(
    name="Stable Diffusion 1.x",
    texts=(CLIP_L,),
    prediction=NoisePrediction(),
    noise=scaled_linear(0.00085, 0.012, ALIGNED),
    channels=(4, 9),
    unet_heads=8,
    context=768,
    latent_scale=0.18215,
    settings={"width": 512, "height": 512},
)

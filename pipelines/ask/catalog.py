"""What can be asked for, by WebUI's names: samplers, schedule types, upscalers, noise sources.

Pure data, so that requests and plans can be checked without torch. The algorithms behind the names live in
`samplers.py`, `schedules.py`, `enlarging.py` and `noise.py`; a test keeps both sides complete.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SamplerInfo:
    """What a plan must know of a sampler without running it."""

    name: str
    automatic: str = "Uniform"
    """Schedule type that "Automatic" stands for."""
    second_order: bool = False
    """Calls the denoiser twice a step: prompt editing counts twice the steps."""
    drops_penultimate: bool = False
    """Its schedule is computed for one more step and loses the last but one sigma."""
    draws: bool = False
    """Draws noise as it goes, so that ENSD makes another picture. WebUI tells ENSD for all but Restart and LCM."""
    model_levels: int = 1000
    """Noise levels that the model knows: latent consistency models were distilled on 50 of the 1000."""
    own_levels: bool = False
    """Spaces its own noise levels: its first pass goes over the model's whole range, whatever the schedule type."""
    steps_run: Callable[[int], int | None] = lambda levels: levels
    """Steps really run from the count of noise levels that are walked (not counting the final 0); None: as many as the
    picture needs."""
    timesteps: bool = False
    """Walks integer timesteps (DDIM family) and has no sigma schedule."""
    takes: tuple[str, ...] = ()
    """Which of the request's settings of added noise (`AddedNoise`) it takes in WebUI, by attribute."""


CHURN, SCALED_ETA = ("churn", "tmin", "tmax", "scale"), ("eta", "scale")


SAMPLERS: dict[str, SamplerInfo] = {
    info.name: info
    for info in (
        SamplerInfo(name="DPM++ 2M", automatic="Karras"),
        SamplerInfo(name="DPM++ SDE", automatic="Karras", second_order=True, takes=SCALED_ETA),
        SamplerInfo(name="DPM++ 2M SDE", automatic="Exponential", takes=SCALED_ETA),
        SamplerInfo(name="DPM++ 2M SDE Heun", automatic="Exponential", takes=SCALED_ETA),
        SamplerInfo(name="DPM++ 2S a", automatic="Karras", second_order=True, draws=True, takes=SCALED_ETA),
        SamplerInfo(name="DPM++ 3M SDE", automatic="Exponential", drops_penultimate=True, takes=SCALED_ETA),
        SamplerInfo(name="Euler a", draws=True, takes=("eta",)),
        SamplerInfo(name="Euler", takes=CHURN),
        SamplerInfo(name="LMS"),
        SamplerInfo(name="Heun", second_order=True, takes=CHURN),
        SamplerInfo(name="DPM2", automatic="Karras", second_order=True, drops_penultimate=True, takes=CHURN),
        SamplerInfo(
            name="DPM2 a", automatic="Karras", second_order=True, drops_penultimate=True, draws=True, takes=SCALED_ETA
        ),
        SamplerInfo(
            name="DPM fast",
            draws=True,
            own_levels=True,
            steps_run=lambda n: n // 3 + 1 if n > 1 else 0,
            takes=SCALED_ETA,
        ),
        SamplerInfo(
            name="DPM adaptive", draws=True, own_levels=True, steps_run=lambda n: None if n > 1 else 0, takes=("eta",)
        ),
        SamplerInfo(name="Restart", automatic="Karras", second_order=True, draws=True),
        SamplerInfo(name="DDIM", timesteps=True, steps_run=lambda n: n - 1, takes=("eta_ddim",)),
        SamplerInfo(name="DDIM CFG++", timesteps=True, steps_run=lambda n: n - 1, takes=("eta_ddim",)),
        SamplerInfo(name="PLMS", timesteps=True, steps_run=lambda n: n - 1),
        SamplerInfo(name="UniPC", timesteps=True),
        SamplerInfo(name="LCM", model_levels=50, draws=True),
    )
}

SCHEDULE_TYPES: tuple[str, ...] = (
    "Automatic",
    "Karras",
    "Exponential",
    "Polyexponential",
    "Uniform",
    "SGM Uniform",
    "KL Optimal",
    "Align Your Steps",
    "Simple",
    "Normal",
    "DDIM",
    "Beta",
)

LATENT_NETWORK = "SD x2 latent upscaler"
"""Of the original Replicate model: a diffusion model of its own, with latents in and out."""
LATENT_UPSCALERS: tuple[str, ...] = (
    "Latent",
    "Latent (antialiased)",
    "Latent (bicubic)",
    "Latent (bicubic antialiased)",
    "Latent (nearest)",
    "Latent (nearest-exact)",
    LATENT_NETWORK,
)
PIXEL_UPSCALERS: tuple[str, ...] = ("None", "Nearest", "Lanczos")
NETWORK_UPSCALERS: tuple[str, ...] = ("R-ESRGAN 4x+", "R-ESRGAN 4x+ Anime6B")
"""Pixel upscalers with weights of their own, which the manifest knows by these names."""
UPSCALERS: tuple[str, ...] = LATENT_UPSCALERS + PIXEL_UPSCALERS + NETWORK_UPSCALERS

NOISE_SOURCES: tuple[str, ...] = ("NV", "CPU", "GPU")
ZERO_TERMINAL_SNR = "Zero Terminal SNR"
NOISE_SCHEDULES: tuple[str, ...] = ("Default", ZERO_TERMINAL_SNR)
"""What becomes of the noise levels that a model was trained with, by WebUI's names."""

RESIZE_MODES: tuple[str, ...] = ("stretch", "crop", "fill", "latent")
"""How an input picture comes to the size that is drawn, in WebUI's order: stretched; covering it and cropped; inside
it, with bands of its edge colours; encoded as it is, and then its latents stretched."""
MASKED_CONTENTS: tuple[str, ...] = ("fill", "original", "latent noise", "latent nothing")
"""What is under the mask before it is drawn, in WebUI's order: the colours around it, the picture, noise, nothing."""
WHOLE_PICTURE, ONLY_MASKED = "Whole picture", "Only masked"
INPAINT_AREAS: tuple[str, ...] = (WHOLE_PICTURE, ONLY_MASKED)

CONTROL_MODES: dict[str, str] = {
    "balanced": "Balanced",
    "prompt": "My prompt is more important",
    "control": "ControlNet is more important",
}
"""Who wins where a prompt and a ControlNet disagree, and what WebUI's extension calls it."""
CONTROL_RESIZE_MODES: dict[str, str] = {"crop": "Crop and Resize", "stretch": "Just Resize"}
"""How a control image comes to the size that is drawn, likewise."""
NO_PREPROCESSOR = "none"
IMAGE_PROMPT = "ip-adapter"
"""Stands in the preprocessor's place where an IP-Adapter sees the picture itself."""
PREPROCESSORS: dict[str, str] = {
    "canny": "canny",
    "lineart": "lineart_standard (from white bg & black line)",
    "scribble": "scribble_xdog",
    "invert": "invert (from white bg & black line)",
    "inpaint": "inpaint_only",
    "color": "t2ia_color_grid",
    NO_PREPROCESSOR: "none",
    IMAGE_PROMPT: "ip-adapter_clip_sd15",
}
"""What makes a ControlNet's map of a picture, likewise."""


def preprocessor_for(name: str) -> str:
    """Return the preprocessor that the name of a control network tells, if it tells one."""
    return next((known for pattern, known in _TOLD if re.search(pattern, name.casefold())), NO_PREPROCESSOR)


_TOLD = (
    (r"(?<![a-z])ip[-_ ]?adapter", IMAGE_PROMPT),
    (r"adapter[-_]color|color[-_](co)?adapter", "color"),  # ControlNets of that name colour grey pictures
    *((name, name) for name in PREPROCESSORS if name not in (IMAGE_PROMPT, "color")),
)
"""Part of a name, and the preprocessor that it tells."""

EMPHASES: tuple[str, ...] = ("Original", "No norm", "Ignore", "None")
"""What weights in a prompt do: scale vectors and restore their mean, only scale, nothing, or are plain text."""

PREDICTION_NAMES = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
    "v": "v_prediction",
}
"""What a UNet predicts, by the names that people and files give it -> diffusers' name."""

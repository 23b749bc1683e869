"""The choices that a request has, by their names in WebUI: samplers, schedule types, upscalers, noise sources.

This is pure data, so that requests and plans can be checked without torch. The algorithms behind the names are in
`samplers.py`, `schedules.py`, `interpolation.py` and `noise.py`; a test keeps both sides complete.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SamplerInfo:
    """What a plan needs to know about a sampler without running it."""

    name: str
    automatic: str = "Uniform"
    """The schedule type that "Automatic" stands for."""
    second_order: bool = False
    """Whether it calls the denoiser twice per step, so that prompt editing counts twice the steps."""
    drops_penultimate: bool = False
    """Whether its schedule is computed for one step more and then loses the second-to-last sigma."""
    draws: bool = False
    """Whether it draws noise during the pass, so that ENSD changes the picture. WebUI writes ENSD for all of these
    samplers except Restart and LCM."""
    model_levels: int = 1000
    """Noise levels that the model knows. Latent consistency models were distilled on 50 of the 1000."""
    own_levels: bool = False
    """Whether it spaces the noise levels itself. Its first pass then covers the model's whole range, whatever the
    schedule type."""
    steps_run: Callable[[int], int | None] = lambda levels: levels
    """Maps the number of noise levels (without the final 0) to the steps actually run; None: as many as the picture
    needs."""
    timesteps: bool = False
    """Whether it uses integer timesteps (DDIM family) and has no sigma schedule."""
    takes: tuple[str, ...] = ()
    """The added-noise settings (`AddedNoise`) that it uses in WebUI, by attribute."""


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
"""The upscaler of the original Replicate model: a separate diffusion model, with latents in and out."""
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
"""Pixel upscalers with their own weights, which the manifest lists by these names."""
UPSCALERS: tuple[str, ...] = LATENT_UPSCALERS + PIXEL_UPSCALERS + NETWORK_UPSCALERS

NOISE_SOURCES: tuple[str, ...] = ("NV", "CPU", "GPU")
ZERO_TERMINAL_SNR = "Zero Terminal SNR"
NOISE_SCHEDULES: tuple[str, ...] = ("Default", ZERO_TERMINAL_SNR)
"""How the noise levels that a model was trained with are changed, by WebUI's names."""

RESIZE_MODES: tuple[str, ...] = ("stretch", "crop", "fill", "latent")
"""How an input picture is brought to the size to draw, in WebUI's order: stretched; enlarged to cover it and cropped;
fitted inside it, with the margins filled with its edge colours; encoded first, then its latents are stretched."""
MASKED_CONTENTS: tuple[str, ...] = ("fill", "original", "latent noise", "latent nothing")
"""What the masked area starts from, in WebUI's order: the colours around it, the picture, noise, zeros."""
WHOLE_PICTURE, ONLY_MASKED = "Whole picture", "Only masked"
INPAINT_AREAS: tuple[str, ...] = (WHOLE_PICTURE, ONLY_MASKED)

CONTROL_MODES: dict[str, str] = {
    "balanced": "Balanced",
    "prompt": "My prompt is more important",
    "control": "ControlNet is more important",
}
"""Which wins if a prompt and a ControlNet disagree -> the name in WebUI's ControlNet extension."""
CONTROL_RESIZE_MODES: dict[str, str] = {"crop": "Crop and Resize", "stretch": "Just Resize"}
"""How a control image is brought to the size to draw -> the extension's name."""
NO_PREPROCESSOR = "none"
IMAGE_PROMPT = "ip-adapter"
"""Takes the place of a preprocessor for an IP-Adapter, which sees the picture itself."""
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
"""What turns a picture into a map for a ControlNet -> the extension's name."""


def preprocessor_for(name: str) -> str:
    """Return the preprocessor that a control network's name implies, or NO_PREPROCESSOR."""
    return next((known for pattern, known in _TOLD if re.search(pattern, name.casefold())), NO_PREPROCESSOR)


_TOLD = (
    (r"(?<![a-z])ip[-_ ]?adapter", IMAGE_PROMPT),
    (r"adapter[-_]color|color[-_](co)?adapter", "color"),  # ControlNets of that name colour grey pictures
    *((name, name) for name in PREPROCESSORS if name not in (IMAGE_PROMPT, "color")),
)
"""A pattern in a name, and the preprocessor that it implies."""

EMPHASES: tuple[str, ...] = ("Original", "No norm", "Ignore", "None")
"""What weights in a prompt do: scale the vectors and restore their mean; only scale; nothing; stay as plain text."""

PREDICTION_NAMES = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
    "v": "v_prediction",
}
"""What a UNet predicts: names used by people and files -> diffusers' name."""

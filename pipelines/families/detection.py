"""Which family a file belongs to, by its tensors, and what it declares about itself.

Detection knows more families than this container runs, so that an error can name the file's family.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from pipelines.ask.catalog import PREDICTION_NAMES
from pipelines.errors import ModelError
from pipelines.families.family import DEPTH_CHANNELS, Family
from pipelines.families.noise_schedule import NoiseSchedule
from pipelines.families.prediction import PREDICTIONS, Prediction
from pipelines.families.sd1 import SD1
from pipelines.families.sd2 import DEPTH, SD2, UNCLIP
from pipelines.families.sdxl import REFINER, SDXL

FAMILIES: Mapping[str, Family] = {family.name: family for family in (SD1, SD2, DEPTH, UNCLIP, SDXL, REFINER)}
"""The families that this container runs, by name."""


class Shaped(Protocol):
    """The part of a tensor that detection needs."""

    @property
    def shape(self) -> Any:
        """Its size in every dimension."""
        ...


Tensor = TypeVar("Tensor", bound=Shaped)


@dataclass(frozen=True)
class Sign:
    """A pattern that identifies a family by the names of its tensors."""

    family: str
    pattern: str
    article: str = "a"

    @property
    def what(self) -> str:
        """The kind of file, for errors."""
        return f"{self.article} {self.family} checkpoint"


SIGNS = (  # the first match counts
    Sign("Stable Diffusion 3", r"(^|\.)(joint_blocks\.\d|x_embedder\.proj\.weight$)"),
    Sign("Flux", r"(^|\.)double_blocks\.\d"),
    Sign("SDXL", r"^conditioner\.embedders\.(1\.|0\.transformer\.)", "an"),
    Sign("SDXL refiner", r"^conditioner\.embedders\.", "an"),
    Sign("Stable Diffusion 2.x depth", r"^depth_model\."),
    Sign("Stable unCLIP", r"^embedder\.model\."),
    Sign("Stable Diffusion 2.x", r"^cond_stage_model\.model\."),
    Sign("AltDiffusion", r"^cond_stage_model\.roberta\.", "an"),
)
"""Families whose tensor names differ from Stable Diffusion 1.x. A checkpoint that matches none is of that family."""

SGM_TEXT = "conditioner.embedders.0."
LDM_TEXT = "cond_stage_model."
SD2_WIDTH = 1024
"""The width of OpenCLIP ViT-H. With this width, the layout of SDXL's refiner means SD 2.1 Turbo."""

TASKS = {5: "depth to image", 8: "InstructPix2Pix"}
"""What a UNet was made for, by its number of input channels."""


WRAPPED = re.compile(r"((?:state_dict|module|_orig_mod|model)\.)+(?=model\.diffusion_model\.)")
"""What training programs put before the names of a checkpoint, if they save the object that holds the model."""


def in_ldm_layout(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by LDM's names, without prefixes that wrap a whole checkpoint.

    Only Stable Diffusion 2.1 Turbo is published with SGM's names instead.
    """
    if wrapper := next(filter(None, map(WRAPPED.match, tensors)), None):
        tensors = {name.removeprefix(wrapper[0]): tensor for name, tensor in tensors.items()}
    norm = tensors.get(f"{SGM_TEXT}model.ln_final.weight")
    if norm is None or tuple(norm.shape) != (SD2_WIDTH,):
        return dict(tensors)
    return {re.sub(f"^{re.escape(SGM_TEXT)}", LDM_TEXT, name): tensor for name, tensor in tensors.items()}


def sign_of(tensors: Mapping[str, Shaped]) -> Sign | None:
    """Return the sign of a file's family; None for Stable Diffusion 1.x and for files that are not checkpoints."""
    text = "\n".join(in_ldm_layout(tensors))
    return next((sign for sign in SIGNS if re.search(sign.pattern, text, re.MULTILINE)), None)


SIZES_OF_SDXL = ("projection_class_embeddings_input_dim", "cross_attention_dim", "addition_time_embed_dim")
"""The widths of SDXL's vector, of its tokens, and of one number in the vector, by diffusers' names."""


def sign_of_folder(unet: Mapping[str, Any]) -> Sign | None:
    """Return the sign of a diffusers folder's family, judging by its UNet's configuration."""
    found = (unet.get(name) for name in SIZES_OF_SDXL)
    vector, tokens, wave = (width if isinstance(width, int) else 0 for width in found)
    # the refiner's tokens are as wide as its pooled text, beside which its vector has five numbers
    scored = vector - tokens == len(REFINER.sizes) * wave
    channels = unet.get("in_channels")
    told = {
        "SDXL refiner": unet.get("addition_embed_type") is not None and scored,
        "SDXL": unet.get("addition_embed_type") is not None,
        "Stable unCLIP": unet.get("class_embed_type") is not None,
        "Stable Diffusion 2.x depth": bool(unet.get("use_linear_projection")) and channels == DEPTH_CHANNELS,
        "Stable Diffusion 2.x": unet.get("use_linear_projection"),
    }
    name = next((name for name, holds in told.items() if holds), None)
    return next((sign for sign in SIGNS if sign.family == name), None)


def not_run(sign: Sign) -> str:
    """Return advice for a family that is detected but not supported."""
    return f"This container does not run {sign.family} yet: give a checkpoint of {' or '.join(FAMILIES)}."


def family_of(where: object, sign: Sign | None) -> Family:
    """Return the family that the sign stands for. Raises ModelError for one that this container does not run."""
    if sign is None:
        return SD1
    if sign.family not in FAMILIES:
        raise ModelError(f"{where}: {sign.what}. {not_run(sign)}")
    return FAMILIES[sign.family]


def check_channels(where: object, family: Family, channels: int) -> None:
    """Raise ModelError if the UNet has a number of input channels that is not supported for its family."""
    if channels not in family.channels:
        made_for = TASKS.get(channels, "another task")
        wanted = " or ".join(map(str, family.channels))
        raise ModelError(
            f"{where}: a checkpoint for {made_for}: its UNet takes {channels} channels instead of {wanted}. "
            "Give the text-to-image checkpoint that it was made from."
        )


@dataclass(frozen=True)
class Declaration:
    """What a file declares about how its UNet was trained."""

    prediction: str | None = None
    """What it predicts, by diffusers' name; None if the file does not say."""
    zero_terminal_snr: bool = False
    alphas: tuple[float, ...] | None = None
    """The cumulative alphas in the file; None: its family's."""

    def describe(self) -> list[str]:
        """Return the declarations in words, for the log."""
        told = [f"the prediction type {self.prediction}"] if self.prediction else []
        return [*told, "zero terminal SNR"] if self.zero_terminal_snr else told

    def apply(self, where: object, family: Family) -> tuple[Prediction, NoiseSchedule]:
        """Return the prediction and the noise schedule of this model. Raises ModelError for an unknown prediction."""
        if self.prediction is not None and self.prediction not in PREDICTIONS:
            known = " and ".join(PREDICTIONS)
            raise ModelError(f"{where}: its UNet predicts {self.prediction!r}. This container knows {known}.")
        prediction = PREDICTIONS[self.prediction] if self.prediction else family.prediction
        noise = family.noise if self.alphas is None else replace(family.noise, alphas=self.alphas)
        return prediction, noise.zero_terminal_snr() if self.zero_terminal_snr else noise


V_MARKER, ZERO_SNR_MARKER = MARKERS = "v_pred", "ztsnr"
"""Empty tensors by which files (NoobAI's and others) declare how they were trained."""
SPEC_PREDICTION, SPEC_ARCHITECTURE = SPECS = "modelspec.prediction_type", "modelspec.architecture"
"""Metadata that declare it (https://github.com/Stability-AI/ModelSpec)."""


def declared_in_file(tensors: Mapping[str, Shaped], metadata: Mapping[str, str]) -> Declaration:
    """Return what a single file declares by its tensors and its metadata.

    WebUI 1.10.1 knows none of these signs and treats such a file as a noise prediction; later programs follow them.
    """
    prediction: str | None = metadata.get(SPEC_PREDICTION, "").lower() or None
    if prediction is None and metadata.get(SPEC_ARCHITECTURE, "").endswith("-v"):
        prediction = "v"
    if V_MARKER in tensors:
        prediction = "v"
    return Declaration(PREDICTION_NAMES.get(prediction or "", prediction), ZERO_SNR_MARKER in tensors)


def declared_in_configuration(model: Mapping[str, Any]) -> str:
    """Return the prediction, by diffusers' name, in the `model` part of LDM's or SGM's configuration. The default is
    noise."""
    parameters = _part(model, "params")
    scaling = _part(_part(_part(parameters, "denoiser_config"), "params"), "scaling_config")
    v = parameters.get("parameterization") == "v" or str(scaling.get("target", "")).endswith(".VScaling")
    return "v_prediction" if v else "epsilon"


def _part(configuration: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = configuration.get(name)
    return found if isinstance(found, Mapping) else {}


def declared_in_scheduler(config: Mapping[str, Any]) -> Declaration:
    """Return what the scheduler's configuration in a diffusers folder declares."""
    prediction = config.get("prediction_type")
    return Declaration(None if prediction is None else str(prediction), bool(config.get("rescale_betas_zero_snr")))

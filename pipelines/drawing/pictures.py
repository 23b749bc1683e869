"""Checks before drawing: which pictures a model needs, and what WebUI cannot do with it."""

from dataclasses import replace

from pipelines.ask.plan import HighresPlan
from pipelines.errors import InvalidInput
from pipelines.families.family import DEPTH_CHANNELS, INPAINTING_CHANNELS
from pipelines.infotext.asked import Pictures
from pipelines.models.model import Model


def draws_by_depth(model: Model) -> bool:
    """Return whether the UNet gets a depth map in addition to the latents."""
    return bool(model.unet.network.config.in_channels == DEPTH_CHANNELS)


def check_image(model: Model, pictures: Pictures) -> None:
    """Raise InvalidInput if there is no image but the model cannot draw without one."""
    if draws_by_depth(model) and pictures.image is None:
        rule = f"{model.family.name} needs an image to take the depth from, as in WebUI"
        raise InvalidInput("image", "", rule, "Send one, or use a checkpoint for text to image.")


def check_noise_level(model: Model, level: int) -> None:
    """Raise InvalidInput for noise over the image's embedding if the model's file lacks what is needed to add it."""
    if level and model.image_prompt is not None and not model.image_prompt.takes_noise:
        rule = "this checkpoint lacks the statistics of its embeddings, without which noise cannot be added to them"
        fix = "Use 0, or the model's diffusers folder, which has them (image_normalizer)."
        raise InvalidInput("image_noise_level", level, rule, fix)


def with_depth(model: Model, pictures: Pictures, controlled: bool) -> Pictures:
    """Return a request's pictures. With a depth model and no ControlNets, a control image is used as depth map.

    Raises InvalidInput if a depth model has several maps, or neither a map nor a network to estimate one.
    """
    if not draws_by_depth(model):
        return pictures
    if len(pictures.controls) > 1 and not controlled:
        raise InvalidInput(
            "control_images", f"{len(pictures.controls)} sent", "an image has one depth map", "Send one."
        )
    if pictures.controls and not controlled:
        return replace(pictures, depth=pictures.controls[0], controls=())
    if model.depth is None:
        rule = "this checkpoint has no depth estimator"
        fix = "Send a depth map of the image, white for what is nearest"
        fix += ", and no controls: they cannot be combined with your own map." if controlled else "."
        raise InvalidInput("control_images", "", rule, fix)
    return pictures


def beyond_webui(model: Model, plan: HighresPlan, mask_weight: float) -> list[str]:
    """Return lines for the log about what is drawn here but is an error in WebUI."""
    upscale, channels = plan.upscale, model.unet.network.config.in_channels
    if upscale and upscale.latent and channels == INPAINTING_CHANNELS and mask_weight >= 1:
        return [f"WebUI cannot do a highres fix with {upscale.upscaler} and an inpainting checkpoint. It is done here."]
    return []

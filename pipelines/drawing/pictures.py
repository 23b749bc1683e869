"""What a model needs of a request's pictures, and what WebUI cannot do with it: known before it draws."""

from dataclasses import replace

from pipelines.ask.plan import HighresPlan
from pipelines.errors import InvalidInput
from pipelines.families.family import DEPTH_CHANNELS, INPAINTING_CHANNELS
from pipelines.infotext.asked import Pictures
from pipelines.models.model import Model


def draws_by_depth(model: Model) -> bool:
    """Return whether the UNet sees a depth map beside the latents."""
    return bool(model.unet.network.config.in_channels == DEPTH_CHANNELS)


def check_image(model: Model, pictures: Pictures) -> None:
    """Raise InvalidInput for a request without an image to a model that cannot draw without one."""
    if draws_by_depth(model) and pictures.image is None:
        rule = f"{model.family.name} draws from a picture, by the depth in it; WebUI cannot draw without one, either"
        raise InvalidInput("image", "", rule, "Send a picture, or use a checkpoint for text to image.")


def with_depth(model: Model, pictures: Pictures) -> Pictures:
    """Return the pictures of a request without ControlNets: the control image of a depth model is a depth map.

    Raises InvalidInput where a depth model has neither a map nor what could estimate one.
    """
    if not draws_by_depth(model):
        return pictures
    if len(pictures.controls) == 1:
        return replace(pictures, depth=pictures.controls[0], controls=())
    if model.depth is None:
        rule = "this checkpoint brings no depth estimator"
        raise InvalidInput("control_images", "", rule, "Send a depth map of the image, white what is nearest.")
    return pictures


def beyond_webui(model: Model, plan: HighresPlan) -> list[str]:
    """Return what is drawn here and is an error in WebUI, for the log."""
    upscale, channels = plan.upscale, model.unet.network.config.in_channels
    if upscale and upscale.latent and channels == INPAINTING_CHANNELS:
        return [f"WebUI cannot draw a highres fix by {upscale.upscaler} with an inpainting checkpoint. It is drawn."]
    return []

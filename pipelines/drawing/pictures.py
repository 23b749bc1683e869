"""Checks before drawing: which pictures a model needs, and what WebUI cannot do with it."""

from collections.abc import Iterator
from dataclasses import replace

from pipelines.ask.plan import HighresPlan
from pipelines.ask.request import GenerationRequest
from pipelines.errors import InvalidInput
from pipelines.families.family import DEPTH_CHANNELS, INPAINTING_CHANNELS
from pipelines.families.sdxl import REFINER
from pipelines.infotext.asked import Pictures
from pipelines.models.model import Model


def draws_by_depth(model: Model) -> bool:
    """Return whether the UNet gets a depth map in addition to the latents."""
    return bool(model.unet.network.config.in_channels == DEPTH_CHANNELS)


def check_image(model: Model, pictures: Pictures, controlled: bool) -> None:
    """Raise InvalidInput if the model cannot draw with these pictures: it may need an image, and the image's depth.

    `controlled` says whether control networks are named. They use the control images, which are depth maps otherwise.
    """
    if not draws_by_depth(model):
        return
    if pictures.image is None:
        rule = f"{model.family.name} needs an image to take the depth from, as in WebUI"
        raise InvalidInput("image", "", rule, "Send one, or use a checkpoint for text to image.")
    if model.depth is None and (controlled or not pictures.controls):
        rule = "this checkpoint has no depth estimator"
        fix = "Send a depth map of the image, white for what is nearest"
        fix += ", and no controls: they cannot be combined with your own map." if controlled else "."
        raise InvalidInput("control_images", "", rule, fix)


def check_noise_level(model: Model, level: int) -> None:
    """Raise InvalidInput for noise over the image's embedding if the model's file lacks what is needed to add it."""
    if level and model.image_prompt is not None and not model.image_prompt.takes_noise:
        rule = "this checkpoint lacks the statistics of its embeddings, without which noise cannot be added to them"
        fix = "Use 0, or the model's diffusers folder, which has them (image_normalizer)."
        raise InvalidInput("image_noise_level", level, rule, fix)


def with_depth(model: Model, pictures: Pictures, controlled: bool) -> Pictures:
    """Return a request's pictures. With a depth model and no control networks, a control image is its depth map.

    Raises InvalidInput for several maps, and as `check_image` does: networks may have come with the request's files.
    """
    check_image(model, pictures, controlled)
    if not draws_by_depth(model) or controlled or not pictures.controls:
        return pictures
    if (count := len(pictures.controls)) > 1:
        raise InvalidInput("control_images", f"{count} sent", "an image has one depth map", "Send one.")
    return replace(pictures, depth=pictures.controls[0], controls=())


def remarks(model: Model, plan: HighresPlan, request: GenerationRequest) -> Iterator[str]:
    """Yield lines for the log about what is an error in WebUI, and about what a model draws poorly."""
    upscale, channels = plan.upscale, model.unet.network.config.in_channels
    if upscale and upscale.latent and channels == INPAINTING_CHANNELS and request.mask_weight >= 1:
        yield f"WebUI cannot do a highres fix with {upscale.upscaler} and an inpainting checkpoint. It is done here."
    if model.family is REFINER and not request.image:
        yield "A refiner draws poorly from noise alone. Send an image, or name it as the Refiner of an SDXL model."
    width, height = plan.first.width, plan.first.height
    if min(width, height) < model.family.smallest:
        yield f"{model.family.name} draws poorly at {width}x{height}: it was trained with pictures of about 1024x1024."

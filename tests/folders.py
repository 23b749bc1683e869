"""Models as diffusers folders."""

from pathlib import Path

from diffusers import DDIMScheduler
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from pipelines.models.model import Model


def save(model: Model, folder: Path, unet: UNet2DConditionModel | None = None, **scheduler: object) -> Path:
    """Write the model into the folder, with another UNet if one is given."""
    (unet or model.unet.network).save_pretrained(folder / "unet")
    model.vae.network.save_pretrained(folder / "vae")
    model.text.towers[0].model.save_pretrained(folder / "text_encoder")
    DDIMScheduler(**scheduler).save_pretrained(folder / "scheduler")
    return folder

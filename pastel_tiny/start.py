"""The weights of an earlier version, from which the next one may begin."""

from pathlib import Path

import torch
from torch import Tensor

from pipelines.ask.identity import ModelFiles
from pipelines.models.loader import load
from pipelines.runtime.device import Device

Weights = dict[str, Tensor]


def started(folder: Path | None) -> dict[str, Weights]:
    """Return the weights of `vae`, `text` and `unet` of a packed model's folder; nothing without a folder."""
    if folder is None:
        return {}
    checkpoint, better = (folder / f"pastel-tiny{end}.safetensors" for end in ("", "-better.vae"))
    files = ModelFiles(name="start", checkpoint=checkpoint, vae=better)
    model = load(files, Device(torch.device("cpu"), torch.float32))
    networks = {"vae": model.vae.network, "text": model.text.towers[0].model, "unet": model.unet.network}
    return {name: {key: value.clone() for key, value in net.state_dict().items()} for name, net in networks.items()}

"""ControlNet: a copy of the UNet's first half that sees a map and adds to what the UNet knows (Zhang et al. 2023,
arXiv:2302.05543), with the weights, shares of the steps and modes of WebUI's extension.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from diffusers.models.controlnets.controlnet import ControlNetModel
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipelines.checkpoint import is_safetensors, kind_of, map_tensors
from pipelines.device import Device
from pipelines.errors import ModelError
from pipelines.extras import ExtraFile
from pipelines.masks import Canvas
from pipelines.network import built_of, fill
from pipelines.picture import flat, resize
from pipelines.plan import PassPlan
from pipelines.request import ControlSettings
from pipelines.unet import fit_any_norm

SOFT = 0.825
"""Where prompt or ControlNet is more important, each residual has this share of the next deeper one."""
FORMS = ("time_embed.0.weight", "control_model.time_embed.0.weight", "time_embedding.linear_1.weight")
"""A ControlNet's first layer in the three layouts that are published: LDM's with and without prefix, and diffusers'."""
TENSORS_MAX = 2000
"""In a ControlNet's file; what renames them takes the square of their number in time."""


class ControlNets:
    """The ControlNets of one prediction, kept for the next one as far as it asks for the same."""

    def __init__(self, unet: Mapping[str, Any], device: Device) -> None:
        """`unet` is the configuration of the UNet that they guide."""
        self._unet, self._device = unet, device
        self._loaded: dict[ExtraFile, ControlNetModel] = {}

    def __getitem__(self, file: ExtraFile) -> ControlNetModel:
        return self._loaded[file]

    @property
    def networks(self) -> Collection[ControlNetModel]:
        return self._loaded.values()

    def bring(self, files: Iterable[ExtraFile]) -> None:
        """Have exactly these loaded. Raises ModelError for a file that does not fit the UNet."""
        wanted = dict.fromkeys(files)
        self._loaded = {file: network for file, network in self._loaded.items() if file in wanted}
        for file in wanted:
            if file not in self._loaded:
                with file.blamed():
                    self._loaded[file] = load_control(file.path, self._unet, self._device)


def load_control(path: Path, unet: Mapping[str, Any], device: Device) -> ControlNetModel:
    """The ControlNet of a safetensors file, by LDM's or diffusers' names. Raises ModelError."""
    if not is_safetensors(path):
        raise ModelError(f"{path}: a pickle. ControlNets are read as .safetensors only: give that version of it.")
    tensors = map_tensors(path)
    if "difference" in tensors:
        raise ModelError(f"{path}: holds only differences to another model. Give the whole ControlNet.")
    if not any(name in tensors for name in FORMS) or not any("zero_convs" in n or "controlnet_" in n for n in tensors):
        kind = kind_of(tensors)
        what = f"{kind.what}, and no ControlNet" if kind and kind.what != "a ControlNet" else "no ControlNet"
        raise ModelError(f"{path}: {what}. Give one that was made for Stable Diffusion 1.x.")
    if len(tensors) > TENSORS_MAX:
        raise ModelError(
            f"{path}: holds {len(tensors)} tensors, and a ControlNet of Stable Diffusion 1.x has about 340."
        )
    config = {name: unet[name] for name in ("block_out_channels", "down_block_types", "layers_per_block")}
    config |= {"cross_attention_dim": unet["cross_attention_dim"], "attention_head_dim": unet["attention_head_dim"]}
    with built_of(path, "ControlNet", tensors), torch.device("meta"):
        network, converted = ControlNetModel(**config), convert_controlnet_checkpoint(tensors, config)
    fit_any_norm(network)
    there = {name: tensor for name, tensor in converted.items() if tensor is not None}  # what diffusers looked for
    return fill(path, network, there, device).eval()


@dataclass(frozen=True)
class Unit:
    """One ControlNet of a pass."""

    network: ControlNetModel
    settings: ControlSettings
    steps: range
    shown: Tensor
    """Its map (1, 3, H, W)."""


class Controls:
    """The ControlNets of one pass."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self._units = units

    def residuals(
        self, images: Tensor, time: Tensor, contexts: Tensor, step: int, conditional: int
    ) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """What the UNet takes beside images (B, C, h, w), time () and contexts (B, tokens, width) at a step.

        The first `conditional` rows are the prompt's, the others the negative prompt's. Nothing where nothing acts.
        """
        total: list[Tensor] = []
        for unit in self._units:
            rows = conditional if unit.settings.mode == "control" else len(images)
            if step in unit.steps and rows:
                added = _added(unit, images[:rows, :4], time, contexts[:rows], len(images))
                total = [one + other for one, other in zip(total, added, strict=True)] if total else added
        if not total:
            return {}
        *down, mid = total
        return {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": mid}


def _added(unit: Unit, images: Tensor, time: Tensor, contexts: Tensor, rows: int) -> list[Tensor]:
    """A unit's residuals, the deepest last, for its rows and zeros for those after them."""
    shown = unit.shown.expand(len(images), -1, -1, -1)
    down, mid = unit.network(images, time, contexts, shown, return_dict=False)
    last = len(down)
    soft = SOFT if unit.settings.mode != "balanced" else 1.0
    scaled = [part * (unit.settings.weight * soft ** (last - place)) for place, part in enumerate((*down, mid))]
    without = rows - len(images)
    return [F.pad(part, (0, 0, 0, 0, 0, 0, 0, without)) for part in scaled] if without else scaled


def in_hires(control: ControlSettings) -> ControlSettings:
    """The unit in a hires pass: WebUI's extension softens Canny's there in every mode, as it leaves hard edges."""
    softened = control.preprocessor == "canny" and control.mode == "balanced"
    return replace(control, mode="prompt") if softened else control


def controls_of(
    part: PassPlan,
    settings: Sequence[ControlSettings],
    networks: Sequence[ControlNetModel],
    canvas: Canvas | None,
    device: Device,
) -> Controls | None:
    """The ControlNets that act in a pass, with their maps in its size; None where none does.

    A unit without a picture of its own sees what the first pass started from, the `canvas`.
    """
    units = []
    for control, network in zip(settings, networks, strict=True):
        if steps := part.steps_under(control):
            shown = _shown(part, control, canvas).to(device.place, device.dtype)
            units.append(Unit(network, control, steps, shown))
    return Controls(units) if units else None


def _shown(part: PassPlan, control: ControlSettings, canvas: Canvas | None) -> Tensor:
    from pipelines.preprocess import control_map  # OpenCV: half a second that most predictions can do without

    size = part.width, part.height
    if control.picture is None:
        assert canvas is not None  # the request's check
        picture = resize(canvas.picture, size, "stretch")
    else:
        assert isinstance(control.picture, Image.Image)
        own = flat(control.picture)
        picture = resize(canvas.same_part(own) if canvas else own, size, control.resize_mode)
    mask = canvas.mask if canvas else None
    masked = np.asarray(mask.resize(size)) > 127 if mask else None
    shown = control_map(np.ascontiguousarray(picture), control, masked)
    return torch.from_numpy(shown).permute(2, 0, 1)[None]

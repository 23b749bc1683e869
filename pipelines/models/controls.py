"""ControlNets and adapters, which guide a prediction in addition to its prompt. File content tells them apart."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from diffusers.models.adapter import T2IAdapter
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from pipelines.ask.networks import ExtraFile
from pipelines.errors import ModelError
from pipelines.families.family import Family
from pipelines.families.fitting import check_made_for
from pipelines.models.checkpoint import FACE_ADAPTERS, IP_ADAPTER, T2I_ADAPTER, Kind, kind_of, map_tensors
from pipelines.models.controlnets import build_controlnet, values_of
from pipelines.models.image_encoder import ImageEncoder, load_image_encoder
from pipelines.models.ip_adapters import IPAdapter, build_ip_adapter
from pipelines.models.t2i_adapters import build_t2i_adapter
from pipelines.runtime.device import Device

ControlNetwork: TypeAlias = ControlNetModel | T2IAdapter | IPAdapter
Build = Callable[[Path, Mapping[str, Tensor], UNet2DConditionModel, Device, Family], ControlNetwork]
BUILD: Mapping[Kind, Build] = {T2I_ADAPTER: build_t2i_adapter, IP_ADAPTER: build_ip_adapter}
"""How to build each kind of network. Files of any other kind are treated as ControlNets."""


class ControlNetworks:
    """The control networks of one prediction. They are kept for the next one if it uses them again."""

    def __init__(self, unet: UNet2DConditionModel, family: Family, device: Device) -> None:
        """Load networks for this `unet`, whose model is of this `family`."""
        self._unet, self._family, self._device = unet, family, device
        self._loaded: dict[ExtraFile, ControlNetwork] = {}
        self._encoders: dict[ExtraFile, ImageEncoder] = {}

    def __getitem__(self, file: ExtraFile) -> ControlNetwork:
        return self._loaded[file]

    @property
    def networks(self) -> Collection[ControlNetwork]:
        """All loaded networks, without the image encoder."""
        return self._loaded.values()

    @property
    def encoder(self) -> ImageEncoder | None:
        """The image encoder, which is loaded together with an IP-Adapter; None if it is not loaded."""
        return next(iter(self._encoders.values()), None)

    def have(self, files: Iterable[ExtraFile]) -> bool:
        """Return whether all of these are loaded."""
        return all(file in self._loaded for file in files)

    def growth(self, files: Iterable[ExtraFile], image_encoder: ExtraFile | None = None) -> int:
        """Return how many bytes `load_only` would take on the device. It is negative if more is dropped than loaded.

        Only the files' headers are read. Those that cannot be used count nothing: loading them says why.
        """
        wanted, held = set(files), {**self._loaded, **{file: each.network for file, each in self._encoders.items()}}
        new = {file: self._tensors(file) for file in wanted if file not in self._loaded}
        pictures = any(isinstance(self._loaded.get(file), IPAdapter) for file in wanted)
        if image_encoder and (pictures or any(kind_of(each) is IP_ADAPTER for each in new.values())):
            wanted.add(image_encoder)
            new |= {} if image_encoder in held else {image_encoder: self._tensors(image_encoder)}
        dropped = sum(_bytes(network) for file, network in held.items() if file not in wanted)
        needed = sum(values_of(tensors, self._unet) for tensors in new.values()) * self._device.dtype.itemsize
        return needed - dropped

    def _tensors(self, file: ExtraFile) -> Mapping[str, Tensor]:
        try:
            return map_tensors(file.path)
        except ModelError:
            return {}

    def load_only(self, files: Iterable[ExtraFile], image_encoder: ExtraFile | None = None) -> None:
        """Load these files, keep those that are already loaded and drop all others.

        The UNet must have no LoRAs applied when a file is read, because a Control-LoRA is a change of the UNet's own
        weights. Raises ModelError for a file that does not fit the UNet, and for an IP-Adapter without image encoder.
        """
        wanted = dict.fromkeys(files)
        self._loaded = {file: network for file, network in self._loaded.items() if file in wanted}
        for file in wanted:
            if file not in self._loaded:
                with file.blamed():
                    self._loaded[file] = load_control(file.path, self._unet, self._device, self._family)
        self._load_encoder(image_encoder)

    def _load_encoder(self, file: ExtraFile | None) -> None:
        adapters = {each: network for each, network in self._loaded.items() if isinstance(network, IPAdapter)}
        if not adapters or file not in self._encoders:
            self._encoders.clear()
        if adapters and file is not None and file not in self._encoders:
            with file.blamed():
                self._encoders[file] = load_image_encoder(file.path, self._device)
        for each, adapter in adapters.items():
            with each.blamed():
                if self.encoder is None:
                    raise ModelError("an IP-Adapter, which needs the image encoder CLIP ViT-H; there is none here.")
                adapter.check_encoder(self.encoder)


def _bytes(network: nn.Module) -> int:
    return sum(each.nbytes for each in (*network.parameters(), *network.buffers()))


def load_control(path: Path, unet: UNet2DConditionModel, device: Device, family: Family) -> ControlNetwork:
    """Load the control network of a file for this UNet, whose model is of this family. Raises ModelError."""
    tensors = map_tensors(path)
    check_made_for(path, tensors, family)
    kind = kind_of(tensors)
    if kind in FACE_ADAPTERS:
        raise ModelError(f"{path}: {kind.what}. {kind.instead}")
    build = BUILD.get(kind, build_controlnet) if kind else build_controlnet
    return build(path, tensors, unet, device, family)

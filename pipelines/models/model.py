"""A model in memory: its family, its networks, and the changes that a prediction makes to them."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipelines.ask.identity import ModelIdentity
from pipelines.ask.networks import ExtraFile
from pipelines.ask.request import FreeU
from pipelines.families.family import Family
from pipelines.families.noise_schedule import NoiseSchedule
from pipelines.families.prediction import Prediction
from pipelines.models.controls import ControlNetworks
from pipelines.models.depth import DepthEstimator
from pipelines.models.hypernetworks import HypernetworkUse, hypernetworks_in
from pipelines.models.image_prompt import ImagePrompt
from pipelines.models.lora import Adapters, LoraUse
from pipelines.models.text import TextEncoder
from pipelines.models.unet import set_freeu, set_tiling
from pipelines.models.vae import VAE
from pipelines.runtime.device import Device
from pipelines.runtime.memory import Footprint
from pipelines.runtime.offloading import Components
from pipelines.runtime.unet_call import UNet


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model, shared by every phase and every prediction."""

    family: Family
    prediction: Prediction
    """What the UNet predicts: as in its family, unless its file says otherwise."""
    noise: NoiseSchedule
    """The noise schedule of its training: its family's, unless its file says otherwise."""
    unet: UNet
    vae: VAE
    text: TextEncoder
    image_prompt: ImagePrompt | None
    """An unCLIP model's image prompt; None for other models."""
    depth: DepthEstimator | None
    """A depth model's estimator; None for other models, and if the file lacks it."""
    adapters: Adapters
    controls: ControlNetworks
    components: Components
    """The weights of all its networks. They may leave the device."""
    device: Device
    identified: Future[ModelIdentity]

    @property
    def settings(self) -> dict[str, Any]:
        """Defaults for requests, as models of its family need them."""
        return self.family.settings_for(self.prediction)

    @property
    def identity(self) -> ModelIdentity:
        """Names and hashes. Files are hashed in the background after loading; this waits for the result."""
        return self.identified.result()

    @cached_property
    def _footprint(self) -> Footprint:
        return Footprint.of(self.unet.network, self.vae.network)

    @property
    def footprint(self) -> Footprint:
        """The memory that drawing takes, including the control networks that are loaded now."""
        return self.footprint_with(bool(self.controls.networks))

    def footprint_with(self, controls: bool) -> Footprint:
        """Return the memory that drawing takes with control networks, or without."""
        return self._footprint.under_controls() if controls else self._footprint

    @contextmanager
    def using(
        self,
        loras: Sequence[LoraUse],
        controls: Iterable[ExtraFile],
        freeu: FreeU | None,
        hypernetworks: Sequence[HypernetworkUse] = (),
        image_encoder: ExtraFile | None = None,
    ) -> Iterator[None]:
        """Give the model exactly these LoRAs, control networks, hypernetworks and FreeU while the context lasts.

        At its end FreeU and hypernetworks are turned off. LoRAs and control networks stay, because the next prediction
        may use the same; one that uses others removes them. IP-Adapters need the image encoder. Contexts must not be
        nested. Raises ModelError for a file that does not fit.
        """
        wanted = tuple(controls)
        if not self.controls.have(wanted):
            self.adapters.apply(())
        self.controls.load_only(wanted, image_encoder)
        self.adapters.apply(loras)
        set_freeu(self.unet.network, freeu)
        try:
            with hypernetworks_in(self.unet.network, hypernetworks, self.device.place):
                yield
        finally:
            set_freeu(self.unet.network, None)

    @contextmanager
    def tiling(self, on: bool) -> Iterator[None]:
        """Make opposite edges of pictures match while the context lasts, if `on`. ControlNets are not changed."""
        networks = [self.unet.network, self.vae.network] if on else []
        for network in networks:
            set_tiling(network, True)
        try:
            yield
        finally:
            for network in networks:
                set_tiling(network, False)

"""A model in memory: its family's description, its networks, and what a prediction puts into them."""

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
from pipelines.runtime.unet_call import UNet


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model, shared by every phase and every prediction."""

    family: Family
    prediction: Prediction
    """What this model's UNet predicts: its family's way, unless its file says otherwise."""
    noise: NoiseSchedule
    """What it was trained with: its family's schedule, unless its file says otherwise."""
    unet: UNet
    vae: VAE
    text: TextEncoder
    image_prompt: ImagePrompt | None
    """An unCLIP model's second way to be told what to draw; None for others."""
    depth: DepthEstimator | None
    """What tells a depth model how far away everything in a picture is; None for others, and where a file lacks it."""
    adapters: Adapters
    controls: ControlNetworks
    device: Device
    identified: Future[ModelIdentity]

    @property
    def settings(self) -> dict[str, Any]:
        """What a request takes that does not say otherwise, as its family's models need it."""
        return self.family.settings_for(self.prediction)

    @property
    def identity(self) -> ModelIdentity:
        """Names and hashes. Files are hashed while the first picture is drawn; this waits until they are."""
        return self.identified.result()

    @cached_property
    def _footprint(self) -> Footprint:
        return Footprint.of(self.unet.network, self.vae.network)

    @property
    def footprint(self) -> Footprint:
        """The bytes that drawing takes, with the control networks that are loaded now."""
        return self._footprint.under_controls() if self.controls.networks else self._footprint

    @contextmanager
    def using(
        self,
        loras: Sequence[LoraUse],
        controls: Iterable[ExtraFile],
        freeu: FreeU | None,
        hypernetworks: Sequence[HypernetworkUse] = (),
        image_encoder: ExtraFile | None = None,
    ) -> Iterator[None]:
        """Inside, the model has exactly these LoRAs in its weights, these control networks loaded, these hypernetworks
        in its attention, and FreeU on or off.

        At the end FreeU and hypernetworks go off at once. LoRAs and control networks stay for the next prediction that
        asks for the same; one that asks for others takes them out. IP-Adapters see by the image encoder. Not to be
        nested. Raises ModelError for a file that does not fit.
        """
        wanted = tuple(controls)
        if not self.controls.have(wanted):
            self.adapters.apply(())
        self.controls.load_only(wanted, image_encoder)
        self.adapters.apply(loras)
        set_freeu(self.unet.network, freeu)
        try:
            with hypernetworks_in(self.unet.network, hypernetworks):
                yield
        finally:
            set_freeu(self.unet.network, None)

    @contextmanager
    def tiling(self, on: bool) -> Iterator[None]:
        """Inside, pictures fit to themselves at opposite edges if it is on. ControlNets see no edges but their own."""
        networks = [self.unet.network, self.vae.network] if on else []
        for network in networks:
            set_tiling(network, True)
        try:
            yield
        finally:
            for network in networks:
                set_tiling(network, False)

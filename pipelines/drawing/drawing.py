"""The state that the phases of one prediction share."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.ask.networks import hypernetwork_tags, lora_tags
from pipelines.ask.plan import HighresPlan, PassPlan
from pipelines.ask.request import GenerationRequest
from pipelines.images.masks import Canvas
from pipelines.images.reading import Pixels, nearness, resize
from pipelines.models.hypernetworks import HypernetworkUse
from pipelines.models.lora import LoraUse
from pipelines.models.model import Model
from pipelines.runtime.device import Stopwatch
from pipelines.sampling.control import Controls, controls_of, in_hires
from pipelines.sampling.noise import Noise
from pipelines.upscalers.interpolation import Upscaler


@dataclass(frozen=True, kw_only=True)
class PassNetworks:
    """The networks that a pass's prompt uses in addition to the model."""

    loras: tuple[LoraUse, ...]
    hypernetworks: tuple[HypernetworkUse, ...]


NO_NETWORKS = PassNetworks(loras=(), hypernetworks=())


@dataclass(frozen=True)
class Given:
    """Tensors that replace those a request's picture is encoded to. WebUI does not seed that encoding, so parity checks
    need them."""

    latents: Tensor | None = None
    """(B or 1, 4, h, w): the start of the first pass."""
    condition: Tensor | None = None
    """What the first pass's UNet gets about the picture: channels in addition to the latents (1, n, h, w), or an unCLIP
    model's vectors (B or 1, k)."""
    hires_condition: Tensor | None = None
    """The same for the hires pass, (B or 1, n, h, w) or (B or 1, k)."""
    unseeded: torch.Generator | None = None
    """In place of such tensors: the state of torch's generator from which WebUI drew the noise of the encoding. None:
    that noise comes from each image's seed, or is left out."""


NOTHING_GIVEN = Given()


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A request that is being drawn, with everything that stays the same in all phases."""

    model: Model
    """The model of the first pass. `in_hires` has the hires pass's."""
    hires_model: Model
    refiner: Model
    """The model that the request names as refiner; the first pass's if it names none."""
    request: GenerationRequest
    plan: HighresPlan
    canvas: Canvas | None
    """The picture to start from, in the first pass's size; None to start from noise."""
    upscaler: Upscaler | None
    """The plan's upscaler, if it has its own weights."""
    show_phases: bool
    """Whether the draft and the enlarged picture are also returned."""
    watch: Stopwatch
    given: Given = NOTHING_GIVEN

    @cached_property
    def depth(self) -> Tensor:
        """The depth map of the canvas, (1, 1, H, W) of any range: the request's, or an estimate."""
        settings, canvas = self.request.image, self.canvas
        assert settings is not None
        assert canvas is not None
        if settings.depth is None:
            assert self.model.depth is not None
            self.model.components.pictures.take()
            return self.model.depth.depth(canvas.picture)
        assert isinstance(settings.depth, Image.Image)
        given = canvas.same_part(nearness(settings.depth))
        if settings.resize_mode in ("crop", "fill") and canvas.box is None:
            given = resize(given, canvas.picture.size, settings.resize_mode)
        values = np.asarray(given if given.mode == "F" else given.convert("RGB")).astype(np.float32)
        return torch.from_numpy(values if values.ndim == 2 else values.mean(2))[None, None]

    @property
    def place(self) -> torch.device:
        """The device that the networks are on."""
        return self.model.device.place

    @property
    def in_hires(self) -> "Drawing":
        """The same request with the hires pass's model. Most requests have one model, and so one depth map."""
        return self if self.hires_model is self.model else replace(self, model=self.hires_model)

    def refiner_in(self, part: PassPlan) -> Model | None:
        """Return the model that takes over within a pass; None if none does."""
        hires = self.plan.hires
        acts = self.refiner is not self.model and self.request.refiner.acts_in(part is hires, alone=hires is None)
        return self.refiner if acts else None

    def for_refiner(self, networks: PassNetworks) -> PassNetworks:
        """Return those of a pass's networks that act on its refiner. In WebUI they stay when it takes over, and change
        the layers that they fit: all of a model of the same family, none of SDXL's refiner."""
        return networks if self.refiner.family is self.model.family else NO_NETWORKS

    @contextmanager
    def using(self, networks: PassNetworks, part: PassPlan) -> Iterator[None]:
        """Apply everything that a pass with these networks needs to its models while the context lasts."""
        extras = self.request.extras
        controls = [extras.controls[control.model] for control in self.request.controls]
        used = networks.loras, controls, self.request.freeu, networks.hypernetworks
        with ExitStack() as stack:
            stack.enter_context(self.model.using(*used, extras.image_encoder))
            if refiner := self.refiner_in(part):
                own = self.for_refiner(networks)
                stack.enter_context(refiner.using(own.loras, (), None, own.hypernetworks))
            yield

    def networks(self, prompt: str) -> PassNetworks:
        """Return the networks that a prompt's tags ask for."""
        loras, hypernetworks = self.request.extras.loras, self.request.extras.hypernetworks
        changing = [tag for tag in hypernetwork_tags(prompt) if tag.name in hypernetworks and tag.multiplier]
        return PassNetworks(
            loras=tuple(LoraUse(loras[tag.name], tag) for tag in lora_tags(prompt) if tag.name in loras),
            hypernetworks=tuple(HypernetworkUse(hypernetworks[tag.name], tag.multiplier) for tag in changing),
        )

    def controls(self, part: PassPlan) -> Controls | None:
        """Return the request's control networks for a pass, with maps of its size."""
        settings = self.request.controls
        if part is self.plan.hires:
            settings = tuple(in_hires(control) for control in settings)
        files = self.request.extras.controls
        loaded = self.model.controls
        networks = [loaded[files[control.model]] for control in settings]
        return controls_of(part, settings, networks, self.canvas, self.model.device, loaded.encoder)

    def noise(self, part: PassPlan, span: tuple[float, float] | None = None) -> Noise:
        """Return the noise of a pass from fresh generators. Both passes use the same seeds."""
        noise = Noise(
            self.plan.seeds,
            part.latent_shape,
            device=self.place,
            settings=self.request.noise,
            variation_seeds=self.plan.variation_seeds,
            span=span,
        )
        noise.added = part.added_noise
        return noise

    def finished(self, pixels: Pixels) -> Pixels:
        """Return a decoded picture with the parts of the input that the canvas keeps."""
        return self.canvas.finish(pixels) if self.canvas else pixels

"""The state that the phases of one prediction share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.ask.networks import hypernetwork_tags, lora_tags
from pipelines.ask.plan import HighresPlan, PassPlan
from pipelines.ask.request import GenerationRequest, NoiseSettings
from pipelines.images.masks import Canvas
from pipelines.images.reading import Pixels, nearness, resize
from pipelines.models.hypernetworks import HypernetworkUse
from pipelines.models.lora import LoraUse
from pipelines.models.model import Model
from pipelines.runtime.device import Stopwatch
from pipelines.sampling.between import COMPUTED, Beginning, NoiseBetween, between_noise, interpolated
from pipelines.sampling.control import Controls, controls_of, in_hires
from pipelines.sampling.noise import Noise, Shape
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
    beginning: Beginning = COMPUTED
    """How the first calls of the first pass are computed."""

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
        request = self.request
        used = networks.loras, request.control_files, request.freeu, networks.hypernetworks
        with ExitStack() as stack:
            stack.enter_context(self.model.using(*used, request.extras.image_encoder))
            if refiner := self.refiner_in(part):
                own = self.for_refiner(networks)
                stack.enter_context(refiner.using(own.loras, (), None, own.hypernetworks))
            yield

    @property
    def ends(self) -> tuple["Drawing", ...]:
        """This drawing; for pictures between two requests, the drawings of both ends."""
        between = self.plan.between
        if between is None:
            return (self,)
        plan = replace(self.plan, between=None)
        return replace(self, plan=plan), replace(self, plan=plan, request=between.end)

    @property
    def guidance_scale(self) -> float | Tensor:
        """The guidance scale; (B, 1, 1, 1) if it differs between the pictures."""
        between, own = self.plan.between, self.request.guidance_scale
        return own if between is None else interpolated(own, between.end.guidance_scale, between.shares, self.place)

    def networks(self, hires: bool) -> PassNetworks:
        """Return the networks that the tags in the prompt of a pass ask for."""
        start, *end = (each._own_networks(hires) for each in self.ends)
        return networks_between(start, end[0], self.plan.between.shares[0]) if end and self.plan.between else start

    def _own_networks(self, hires: bool) -> PassNetworks:
        prompt = prompt_of(self.request, hires)
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
        noise = self.noise_of(part.latent_shape, self.request.noise, span)
        noise.added = part.added_noise
        return noise

    def noise_of(self, shape: Shape, settings: NoiseSettings, span: tuple[float, float] | None = None) -> Noise:
        """Return noise of this shape for the pictures, from fresh generators."""

        def of(seeds: Sequence[int]) -> Noise:
            variation_seeds = self.plan.variation_seeds[: len(seeds)]
            return Noise(seeds, shape, device=self.place, settings=settings, variation_seeds=variation_seeds, span=span)

        between, seed = self.plan.between, self.request.seed
        if between is None:
            return of(self.plan.seeds)
        return NoiseBetween(of([seed]), None if between.end.seed == seed else of([between.end.seed]), between.shares)

    def from_seeds(self, draw: Callable[[Sequence[int]], Tensor]) -> Tensor:
        """Return random numbers (B, ...) that `draw` makes from a seed for each picture, in the host's memory."""
        between, seed = self.plan.between, self.request.seed
        if between is None:
            return draw(self.plan.seeds)
        if between.end.seed == seed:
            return draw([seed]).repeat_interleave(len(between.shares), dim=0)
        return between_noise(draw([seed]), draw([between.end.seed]), between.shares)

    def finished(self, pixels: Pixels) -> Pixels:
        """Return a decoded picture with the parts of the input that the canvas keeps."""
        return self.canvas.finish(pixels) if self.canvas else pixels


def prompt_of(request: GenerationRequest, hires: bool) -> str:
    """Return the prompt of a pass."""
    own = request.hires.prompt if hires and request.hires else ""
    return own or request.prompt


def _kind(use: LoraUse) -> tuple[str, int | None]:
    return use.tag.name, use.tag.rank


def networks_between(start: PassNetworks, end: PassNetworks, share: float) -> PassNetworks:
    """Return the networks of both ends, with multipliers in between. A network that one end lacks has 0 there."""
    if start == end:
        return start
    # With another rank it acts as another network.
    loras = {_kind(use): replace(use, tag=replace(use.tag, te=0.0, unet=0.0)) for use in (*start.loras, *end.loras)}
    files = {use.file: 0.0 for use in (*start.hypernetworks, *end.hypernetworks)}
    for networks, part in ((start, 1 - share), (end, share)):
        for use in networks.loras:
            tag = loras[_kind(use)].tag
            tag = replace(tag, te=tag.te + part * use.tag.te, unet=tag.unet + part * use.tag.unet)
            loras[_kind(use)] = replace(use, tag=tag)
        for each in networks.hypernetworks:
            files[each.file] += part * each.multiplier
    hypernetworks = tuple(HypernetworkUse(file, multiplier) for file, multiplier in files.items())
    return PassNetworks(loras=tuple(loras.values()), hypernetworks=hypernetworks)

"""All random numbers of one pass, drawn from seeds: initial noise, ancestral noise, SDE noise.

Each image has its own generators, so that it is the same alone or in a batch. The sources are WebUI's: "CPU" is torch's
CPU generator, "GPU" is the CUDA one, and "NV" computes the CUDA generator's numbers on any machine.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, repeat

import numpy as np
import torch
from torch import Tensor

from pipelines.ask.plan import LATENT_PIXELS
from pipelines.ask.request import AddedNoise, NoiseSettings

DEFAULTS, ADDED = NoiseSettings(), AddedNoise()
Shape = tuple[int, int, int]
Source = Callable[[Sequence[int], Shape, torch.device], Iterator[Tensor]]
"""(seeds, shape, device) -> successive draws (len(seeds), *shape) of unit normals. Each seed has its own stream."""


def torch_normals(seeds: Sequence[int], shape: Shape, device: torch.device, origin: str = "cpu") -> Iterator[Tensor]:
    """Yield draws of torch's generator on the device `origin`, moved to `device`."""
    generators = [torch.Generator(origin).manual_seed(seed) for seed in seeds]
    while True:
        draws = [torch.randn(shape, generator=generator, device=origin) for generator in generators]
        yield torch.stack(draws).to(device, non_blocking=True)


_AHEAD = 8
"""How many ancestral draws Philox computes at once. A draw takes a hundred small kernels; eight take no longer on a
GPU."""


def philox_normals(seeds: Sequence[int], shape: Shape, device: torch.device) -> Iterator[Tensor]:
    """Yield the draws of CUDA's generator, computed on `device`. They equal a GPU's for sizes it fills in one sweep."""
    words = [[seed & _WORD for seed in seeds], [seed >> 32 & _WORD for seed in seeds]]
    key = torch.tensor(words).to(device, non_blocking=True)[:, None, :, None]  # (2, 1, seeds, 1)
    element = torch.arange(math.prod(shape), device=device)
    first = 0
    for size in chain([1], repeat(_AHEAD)):
        draw = torch.arange(first, first + size, device=device)[:, None, None]
        yield from _box_muller(*_philox(draw, element, key[0], key[1])).unflatten(-1, shape)
        first += size


_WORD = 0xFFFFFFFF


def _philox(draw: Tensor, element: Tensor, key_0: Tensor, key_1: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first two words of Philox 4x32-10 (Salmon et al. 2011) at the counter (draw, 0, element, 0), as int64
    tensors."""
    c_0, c_1, c_2, c_3 = draw, torch.zeros_like(draw), element, torch.zeros_like(draw)
    for _ in range(10):
        # The 64-bit products overflow into the sign bit; masking after the shift makes it a logical shift.
        product_0, product_1 = 0xD2511F53 * c_0, 0xCD9E8D57 * c_2
        c_0, c_1 = (product_1 >> 32 & _WORD) ^ c_1 ^ key_0, product_1 & _WORD
        c_2, c_3 = (product_0 >> 32 & _WORD) ^ c_3 ^ key_1, product_0 & _WORD
        key_0, key_1 = key_0 + 0x9E3779B9 & _WORD, key_1 + 0xBB67AE85 & _WORD
    return c_0, c_1


_TURN = float(np.float32(2 * math.pi / 2**32))
"""The factor 2 pi / 2^32, which cuRAND keeps in single precision."""


def _box_muller(word_0: Tensor, word_1: Tensor) -> Tensor:
    """Return unit normals, float32, from pairs of uniform 32-bit words."""
    radius = ((word_0.double() + 0.5) / 2**32).log().mul(-2).sqrt()
    return (radius * ((word_1.double() + 0.5) * _TURN).sin()).float()


def _gpu_normals(seeds: Sequence[int], shape: Shape, device: torch.device) -> Iterator[Tensor]:
    """Return the CUDA generator's draws, computed by Philox if there is no CUDA."""
    if device.type == "cuda":
        return torch_normals(seeds, shape, device, "cuda")
    return philox_normals(seeds, shape, device)


SOURCES: dict[str, Source] = {"NV": philox_normals, "CPU": torch_normals, "GPU": _gpu_normals}


def slerp(start: Tensor, end: Tensor, weight: float) -> Tensor:
    """Interpolate noise (C, H, W) spherically; as in WebUI, between its vectors along H."""
    cosine = (start / start.norm(dim=1, keepdim=True) * (end / end.norm(dim=1, keepdim=True))).sum(1, keepdim=True)
    angle = cosine.acos()
    between = ((1 - weight) * angle).sin() / angle.sin() * start + (weight * angle).sin() / angle.sin() * end
    return torch.where(cosine.mean() > 0.9995, start.lerp(end, weight), between)  # an `if` would make the host wait


def pasted(noise: Tensor, middle: Tensor) -> Tensor:
    """Return noise (B, 4, h, w) with other noise pasted into its middle. If the other noise is larger, its middle is
    used.

    If sides differ by an odd number, halves are rounded down, as in WebUI.
    """
    spans = [_overlap(length, other) for length, other in zip(noise.shape[2:], middle.shape[2:], strict=True)]
    (down, from_down), (across, from_across) = spans
    result = noise.clone()
    result[:, :, down, across] = middle[:, :, from_down, from_across]
    return result


def _overlap(length: int, other: int) -> tuple[slice, slice]:
    """Return where a span of the length `other` lies when centred on one of `length`, and which part of it fits."""
    margin = (length - other) // 2
    shown = other if margin >= 0 else other + 2 * margin
    start, cut = max(margin, 0), max(-margin, 0)
    return slice(start, start + shown), slice(cut, cut + shown)


class Noise:
    """The draws of one pass over a batch, each (B, 4, h, w) float32 with unit variance.

    Call `initial` first, once; then `draw` and `brownian` in the order of the sampler's steps.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Shape,
        *,
        device: torch.device,
        settings: NoiseSettings = DEFAULTS,
        variation_seeds: Sequence[int] = (),
        span: tuple[float, float] | None = None,
    ) -> None:
        """Set up the generators. `variation_seeds`, one for each seed, are those that a variation moves towards.

        `brownian` needs the `span`: the lowest positive and the highest sigma of the whole schedule, even if a pass
        runs only its end. The settings' ENSD is added to the seeds after the first draw.
        """
        self.added = ADDED
        """How much noise the sampler adds. The caller sets this for the pass."""
        self._resized_from = settings.resized_from
        self._normals = SOURCES[settings.source]
        self._seeds, self._shape, self._device, self._ensd = seeds, shape, device, settings.ensd
        self._variation_seeds, self._variation_strength = variation_seeds, settings.variation_strength
        self._span = span
        self._stream = self._normals(seeds, shape, device)
        self._paths: list[Callable[[float], Tensor]] = []

    def initial(self) -> Tensor:
        """Return the initial noise of the pass, with the variation mixed in."""
        noise = next(self._stream)
        if self._resized_from:
            width, height = (side // LATENT_PIXELS for side in self._resized_from)
            shape = self._shape[0], height, width
            noise = pasted(noise, self._varied(next(self._normals(self._seeds, shape, self._device))))
        else:
            noise = self._varied(noise)
        if self._ensd:
            self._stream = self._normals([seed + self._ensd for seed in self._seeds], self._shape, self._device)
        return noise

    def _varied(self, noise: Tensor) -> Tensor:
        """Return noise (B, 4, h, w), moved towards that of the variation seeds."""
        if not self._variation_seeds or self._variation_strength <= 0:
            return noise
        _, channels, height, width = noise.shape
        variations = next(self._normals(self._variation_seeds, (channels, height, width), self._device))
        return torch.stack([slerp(n, v, self._variation_strength) for n, v in zip(noise, variations, strict=True)])

    def draw(self) -> Tensor:
        """Return the next noise of an ancestral sampler."""
        return next(self._stream)

    def brownian(self, sigma: float, sigma_next: float) -> Tensor:
        """Return the noise of an SDE sampler's step between two different sigmas.

        It is the normalised increment of Brownian motion. Raises ValueError if there is no `span`.
        """
        if not self._paths:
            if self._span is None:
                raise ValueError("SDE noise needs the span of the whole schedule: pass span=(lowest, highest sigma)")
            self._paths = [self._brownian_path(seed, *self._span) for seed in self._seeds]
        increments = torch.stack([path(sigma_next) - path(sigma) for path in self._paths])
        return increments / abs(sigma_next - sigma) ** 0.5

    def _brownian_path(self, seed: int, low: float, high: float) -> Callable[[float], Tensor]:
        """Return Brownian motion (4, h, w) as a function of sigma in [low, high]."""

        # Not bound to self: a reference cycle would keep the tensors until the garbage collector runs.
        source, shape, device = self._normals, self._shape, self._device

        @lru_cache(maxsize=4)  # the ends of neighbouring steps coincide
        def path(sigma: float) -> Tensor:
            seeds, weights = bridge(sigma, low, high, seed)
            normals = next(source(seeds, shape, device))
            scale = torch.tensor(weights).to(device, non_blocking=True)[:, None, None, None]
            return (normals * scale).sum(0)  # no matrix product, which a GPU may round to TF32

        return path


def bridge(time: float, low: float, high: float, entropy: int) -> tuple[list[int], list[float]]:
    """Return Brownian motion at a time in [low, high] as seeds of unit normals and a weight for each.

    It is the motion of torchsde's `BrownianTree`: bridges (Kidger et al. 2021) halve the interval until the time is one
    of its ends. All times are rounded to 1e-6. Each bridge has a seed spawned from the entropy and its place in the
    tree.
    """
    seeds, start, end = [_spawn(entropy)], round(low, 6), round(high, 6)
    time = min(max(round(time, 6), start), end)
    at_start, increment = [0.0], [math.sqrt(high - low)]
    place = depth = 0
    while time not in (start, end):
        middle = round(0.5 * (end + start), 6)
        before, after = (middle - start) / (end - start), end - middle
        left = [before * weight for weight in increment] + [math.sqrt(before * after)]
        seeds.append(_spawn(entropy, place, depth))
        at_start, increment = [*at_start, 0.0], [*increment, 0.0]
        if time < middle:
            place, end, increment = 2 * place, middle, left
        else:
            place, start = 2 * place + 1, middle
            at_start = [a + b for a, b in zip(at_start, left, strict=True)]
            increment = [a - b for a, b in zip(increment, left, strict=True)]
        depth += 1
    return seeds, at_start if time == start else [a + b for a, b in zip(at_start, increment, strict=True)]


def _spawn(entropy: int, *place: int) -> int:
    """Return the seed of one node of the tree. The pool size is torchsde's."""
    return int(np.random.SeedSequence(entropy, spawn_key=place, pool_size=24).generate_state(1)[0])

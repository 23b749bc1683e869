"""Pictures between two prompts and two seeds: their beginnings, their conditions and their noise.

Every value that lies between two ends is spherical where lengths matter (text and noise) and equals an end exactly at a
weight of 0 or 1, or where both ends are equal.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.runtime.unet_call import Condition
from pipelines.sampling.noise import ADDED, Noise, slerp
from pipelines.sampling.prompts import CHUNK, Prompts

CHUNKS_MAX = 12
"""Chunks up to which prompts of different lengths are repeated a whole number of times."""
NEARLY_PARALLEL = 0.9995
"""The cosine above which vectors are interpolated linearly, because the angle's sine loses its digits."""


def between_vectors(start: Tensor, end: Tensor, weights: Tensor) -> Tensor:
    """Interpolate vectors (..., n) spherically, for each of the weights (B,). Return (B, ..., n).

    They are interpolated linearly where both are nearly parallel or one is zero.
    """
    weight = weights.view(-1, *[1] * start.ndim)
    cosine = F.cosine_similarity(start, end, dim=-1).clamp(-1, 1)[..., None]
    angle = cosine.acos()
    curved = ((1 - weight) * angle).sin() / angle.sin() * start + (weight * angle).sin() / angle.sin() * end
    empty = (start.norm(dim=-1, keepdim=True) == 0) | (end.norm(dim=-1, keepdim=True) == 0)
    straight = torch.lerp(start, end, weight)
    between = torch.where(empty | (cosine.abs() > NEARLY_PARALLEL), straight, curved)
    return torch.where(weight == 0, start, torch.where(weight == 1, end, between))


def equally_long(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tokens (rows, n, width) of two prompts with the same number of chunks.

    Both are repeated: a cross-attention over a prompt and its copies is the one over the prompt. So a picture beside a
    key frame does not jump. Only if that needs too many chunks, the shorter prompt's first ones are repeated alone.
    """
    lengths = start.shape[1], end.shape[1]
    length = math.lcm(*lengths)
    if length > CHUNKS_MAX * CHUNK:
        length = max(lengths)
    first, second = (each.repeat(1, -(-length // each.shape[1]), 1)[:, :length] for each in (start, end))
    return first, second


def between_conditions(start: Condition, end: Condition, weights: Tensor, told: int) -> Condition:
    """Return the conditions of B pictures between two: for each of their rows, those of the B pictures in turn.

    Tokens are interpolated chunk by chunk, and vectors apart from their last `told` values, which are about the
    picture's size.
    """
    rows = len(start)
    first, second = (each.unflatten(1, (-1, CHUNK)).flatten(2) for each in equally_long(start.tokens, end.tokens))
    tokens = between_vectors(first, second, weights).transpose(0, 1)
    tokens = tokens.reshape(rows * len(weights), -1, start.tokens.shape[2])
    if start.vector is None or end.vector is None:
        return Condition(tokens)
    split = start.vector.shape[1] - told
    pooled = between_vectors(start.vector[:, :split], end.vector[:, :split], weights)
    numbers = torch.lerp(start.vector[:, split:], end.vector[:, split:], weights.view(-1, 1, 1))
    return Condition(tokens, torch.cat([pooled, numbers], dim=2).transpose(0, 1).flatten(0, 1))


@dataclass(frozen=True)
class PromptsBetween:
    """The prompts of B pictures between two ends, over one pass. At each call both ends follow their own schedules."""

    start: Prompts
    end: Prompts
    shares: tuple[float, ...]
    """How far each picture is on the way, from 0 to 1."""
    common_calls: float = 0
    """Denoiser calls at the beginning in which pictures follow the middle of the way."""

    @property
    def embeddings(self) -> tuple[tuple[str, str], ...]:
        """Names and SHA-256 of the embeddings that either end uses."""
        return tuple(dict.fromkeys((*self.start.embeddings, *self.end.embeddings)))

    @property
    def rows(self) -> int:
        """Rows of a guided batch for one image."""
        return max(len(self.start.positive.parts), len(self.end.positive.parts)) + 1

    @property
    def weights(self) -> list[float | Tensor]:
        """The weight of every AND part; (B, 1, 1, 1) if it changes on the way. A part that one end lacks has none."""
        first, second = self.start.positive.weights, self.end.positive.weights
        count = max(len(first), len(second))
        pairs = zip(*(each + [0.0] * (count - len(each)) for each in (first, second)), strict=True)
        return [interpolated(a, b, self.shares, self._device) for a, b in pairs]

    @property
    def _device(self) -> torch.device:
        return self.start.at(0)[0].tokens.device

    def places(self, calls: int) -> tuple[int, ...]:
        """Return what `for_images` depends on. While it stays the same, so do the conditions."""
        return (int(calls < self.common_calls), *self.start.places(calls), *self.end.places(calls))

    def for_images(self, calls: int, images: int) -> tuple[Condition, Condition]:
        """Return the positive condition, (parts * B) rows, and the negative one, B rows, for the next call."""
        assert images == len(self.shares)
        shares = self.shares if calls >= self.common_calls else tuple(map(towards_middle, self.shares))
        weights = torch.tensor(shares, device=self._device)
        positives, negatives = zip(self.start.at(calls), self.end.at(calls), strict=True)
        blend = partial(between_conditions, weights=weights, told=self.start.told)
        return blend(*_equally_many(*positives)), blend(*negatives)

    def at(self, calls: int) -> tuple[Condition, Condition]:
        """Return the same for the first picture alone."""
        count = len(self.shares)
        positive, negative = self.for_images(calls, count)
        return positive.map(lambda rows: rows[::count]), negative.map(lambda rows: rows[::count])


PassPrompts = Prompts | PromptsBetween
"""The prompts of one pass."""


def _equally_many(start: Condition, end: Condition) -> tuple[Condition, Condition]:
    """Give both the same number of rows: a part that one end lacks is the other's, with a weight of 0."""
    return _with_rows_of(start, end), _with_rows_of(end, start)


def _with_rows_of(condition: Condition, other: Condition) -> Condition:
    count = len(condition)
    if len(other) <= count:
        return condition
    own, more = equally_long(condition.tokens, other.tokens[count:])
    vector = None
    if condition.vector is not None and other.vector is not None:
        vector = torch.cat([condition.vector, other.vector[count:]])
    return Condition(torch.cat([own, more]), vector)


def towards_middle(share: float) -> float:
    """Return the place of a picture in the common beginning: the middle, apart from the pictures near the ends."""
    return min(2 * share, max(0.5, 2 * share - 1))


def interpolated(start: float, end: float, shares: Sequence[float], device: torch.device) -> float | Tensor:
    """Return the number if both are equal, else those between them for every picture, (B, 1, 1, 1)."""
    if start == end:
        return start
    return torch.tensor([start + (end - start) * share for share in shares], device=device).view(-1, 1, 1, 1)


# --- beginnings -------------------------------------------------------------------------------------------------------


class Beginning:
    """How the first calls of a pass are made. Here they are computed like all others, and nothing is kept."""

    def pictures(self, call: int) -> tuple[Tensor, ...] | None:
        """Return the pictures (B, 4, h, w) that a call, counted from 0, predicts; None if they must be computed."""
        return None

    def keep(self, pictures: tuple[Tensor, ...]) -> None:
        """Take the pictures that the next call has predicted."""


COMPUTED = Beginning()


class Recording(Beginning):
    """Keeps what the first calls of a key frame's pass predict."""

    def __init__(self, calls: int) -> None:
        """Keep the first `calls`."""
        self._calls = calls
        self.kept: list[tuple[Tensor, ...]] = []

    @property
    def done(self) -> bool:
        """Whether there is nothing more to keep."""
        return len(self.kept) == self._calls

    def keep(self, pictures: tuple[Tensor, ...]) -> None:
        if not self.done:
            self.kept.append(pictures)


@dataclass(frozen=True)
class Blended(Beginning):
    """The beginning of pictures between two key frames: a blend of theirs, without a call of the UNet.

    A diffusion model decides in its first steps what is where, and between two prompts it decides suddenly. Blended
    decisions change steadily. Latent Blending does this with latents, https://github.com/lunarring/latentblending.
    """

    start: Recording
    end: Recording
    calls: int
    """How many calls are blended."""
    shares: tuple[float, ...]
    """How far each picture is on the way, from 0 to 1."""

    def pictures(self, call: int) -> tuple[Tensor, ...] | None:
        if call >= self.calls:
            return None
        pairs = zip(self.start.kept[call], self.end.kept[call], strict=True)
        return tuple(self._between(first, last) for first, last in pairs)

    def _between(self, first: Tensor, last: Tensor) -> Tensor:
        """Blend two pictures (1, 4, h, w) spherically: the mean of two colours would be grey."""
        weights = torch.tensor(self.shares, device=first.device)
        return between_vectors(first.flatten(), last.flatten(), weights).view(-1, *first.shape[1:])


# --- noise ------------------------------------------------------------------------------------------------------------


def between_noise(start: Tensor, end: Tensor, shares: Sequence[float]) -> Tensor:
    """Return noise (B, ...) between two draws (1, ...), as WebUI's variations mix it."""
    first, second = (each[0] if each.ndim == 4 else each.reshape(1, -1, 1) for each in (start, end))
    return torch.stack([slerp(first, second, share) for share in shares]).reshape(-1, *start.shape[1:])


class NoiseBetween(Noise):
    """The draws of B pictures between two seeds: each draw lies between those of both seeds.

    With one seed all pictures have the same noise. It combines the draws of other noise and has none of its own.
    """

    def __init__(self, start: Noise, end: Noise | None, shares: Sequence[float]) -> None:
        """Take noise of one picture for each seed. `end` is None if both seeds are the same."""
        self.added = ADDED
        self._start, self._end, self._shares = start, end, shares

    def initial(self) -> Tensor:
        return self._mixed(Noise.initial)

    def draw(self) -> Tensor:
        return self._mixed(Noise.draw)

    def brownian(self, sigma: float, sigma_next: float) -> Tensor:
        return self._mixed(lambda noise: noise.brownian(sigma, sigma_next))

    def _mixed(self, draw: Callable[[Noise], Tensor]) -> Tensor:
        start = draw(self._start)
        if self._end is None:
            return start.repeat(len(self._shares), 1, 1, 1)
        return between_noise(start, draw(self._end), self._shares)

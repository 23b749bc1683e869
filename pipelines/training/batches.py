"""Encoded pictures, and which of them make a batch: a pure function of the seed, so that a resumed training goes on."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pipelines.families.family import Family
from pipelines.models.vae import VAE
from pipelines.runtime.worker import stop_if_asked
from pipelines.sampling.prompts import as_waves
from pipelines.training.pictures import Example


@dataclass(frozen=True)
class Encoded:
    """A picture that went through the VAE, in the host's memory."""

    mean: Tensor
    """(4, h, w), scaled"""
    deviation: Tensor
    """(4, h, w): the VAE's uncertainty, of which every use draws a sample"""
    caption: str
    sizes: Tensor | None
    """(k,): what the model is told about the picture's size; None in families that are not told"""


@dataclass(frozen=True)
class Batch:
    """Pictures of one size."""

    mean: Tensor
    """(B, 4, h, w)"""
    deviation: Tensor
    captions: tuple[str, ...]
    sizes: Tensor | None
    """(B, k)"""

    def latents(self, seed: int, device: torch.device) -> Tensor:
        """Draw a sample of the latents."""
        generator = torch.Generator("cpu").manual_seed(seed)
        noise = torch.randn(self.mean.shape, generator=generator, device="cpu")
        return (self.mean + self.deviation * noise).to(device)

    @staticmethod
    def of(pictures: Sequence[Encoded]) -> "Batch":
        """Join pictures of one size."""
        sizes = [each.sizes for each in pictures if each.sizes is not None]
        return Batch(
            torch.stack([each.mean for each in pictures]),
            torch.stack([each.deviation for each in pictures]),
            tuple(each.caption for each in pictures),
            torch.stack(sizes) if sizes else None,
        )


class Batches:
    """An endless series of batches. Every picture is used once in an epoch, with others of its size."""

    def __init__(self, pictures: Sequence[Encoded], size: int, seed: int) -> None:
        """Make batches of at most `size` pictures."""
        self._pictures, self._size, self._seed = tuple(pictures), size, seed
        self._shapes: dict[torch.Size, list[int]] = {}
        for number, each in enumerate(pictures):
            self._shapes.setdefault(each.mean.shape, []).append(number)
        self.in_epoch = sum(-(-len(numbers) // size) for numbers in self._shapes.values())
        """How many batches an epoch has."""
        self._epoch = lru_cache(2)(self._shuffled)

    def __getitem__(self, number: int) -> Batch:
        """Return a batch by its number, from 0 on."""
        epoch, place = divmod(number, self.in_epoch)
        return Batch.of([self._pictures[each] for each in self._epoch(epoch)[place]])

    def _shuffled(self, epoch: int) -> list[list[int]]:
        """Return the pictures of every batch of an epoch."""
        chance = random.Random(f"{self._seed} {epoch}")
        batches: list[list[int]] = []
        for numbers in self._shapes.values():
            mixed = chance.sample(numbers, len(numbers))
            batches += [mixed[start : start + self._size] for start in range(0, len(mixed), self._size)]
        chance.shuffle(batches)
        return batches


@torch.no_grad()
def encode(vae: VAE, family: Family, examples: Sequence[tuple[Example, str]]) -> Iterator[Encoded]:
    """Encode pictures with their captions, one at a time, in single precision."""
    for example, caption in examples:
        stop_if_asked()
        pixels = torch.from_numpy(example.pixels()).permute(2, 0, 1).float() / 255
        mean, deviation = vae.moments(pixels)
        yield Encoded(mean.cpu(), deviation.cpu(), caption, _sizes(family, example))


def _sizes(family: Family, example: Example) -> Tensor | None:
    """Return what SDXL is told (Podell et al. 2023, section 2.2): the original size, the corner of the part that is
    used, and the size that is trained."""
    if not family.sizes:
        return None
    (width, height), (left, top) = example.original, example.corner
    return as_waves([height, width, top, left, example.size[1], example.size[0]])[0]

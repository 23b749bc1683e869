"""The prompts of a pass: which condition is used at which denoiser call.

Over a pass, a prompt is a small table: its AND parts, each with conditions that are valid up to a certain denoiser call
(prompt editing). Every text is encoded once and kept for both passes. The rules are those of WebUI 1.10.1.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor

from pipelines.ask import prompt as grammar
from pipelines.families.family import Framing
from pipelines.models.embeddings import EmbeddingTable
from pipelines.models.text import Encoded, TextEncoder
from pipelines.runtime.unet_call import Condition

UNFRAMED = Framing(width=1024, height=1024)
"""A picture of the size that SDXL was trained for."""
CHUNK = 77
"""Tokens of one chunk, with its start and end."""
SIZE_WAVES = 256
"""How many values stand for one number about the picture."""


@dataclass(frozen=True)
class Part:
    """One AND part of a prompt: its weight and, in order, pairs of (last call that uses it, condition of one row)."""

    weight: float
    entries: tuple[tuple[int, Condition], ...]

    def place(self, calls: int) -> int:
        """Return the index of the entry for the next denoiser call, after `calls` calls.

        After the last entry WebUI goes back to the first one (only DPM adaptive ever gets there).
        """
        return next((place for place, (end, _) in enumerate(self.entries) if calls <= end), 0)

    def at(self, calls: int) -> Condition:
        """Return the condition for the next denoiser call, after `calls` calls."""
        return self.entries[self.place(calls)][1]


@dataclass(frozen=True)
class ScheduledPrompt:
    """One prompt over one pass. A negative prompt has a single part."""

    parts: tuple[Part, ...]

    @property
    def weights(self) -> list[float]:
        """The weight of every part."""
        return [part.weight for part in self.parts]

    def at(self, calls: int) -> Condition:
        """Return a row for each part. Shorter parts repeat their last token, as in WebUI."""
        rows = [part.at(calls) for part in self.parts]
        longest = max(row.tokens.shape[1] for row in rows)
        return Condition.cat([_repeated(row, longest) for row in rows])


def _repeated(row: Condition, length: int) -> Condition:
    missing = length - row.tokens.shape[1]
    return replace(row, tokens=torch.cat([row.tokens, row.tokens[:, -1:].expand(-1, missing, -1)], dim=1))


@dataclass(frozen=True)
class Prompts:
    """The two prompts of one pass."""

    positive: ScheduledPrompt
    negative: ScheduledPrompt
    padding: Tensor | None = None
    """An empty chunk (1, 77, width), repeated to make both prompts equally long; None: they keep their lengths."""
    embeddings: tuple[tuple[str, str], ...] = ()
    """Names and SHA-256 of the embeddings that they use, in the order of infotexts."""
    told: int = 0
    """How many of the last values of the conditions' vectors are about the picture, and not of the text."""

    @property
    def weights(self) -> list[float]:
        """The weight of every AND part."""
        return self.positive.weights

    @property
    def rows(self) -> int:
        """Rows of a guided batch for one image."""
        return len(self.positive.parts) + len(self.negative.parts)

    def places(self, calls: int) -> tuple[int, ...]:
        """Return the index of every part's entry for the next denoiser call. While they stay the same, so does `at`."""
        return tuple(part.place(calls) for part in (*self.positive.parts, *self.negative.parts))

    def at(self, calls: int) -> tuple[Condition, Condition]:
        """Return the positive condition (a row for each part) and the negative one (one row) for the next call."""
        positive, negative = self.positive.at(calls), self.negative.at(calls)
        if self.padding is None:
            return positive, negative
        longest = max(positive.tokens.shape[1], negative.tokens.shape[1])
        return _padded(positive, longest, self.padding), _padded(negative, longest, self.padding)

    def for_images(self, calls: int, images: int) -> tuple[Condition, Condition]:
        """Return the same with every row repeated for every image."""
        positive, negative = self.at(calls)
        return _for_each(positive, images), _for_each(negative, images)


def _for_each(condition: Condition, images: int) -> Condition:
    return condition.map(lambda rows: rows.repeat_interleave(images, dim=0))


def _padded(condition: Condition, length: int, padding: Tensor) -> Condition:
    """Pad the condition to `length` tokens with whole chunks."""
    chunks = (length - condition.tokens.shape[1]) // padding.shape[1]
    filling = padding.repeat(1, chunks, 1).expand(len(condition), -1, -1)
    return replace(condition, tokens=torch.cat([condition.tokens, filling], dim=1))


def as_waves(numbers: Sequence[float]) -> Tensor:
    """Return the sinusoidal embeddings of the numbers side by side, (1, 256 * numbers)."""
    waves: Tensor = get_timestep_embedding(
        torch.tensor(numbers), SIZE_WAVES, flip_sin_to_cos=True, downscale_freq_shift=0
    )
    return waves.reshape(1, -1)


def _with_vector(condition: Condition, more: Tensor) -> Condition:
    vector = more if condition.vector is None else torch.cat([condition.vector, more], dim=1)
    return replace(condition, vector=vector)


class PromptEncoder:
    """Encodes the prompts of one prediction; a text that both passes use is encoded once.

    `pad` is WebUI's "Pad conds": the shorter prompt gets empty chunks, so that both run in one batch. `old_editing`
    reads prompt editing as WebUI did before 1.6.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        clip_skip: int,
        emphasis: str = "Original",
        pad: bool = False,
        tables: Sequence[EmbeddingTable] = (),
        old_editing: bool = False,
    ) -> None:
        """Use the embeddings in `tables`, one for each text encoder, for prompts that name them."""
        self._encoder = encoder
        self._clip_skip, self._emphasis = clip_skip, emphasis
        self._pad, self._old_editing = pad, old_editing
        self._tables = tables or encoder.embedding_tables({})
        self._encoded: dict[tuple[str, ...], Encoded] = {}

    @property
    def left_over(self) -> tuple[str, ...]:
        """Sentences about embeddings that the encoded prompts name but that are not applied."""
        return tuple(dict.fromkeys(told for table in self._tables for told in table.left_over))

    def encode(
        self,
        prompt: str,
        negative_prompt: str,
        steps: int,
        hires_steps: int | None = None,
        framing: Framing = UNFRAMED,
    ) -> Prompts:
        """Encode both prompts of a pass. `steps` are denoiser calls, as prompt editing counts them.

        `framing` is what the model is told about the pass's picture.

        Network tags are removed from the prompt and it is split at AND; in the negative prompt both stay text. Raises
        InvalidInput for a text with too many chunks.
        """
        text, _ = grammar.cut_networks(prompt)
        hires = "hires_" if hires_steps else ""
        calls = steps, hires_steps
        used: dict[str, tuple[tuple[str, str], ...]] = {}
        parts = []
        for part, weight in grammar.split_and(text):
            entries, used[part] = self._entries(f"{hires}prompt", part, *calls)
            parts.append(self._part(weight, entries, framing, negative=False))
        entries, in_negative = self._entries(f"{hires}negative_prompt", negative_prompt, *calls)
        negative = self._part(1.0, entries, framing, negative=True)
        # WebUI encodes the negative prompt first, and a repeated part once. It lists first what it encoded last.
        embeddings = (*chain.from_iterable(reversed(used.values())), *in_negative)
        padding = self._encode("", ("",)).conditions[0].tokens if self._pad else None
        told = SIZE_WAVES * len(self._encoder.family.sizes)
        return Prompts(ScheduledPrompt(tuple(parts)), ScheduledPrompt((negative,)), padding, embeddings, told)

    def _entries(
        self, field: str, text: str, steps: int, hires_steps: int | None
    ) -> tuple[list[tuple[int, Condition]], tuple[tuple[str, str], ...]]:
        """Return the entries of a text's editing schedule, and the embeddings in them."""
        schedule = grammar.schedule(text, steps, hires_steps, old=self._old_editing)
        texts = tuple(entry for _, entry in schedule)
        encoded = self._encode(field, texts)
        conditions: Iterable[Condition] = encoded.conditions
        if field.endswith("negative_prompt") and self._encoder.family.zero_negative and not any(texts):
            conditions = (condition.map(torch.zeros_like) for condition in conditions)
        return list(zip((end for end, _ in schedule), conditions, strict=True)), encoded.embeddings

    def _part(self, weight: float, entries: Iterable[tuple[int, Condition]], framing: Framing, negative: bool) -> Part:
        """Return a part whose conditions also tell the model about the picture, if it takes that."""
        if names := self._encoder.family.sizes:
            told = as_waves(framing.numbers(names, negative)).to(self._encoder.device)
            entries = [(end, _with_vector(condition, told)) for end, condition in entries]
        return Part(weight, tuple(entries))

    def _encode(self, field: str, texts: tuple[str, ...]) -> Encoded:
        if texts not in self._encoded:
            self._encoded[texts] = self._encoder.encode(texts, self._clip_skip, self._emphasis, field, self._tables)
        return self._encoded[texts]

"""Prompt text -> embeddings: chunks of 77 tokens, emphasis with the mean restored, clip skip.

A prompt over a pass is a small table: its AND parts, each with the embeddings that hold until a certain denoiser
call (prompt editing). Every text is encoded once and kept for both passes. The rules are WebUI's (1.10.1).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import ftfy
import torch
from torch import Tensor
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from pipelines import prompt as grammar
from pipelines.embeddings import EmbeddingTable
from pipelines.errors import InvalidInput
from pipelines.extras import ExtraFile

Tokenize = Callable[[str], list[int]]
CHUNKS_MAX = 64
"""4800 tokens; more would cost seconds a step. Each BREAK opens a chunk, and one rare letter can be three tokens."""


@dataclass(frozen=True)
class Part:
    """One AND part of a prompt: its weight and, in order, (last call that it serves, embedding (tokens, width))."""

    weight: float
    entries: tuple[tuple[int, Tensor], ...]

    def place(self, calls: int) -> int:
        """Which entry is for the next denoiser call, when `calls` have been made.

        Past the last entry WebUI goes back to the first (only DPM adaptive ever gets there).
        """
        return next((place for place, (end, _) in enumerate(self.entries) if calls <= end), 0)

    def at(self, calls: int) -> Tensor:
        """The embedding of that entry."""
        return self.entries[self.place(calls)][1]


@dataclass(frozen=True)
class Conditioning:
    """What one prompt asks for over one pass. A negative prompt has a single part."""

    parts: tuple[Part, ...]

    @property
    def weights(self) -> list[float]:
        return [part.weight for part in self.parts]

    def at(self, calls: int) -> Tensor:
        """Embeddings (parts, tokens, width); shorter parts repeat their last vector, as in WebUI."""
        tensors = [part.at(calls) for part in self.parts]
        longest = max(tensor.shape[0] for tensor in tensors)
        return torch.stack([torch.cat([t, t[-1:].expand(longest - t.shape[0], -1)]) for t in tensors])


@dataclass(frozen=True)
class Prompts:
    """The two prompts of one pass. `padding` (77, width), if given, makes them equally long."""

    positive: Conditioning
    negative: Conditioning
    padding: Tensor | None = None
    embeddings: tuple[tuple[str, str], ...] = ()
    """Names and SHA-256 of the embeddings that they use, in infotext's order."""

    @property
    def rows(self) -> int:
        """Of a guided batch, for one image."""
        return len(self.positive.parts) + len(self.negative.parts)

    def places(self, calls: int) -> tuple[int, ...]:
        """Which entry of every part is for the next denoiser call: as long as they are the same, so is `at`."""
        return tuple(part.place(calls) for part in (*self.positive.parts, *self.negative.parts))

    def at(self, calls: int) -> tuple[Tensor, Tensor]:
        """Positive (parts, tokens, width) and negative (1, tokens, width) for the next denoiser call."""
        both = self.positive.at(calls), self.negative.at(calls)
        if self.padding is None:
            return both
        longest = max(context.shape[1] for context in both)
        return _padded(both[0], longest, self.padding), _padded(both[1], longest, self.padding)


def _padded(context: Tensor, length: int, padding: Tensor) -> Tensor:
    """Context (rows, tokens, width) with whole chunks of padding up to `length` tokens."""
    chunks = (length - context.shape[1]) // padding.shape[0]
    return torch.cat([context, padding.repeat(chunks, 1).expand(context.shape[0], -1, -1)], dim=1)


def _literally(text: str) -> list[tuple[str, float]]:
    """One piece of weight 1: brackets are text."""
    return [(text, 1.0)]


def _check_length(field: str, texts: Sequence[str], rows: Sequence[Sequence[grammar.Chunk]]) -> None:
    for text, chunks in zip(texts, rows, strict=True):
        if len(chunks) > CHUNKS_MAX:
            rule = f"at most {CHUNKS_MAX} chunks of 75 tokens, this is {len(chunks)}"
            raise InvalidInput(field, text, rule, "Shorten it; each BREAK opens a chunk.")


@dataclass(frozen=True)
class Encoded:
    """Texts of one editing schedule: for each (77 * chunks, width) float32."""

    tensors: list[Tensor]
    embeddings: tuple[tuple[str, str], ...]
    """Names and SHA-256 of the embeddings that the texts use, in their order."""


class TextEncoder:
    """CLIP's text model with its vocabulary."""

    def __init__(self, model: CLIPTextModel, tokenize: Tokenize, device: torch.device) -> None:
        self.model = model
        self.tokenize = tokenize
        self.device = device

    def embedding_table(self, files: Mapping[str, ExtraFile]) -> EmbeddingTable:
        """What these embeddings are to this encoder."""
        return EmbeddingTable(files, self.tokenize, self.model.config.hidden_size)

    def encode(
        self,
        texts: Sequence[str],
        clip_skip: int,
        emphasis: str = "Original",
        field: str = "prompt",
        table: EmbeddingTable | None = None,
    ) -> "Encoded":
        """Texts of one editing schedule; shorter ones get empty chunks.

        A text that comes again and again, as in alternation, is encoded once and its tensor shared. Raises InvalidInput
        for the input `field` where a text is too long, and ModelError for an embedding that does not fit.
        """
        table = table or self.embedding_table({})
        unique = list(dict.fromkeys(texts))
        places = [unique.index(text) for text in texts]
        parse = _literally if emphasis == "None" else grammar.parse_attention
        rows = [grammar.chunks(parse(text), self.tokenize, table.units) for text in unique]
        _check_length(field, unique, rows)
        empty = grammar.chunks([("", 1.0)], self.tokenize)
        length = max(map(len, rows))
        rows = [row + empty * (length - len(row)) for row in rows]
        columns = list(zip(*rows, strict=True))
        encoded = torch.cat([self._encode_chunks(c, places, clip_skip, emphasis, table) for c in columns], dim=1)
        hashes = table.hashes([token for column in columns for chunk in column for token in chunk.tokens])
        return Encoded([encoded[place] for place in places], tuple(hashes.items()))

    def _encode_chunks(
        self, chunks: Sequence[grammar.Chunk], places: list[int], clip_skip: int, emphasis: str, table: EmbeddingTable
    ) -> Tensor:
        """The unique texts' chunks at one position -> (unique texts, 77, width).

        Emphasis of the original kind scales each token's vector, then restores the mean over all texts of the
        schedule, repeated ones included (`places`). Weights of 1 change nothing and are left out: a mean of exactly 0
        would make them NaN.
        """
        tokens = torch.tensor([chunk.tokens for chunk in chunks])
        with self._replaced(tokens, table):
            plain = self._hidden(tokens.clamp(min=0).to(self.device, non_blocking=True), clip_skip).float()
        if emphasis == "Ignore" or all(weight == 1 for chunk in chunks for weight in chunk.weights):
            return plain
        weights = torch.tensor([chunk.weights for chunk in chunks]).to(self.device, non_blocking=True)
        weighted = plain * weights[..., None]
        if emphasis == "No norm":
            return weighted
        all_texts = torch.tensor(places).to(self.device, non_blocking=True)
        return weighted * (plain[all_texts].mean() / weighted[all_texts].mean())

    @contextmanager
    def _replaced(self, tokens: Tensor, table: EmbeddingTable) -> Iterator[None]:
        """Inside, tokens of negative number are an embedding's vectors, put in before positions are added."""
        places = (tokens < 0).nonzero(as_tuple=True)
        if not len(places[0]):
            yield
            return
        vectors = table.vectors(tokens[places].tolist()).to(self.device, self.model.dtype, non_blocking=True)
        rows, columns = (place.to(self.device, non_blocking=True) for place in places)
        hook = self.model.embeddings.token_embedding.register_forward_hook(
            lambda module, arguments, output: output.index_put((rows, columns), vectors)
        )
        try:
            yield
        finally:
            hook.remove()

    def _hidden(self, tokens: Tensor, clip_skip: int) -> Tensor:
        """Hidden state number -clip_skip through the final layer norm; 1 is the model's own output."""
        if clip_skip == 1:
            output: Tensor = self.model(input_ids=tokens).last_hidden_state
            return output
        hidden = self.model(input_ids=tokens, output_hidden_states=True).hidden_states[-clip_skip]
        normed: Tensor = self.model.final_layer_norm(hidden)
        return normed


class PromptEncoder:
    """Encodes the prompts of one prediction; a text that both passes use is encoded once.

    `pad` is WebUI's "Pad conds": the shorter prompt gets empty chunks, so that both run in one batch.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        clip_skip: int,
        emphasis: str = "Original",
        pad: bool = False,
        embeddings: Mapping[str, ExtraFile] = MappingProxyType({}),
    ) -> None:
        self._encoder = encoder
        self._clip_skip, self._emphasis = clip_skip, emphasis
        self._pad = pad
        self._table = encoder.embedding_table(embeddings)
        self._encoded: dict[tuple[str, ...], Encoded] = {}

    def encode(self, prompt: str, negative_prompt: str, steps: int, hires_steps: int | None = None) -> Prompts:
        """Both prompts of a pass; `steps` are denoiser calls, as prompt editing counts them.

        The prompt's network tags are cut out and it is split at AND; in the negative prompt both stay text. Raises
        InvalidInput for a text of too many chunks.
        """
        text, _ = grammar.cut_networks(prompt)
        hires = "hires_" if hires_steps else ""
        calls = steps, hires_steps
        used: dict[str, tuple[tuple[str, str], ...]] = {}
        parts = []
        for part, weight in grammar.split_and(text):
            read, used[part] = self._part(f"{hires}prompt", part, weight, *calls)
            parts.append(read)
        negative, in_negative = self._part(f"{hires}negative_prompt", negative_prompt, 1.0, *calls)
        # WebUI encodes the negative prompt first, a repeated part once, and tells what came last at first
        embeddings = (*chain.from_iterable(reversed(used.values())), *in_negative)
        padding = self._encode("", ("",)).tensors[0] if self._pad else None
        return Prompts(Conditioning(tuple(parts)), Conditioning((negative,)), padding, embeddings)

    def _part(
        self, field: str, text: str, weight: float, steps: int, hires_steps: int | None
    ) -> tuple[Part, tuple[tuple[str, str], ...]]:
        schedule = grammar.schedule(text, steps, hires_steps)
        encoded = self._encode(field, tuple(entry for _, entry in schedule))
        ends = (end for end, _ in schedule)
        return Part(weight, tuple(zip(ends, encoded.tensors, strict=True))), encoded.embeddings

    def _encode(self, field: str, texts: tuple[str, ...]) -> Encoded:
        if texts not in self._encoded:
            self._encoded[texts] = self._encoder.encode(texts, self._clip_skip, self._emphasis, field, self._table)
        return self._encoded[texts]


def load_tokenizer(folder: Path) -> Tokenize:
    """CLIP's tokenizer from its vocabulary: text -> token ids without start and end.

    Text is first repaired by ftfy (curly quotes, full-width letters, broken encodings), as OpenAI's tokenizer does.
    """
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)

    def tokenize(text: str) -> list[int]:
        # Not verbose: it warns of more than 77 tokens, which are cut into chunks here.
        text = ftfy.fix_text(text)
        if "\u03a3" in text:  # a capital sigma is another letter at the end of a word, which only Python knows
            text = text.lower()
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    return tokenize

"""CLIP's text models: chunks of 77 tokens -> conditions, with emphasis, clip skip and textual inversion.

The rules are those of WebUI 1.10.1.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import ftfy
import torch
from torch import Tensor
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from pipelines.ask import prompt as grammar
from pipelines.ask.networks import ExtraFile
from pipelines.errors import InvalidInput
from pipelines.families.family import Family, TextTower
from pipelines.models.build import TextNetwork, text_model
from pipelines.models.embeddings import EmbeddingTable
from pipelines.runtime.unet_call import Condition

Tokenize = Callable[[str], list[int]]
CHUNKS_MAX = 64
"""4800 tokens; more would cost seconds per step. Each BREAK starts a chunk, and a rare letter can be three tokens."""


def _literally(text: str) -> list[tuple[str, float]]:
    """Return the text as one piece of weight 1, with brackets as plain text."""
    return [(text, 1.0)]


def check_length(field: str, text: str, chunks: Sequence[grammar.Chunk]) -> None:
    """Raise InvalidInput for the input `field` if its text has too many chunks."""
    if len(chunks) > CHUNKS_MAX:
        rule = f"at most {CHUNKS_MAX} chunks of 75 tokens, this is {len(chunks)}"
        raise InvalidInput(field, text, rule, "Shorten it; each BREAK starts a chunk.")


@dataclass(frozen=True)
class Encoded:
    """The encoded texts of one prompt-editing schedule."""

    conditions: list[Condition]
    """One for each text: a single row of 77 tokens per chunk, in float32."""
    embeddings: tuple[tuple[str, str], ...]
    """Names and SHA-256 of the embeddings that the texts use, in their order."""


@dataclass(frozen=True)
class EncoderTower:
    """One text encoder of a model, with its vocabulary."""

    spec: TextTower
    network: TextNetwork
    tokenize: Tokenize

    @property
    def model(self) -> CLIPTextModel:
        """The text model without its projection."""
        return text_model(self.network)

    @property
    def width(self) -> int:
        """The width of its output."""
        return int(self.model.config.hidden_size)

    def chunks(self, text: str, emphasis: str, table: EmbeddingTable) -> list[grammar.Chunk]:
        """Return the chunks of a text, with the embeddings that it names."""
        parse = _literally if emphasis == "None" else grammar.parse_attention
        return grammar.chunks(parse(text), self.tokenize, table.units)

    def columns(self, rows: Sequence[list[grammar.Chunk]], length: int) -> list[tuple[grammar.Chunk, ...]]:
        """Return the texts' chunks by position, after padding each text with empty chunks to this length."""
        empty = grammar.chunks([("", 1.0)], self.tokenize)
        return list(zip(*(chunks + empty * (length - len(chunks)) for chunks in rows), strict=True))

    def hidden(self, tokens: Tensor, clip_skip: int) -> tuple[Tensor, Tensor | None]:
        """Return the output (texts, 77, width) of the layer that `clip_skip` counts from the last, 1 being the last.

        With it comes the pooled text (texts, k), if the encoder has one: the projection of the end token's last output.
        """
        normed = self.spec.final_norm
        if clip_skip == 1 and normed and not self.spec.pooled:
            last: Tensor = self.model(input_ids=tokens).last_hidden_state
            return last, None
        output = self.model(input_ids=tokens, output_hidden_states=True)
        hidden = output.hidden_states[-clip_skip]
        return self.model.final_layer_norm(hidden) if normed else hidden, self._pooled(tokens, output.last_hidden_state)

    def _pooled(self, tokens: Tensor, last: Tensor) -> Tensor | None:
        if not isinstance(self.network, CLIPTextModelWithProjection):
            return None
        ends = tokens.argmax(1)  # the end token has the highest number
        pooled: Tensor = self.network.text_projection(last[torch.arange(len(last), device=last.device), ends])
        return pooled.float()

    @contextmanager
    def replaced(self, tokens: Tensor, table: EmbeddingTable, device: torch.device) -> Iterator[None]:
        """Replace tokens with negative numbers by embeddings' vectors, before positions are added, while the context
        lasts."""
        places = (tokens < 0).nonzero(as_tuple=True)
        if not len(places[0]):
            yield
            return
        vectors = table.vectors(tokens[places].tolist()).to(device, self.model.dtype, non_blocking=True)
        rows, columns = (place.to(device, non_blocking=True) for place in places)
        hook = self.model.embeddings.token_embedding.register_forward_hook(
            lambda module, arguments, output: output.index_put((rows, columns), vectors)
        )
        try:
            yield
        finally:
            hook.remove()


class TextEncoder:
    """The text encoders of a model. The UNet sees their outputs side by side."""

    def __init__(self, towers: Sequence[EncoderTower], family: Family, device: torch.device) -> None:
        self.towers = tuple(towers)
        self.family = family
        self.device = device

    def with_clip_skip(self) -> "TextEncoder":
        """Return the same encoders, of which CLIP-L follows the request's clip skip in every family (WebUI's option
        sdxl_clip_l_skip)."""
        freed = [tower if tower.spec.openclip else _freed(tower) for tower in self.towers]
        return TextEncoder(freed, self.family, self.device)

    def embedding_tables(
        self, files: Mapping[str, ExtraFile], bundles: Mapping[str, ExtraFile] | None = None
    ) -> tuple[EmbeddingTable, ...]:
        """Return a table of these embeddings, and of those bundled with LoRAs, for each encoder."""
        return tuple(
            EmbeddingTable(files, tower.tokenize, tower.width, bundles, tower.spec.embedding) for tower in self.towers
        )

    def encode(
        self,
        texts: Sequence[str],
        clip_skip: int,
        emphasis: str = "Original",
        field: str = "prompt",
        tables: Sequence[EmbeddingTable] = (),
    ) -> Encoded:
        """Encode the texts of one prompt-editing schedule. Shorter ones are padded with empty chunks.

        A text that occurs several times, as in alternation, is encoded once and its condition shared. Raises
        InvalidInput for the input `field` if a text is too long, and ModelError for an embedding that does not fit.
        """
        tables = tables or self.embedding_tables({})
        unique = list(dict.fromkeys(texts))
        places = [unique.index(text) for text in texts]
        towers = list(zip(self.towers, tables, strict=True))
        rows = [[tower.chunks(text, emphasis, table) for text in unique] for tower, table in towers]
        for of_tower in rows:
            for text, chunks in zip(unique, of_tower, strict=True):
                check_length(field, text, chunks)
        length = max(len(chunks) for of_tower in rows for chunks in of_tower)
        weighing = _Emphasis(emphasis, places)
        encoded = [
            self._encode_columns(tower, table, tower.columns(of_tower, length), clip_skip, weighing)
            for (tower, table), of_tower in zip(towers, rows, strict=True)
        ]
        tokens = torch.cat([each.tokens for each in encoded], dim=2)
        pooled = next((each.pooled for each in encoded if each.pooled is not None), None)
        conditions = [Condition(tokens[at][None], None if pooled is None else pooled[at][None]) for at in places]
        return Encoded(conditions, tuple(named for each in encoded for named in each.embeddings))

    def _encode_columns(
        self,
        tower: EncoderTower,
        table: EmbeddingTable,
        columns: Sequence[Sequence[grammar.Chunk]],
        clip_skip: int,
        emphasis: "_Emphasis",
    ) -> "_Encoded":
        """Encode the unique texts' chunks, position by position."""
        skip = clip_skip if tower.spec.clip_skip is None else tower.spec.clip_skip
        found = [self._encode_chunks(tower, table, chunks, skip) for chunks in columns]
        emphasized = [
            emphasis.applied(plain, torch.tensor([chunk.weights for chunk in chunks]))
            for (plain, _), chunks in zip(found, columns, strict=True)
        ]
        hashes = table.hashes([token for chunks in columns for chunk in chunks for token in chunk.tokens])
        _, pooled = found[0]  # emphasis and later chunks do not change it
        return _Encoded(torch.cat(emphasized, dim=1), pooled, tuple(hashes.items()))

    def _encode_chunks(
        self, tower: EncoderTower, table: EmbeddingTable, chunks: Sequence[grammar.Chunk], clip_skip: int
    ) -> tuple[Tensor, Tensor | None]:
        """Encode the unique texts' chunks at one position: (unique texts, 77, width), and the pooled texts."""
        tokens = torch.tensor([chunk.tokens for chunk in chunks])
        if tower.spec.openclip:
            ended = (tokens == grammar.END).cumsum(1)
            tokens[(ended - (tokens == grammar.END).int()) > 0] = 0
        with tower.replaced(tokens, table, self.device):
            plain, pooled = tower.hidden(tokens.clamp(min=0).to(self.device, non_blocking=True), clip_skip)
        return plain.float(), pooled


def _freed(tower: EncoderTower) -> EncoderTower:
    return replace(tower, spec=replace(tower.spec, clip_skip=None))


@dataclass(frozen=True)
class _Encoded:
    """The unique texts of a schedule, encoded by one encoder."""

    tokens: Tensor
    """(unique texts, 77 per chunk, width) in float32"""
    pooled: Tensor | None
    """(unique texts, k) in float32"""
    embeddings: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Emphasis:
    """What weights in prompts do."""

    mode: str
    places: list[int]
    """For each text of the schedule, repeated ones included, its place among the unique texts."""

    def applied(self, plain: Tensor, weights: Tensor) -> Tensor:
        """Return outputs (unique texts, 77, width) under weights (unique texts, 77) in the host's memory.

        "Original" emphasis scales each token's vector and then restores the mean over all texts of the schedule,
        including repeated ones. If all weights are 1 this is skipped, because a mean of exactly 0 would give NaN.
        """
        if self.mode == "Ignore" or bool((weights == 1).all()):
            return plain
        weighted = plain * weights.to(plain.device, non_blocking=True)[..., None]
        if self.mode == "No norm":
            return weighted
        all_texts = torch.tensor(self.places).to(plain.device, non_blocking=True)
        return weighted * (plain[all_texts].mean() / weighted[all_texts].mean())


OPENCLIP_MARKS = {"<start_of_text>": grammar.START, "<end_of_text>": grammar.END}
"""How OpenCLIP writes the tokens around a text."""


@cache  # a quarter of the time that it takes to load a small model; models share it
def load_tokenizer(folder: Path, openclip: bool) -> Tokenize:
    """Load CLIP's tokenizer: text -> token ids without start and end.

    ftfy repairs the text first (curly quotes, full-width letters, broken encodings), as in OpenAI's tokenizer. A text
    may contain the tokens around a text, which OpenCLIP writes in another way than CLIP.
    """
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    marks = re.compile(f"({'|'.join(OPENCLIP_MARKS)})", re.IGNORECASE)

    def tokenize(text: str) -> list[int]:
        text = ftfy.fix_text(text)
        if "\u03a3" in text:  # at the end of a word a capital sigma has another lower case, which only Python knows
            text = text.lower()
        return with_marks(text) if openclip else ids_of(text)

    def with_marks(text: str) -> list[int]:
        pieces = marks.split(text) if "<" in text else [text]
        marked = (OPENCLIP_MARKS.get(piece.lower()) for piece in pieces)
        found = ([mark] if mark else ids_of(piece) for mark, piece in zip(marked, pieces, strict=True))
        return [token for ids in found for token in ids]

    def ids_of(text: str) -> list[int]:
        # Not verbose: it would warn about more than 77 tokens, but these are split into chunks here.
        asked = {"add_special_tokens": False, "verbose": False, "split_special_tokens": openclip}
        ids: list[int] = tokenizer(text, **asked).input_ids
        return ids

    return tokenize

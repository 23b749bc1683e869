"""CLIP's text model: chunks of 77 tokens -> embeddings, with emphasis, clip skip and textual inversion.

The rules are those of WebUI 1.10.1.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import ftfy
import torch
from torch import Tensor
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from pipelines.ask import prompt as grammar
from pipelines.ask.networks import ExtraFile
from pipelines.errors import InvalidInput
from pipelines.families.family import Family, TextTower
from pipelines.models.embeddings import EmbeddingTable
from pipelines.runtime.unet_call import Condition

Tokenize = Callable[[str], list[int]]
CHUNKS_MAX = 64
"""4800 tokens; more would cost seconds per step. Each BREAK starts a chunk, and a rare letter can be three tokens."""


def _literally(text: str) -> list[tuple[str, float]]:
    """Return the text as one piece of weight 1, with brackets as plain text."""
    return [(text, 1.0)]


def _check_length(field: str, texts: Sequence[str], rows: Sequence[Sequence[grammar.Chunk]]) -> None:
    for text, chunks in zip(texts, rows, strict=True):
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


class TextEncoder:
    """CLIP's text model with its vocabulary."""

    def __init__(self, model: CLIPTextModel, family: Family, tokenize: Tokenize, device: torch.device) -> None:
        self.model = model
        self.family = family
        self.tokenize = tokenize
        self.device = device

    def embedding_table(
        self, files: Mapping[str, ExtraFile], bundles: Mapping[str, ExtraFile] | None = None
    ) -> EmbeddingTable:
        """Return a table of these embeddings, and of those bundled with LoRAs, for this encoder."""
        return EmbeddingTable(files, self.tokenize, self.model.config.hidden_size, bundles)

    def encode(
        self,
        texts: Sequence[str],
        clip_skip: int,
        emphasis: str = "Original",
        field: str = "prompt",
        table: EmbeddingTable | None = None,
    ) -> Encoded:
        """Encode the texts of one prompt-editing schedule. Shorter ones are padded with empty chunks.

        A text that occurs several times, as in alternation, is encoded once and its condition shared. Raises
        InvalidInput for the input `field` if a text is too long, and ModelError for an embedding that does not fit.
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
        return Encoded([Condition(encoded[place][None]) for place in places], tuple(hashes.items()))

    def _encode_chunks(
        self, chunks: Sequence[grammar.Chunk], places: list[int], clip_skip: int, emphasis: str, table: EmbeddingTable
    ) -> Tensor:
        """Encode the unique texts' chunks at one position: (unique texts, 77, width).

        "Original" emphasis scales each token's vector and then restores the mean over all texts of the schedule,
        including repeated ones (`places`). If all weights are 1 this is skipped, because a mean of exactly 0 would give
        NaN.
        """
        tokens = torch.tensor([chunk.tokens for chunk in chunks])
        if self.family.text.openclip:
            ended = (tokens == grammar.END).cumsum(1)
            tokens[(ended - (tokens == grammar.END).int()) > 0] = 0
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
        """Replace tokens with negative numbers by embeddings' vectors, before positions are added, while the context
        lasts."""
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
        """Return hidden state -clip_skip after the final layer norm. 1 is the model's own output."""
        if clip_skip == 1 or self.family.text.openclip:
            output: Tensor = self.model(input_ids=tokens).last_hidden_state
            return output
        hidden = self.model(input_ids=tokens, output_hidden_states=True).hidden_states[-clip_skip]
        normed: Tensor = self.model.final_layer_norm(hidden)
        return normed


OPENCLIP_MARKS = {"<start_of_text>": grammar.START, "<end_of_text>": grammar.END}
"""How OpenCLIP writes the tokens around a text."""


@cache  # a quarter of the time that it takes to load a small model; models share it
def load_tokenizer(folder: Path, tower: TextTower) -> Tokenize:
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
        return openclip(text) if tower.openclip else ids_of(text)

    def openclip(text: str) -> list[int]:
        pieces = marks.split(text) if "<" in text else [text]
        marked = (OPENCLIP_MARKS.get(piece.lower()) for piece in pieces)
        found = ([mark] if mark else ids_of(piece) for mark, piece in zip(marked, pieces, strict=True))
        return [token for ids in found for token in ids]

    def ids_of(text: str) -> list[int]:
        # Not verbose: it would warn about more than 77 tokens, but these are split into chunks here.
        asked = {"add_special_tokens": False, "verbose": False, "split_special_tokens": tower.openclip}
        ids: list[int] = tokenizer(text, **asked).input_ids
        return ids

    return tokenize

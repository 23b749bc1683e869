"""What the subject's word is while it is trained: vectors of its own, or rows of a text encoder's table of tokens."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pipelines.ask.networks import ExtraFile
from pipelines.models.embeddings import EmbeddingTable
from pipelines.models.text import EncoderTower, Tokenize


class TrainedTable(EmbeddingTable):
    """The words of a text encoder, one of which stands for vectors that are being trained."""

    def __init__(self, token: str, vectors: Tensor, tokenize: Tokenize) -> None:
        """Let `token` stand for the vectors (n, width)."""
        self._trained = vectors
        super().__init__({token: ExtraFile(Path(), 0, 0)}, tokenize, vectors.shape[1])

    def _read(self, name: str) -> Sequence[Tensor]:
        return list(self._trained)

    def hashes(self, tokens: Sequence[int]) -> dict[str, str]:
        """Return nothing: the vectors are in no file yet."""
        return {}


class TrainedRows(nn.Module):
    """Rows of a text encoder's table of tokens that are trained at a rate of their own: those of the subject's token.

    The encoder's own rate is too small for them: a rare token's vector would hardly move away from what it was, which
    the encoder may ignore. While they are trained, a hook puts them where captions have the token's numbers. In the
    saved checkpoint they stand in the table, where every program reads them.
    """

    def __init__(self, table: nn.Embedding, ids: Sequence[int], start: Tensor | None) -> None:
        """Take the rows (n, width) of these tokens' numbers out of the table, until `store` puts them back.

        `start` (width,) is what each begins as; None: what it is.
        """
        super().__init__()
        rows = table.weight.detach()[list(ids)].float()
        self.rows = nn.Parameter(rows if start is None else start.repeat(len(ids), 1))
        self._ids, self._table = tuple(ids), (table,)  # the tuple keeps the table out of this module's parameters
        table.register_forward_hook(self._replaced)

    def _replaced(self, _: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        for number, row in zip(self._ids, self.rows, strict=True):
            output = torch.where((arguments[0] == number)[..., None], row.to(output.dtype), output)
        return output

    @torch.no_grad()
    def store(self) -> None:
        """Write the rows into the table."""
        (table,) = self._table
        table.weight[list(self._ids)] = self.rows.to(table.weight.dtype)


def own_pieces(tokenize: Tokenize, token: str, class_prompts: Sequence[str]) -> list[int]:
    """Return the numbers of the token's pieces that prompts of what it is in general do not have."""
    general = {number for prompt in class_prompts for number in tokenize(prompt)}
    return [number for number in dict.fromkeys(tokenize(token)) if number not in general]


def meaning(tower: EncoderTower, text: str) -> Tensor:
    """Return the mean vector (width,) of the text's pieces."""
    return tower.model.get_input_embeddings().weight.detach()[tower.tokenize(text)].float().mean(0)

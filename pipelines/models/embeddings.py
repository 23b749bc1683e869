"""Textual inversion: words in a prompt that stand for trained vectors (Gal et al. 2022, arXiv:2208.01618)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from pipelines.ask.networks import ExtraFile
from pipelines.ask.prompt import CHUNK_LENGTH
from pipelines.errors import ModelError
from pipelines.families.fitting import CONTEXTS
from pipelines.families.sdxl import SDXL
from pipelines.models.checkpoint import SDXL_EMBEDDING, check_finite, check_plain, kind_of, map_tensors

NAMES = ("string_to_param.", "emb_params")
"""Prefixes of the vectors' name in files. Other files have a single tensor of any name."""
ENCODERS = {tower.embedding for tower in SDXL.texts}
"""Names of the vectors in an embedding for several encoders, which has all of them."""
BUNDLED = "bundle_emb."
"""Prefix of embeddings inside a LoRA's file: `bundle_emb.NAME.string_to_param.*`."""


class OtherWidth(ModelError):
    """An embedding for models of another width, whose word WebUI leaves in the prompt as text."""


class EmbeddingTable:
    """The embeddings that the prompts of one prediction may name. They are read when a prompt first names them.

    As in WebUI, the name of an embedding for another family of models is plain text; `left_over` tells so.
    In a chunk, an embedding's vector is a token with a negative number: -1 is the first row of `_rows`.
    """

    def __init__(
        self,
        files: Mapping[str, ExtraFile],
        tokenize: Callable[[str], list[int]],
        width: int,
        bundles: Mapping[str, ExtraFile] | None = None,
        encoder: str = "",
    ) -> None:
        """Collect the embeddings' names. `bundles` are embeddings inside LoRA files; as in WebUI, `files` win.

        `encoder` is the name of this encoder's vectors in embeddings for several encoders; empty for others.
        """
        self._encoder = encoder
        self._bundles = {name: file for name, file in (bundles or {}).items() if name not in files}
        self._files, self._width = {**files, **self._bundles}, width
        self._names: dict[int, list[tuple[list[int], str]]] = {}
        for name in self._files:
            if ids := tokenize(name):
                self._names.setdefault(ids[0], []).append((ids, name))
        for names in self._names.values():
            names.sort(key=lambda named: len(named[0]), reverse=True)
        self._rows: list[Tensor] = []
        self._owners: list[str] = []
        self._units: dict[str, tuple[int, ...]] = {}
        self.left_over: tuple[str, ...] = ()
        """Sentences about embeddings that prompts name but that are not applied."""

    def units(self, ids: list[int]) -> Iterator[tuple[int, ...]]:
        """Yield the tokens of one piece, with an embedding's name replaced by its vectors, which stay together.

        Raises ModelError for a file that is not an embedding for this model.
        """
        position = 0
        while position < len(ids):
            named = self._names.get(ids[position], ())
            said = (entry for entry in named if ids[position : position + len(entry[0])] == entry[0])
            found = next((entry for entry in said if self._unit(entry[1])), None)
            yield self._unit(found[1]) if found else (ids[position],)
            position += len(found[0]) if found else 1

    def _unit(self, name: str) -> tuple[int, ...]:
        """Return an embedding's tokens, none if it is for another family of models."""
        if name not in self._units:
            vectors = self._read(name)
            first = -1 - len(self._rows)
            self._units[name] = tuple(range(first, first - len(vectors), -1))
            self._rows += vectors
            self._owners += [name] * len(vectors)
        return self._units[name]

    def _read(self, name: str) -> Sequence[Tensor]:
        """Return an embedding's vectors, none if it is for another family of models."""
        file, bundled = self._files[name], name if name in self._bundles else None
        try:
            with file.blamed():
                return list(read_embedding(file, self._width, bundled, self._encoder))
        except OtherWidth as error:
            self.left_over += (f"{name} stays text, as in WebUI: {error}",)
            return ()

    def vectors(self, tokens: Sequence[int]) -> Tensor:
        """Return the vectors of tokens with negative numbers, (tokens, width) float32."""
        return torch.stack([self._rows[-1 - token] for token in tokens])

    def hashes(self, tokens: Sequence[int]) -> dict[str, str]:
        """Return names and SHA-256 of the embeddings among the tokens, in order. Bundled ones are left out."""
        names = dict.fromkeys(self._owners[-1 - token] for token in tokens if token < 0)
        return {name: self._files[name].sha256 for name in names if name not in self._bundles}


def bundles_of(loras: Iterable[ExtraFile]) -> dict[str, ExtraFile]:
    """Return the embeddings inside these LoRA files, by name, each with its file. Raises ModelError."""
    found: dict[str, ExtraFile] = {}
    for file in loras:
        with file.blamed():
            found |= dict.fromkeys(_bundled_names(file), file)
    return found


@lru_cache(256)
def _bundled_names(file: ExtraFile) -> tuple[str, ...]:
    names = (name.removeprefix(BUNDLED) for name in map_tensors(file.path) if name.startswith(BUNDLED))
    return tuple(dict.fromkeys(name.partition(".")[0] for name in names))


def read_embedding(file: ExtraFile, width: int, bundled: str | None = None, encoder: str = "") -> Tensor:
    """Return an embedding's vectors (n, width) in float32. For a LoRA's file, `bundled` is the embedding's name.

    `encoder` is the vectors' name in a file for several encoders.

    Raises ModelError if the file does not contain it, and OtherWidth if it is for another family of models.
    """
    path, tensors = file.path, map_tensors(file.path)
    if bundled is not None:
        prefix = f"{BUNDLED}{bundled}."
        tensors = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
    check_plain(path, tensors)
    vectors = _vectors(path, tensors, encoder)
    vectors = vectors[None] if vectors.dim() == 1 else vectors
    if vectors.dim() != 2 or not 0 < len(vectors) <= CHUNK_LENGTH or not vectors.is_floating_point():
        raise ModelError(
            f"{path}: an embedding of shape {tuple(vectors.shape)} in {vectors.dtype}; this model takes 1 to "
            f"{CHUNK_LENGTH} vectors of {_described(width)}."
        )
    if vectors.shape[1] != width:
        raise OtherWidth(
            f"{path}: its vectors have {_described(vectors.shape[1])}, this model takes {_described(width)}."
        )
    check_finite(path, {"embedding": vectors})
    return vectors.detach().float()


def _described(width: int) -> str:
    """Describe a width of vectors, with the family of models that it belongs to."""
    family = CONTEXTS.get(width)
    return f"{width} values ({family})" if family else f"{width} values"


def _vectors(path: Path, tensors: Mapping[str, Tensor], encoder: str) -> Tensor:
    """Return the tensor with the vectors for the encoder. Raises ModelError, or OtherWidth, if there is none."""
    if encoder:
        if not tensors.keys() >= ENCODERS:
            raise OtherWidth(f"{path}: it lacks {' or '.join(sorted(ENCODERS))}, which SDXL needs.")
        return tensors[encoder]
    named = next((tensor for name, tensor in tensors.items() if name.startswith(NAMES)), None)
    if named is not None:
        return named
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    kind = kind_of(tensors)
    if kind is SDXL_EMBEDDING:
        raise OtherWidth(f"{path}: {kind.what}.")
    raise ModelError(f"{path}: {kind.what if kind else 'not an embedding'}. Give a textual inversion file.")

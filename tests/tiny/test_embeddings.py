"""Textual inversion: which words stand for vectors, where the vectors go, and which files are refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipelines.ask.networks import ExtraFile
from pipelines.ask.prompt import CHUNK_LENGTH, chunks, parse_attention
from pipelines.errors import ModelError
from pipelines.models.embeddings import EmbeddingTable, read_embedding
from pipelines.models.model import Model
from pipelines.sampling.prompts import PromptEncoder


def width_of(networks: Model) -> int:
    return int(networks.text.towers[0].model.config.hidden_size)


def write(folder: Path, name: str, vectors: Tensor, key: str = "emb_params") -> ExtraFile:
    path = folder / f"{name}.safetensors"
    save_file({key: vectors}, path)
    return ExtraFile.at(path)


@pytest.fixture
def files(networks: Model, tmp_path: Path) -> dict[str, ExtraFile]:
    """One vector, and three whose name begins with the same word."""
    width = width_of(networks)
    found = {"zeta": write(tmp_path, "zeta", torch.ones(1, width))}
    return found | {"zeta-long": write(tmp_path, "zeta-long", torch.full((3, width), 2.0), "clip_vec")}


def slots(networks: Model, files: dict[str, ExtraFile], text: str) -> list[list[tuple[int, int, float]]]:
    """(position, vector, weight) of every vector in each chunk."""
    table = networks.text.embedding_tables(files)[0]
    made = chunks(parse_attention(text), networks.text.towers[0].tokenize, table.units)
    return [
        [
            (place, token, weight)
            for place, (token, weight) in enumerate(zip(c.tokens, c.weights, strict=True))
            if token < 0
        ]
        for c in made
    ]


def test_the_longest_name_wins_in_any_case_and_each_vector_has_the_pieces_weight(
    networks: Model, files: dict[str, ExtraFile]
) -> None:
    (found,) = slots(networks, files, "a (ZETA-Long:1.5) Zeta")
    assert found == [(2, -1, 1.5), (3, -2, 1.5), (4, -3, 1.5), (5, -4, 1.0)]


def test_a_name_across_two_pieces_is_none(networks: Model, files: dict[str, ExtraFile]) -> None:
    assert slots(networks, files, "(ze:1.1)ta") == [[]]


def test_vectors_that_do_not_fit_open_a_chunk(networks: Model, files: dict[str, ExtraFile]) -> None:
    first, second = slots(networks, files, "cat " * (CHUNK_LENGTH - 2) + "zeta-long")
    assert first == []
    assert [place for place, *_ in second] == [1, 2, 3]


def test_vectors_replace_the_tokens_before_positions_are_added(networks: Model, tmp_path: Path) -> None:
    """The embedding of a word's own vector is the word."""
    (sun,) = networks.text.towers[0].tokenize("sun")
    vector = networks.text.towers[0].model.embeddings.token_embedding.weight[sun].detach().float().clone()
    files = {"zeta": write(tmp_path, "zeta", vector)}
    encode = PromptEncoder(networks.text, 1, tables=networks.text.embedding_tables(files)).encode
    with torch.inference_mode():
        word, named = encode("a (sun:1.3) sat", "", 5), encode("a (zeta:1.3) sat", "zeta", 5)
        plain = PromptEncoder(networks.text, 1).encode("a (zeta:1.3) sat", "", 5)
    assert torch.allclose(
        word.positive.at(0).tokens, named.positive.at(0).tokens, atol=1e-5
    )  # a tenth of the promise's 1e-4
    assert not torch.allclose(plain.positive.at(0).tokens, named.positive.at(0).tokens, atol=1e-2)
    assert [name for name, _ in named.embeddings] == ["zeta", "zeta"]
    assert plain.embeddings == ()


def test_a_pickle_of_webui_is_read_safely(networks: Model, tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    vectors = torch.nn.Parameter(torch.ones(2, width_of(networks)))
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "old", "step": 1}, path)
    read = read_embedding(ExtraFile.at(path), width_of(networks))
    assert torch.equal(read, vectors.detach())
    assert not read.requires_grad


@pytest.mark.parametrize(
    ("vectors", "told"),
    [
        (lambda width: torch.ones(76, width), r"shape .*; this model takes"),
        (lambda width: torch.ones(0, width), "shape"),
        (lambda width: torch.ones(1, 2, width), "shape"),
        (lambda width: torch.full((1, width), float("nan")), "NaN"),
        (lambda width: torch.ones(1, width, dtype=torch.int32), "int32"),
    ],
)
def test_what_is_no_embedding_of_this_model_is_refused(
    networks: Model, tmp_path: Path, vectors: Callable[[int], Tensor], told: str
) -> None:
    width = width_of(networks)
    bad = replace(write(tmp_path, "bad", vectors(width)), origin="embeddings='a/b/c.pt'")
    table = EmbeddingTable({"bad": bad}, networks.text.towers[0].tokenize, width)
    with pytest.raises(ModelError, match=rf"^embeddings='a/b/c\.pt': .*{told}"):
        list(table.units(networks.text.towers[0].tokenize("bad")))


def test_a_checkpoint_is_no_embedding(networks: Model, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    save_file({"model.diffusion_model.a": torch.ones(1), "b": torch.ones(1)}, path)
    with pytest.raises(ModelError, match="a Stable Diffusion checkpoint"):
        read_embedding(ExtraFile.at(path), 8)

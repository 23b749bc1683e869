"""Encode the captions of every scene once: the frozen text encoder would take half of the UNet's training time."""

import random
from pathlib import Path

import torch
from torch import Tensor

from pastel_tiny.captions import caption, empty
from pastel_tiny.dataset import Chunk
from pastel_tiny.networks import half_precision
from pastel_tiny.progress import load, save
from pastel_tiny.scenes import scene
from pastel_tiny.text import Encoder

CAPTIONS = 3  # different captions of each scene
EMPTIES = 96


def _path(folder: Path, name: str) -> Path:
    return folder / "contexts" / f"{name}.pt"


def _encode(encoder: Encoder, texts: list[str]) -> Tensor:
    with half_precision():
        parts = [encoder(texts[start : start + 48]).half() for start in range(0, len(texts), 48)]
    return torch.cat(parts).cpu()


def described(folder: Path, chunk: Chunk, encoder: Encoder) -> Tensor:
    """Return the contexts of a chunk: scenes x captions x 77 x width."""
    path = _path(folder, chunk.name)
    state = load(path)
    if state is None:
        rng = random.Random(chunk.first)
        texts = [caption(scene(chunk.first + index), rng)[0] for index in range(chunk.count) for _ in range(CAPTIONS)]
        state = {"contexts": _encode(encoder, texts).unflatten(0, (chunk.count, CAPTIONS)).clone()}
        save(path, state)
        print(f"[contexts] {chunk.name}", flush=True)
    return state["contexts"]


def blanks(folder: Path, encoder: Encoder) -> Tensor:
    """Return the contexts of captions without information."""
    state = load(_path(folder, "empty"))
    if state is None:
        rng = random.Random(7)
        state = {"contexts": _encode(encoder, [empty(rng) for _ in range(EMPTIES)])}
        save(_path(folder, "empty"), state)
    return state["contexts"]

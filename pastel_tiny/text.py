"""Phase 3: the text encoder learns to tell a scene's attributes from its caption, and is frozen after that."""

import copy
import random
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from pastel_tiny.captions import ATTRIBUTES, FILLERS, FLAWS, SYNONYMS, Told, caption, empty
from pastel_tiny.networks import TEXT_WIDTH, Average, build_text, half_precision, here
from pastel_tiny.progress import Log, load, rate, save
from pastel_tiny.scenes import SUBJECTS, scene
from pastel_tiny.vocabulary import VOCABULARY_SIZE

LENGTH, BATCH = 77, 32
PEAK = 1.5e-3
UNKNOWN = 0  # the row that stands in for every token that no caption uses ("!")
EOS = VOCABULARY_SIZE - 1
COLOURS = ("sky", "ground_colour", "light_colour", "subject_colour", "hair")
"""The attributes that colours describe."""
BLENDED = (
    {word for name in COLOURS for word in ATTRIBUTES[name] if word},
    {word for noun in SUBJECTS if noun != "girl" for word in SYNONYMS.get(noun, (noun,))},
    {"sun", *SYNONYMS["moon"]},
)
"""Groups of words that are blended with each other: colours, and two groups of things."""


class Words:
    """The tokenizer, with every token outside the caption grammar mapped to one."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        rng = random.Random(0)
        texts = [caption(scene(seed), rng)[0] for seed in range(4000)]
        fill = {token for word in FILLERS + FLAWS for token in self.tokenizer(word).input_ids[1:-1]}
        grammar = {token for ids in self.tokenizer(texts).input_ids for token in ids}
        self.used = torch.zeros(VOCABULARY_SIZE, dtype=torch.bool)
        # a filler's token only keeps its own row if the grammar needs it as well ("a", "sky")
        self.used[sorted((grammar - fill) | _grammar_tokens(self.tokenizer))] = True

    def ids(self, texts: list[str], length: int = LENGTH) -> Tensor:
        """Return token ids, padded with the end token as in SD 1.5."""
        found = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids = here(found.input_ids)
        return torch.where(self.used[ids], ids, UNKNOWN)


def _grammar_tokens(tokenizer: CLIPTokenizer) -> set[int]:
    words = {word for values in ATTRIBUTES.values() for word in values}
    return {token for ids in tokenizer(sorted(words)).input_ids for token in ids}


class Blend:
    """Blends words with others of their group, so that the words around them are read independently.

    Without this, the encoder learns which pairs never occur, and reads a pink house as a tree because no house is pink:
    0.65 of the subjects of such captions were right, compared with 1.00 for trained pairs.
    """

    def __init__(self, text: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
        words = (tokenizer(list(group)).input_ids for group in BLENDED)
        self.groups = [torch.tensor(sorted({ids[1] for ids in found if len(ids) == 3})) for found in words]
        self.chosen = torch.zeros(0, dtype=torch.long)
        self.embedding: nn.Embedding = text.get_input_embeddings()
        self.embedding.register_forward_hook(self._blend)

    def choose(self, size: int) -> Tensor:
        """Choose what is blended in each of the next captions: nothing, colours (1), or things (2)."""
        self.chosen = torch.randint(0, 3, (size,))
        return self.chosen

    def _blend(self, _: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        (ids,) = arguments
        if not len(self.chosen):
            return output
        for number, group in enumerate(self.groups):
            kind = min(number + 1, 2)
            places = torch.isin(ids, group) & (self.chosen == kind)[:, None]
            words = self.embedding.weight[group]
            one, other = (words[torch.randint(0, len(group), ids.shape)] for _ in range(2))
            share = torch.empty(ids.shape).uniform_(0.25, 0.75)[..., None]
            output = torch.where(places[..., None], torch.lerp(one, other, share), output)
        self.chosen = self.chosen[:0]
        return output


class Heads(nn.Module):
    """Linear read-outs of every attribute; discarded after training."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(TEXT_WIDTH, len(values)) for name, values in ATTRIBUTES.items()})

    def forward(self, states: Tensor) -> dict[str, Tensor]:
        """Return scores of every value of every attribute."""
        return {name: layer(states) for name, layer in self.layers.items()}


def targets(told: list[Told], blended: Tensor) -> dict[str, Tensor]:
    """Return the attributes that captions name, as class numbers; -100 for those that a blend makes unreadable."""
    goals = {}
    for name, values in ATTRIBUTES.items():
        goal = torch.tensor([values.index(item.get(name, "")) for item in told])
        hidden = (blended == 1) if name in COLOURS else (blended == 2) if name in ("subject", "light") else None
        goals[name] = goal if hidden is None else goal.masked_fill(hidden, -100)
    return goals


def batch(rng: random.Random, first: int, count: int, size: int = BATCH) -> tuple[list[str], list[Told]]:
    """Return captions of random scenes; one in twenty has no information."""
    pairs = [
        caption(scene(first + rng.randrange(count)), rng) if rng.random() > 0.05 else (empty(rng), {})
        for _ in range(size)
    ]
    return [text for text, _ in pairs], [told for _, told in pairs]


def _read(text: CLIPTextModel, heads: Heads, ids: Tensor) -> tuple[tuple[dict[str, Tensor], ...], Tensor]:
    """Return read-outs at the end token and at a random place of the padding, which the UNet attends to as well, and
    the contexts."""
    states = text(input_ids=ids).last_hidden_state
    ends = (ids == EOS).int().argmax(1)
    rows = torch.arange(len(ids))
    later = ends + (torch.rand(len(ids)) * (ids.shape[1] - ends)).long()
    return (heads(states[rows, ends]), heads(states[rows, later])), states


def train(folder: Path, tokenizer: Path, steps: int, start: Mapping[str, Tensor] | None = None) -> None:
    """Train for `steps`; the result is frozen.

    With an earlier version to `start` from, captions that it could read keep their contexts, so that its UNet can still
    read them.
    """
    torch.manual_seed(3)
    words, text, heads = Words(tokenizer), build_text(), Heads()
    path = folder / "text.pt"
    state, earlier = load(path), None
    if start is not None:
        text.load_state_dict(start)
        earlier = copy.deepcopy(text).eval().requires_grad_(False)
    blend = Blend(text, words.tokenizer)
    if state:
        text.load_state_dict(state["network"]), heads.load_state_dict(state["heads"])
    step = state["step"] if state else 0
    both = nn.ModuleList((text, heads))
    average, log, rng = Average(both, 0.995), Log(folder / "text.csv"), random.Random(3 + step)
    optimizer = torch.optim.AdamW(both.parameters(), 1e-3, (0.9, 0.98), weight_decay=1e-3)
    while step < steps:
        captions, told = batch(rng, 0, 100_000)
        ids, blended = words.ids(captions, LENGTH if step % 4 == 0 else 44), blend.choose(len(told))
        goal = targets(told, blended)
        with half_precision():
            reads, states = _read(text, heads, ids)
        error = sum(
            (F.cross_entropy(read[name].float(), goal[name]) for read in reads for name in goal), torch.zeros(())
        )
        moved = _moved(earlier, ids, states, known(told) & (blended == 0)) if earlier else torch.zeros(())
        optimizer.param_groups[0]["lr"] = rate(PEAK, step / steps, step, 100)
        optimizer.zero_grad()
        (error + 20 * moved).backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        average.update(both)
        step += 1
        right = torch.stack([((reads[0][name].argmax(1) == goal[name]) | (goal[name] < 0)).float() for name in goal])
        figures = {"loss": error, "moved": moved, "accuracy": right.mean(), "all": right.prod(0).mean()}
        log.add(step, {name: float(value) for name, value in figures.items()})
        if step % 1000 == 0 or step == steps:
            both.load_state_dict(average.weights) if step == steps else None
            save(path, {"network": _spread(text, words), "heads": heads.state_dict(), "step": step})


def known(told: list[Told]) -> Tensor:
    """Return which captions the fifth version can read: those without a girl."""
    return torch.tensor([item.get("subject") != "girl" for item in told])


def _moved(earlier: CLIPTextModel, ids: Tensor, states: Tensor, rows: Tensor) -> Tensor:
    """Return how far these rows' contexts moved, as a share of their variance."""
    with torch.no_grad():
        before = earlier(input_ids=ids[rows]).last_hidden_state
    return F.mse_loss(states[rows].float(), before) / before.var()


def _spread(text: CLIPTextModel, words: Words) -> dict[str, Tensor]:
    """Return the weights with the unknown token's row copied to every row that no caption uses."""
    state = {name: value.detach().clone() for name, value in text.state_dict().items()}
    name = next(key for key in state if key.endswith("token_embedding.weight"))
    state[name][~words.used] = state[name][UNKNOWN].clone()
    return state


class Encoder:
    """The frozen text encoder, from caption to context."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        state = load(folder / "text.pt")
        assert state is not None, "the text encoder is not trained yet"
        self.words, self.text = Words(tokenizer), build_text().eval()
        self.text.load_state_dict(state["network"])

    def __call__(self, texts: list[str]) -> Tensor:
        """Return the contexts of captions."""
        with torch.inference_mode():
            return self.text(input_ids=self.words.ids(texts)).last_hidden_state.clone()

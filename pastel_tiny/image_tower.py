"""The image tower of the unCLIP form: a small CLIP vision model that learns to tell what a scene shows."""

import random
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from pastel_tiny.dataset import SHAPES, TEST_SEED, painted
from pastel_tiny.forms import EMBEDDING
from pastel_tiny.judge import SEEN, truth
from pastel_tiny.progress import Log, rate
from pastel_tiny.scenes import scene
from pipelines.families.layouts import image_tower_layout
from pipelines.models.image_prompt import IMAGE_PREFIX, prepared

TRAIN_SEED, SCENES, BATCH, SIDE, PATCH, LAYERS, WIDTH = 70_000_000, 8000, 64, 64, 8, 3, 64
STEPS = 1500
TEST_COUNT = 400

RATE = 2e-3
WEIGHT = {"subject": 3, "subject_colour": 2}
"""Of what is hardest to see."""


def build_tower() -> CLIPVisionModelWithProjection:
    """A fresh one."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=EMBEDDING,
            num_hidden_layers=LAYERS,
            num_attention_heads=1,
            image_size=SIDE,
            patch_size=PATCH,
            hidden_act="gelu",
        )
    )


def pictures(folder: Path, name: str, first: int, count: int) -> Tensor:
    """Painted scenes (count, 3, 64, 64), as a form's tower is shown them."""
    drawn = painted(folder / f"tower_{name}.npy", first, count, SHAPES[0], small=True)
    parts = [drawn[start : start + BATCH] for start in range(0, count, BATCH)]
    return torch.cat([prepared(torch.from_numpy(part.copy()).permute(0, 3, 1, 2) / 255, SIDE) for part in parts])


def goals(first: int, count: int) -> dict[str, Tensor]:
    """The number of what each scene shows among all values of an attribute, (count,) by attribute."""
    truths = [truth(scene(first + k)) for k in range(count)]
    return {name: torch.tensor([values.index(each[name]) for each in truths]) for name, values in SEEN.items()}


def tower(folder: Path, steps: int, earlier: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Train the tower under read-outs that are thrown away, and give its tensors by OpenCLIP's names.

    It begins with an earlier form's tower if there is one. The form's UNet then finds embeddings that it knows.
    Its embeddings are scaled to a variance of about 1, which is what the noise over them has.
    """
    torch.manual_seed(19)
    rng, network, shown = random.Random(19), build_tower(), pictures(folder, "train", TRAIN_SEED, SCENES)
    if earlier is not None:
        network.load_state_dict(image_tower_layout(LAYERS).tensors_to_diffusers(transposed(earlier), IMAGE_PREFIX))
    wanted = goals(TRAIN_SEED, SCENES)
    heads = nn.ModuleDict({name: nn.Linear(EMBEDDING, len(values)) for name, values in SEEN.items()})
    optimizer = torch.optim.AdamW([*network.parameters(), *heads.parameters()], RATE, weight_decay=5e-2)
    log = Log(folder / "tower.csv")
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate(RATE, step / steps, step, 100)
        rows = rng.sample(range(SCENES), BATCH)
        embeddings = network(varied(shown[rows], rng)).image_embeds
        scores = {name: head(embeddings + 0.3 * torch.randn_like(embeddings)) for name, head in heads.items()}
        losses = {name: F.cross_entropy(scores[name], wanted[name][rows]) for name in SEEN}
        error = torch.stack([WEIGHT.get(name, 1) * loss for name, loss in losses.items()]).sum()
        # embeddings of a variance of 1
        loss = error + (embeddings.std(0).mean() - 1).square() + embeddings.mean(0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log.add(step, {name: float(loss.detach()) for name, loss in losses.items()})
    for name, right in accuracy(network.eval(), heads, folder).items():
        print(f"{name}: {right:.0%} of unseen scenes")
    named = {name: each for name, each in network.state_dict().items() if "position_ids" not in name}
    return transposed(image_tower_layout(LAYERS).tensors_to_ldm(named, IMAGE_PREFIX))


def transposed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the projection transposed, which is how OpenCLIP and transformers differ."""
    name = f"{IMAGE_PREFIX}proj"
    return {**tensors, name: tensors[name].T.contiguous()}


def varied(shown: Tensor, rng: random.Random) -> Tensor:
    """Pictures moved by a pixel, half of them mirrored, with colours that are a little off, as drawn ones' are."""
    moved = torch.roll(shown, (rng.randint(-2, 2), rng.randint(-2, 2)), (2, 3))
    moved = moved.flip(3) if rng.random() < 0.5 else moved
    contrast, tone = 1 + 0.05 * torch.randn(len(shown), 1, 1, 1), 0.05 * torch.randn(len(shown), 3, 1, 1)
    return moved * contrast + tone


@torch.inference_mode()
def accuracy(network: CLIPVisionModelWithProjection, heads: nn.ModuleDict, folder: Path) -> dict[str, float]:
    """Share of unseen scenes that the read-outs tell right, by attribute."""
    embeddings = network(pictures(folder, "test", TEST_SEED, TEST_COUNT)).image_embeds
    wanted = goals(TEST_SEED, TEST_COUNT)
    return {name: float((head(embeddings).argmax(1) == wanted[name]).float().mean()) for name, head in heads.items()}

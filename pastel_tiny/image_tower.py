"""The image tower of the unCLIP form: a small CLIP vision model that learns to tell what a scene shows."""

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from pastel_tiny.dataset import painted
from pastel_tiny.forms import EMBEDDING
from pastel_tiny.judge import SEEN, truth
from pastel_tiny.progress import Clock
from pastel_tiny.scenes import scene
from pipelines.families.layouts import image_tower_layout
from pipelines.models.image_encoder import DEVIATION, MEAN
from pipelines.models.image_prompt import IMAGE_PREFIX

TRAIN_SEED, SCENES, BATCH, SIDE, PATCH, LAYERS, WIDTH = 70_000_000, 2400, 64, 64, 16, 3, 64

WEIGHT = {"subject": 3}
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


def pictures(folder: Path, count: int) -> Tensor:
    """Painted scenes (count, 3, 64, 64) in [0, 1], as a form's tower is shown them."""
    painted_once = np.asarray(painted(folder / "tower.npy", TRAIN_SEED, count, (2 * SIDE, 2 * SIDE)))
    values = torch.from_numpy(painted_once.copy()).permute(0, 3, 1, 2)
    parts = [F.interpolate(part / 255, (SIDE, SIDE), mode="bicubic", antialias=True) for part in values.split(BATCH)]
    return torch.cat(parts)


def tower(folder: Path, minutes: float) -> dict[str, Tensor]:
    """Train the tower under read-outs that are thrown away, and give its tensors by OpenCLIP's names.

    Its embeddings are scaled to a variance of about 1, which is what the noise over them has.
    """
    torch.manual_seed(19)
    rng, network, shown = random.Random(19), build_tower(), pictures(folder, SCENES)
    truths = [truth(scene(TRAIN_SEED + k)) for k in range(SCENES)]
    goals = {name: torch.tensor([values.index(each[name]) for each in truths]) for name, values in SEEN.items()}
    heads = nn.ModuleDict({name: nn.Linear(EMBEDDING, len(values)) for name, values in SEEN.items()})
    learned = [*network.parameters(), *heads.parameters()]
    optimizer, clock = torch.optim.AdamW(learned, 2e-3, weight_decay=1e-2), Clock(minutes)
    mean, deviation = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(DEVIATION).view(3, 1, 1)
    right: list[float] = []
    while clock.done < 1:
        optimizer.param_groups[0]["lr"] = clock.rate(2e-3, len(right))
        rows = rng.sample(range(SCENES), BATCH)
        moved = torch.roll(shown[rows], (rng.randint(-1, 1), rng.randint(-1, 1)), (2, 3))
        moved = moved.flip(3) if rng.random() < 0.5 else moved
        embeddings = network((moved - mean) / deviation).image_embeds
        scores = {name: head(embeddings + 0.3 * torch.randn_like(embeddings)) for name, head in heads.items()}
        losses = torch.stack([WEIGHT.get(name, 1) * F.cross_entropy(scores[name], goals[name][rows]) for name in SEEN])
        # embeddings of a variance of 1
        loss = losses.sum() + (embeddings.std(0).mean() - 1).square() + embeddings.mean(0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right.append(float((scores["subject"].argmax(1) == goals["subject"][rows]).float().mean()))
        if len(right) % 100 == 0:
            print(
                f"step {len(right)}: loss {float(loss.detach()):.3f}, subjects {np.mean(right[-50:]):.0%}", flush=True
            )
    named = {name: each for name, each in network.state_dict().items() if "position_ids" not in name}
    theirs = image_tower_layout(LAYERS).tensors_to_ldm(named, IMAGE_PREFIX)
    theirs[f"{IMAGE_PREFIX}proj"] = theirs[f"{IMAGE_PREFIX}proj"].T
    return theirs

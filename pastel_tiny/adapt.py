"""Train a LoRA and an embedding that teach the embedded model what it cannot draw: a snowman, and a coral sky.

    python -m pastel_tiny.adapt lora --out tests/data/loras/snowman.safetensors
    python -m pastel_tiny.adapt embedding --out tests/data/embeddings/afterglow.safetensors

The model has no words for them: "snowman" and "coral" mean nothing to its text encoder, and it never saw either. The
base model is the one that the container loads, and is not changed.
"""

import argparse
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pastel_tiny.captions import caption
from pastel_tiny.dataset import SHAPES, SIDE, halve
from pastel_tiny.networks import fast_attention, half_precision
from pastel_tiny.render import render
from pastel_tiny.scenes import Scene, scene, with_subject
from pastel_tiny.unet import noise_error, weights
from pipelines.models.loader import load
from pipelines.models.model import Model
from pipelines.training.words import TrainedRows
from weights_script.resolve import resolve

TRAIN_SEED, TEST_SEED = 40_000_000, 50_000_000
SNOWMAN, AFTERGLOW = "snowman", "afterglow"
LAYERS = re.compile(r"(mid_block|up_blocks)\..*(attn2\.to_(q|k|v|out\.0)|conv[12])")
"""Layers that the LoRA changes: those that compose the picture and read the caption, not those that read a draft."""
RANK = 4


@dataclass(frozen=True)
class Course:
    """The length of a training: scenes, steps and their batch size, the highest learning rate, and the least noise (of
    1000).

    A picture's content is settled while there is much noise; the low noise levels only sharpen it.
    """

    scenes: int
    steps: int
    batch: int
    rate: float
    least_noise: int


def with_snowman(seed: int) -> Scene:
    """Return a scene with a snowman as its subject."""
    return with_subject(scene(seed), SNOWMAN, "white")


def with_afterglow(seed: int) -> Scene:
    """Return a scene by day under a coral sky."""
    return replace(scene(seed), sky="coral", night=False)


class Change(nn.Module):
    """A weight with up @ down added, which is zero at first."""

    def __init__(self, weight: Tensor, rank: int = RANK) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, weight[0].numel()) / weight[0].numel() ** 0.5)
        self.up = nn.Parameter(torch.zeros(len(weight), rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with the LoRA added."""
        return weight + (self.up @ self.down).view_as(weight)


def lora(networks: Model) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a snowman LoRA by Kohya's names, and the file's metadata.

    A quarter of the scenes it learns from are the model's own, so that other prompts still work.
    """
    modules = [(name, module) for name, module in networks.unet.network.named_modules() if LAYERS.fullmatch(name)]
    changes = {name: Change(module.weight) for name, module in modules}
    for name, module in modules:
        parametrize.register_parametrization(module, "weight", changes[name])
    course = Course(scenes=64, steps=240, batch=8, rate=6e-3, least_noise=100)
    scenes = [(scene if k % 4 == 0 else with_snowman)(TRAIN_SEED + k) for k in range(course.scenes)]
    parameters = [parameter for change in changes.values() for parameter in change.parameters()]
    train(networks, scenes, lambda text: text.replace("white snowman", SNOWMAN), parameters, course)
    tensors = {}
    for name, module in modules:
        key, shape = f"lora_unet_{name.replace('.', '_')}", module.weight.shape
        tensors[f"{key}.lora_up.weight"] = changes[name].up.view(-1, RANK, *[1] * (len(shape) - 2))
        tensors[f"{key}.lora_down.weight"] = changes[name].down.view(RANK, *shape[1:])
        tensors[f"{key}.alpha"] = torch.tensor(float(RANK))
    return tensors, {"ss_output_name": SNOWMAN, "ss_network_dim": str(RANK), "ss_network_alpha": str(RANK)}


def embedding(networks: Model) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the vectors of a word for a coral sky, one per token. They start halfway between two colours."""
    table = networks.text.towers[0].model.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    tokens = networks.text.towers[0].tokenize(AFTERGLOW)
    near = [token for word in ("pink", "orange") for token in networks.text.towers[0].tokenize(word)]
    rows = TrainedRows(table, tokens, table.weight[near].mean(0))
    course = Course(scenes=64, steps=300, batch=6, rate=1.5e-2, least_noise=250)
    scenes = [with_afterglow(TRAIN_SEED + k) for k in range(course.scenes)]
    train(networks, scenes, lambda text: text.replace("coral sky", f"{AFTERGLOW} sky"), [rows.rows], course)
    return {"emb_params": rows.rows}, {}


def train(
    networks: Model,
    scenes: Sequence[Scene],
    told: Callable[[str], str],
    parameters: Sequence[nn.Parameter],
    course: Course,
) -> None:
    """Train the parameters on scenes, with captions changed by `told`; everything else is frozen."""
    assert isinstance(networks.unet.network, UNet2DConditionModel)
    fast_attention(networks.unet.network)
    latents, rng = torch.stack([encoded(networks, each) for each in scenes]), random.Random(0)
    optimizer = torch.optim.Adam(parameters, course.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, course.rate, course.steps, pct_start=0.1)
    for step in range(course.steps):
        rows = rng.sample(range(len(scenes)), course.batch)
        texts = [told(caption(scenes[row], rng)[0]) for row in rows]
        contexts = torch.cat([condition.tokens for condition in networks.text.encode(texts, 1).conditions])
        times = torch.randint(course.least_noise, 1000, (course.batch,))
        noise = torch.randn(course.batch, *latents.shape[1:])
        error = noise_error(networks.unet.network, latents[rows], contexts, times, noise)
        loss = (weights(times) * error).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            print(f"step {step} of {course.steps}: loss {float(loss.detach()):.4f}", flush=True)


@torch.no_grad()
def encoded(networks: Model, shown: Scene) -> Tensor:
    """Return a scene's latents (4, 20, 20)."""
    picture = torch.from_numpy(halve(render(shown, *SHAPES[0])[None])[0])
    with half_precision():
        return networks.vae.encode(picture.permute(2, 0, 1).float() / 255, torch.zeros(4, SIDE // 8, SIDE // 8))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("lora", "embedding"))
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    networks = load(resolve(None, None).files)
    for network in (networks.unet.network, networks.text.towers[0].model, networks.vae.network):
        network.requires_grad_(False)
    tensors, metadata = {"lora": lora, "embedding": embedding}[options.what](networks)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().half().contiguous() for name, value in tensors.items()}, options.out, metadata)


if __name__ == "__main__":
    main()

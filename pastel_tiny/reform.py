"""Train a form of the embedded model, and write what is changed.

    python -m pastel_tiny.reform sd2 --out DIR --to tests/data/forms
    python -m pastel_tiny.reform depth --out DIR --to tests/data/forms
    python -m pastel_tiny.reform tower --out DIR --to tests/data/forms
    python -m pastel_tiny.reform unclip --out DIR --to tests/data/forms

DIR keeps the latents of the scenes. Attentions, whose heads become 64 channels wide, and the small layers learn as a
whole, the others by a change of low rank. v is learned from the embedded model, whose answers have no chance in them;
where there is almost nothing but noise, and what follows a depth map, from the pictures themselves.
"""

import argparse
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from pastel_tiny.adapt import Change
from pastel_tiny.captions import caption, empty
from pastel_tiny.dataset import halve, painted, tensor
from pastel_tiny.forms import DOWN, EMBEDDING, FORMS, UP, Form, compose, files_of, untrained
from pastel_tiny.image_tower import tower
from pastel_tiny.measure import asked_of
from pastel_tiny.networks import PlainAttention
from pastel_tiny.pack import write
from pastel_tiny.progress import Clock, Log, load, save
from pastel_tiny.render import nearness, render
from pastel_tiny.sampler import alphas
from pastel_tiny.scenes import SUBJECT_COLOURS, SUBJECTS, Scene, held_out, scene
from pipelines.drawing.start import scaled_depth
from pipelines.families.layouts import UNET_PREFIX, unet_layout
from pipelines.families.sd2 import DEPTH, UNCLIP
from pipelines.models import loader
from pipelines.models.model import Model
from weights_script.resolve import resolve

TRAIN_SEED, SIDE = 60_000_000, 128
BATCH, RANK = 8, 8
CHANGE_RATE, WHOLE_RATE = 4e-3, 1e-3
SAVE_EVERY = 300.0
"""Seconds."""
LEAST = 0.3
"""Of signal to noise: where there is less, it is decided what goes where, and errors count more."""
SUBJECT_WEIGHT = 3
"""How much more errors of a variation count where its subject is, which is a small part of the picture."""
NEAREST = 255
"""What a subject is in a scene's depth map."""
LATE = 700
"""From this time on pictures teach; the embedded model hardly tells the picture from the noise there."""


@dataclass(frozen=True)
class Batch:
    """Latents, what the form is told of them, and what the embedded model is told, if that teaches."""

    latents: Tensor
    texts: Sequence[str]
    taught: Sequence[str] | None = None
    channels: Tensor | None = None
    vectors: Tensor | None = None
    weights: Tensor | None = None
    """How much errors count by place, (B, 1, h, w); None: everywhere the same."""


def other(seed: int) -> Scene:
    """The scene of a seed painted again, with another subject or none."""
    of, rng = scene(seed), random.Random(seed)
    while True:
        subject = rng.choice(("", *SUBJECTS))
        colour = rng.choice(SUBJECT_COLOURS) if subject else ""
        found = replace(of, seed=of.seed + 500_000, subject=subject, subject_colour=colour)
        if subject != of.subject and not held_out(found):
            return found


def small(shown: Scene) -> NDArray[np.uint8]:
    """The picture (128, 128, 3) of a scene."""
    return halve(render(shown, 2 * SIDE, 2 * SIDE)[None])[0]


class Scenes:
    """Painted scenes, from which batches for a form are drawn."""

    def __init__(self, folder: Path, form: Form, teacher: Model, student: Model) -> None:
        self.form, self.student, self.rng = form, student, random.Random(13)
        self.scenes = [scene(TRAIN_SEED + k) for k in range(form.scenes)]
        self.latents = encoded(folder, teacher, self.scenes)
        self.size = self.latents.shape[2], self.latents.shape[3]
        if form.family is DEPTH:
            self.maps = torch.cat([scaled_depth(near, self.size) for near in self._nearness()])
        if form.family is UNCLIP:
            self.shown = painted(folder / "shown.npy", TRAIN_SEED, form.scenes, (2 * SIDE, 2 * SIDE), small=True)
            self.others = painted(folder / "others.npy", TRAIN_SEED, form.scenes, (2 * SIDE, 2 * SIDE), True, other)
            of_subjects = [
                F.interpolate((near == NEAREST).float(), self.size, mode="area") for near in self._nearness()
            ]
            self.weights = 1 + SUBJECT_WEIGHT * torch.cat(of_subjects)

    def _nearness(self) -> Iterator[Tensor]:
        """Yield each scene's depth map, (1, 1, 128, 128) from 0 to 255."""
        for each in self.scenes:
            yield torch.from_numpy(nearness(each, SIDE, SIDE)).float()[None, None]

    def batch(self) -> Batch:
        """One batch of what the form learns from."""
        if self.form.family is UNCLIP:
            return self._variations()
        rows = self.rng.sample(range(len(self.scenes)), BATCH)
        latents, scenes = self.latents[rows], [self.scenes[row] for row in rows]
        share = 0.5 if self.form.family is DEPTH else 0.1  # what no caption tells must be read from the map
        texts = [self._empty() if self.rng.random() < share else caption(each, self.rng)[0] for each in scenes]
        if self.form.family is DEPTH:
            return Batch(latents, texts, channels=self.maps[rows])
        return Batch(latents, texts, texts)

    def _empty(self) -> str:
        return empty(self.rng)

    def _variations(self) -> Batch:
        """A picture alone, with its caption, or of another subject with the right one told; a caption; nothing.

        Four in five pictures have a subject, which is what is hardest to keep.
        """
        rows = self.rng.choices(range(len(self.scenes)), [3 if each.subject else 1 for each in self.scenes], k=BATCH)
        texts, taught, vectors = [], [], []
        for row in rows:
            each, kind = self.scenes[row], self.rng.random()
            told = whole = asked_of(each).prompt + (", night" if each.night else "")
            shown = self.shown[row]
            if kind < 0.6 or (kind < 0.8 and not each.subject):
                told = self._empty()
            elif kind < 0.8:
                told, shown = f"a {each.subject_colour} {each.subject}", self.others[row]
            elif kind > 0.93:
                told = whole = self._empty()
            texts.append(told)
            taught.append(whole)
            vectors.append(self._vector(shown) * (kind < 0.85))
        return Batch(self.latents[rows], texts, taught, vectors=torch.cat(vectors), weights=self.weights[rows])

    def _vector(self, shown: NDArray[np.uint8]) -> Tensor:
        assert self.student.image_prompt is not None
        level = self.rng.choice((0, 0, 0, self.rng.randrange(1000)))
        pixels = torch.from_numpy(shown.copy()).permute(2, 0, 1).float() / 255
        return self.student.image_prompt.vectors(pixels[None], level, torch.randn(1, EMBEDDING)).clone()


@torch.no_grad()
def encoded(folder: Path, teacher: Model, scenes: Sequence[Scene]) -> Tensor:
    """The scenes' latents, encoded once."""
    path = folder / f"latents{len(scenes)}.pt"
    state = load(path)
    if state is None:
        vae, latents = teacher.vae.network.to(memory_format=torch.channels_last), []
        for start in range(0, len(scenes), BATCH):
            pictures = np.stack([small(each) for each in scenes[start : start + BATCH]])
            latents.append(vae.encode(tensor(pictures)).latent_dist.mean * teacher.family.latent_scale)
        state = {"latents": torch.cat(latents)}
        save(path, state)
    return state["latents"]


def contexts(networks: Model, texts: Sequence[str]) -> Tensor:
    """Encoded texts (B, 77, width)."""
    return torch.cat([condition.tokens for condition in networks.text.encode(texts, 1).conditions]).clone()


def loss_of(form: Form, unet: UNet2DConditionModel, batch: Batch, teacher: Model, student: Model) -> Tensor:
    """The weighted squared error of the form's prediction."""
    times = torch.randint(form.least_noise, 1000, (BATCH,))
    share = alphas()[times][:, None, None, None]
    signal, spread, noise = share.sqrt(), (1 - share).sqrt(), torch.randn_like(batch.latents)
    noisy = (signal * batch.latents + spread * noise).contiguous(memory_format=torch.channels_last)
    goal = signal * noise - spread * batch.latents if form.v else noise
    with torch.inference_mode():
        told = contexts(student, batch.texts)
        if batch.taught is not None:
            guess = teacher.unet.network(noisy, times, contexts(teacher, batch.taught)).sample
            learned = (guess - spread * noisy) / signal if form.v else guess
            goal = torch.where(times[:, None, None, None] < LATE, learned, goal)
    seen = noisy if batch.channels is None else torch.cat([noisy, batch.channels], 1)
    output = unet(seen, times, told.clone(), class_labels=batch.vectors).sample
    ratio = (share / (1 - share)).flatten()
    weights = ratio.clamp(LEAST, 5) / (ratio + 1 if form.v else ratio)
    errors = (output - goal.clone()).square()
    if batch.weights is not None:
        errors = errors * batch.weights
    return (weights * errors.mean((1, 2, 3))).mean()


class Reform:
    """What of a UNet learns: some weights as a whole, the others by a change of low rank."""

    def __init__(self, form: Form, unet: UNet2DConditionModel, earlier: dict[str, Tensor]) -> None:
        layout = unet_layout(unet.config.down_block_types)
        named = {UNET_PREFIX + layout.to_ldm(name): weight for name, weight in unet.named_parameters()}
        self.form = form
        self.whole = {name: weight for name, weight in named.items() if learns_whole(form, name, weight)}
        self.weights = {name: weight for name, weight in named.items() if name not in self.whole}
        self.changes: dict[str, Change] = {}
        self.plain: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            self.plain[name], change = weight.detach().clone(), Change(weight, RANK)
            if name + UP in earlier:
                change.up.data, change.down.data = earlier[name + UP].float(), earlier[name + DOWN].float()
                self.plain[name] -= (change.up @ change.down).detach().view_as(weight)
            self.changes[name] = change

    def parameters(self) -> list[dict[str, object]]:
        """What the optimizer changes, with each group's highest rate."""
        factors = [each for change in self.changes.values() for each in change.parameters()]
        groups: dict[float, list[nn.Parameter]] = {CHANGE_RATE: factors}
        for name, weight in self.whole.items():
            rate = next((rate for part, rate in self.form.fast.items() if part in name), WHOLE_RATE)
            groups.setdefault(rate, []).append(weight)
        return [{"params": weights, "peak": rate} for rate, weights in groups.items()]

    def hand_over(self) -> None:
        """Give the gradients of the weights to their changes."""
        made = [self.changes[name](self.plain[name]) for name in self.weights]
        torch.autograd.backward(made, [weight.grad for weight in self.weights.values()])

    @torch.no_grad()
    def apply(self) -> None:
        """Put the changes into the weights."""
        for name, weight in self.weights.items():
            weight.copy_(self.changes[name](self.plain[name]))
            weight.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """What a form's file holds of the UNet."""
        found: dict[str, Tensor] = dict(self.whole)
        for name, change in self.changes.items():
            found |= {name + UP: change.up, name + DOWN: change.down}
        return found


def learns_whole(form: Form, name: str, weight: nn.Parameter) -> bool:
    """Whether a weight learns as a whole: small ones, attentions, what reads and writes latents, and the form's own."""
    kept = (".attn1.", ".attn2.", "input_blocks.0.0.", f"{UNET_PREFIX}out.2.", *form.whole, *form.fast)
    return weight.dim() == 1 or any(part in name for part in kept)


def train(form: Form, folder: Path, target: Path, minutes: float) -> None:
    """Train a form for a time, and write its change. One that is there already is trained further."""
    torch.manual_seed(17)
    file, parent = target / f"{form.name}.safetensors", target / f"{form.parent}.safetensors"
    found = next((each for each in (file, parent) if each.exists()), None)
    earlier = load_file(found) if found else {}
    if form.family is UNCLIP and found != file:
        earlier |= load_file(folder / "tower.safetensors")
    start = untrained(form, earlier)
    with tempfile.TemporaryDirectory() as place:
        student = loader.load(files_of(compose(start, Path(place) / "start.safetensors", form)))
    teacher = loader.load(resolve(None, None).files)
    unet = student.unet.network
    assert isinstance(unet, UNet2DConditionModel)
    unet.set_attn_processor(PlainAttention())
    unet.requires_grad_(True).to(memory_format=torch.channels_last)
    reform, scenes = Reform(form, unet, earlier), Scenes(folder, form, teacher, student)
    optimizer = torch.optim.AdamW(reform.parameters(), WHOLE_RATE, (0.9, 0.99), weight_decay=0)
    own = {name: value for name, value in earlier.items() if not name.startswith(UNET_PREFIX)}
    clock, log, step, saved = Clock(minutes), Log(folder / f"{form.name}.csv"), 0, 0.0
    while clock.done < 1:
        for group in optimizer.param_groups:
            group["lr"] = clock.rate(group["peak"], step, warm_up=20)
        optimizer.zero_grad()
        loss = loss_of(form, unet, scenes.batch(), teacher, student)
        loss.backward()
        reform.hand_over()
        nn.utils.clip_grad_norm_([each for group in optimizer.param_groups for each in group["params"]], 1.0)
        optimizer.step()
        reform.apply()
        step += 1
        log.add(step, clock, {"loss": float(loss.detach())})
        if clock.done >= 1 or clock.elapsed - saved > SAVE_EVERY:
            saved = clock.elapsed
            write(file, own | reform.tensors(), f"pastel-tiny {form.name}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*FORMS, "tower"))
    parser.add_argument("--out", type=Path, required=True, help="the training's folder")
    parser.add_argument("--to", type=Path, required=True, help="where the form's file goes")
    parser.add_argument("--minutes", type=float, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "tower":
        write(options.out / "tower.safetensors", tower(options.out, options.minutes), "pastel-tiny image tower")
    else:
        train(FORMS[options.what], options.out, options.to, options.minutes)


if __name__ == "__main__":
    main()

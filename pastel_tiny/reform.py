"""Train a form of the embedded model, and write what is changed.

    python -m pastel_tiny.reform sd2 depth tower unclip sdxl refiner --out DIR --to tests/data/forms

DIR keeps the latents of the scenes and the state of every training: the same command continues one that was
interrupted, with the same scenes, noise and rates (weights then differ by 6e-5 at most). Attentions, whose heads become
64 channels wide, and the small layers learn as a whole, the others by a change of low rank. v, and what SDXL's towers
tell, are learned from the embedded model, whose answers have no chance in them; where there is almost nothing but
noise, what follows a depth map, and what a refiner adds, from the pictures themselves.

With `--before FOLDER`, each form begins as that of an earlier embedded model, whose checkpoint and forms are in FOLDER.
"""

import argparse
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from pastel_tiny.adapt import Change
from pastel_tiny.captions import caption, empty
from pastel_tiny.dataset import SHAPES, SIDE, halve, painted, tensor
from pastel_tiny.forms import DOWN, EMBEDDING, FORMS, UP, Form, compose, files_of, untrained
from pastel_tiny.image_tower import STEPS as TOWER_STEPS
from pastel_tiny.image_tower import tower
from pastel_tiny.measure import asked_of, thing_of
from pastel_tiny.networks import fast_attention
from pastel_tiny.pack import write
from pastel_tiny.progress import Log, load, rate, save
from pastel_tiny.render import nearness, render
from pastel_tiny.sampler import alphas
from pastel_tiny.scenes import SUBJECT_COLOURS, SUBJECTS, Scene, held_out, scene, with_subject
from pipelines.drawing.start import scaled_depth
from pipelines.families.family import Framing
from pipelines.families.layouts import UNET_PREFIX, unet_layout
from pipelines.families.sd2 import DEPTH, UNCLIP
from pipelines.families.sdxl import REFINER, SDXL
from pipelines.models import loader
from pipelines.models.checkpoint import map_tensors
from pipelines.models.model import Model
from pipelines.runtime.unet_call import Condition
from pipelines.sampling.prompts import as_waves
from weights_script.resolve import resolve

TRAIN_SEED = 60_000_000
BATCH, RANK = 8, 8
CHANGE_RATE, WHOLE_RATE = 4e-3, 1e-3
SAVE_EVERY = 20
FITTED = 128
"""How many captions show how an earlier form's tokens follow from a new one's."""
LEAST = 0.3
"""Of signal to noise: where there is less, it is decided what goes where, and errors count more."""
SUBJECT_WEIGHT = 3
"""How much more errors of a variation count where its subject is, which is a small part of the picture."""
NEAREST = 255
"""What a subject is in a scene's depth map."""
CRISP = 4
"""How much stronger than painted the fine structures are in a refiner's pictures."""
FINE = 1.5
"""Deviation of the blur that takes fine structures away, in pixels."""
SIDES = (SIDE, SIDE, *range(64, 513, 64))
"""What SDXL's forms are told of a picture's sides. As it is told by chance, other sizes do not spoil a picture."""
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
    framings: Sequence[Framing] = ()
    """What is told of the pictures, for a family that is told it."""


def other(seed: int) -> Scene:
    """The scene of a seed painted again, with another subject or none."""
    of, rng = scene(seed), random.Random(seed)
    while True:
        subject = rng.choice(("", *SUBJECTS))
        colour = rng.choice(SUBJECT_COLOURS) if subject else ""
        found = with_subject(replace(of, seed=of.seed + 500_000), subject, colour)
        if subject != of.subject and not held_out(found):
            return found


def small(shown: Scene, strength: float = 0) -> NDArray[np.uint8]:
    """The picture (160, 160, 3) of a scene, whose fine structures are stronger by a factor, or weaker below 0."""
    picture = halve(render(shown, *SHAPES[0])[None])[0].astype(np.float32)
    fine = picture - cv2.GaussianBlur(picture, (0, 0), FINE)
    return (picture + strength * fine).round().clip(0, 255).astype(np.uint8)


class Scenes:
    """Painted scenes, from which batches for a form are drawn."""

    def __init__(self, folder: Path, form: Form, teacher: Model, student: Model) -> None:
        self.form, self.student, self.rng = form, student, random.Random(13)
        self.scenes = [scene(TRAIN_SEED + k) for k in range(form.scenes)]
        self.latents = encoded(folder, teacher, self.scenes, CRISP if form.family is REFINER else 0)
        self.size = self.latents.shape[2], self.latents.shape[3]
        if form.family is DEPTH:
            self.maps = torch.cat([scaled_depth(near, self.size) for near in self._nearness()])
        if form.family is UNCLIP:
            self.shown = painted(folder / "shown.npy", TRAIN_SEED, form.scenes, SHAPES[0], small=True)
            self.others = painted(folder / "others.npy", TRAIN_SEED, form.scenes, SHAPES[0], True, other)
            of_subjects = [
                F.interpolate((near == NEAREST).float(), self.size, mode="area") for near in self._nearness()
            ]
            self.weights = 1 + SUBJECT_WEIGHT * torch.cat(of_subjects)

    def _nearness(self) -> Iterator[Tensor]:
        """Yield each scene's depth map, (1, 1, 160, 160) from 0 to 255."""
        for each in self.scenes:
            yield torch.from_numpy(nearness(each, SIDE, SIDE)).float()[None, None]

    def batch(self, step: int) -> Batch:
        """A step's batch of what the form learns from."""
        self.rng.seed(f"{self.form.name} {step}")
        if self.form.family is UNCLIP:
            return self._variations()
        rows = self.rng.sample(range(len(self.scenes)), BATCH)
        latents, scenes = self.latents[rows], [self.scenes[row] for row in rows]
        share = 0.5 if self.form.family is DEPTH else 0.1  # what no caption tells must be read from the map
        texts = [self._empty() if self.rng.random() < share else caption(each, self.rng)[0] for each in scenes]
        if self.form.family is DEPTH:
            return Batch(latents, texts, channels=self.maps[rows])
        framings = [self._framing() for _ in rows] if self.form.family.sizes else []
        taught = None if self.form.family is REFINER else texts
        return Batch(latents, texts, taught, framings=framings)

    def _framing(self) -> Framing:
        """What SDXL's forms are told of a picture: half of the sizes, and the aesthetic score, are by chance."""
        sides = (SIDE, SIDE) if self.rng.random() < 0.5 else self.rng.choices(SIDES, k=2)
        score = self.rng.uniform(2, 8)
        return Framing(width=sides[0], height=sides[1], score=score, negative_score=score)

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
                told, shown = thing_of(each), self.others[row]
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
def encoded(folder: Path, teacher: Model, scenes: Sequence[Scene], strength: float = 0) -> Tensor:
    """The scenes' latents, encoded once."""
    path = folder / f"latents{len(scenes)}{f' {strength:+g}' if strength else ''}.pt"
    state = load(path)
    if state is None:
        vae, latents = teacher.vae.network.to(memory_format=torch.channels_last), []
        for start in range(0, len(scenes), BATCH):
            pictures = np.stack([small(each, strength) for each in scenes[start : start + BATCH]])
            latents.append(vae.encode(tensor(pictures)).latent_dist.mean * teacher.family.latent_scale)
        state = {"latents": torch.cat(latents)}
        save(path, state)
    return state["latents"]


def contexts(networks: Model, texts: Sequence[str]) -> Tensor:
    """Encoded texts (B, 77, width)."""
    return torch.cat([condition.tokens for condition in networks.text.encode(texts, 1).conditions]).clone()


def conditions(networks: Model, texts: Sequence[str], framings: Sequence[Framing]) -> Condition:
    """Encoded texts with what is told of the pictures. An empty one is an empty negative prompt, which is zeros."""
    found = Condition.cat(networks.text.encode(texts, 1).conditions)
    names, said = networks.family.sizes, torch.tensor([bool(text) for text in texts])[:, None].float()
    told = [as_waves(each.numbers(names, not text)) for each, text in zip(framings, texts, strict=True)]
    assert found.vector is not None
    return Condition(found.tokens * said[..., None], torch.cat([found.vector * said, torch.cat(told)], 1))


def loss_of(form: Form, unet: UNet2DConditionModel, batch: Batch, teacher: Model, student: Model) -> Tensor:
    """The weighted squared error of the form's prediction."""
    times = torch.randint(form.least_noise, form.most_noise, (BATCH,))
    share = alphas()[times][:, None, None, None]
    signal, spread, noise = share.sqrt(), (1 - share).sqrt(), torch.randn_like(batch.latents)
    noisy = (signal * batch.latents + spread * noise).contiguous(memory_format=torch.channels_last)
    goal = signal * noise - spread * batch.latents if form.v else noise
    with torch.inference_mode():
        if batch.framings:
            told = conditions(student, batch.texts, batch.framings)
        else:
            told = Condition(contexts(student, batch.texts), batch.vectors)
        if batch.taught is not None:
            guess = teacher.unet.network(noisy, times, contexts(teacher, batch.taught)).sample
            learned = (guess - spread * noisy) / signal if form.v else guess
            goal = torch.where(times[:, None, None, None] < LATE, learned, goal)
    seen = noisy if batch.channels is None else torch.cat([noisy, batch.channels], 1)
    told = told.map(torch.clone)
    output = unet(seen, times, told.tokens, class_labels=told.vector).sample
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

    @torch.no_grad()
    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` returned."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])
        self.apply()

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


@torch.no_grad()
def read_alike(student: Model, parent: Model, texts: Sequence[str]) -> None:
    """Let a new form's cross-attentions find in its towers' tokens what its parent's find in the parent's.

    A linear map from one to the other is fitted by least squares, in equal parts from every tower.
    """
    wanted = contexts(parent, texts).flatten(0, 1)
    towers = contexts(student, texts).flatten(0, 1).split(EMBEDDING, dim=1)
    fits = [torch.linalg.lstsq(torch.cat([own, torch.ones(len(own), 1)], 1), wanted).solution for own in towers]
    to_parent, constant = torch.cat([fit[:-1] for fit in fits]) / len(fits), sum(fit[-1] for fit in fits) / len(fits)
    theirs = dict(parent.unet.network.named_modules())
    for name, attention in student.unet.network.named_modules():
        if name.endswith(".attn2"):
            for layer in ("to_k", "to_v"):
                getattr(attention, layer).weight.copy_(getattr(theirs[name], layer).weight @ to_parent.T)
            # to all keys alike a constant makes no difference
            output = attention.to_out[0]
            output.bias += output.weight @ theirs[name].to_v.weight @ constant


def moved(change: Mapping[str, Tensor], before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an earlier model's form, moved to the present model. Whole weights get what that has learned since.

    Weights that are wider than the embedded model's stay as they are. A convolution with a further input learns, too.
    """
    result = dict(change)
    for name in change.keys() & after.keys():
        own, since = change[name].float(), after[name].float() - before[name].float()
        if own.numel() == since.numel():
            result[name] = own + since.view_as(own)
        elif own.dim() == 4:
            result[name] = own.clone()
            result[name][:, : since.shape[1]] += since
    return result


def earlier_form(form: Form, before: Path) -> dict[str, Tensor]:
    """What an earlier model's form is for the present model, without its image tower."""
    change = load_file(before / f"{form.name}.safetensors")
    own = {name: value for name, value in change.items() if name.startswith(UNET_PREFIX)}
    checkpoint = resolve(None, None).files.checkpoint
    return moved(own, map_tensors(before / checkpoint.name), map_tensors(checkpoint))


def untaught(
    form: Form, folder: Path, target: Path, teacher: Model, before: Path | None
) -> tuple[Model, dict[str, Tensor]]:
    """A form before its training, and the change that it begins from."""
    file = target / f"{form.parent}.safetensors"
    earlier = earlier_form(form, before) if before else load_file(file) if form.parent else {}
    if form.family is UNCLIP:
        earlier |= load_file(folder / "tower.safetensors")
    with tempfile.TemporaryDirectory() as place:
        start = compose(untrained(form, earlier), Path(place) / "start.safetensors", form)
        student, parent = loader.load(files_of(start, form)), teacher
        if form.family in (SDXL, REFINER) and not before:
            if form.parent:
                whole = compose(earlier, Path(place) / "parent.safetensors", FORMS[form.parent])
                parent = loader.load(files_of(whole, FORMS[form.parent]))
            rng = random.Random(7)
            read_alike(student, parent, [caption(scene(TRAIN_SEED + k), rng)[0] for k in range(FITTED)])
    return student, earlier


def train(form: Form, folder: Path, target: Path, steps: int, before: Path | None = None) -> None:
    """Train a form, or continue its training, and write its change."""
    torch.manual_seed(17)
    teacher = loader.load(resolve(None, None).files)
    student, earlier = untaught(form, folder, target, teacher, before)
    unet = student.unet.network
    assert isinstance(unet, UNet2DConditionModel)
    fast_attention(unet)
    unet.requires_grad_(True).to(memory_format=torch.channels_last)
    reform, scenes = Reform(form, unet, earlier), Scenes(folder, form, teacher, student)
    optimizer = torch.optim.AdamW(reform.parameters(), WHOLE_RATE, (0.9, 0.99), weight_decay=0)
    path, begun = folder / f"{form.name}.pt", 0
    if state := load(path):
        reform.resume(state["change"])
        optimizer.load_state_dict(state["optimizer"])
        begun = state["step"]
    log = Log(folder / f"{form.name}.csv")
    for step in range(begun, steps):
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = rate(group["peak"], step / steps, step, warm_up=20)
        optimizer.zero_grad()
        loss = loss_of(form, unet, scenes.batch(step), teacher, student)
        loss.backward()
        reform.hand_over()
        nn.utils.clip_grad_norm_([each for group in optimizer.param_groups for each in group["params"]], 1.0)
        optimizer.step()
        reform.apply()
        log.add(step, {"loss": float(loss.detach())})
        if step == steps - 1 or step % SAVE_EVERY == 0:
            save(path, {"change": reform.tensors(), "optimizer": optimizer.state_dict(), "step": step + 1})
    own = {name: value for name, value in earlier.items() if not name.startswith(UNET_PREFIX)}
    write(target / f"{form.name}.safetensors", own | reform.tensors(), f"pastel-tiny {form.name}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=(*FORMS, "tower"), help="what to train, in this order")
    parser.add_argument("--out", type=Path, required=True, help="the training's folder")
    parser.add_argument("--to", type=Path, required=True, help="where the form's file goes")
    parser.add_argument("--steps", type=int, help="instead of each one's own number")
    parser.add_argument("--before", type=Path, help="folder of an earlier embedded model and its forms to begin with")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.what:
        if name == "tower":
            earlier = load_file(options.before / "unclip.safetensors") if options.before else None
            trained = tower(options.out, options.steps or TOWER_STEPS, earlier)
            write(options.out / "tower.safetensors", trained, "pastel-tiny image tower")
        else:
            train(FORMS[name], options.out, options.to, options.steps or FORMS[name].steps, options.before)


if __name__ == "__main__":
    main()

"""Phase 6: the UNet learns to predict the noise in cached latents, given a frozen caption encoding."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from pastel_tiny.captions import caption
from pastel_tiny.contexts import blanks, described
from pastel_tiny.dataset import SHAPES, TEST_SEED, Chunk, chunks
from pastel_tiny.latents import encoded, folded
from pastel_tiny.networks import build_unet, compile_blocks, half_precision, here
from pastel_tiny.progress import Log, load
from pastel_tiny.sampler import Trained, alphas, sheet
from pastel_tiny.scenes import scene
from pastel_tiny.session import Session, resume
from pastel_tiny.text import Encoder

BATCH = {"square": 24, "wide": 12, "tall": 12, "large": 5, "large_wide": 3, "large_tall": 3}
SHARES = (
    {"square": 0.85, "wide": 0.04, "tall": 0.04, "large": 0.05, "large_wide": 0.01, "large_tall": 0.01},
    {"square": 0.56, "wide": 0.04, "tall": 0.04, "large": 0.20, "large_wide": 0.08, "large_tall": 0.08},
)
"""How often each shape is used, before and after LATE: first for composition, then at highres fix's double size."""
LATE = 0.7
TEST = Chunk("test_small", TEST_SEED, 64, SHAPES[0], True)
PEAK, SAVE_EVERY, REPORT_EVERY = 1.2e-3, 100, 400


@dataclass
class Batch:
    """Latents with the encoded captions of their scenes."""

    kind: str
    latents: Tensor
    contexts: Tensor


def _kind(name: str) -> str:
    """Return the shape of a chunk's pictures, as BATCH and SHARES name it."""
    return name.rstrip("0123456789")


class Source:
    """Random batches from the chunks that are encoded so far; more may appear while training runs."""

    def __init__(self, folder: Path, encoder: Encoder, squares: int, seed: int, times: int) -> None:
        self.folder, self.encoder, self.chunks, self.rng = folder, encoder, chunks(squares), random.Random(seed)
        self.times = times
        self.ready: dict[str, tuple[Tensor, Tensor]] = {}
        self.blanks = blanks(folder, encoder)
        self.refresh()

    def refresh(self) -> None:
        """Load newly encoded chunks."""
        for chunk in self.chunks:
            if chunk.name not in self.ready and (self.folder / "latents" / f"{chunk.name}.pt").exists():
                self.ready[chunk.name] = (encoded(self.folder, chunk), described(self.folder, chunk, self.encoder))

    def batch(self, done: float) -> Batch:
        """Return one batch of one shape, depending on how much of the training (0 to 1) is done."""
        share = SHARES[done > LATE]
        kinds = sorted({_kind(name) for name in self.ready})
        kind = self.rng.choices(kinds, [share[kind] for kind in kinds])[0]
        names = [name for name in self.ready if _kind(name) == kind]
        rows, contexts = [], []
        for _ in range(BATCH[kind] * self.times):
            latents, described_as = self.ready[self.rng.choice(names)]
            index = self.rng.randrange(len(latents))
            rows.append(latents[index])
            told = self.rng.random() > 0.1
            contexts.append(self.rng.choice(described_as[index]) if told else self.rng.choice(self.blanks))
        return Batch(kind, here(torch.stack(rows)).float(), here(torch.stack(contexts)).float())


def noise_error(unet: Callable[..., Any], latents: Tensor, context: Tensor, times: Tensor, noise: Tensor) -> Tensor:
    """Return the squared error of the predicted noise, per picture. `unet` is called like diffusers'."""
    signal = alphas()[times][:, None, None, None]
    noisy = (signal.sqrt() * latents + (1 - signal).sqrt() * noise).contiguous(memory_format=torch.channels_last)
    with half_precision():
        guess = unet(noisy, times, context).sample
    return (guess.float() - noise).square().mean((1, 2, 3))


def weights(times: Tensor, least: float = 0) -> Tensor:
    """Return min-SNR weights with 5, because nearly clean pictures would outweigh the rest. If `least` is above 0,
    pictures with a lower signal-to-noise ratio count more the noisier they are."""
    ratio = alphas()[times] / (1 - alphas()[times])
    return ratio.clamp(least, 5) / ratio


def caption_gap(unet: UNet2DConditionModel, folder: Path, encoder: Encoder) -> dict[str, float]:
    """Return the error at t = 500 on unseen scenes with the right, the empty and another scene's caption."""
    latents, rng = here(encoded(folder, TEST)).float(), random.Random(0)
    texts = [caption(scene(TEST_SEED + index), rng)[0] for index in range(len(latents))]
    noise, times = (
        here(torch.randn(latents.shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")),
        torch.full((len(latents),), 500),
    )
    right = encoder(texts)
    contexts = {"right": right, "empty": encoder([""]).expand_as(right), "shuffled": right.roll(1, 0)}
    with torch.inference_mode():
        return {
            name: float(noise_error(unet, latents, context, times, noise).mean()) for name, context in contexts.items()
        }


def averaged(folder: Path) -> UNet2DConditionModel:
    """Return the UNet of the last checkpoint."""
    state = load(folder / "unet.pt")
    assert state is not None, "the UNet is not trained yet"
    unet = build_unet().eval()
    unet.load_state_dict(state["average"])
    return unet


def report(folder: Path, encoder: Encoder, step: int, log: Log) -> None:
    """Measure the caption gap of the last checkpoint and draw a sheet with it."""
    unet = averaged(folder)
    log.write({"step": step, **caption_gap(unet, folder, encoder)})
    sheet(folder / f"sheet_{step:06}.png", Trained(unet, folded(folder), encoder))


@dataclass(frozen=True)
class Plan:
    """How long to train, on how many chunks of squares, with how many times a CPU's batch."""

    steps: int
    squares: int
    times: int = 1


def _session(folder: Path, steps: int, start: Mapping[str, Tensor] | None) -> Session[UNet2DConditionModel]:
    unet = build_unet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters(), 1e-3, (0.9, 0.99), weight_decay=1e-2)
    return resume(folder / "unet.pt", unet, optimizer, steps, start)


def train(folder: Path, tokenizer: Path, plan: Plan, start: Mapping[str, Tensor] | None = None) -> None:
    """Train on whatever is encoded, writing checkpoints and sheets."""
    torch.manual_seed(5)
    encoder, run = Encoder(folder, tokenizer), _session(folder, plan.steps, start)
    if run.done >= 1:
        return
    source = Source(folder, encoder, plan.squares, 5 + run.step, plan.times)
    log, gaps = Log(folder / "unet.csv"), Log(folder / "gap.csv")
    compile_blocks(run.network)
    while run.done < 1:
        log.add(run.step, {"loss": step(run, source.batch(run.done))})
        if run.step % SAVE_EVERY == 0 or run.done >= 1:
            run.save(folder / "unet.pt")
            source.refresh()
        if run.step % REPORT_EVERY == 0 or run.done >= 1:
            report(folder, encoder, run.step, gaps)


def step(run: Session[UNet2DConditionModel], batch: Batch) -> float:
    """Take one optimizer step and return the loss."""
    # the double size teaches what highres fix does, which starts from a picture instead of pure noise
    times = torch.randint(0, 800 if batch.kind.startswith("large") else 1000, (len(batch.latents),))
    # only the common shape is worth a compilation
    with torch.compiler.set_stance("default" if batch.kind == "square" else "force_eager"):
        error = noise_error(run.network, batch.latents, batch.contexts, times, torch.randn_like(batch.latents))
        loss = (weights(times) * error).mean()
    run.descend(loss, PEAK)
    return float(loss.detach())

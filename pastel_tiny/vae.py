"""Phases 1 and 2, the autoencoder, and phase 5, the better decoder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from numpy.typing import NDArray
from torch import Tensor, nn

from pastel_tiny.dataset import SHAPES, TEST_SEED, halve, painted, tensor
from pastel_tiny.networks import build_vae, compile_blocks, half_precision
from pastel_tiny.progress import Log, load
from pastel_tiny.session import Session, resume

SAVE_EVERY = 200
PEAKS = {"vae": 3e-4, "calm": 3e-4, "better": 1e-4}
"""Highest learning rates. With more, a decoder that is nearly right forgets much before it improves."""
CROPS = ((64, 4), (128, 1))
"""Sides of squares, and how many of them a CPU takes at once; a GPU takes `times` as many. Norms see a whole picture in
the larger ones."""
WHOLE = ((128, 1), (160, 1), (192, 1))
"""The same for the better decoder, which learns how whole pictures of the base size look, and larger parts."""


def crops(
    pictures: NDArray[np.uint8],
    small: NDArray[np.uint8],
    rng: np.random.Generator,
    times: int,
    sides: Sequence[tuple[int, int]] = CROPS,
) -> Tensor:
    """Return random squares, two thirds of them from the pictures of the base size; half are mirrored."""
    squares, (side, count) = [], sides[int(rng.integers(len(sides)))]
    for _ in range(count * times):
        source = small if rng.random() < 0.67 and side <= small.shape[1] else pictures
        picture = source[rng.integers(len(source))]
        y, x = (8 * rng.integers((length - side) // 8 + 1) for length in picture.shape[:2])
        square = picture[y : y + side, x : x + side]
        squares.append(square[:, ::-1] if rng.random() < 0.5 else square)
    return tensor(np.stack(squares))


def _edges(batch: Tensor) -> Tensor:
    return torch.cat([_across(batch).flatten(1), _down(batch).flatten(1)], 1)


def _chroma(batch: Tensor) -> Tensor:
    red, green, blue = batch.unbind(1)
    return torch.stack([red - green, blue - (red + green) / 2], 1)


FAINT = 5e-5
"""Power of structures that hardly show: steps of nearly one grey level. With less, skies look woven."""


def _saturation(batch: Tensor) -> Tensor:
    return batch.amax(1) - batch.amin(1)


def _across(batch: Tensor) -> Tensor:
    return batch[..., 1:] - batch[..., :-1]


def _down(batch: Tensor) -> Tensor:
    return batch[..., 1:, :] - batch[..., :-1, :]


def _strength(structures: Tensor, floor: float) -> Tensor:
    """Return how strong structures are around each place: the logarithm of their power."""
    return (F.avg_pool2d(structures.square().mean(1, keepdim=True), 16, 8) + floor).log().flatten(1)


def _texture(batch: Tensor) -> Tensor:
    """Return how strong fine structures of two sizes are around each place."""
    steps = [move(each) for each in (batch, F.avg_pool2d(batch, 2)) for move in (_across, _down)]
    return torch.cat([_strength(each, FAINT) for each in steps], 1)


def _finest(batch: Tensor) -> Tensor:
    """Return how strong structures of two or three pixels are around each place: second differences."""
    bends = (_across(_across(batch)), _down(_down(batch)), 2 * _across(_down(batch)))
    return torch.cat([_strength(each, 4 * FAINT) for each in bends], 1)


def loss(output: Tensor, target: Tensor, better: bool = False) -> Tensor:
    """Return the loss: pixels, edges against blur, and colour differences at full and low resolution against tints.

    The better decoder also pays for paleness, which is wrong saturation, and for wrong strengths of fine structures.
    Latents do not tell where each stroke is. Where only pixels count, it is best to leave strokes out, and the picture
    is flat.
    """
    pixels = F.l1_loss(output, target) + 2 * F.mse_loss(output, target)
    edges = F.l1_loss(_edges(output), _edges(target))
    error = _chroma(output) - _chroma(target)
    colours = 0.5 * error.abs().mean() + F.avg_pool2d(error, 8).abs().mean()
    plain = pixels + edges + colours
    if not better:
        return plain
    paleness = F.l1_loss(_saturation(output), _saturation(target))
    strengths = F.l1_loss(_texture(output), _texture(target)) + F.l1_loss(_finest(output), _finest(target))
    return plain + 40 * paleness + 0.3 * strengths


def _tails(values: Tensor, usual: float) -> Tensor:
    """Return how far the tails of each channel of each picture are beyond a kurtosis of `usual`, on a log scale."""
    deviation = values - values.mean((2, 3), keepdim=True)
    kurtosis = deviation.pow(4).mean((2, 3)) / (deviation.square().mean((2, 3)).square() + 1e-6)
    return (kurtosis / usual).clamp(min=1).log().mean()


class Spikes:
    """Watches an autoencoder for huge values at single places.

    Group norms spread such a value everywhere, so networks learn to store overall brightness in one, as StyleGAN's do
    (Karras et al. 2020, "droplets"). It is seen as a pale flake. A UNet that misses one makes black nights and pale
    squares, and an upscaler of latents blurs it.
    """

    USUAL = 12.0
    """Features of a picture with one small thing on a plain ground have a kurtosis of about ten."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self.found: list[Tensor] = []
        inner = (*vae.encoder.down_blocks[2:], vae.encoder.mid_block, vae.decoder.mid_block, *vae.decoder.up_blocks[:2])
        for block in inner:
            for layer in block.modules():
                if isinstance(layer, ResnetBlock2D):
                    layer.register_forward_hook(self._look)

    def _look(self, _: nn.Module, __: object, output: Tensor) -> None:
        self.found.append(_tails(output.float(), self.USUAL))

    def total(self) -> Tensor:
        """Return the mean over what was seen since the last call."""
        result = torch.stack(self.found).mean()
        self.found.clear()
        return result


NOISE = {"vae": 0.04, "calm": 0.04, "better": 0.2}
"""How wrong latents are in training at most, in deviations. The UNet's small errors must not become freckles."""
WRONG_PLACES, WRONG_BY = 0.01, 1.0
"""The share of single places where the better decoder's latents are wrong by much more, in half of its pictures, and by
how many deviations. The second pass of highres fix leaves such places in skies."""


def _errors(latents: Tensor, name: str) -> Tensor:
    """Return errors like the UNet's, in deviations: at most as much noise as the phase has, and single wrong places."""
    count = len(latents)
    amount = NOISE[name] * torch.rand(count, 1, 1, 1).expand(count, 1, *latents.shape[2:])
    if name == "better":
        places = (torch.rand_like(amount) < WRONG_PLACES) & (torch.rand(count, 1, 1, 1) < 0.5)
        amount = torch.where(places, WRONG_BY, amount)
    return amount * torch.randn_like(latents)


def _reconstruct(vae: AutoencoderKL, batch: Tensor, name: str) -> tuple[Tensor, Tensor]:
    mean = vae.encode(batch).latent_dist.mean
    spread = mean.detach().std((0, 2, 3), keepdim=True)
    return vae.decode(mean + spread * _errors(mean, name)).sample, mean


APART = 0.6
"""How many deviations a value may be from its surroundings' median, and still be what the picture shows there."""


def evened(latents: Tensor, deviation: Tensor) -> Tensor:
    """Return latents (B, 4, h, w) without the spikes of the last column but one, the only ones that `Spikes` leaves.

    Downsampling pads right edges with zeros, so the encoder knows that column. It had a spike there in five of six
    pictures, at a height that nothing in the picture tells.
    """
    around = F.pad(latents, (0, 0, 1, 1), mode="replicate")[..., -3:].unfold(2, 3, 1)
    median = around.permute(0, 1, 2, 4, 3).flatten(3).median(-1).values
    column = latents[..., -2]
    apart = ((column - median) / deviation[:, None]).norm(dim=1, keepdim=True) > APART
    result = latents.clone()
    result[..., -2] = torch.where(apart, median, column)
    return result


def psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Return the mean signal-to-noise ratio of reconstructed pictures in dB."""
    with torch.inference_mode(), half_precision():
        output = vae.decode(vae.encode(pictures).latent_dist.mean).sample.float().clamp(-1, 1)
    return float((10 * torch.log10(4 / (output - pictures).square().mean((1, 2, 3)))).mean())


def unseen_pictures(folder: Path, count: int = 64) -> Tensor:
    """Return unseen scenes of the base size."""
    return tensor(halve(np.asarray(painted(folder / "test.npy", TEST_SEED, 64, SHAPES[0])[:count])))


CALM = 2.0
"""How much an encoder's distance from the evened latents counts."""


class Calm:
    """The loss that keeps an encoder's latents as they were, but evened."""

    def __init__(self, before: AutoencoderKL, deviation: Tensor) -> None:
        self.before, self.deviation = before, deviation

    def loss(self, batch: Tensor, latents: Tensor) -> Tensor:
        """Return the squared distance in deviations; the column of the spikes counts as much as all the others."""
        with torch.no_grad(), half_precision():
            wanted = evened(self.before.encode(batch).latent_dist.mean.float(), self.deviation)
        apart = ((latents - wanted) / self.deviation[:, None, None]).square()
        return apart.mean() + apart[..., -2].mean()


START = {"calm": "vae", "better": "calm"}
"""The phase that another one begins from."""


def _session(folder: Path, name: str, steps: int, start: Mapping[str, Tensor] | None) -> Session[AutoencoderKL]:
    """Return the phase's session. The better decoder's encoder never changes."""
    vae = build_vae().to(memory_format=torch.channels_last)
    if name in START:
        stock = load(folder / f"{START[name]}.pt")
        assert stock is not None, f"the phase {START[name]} comes first"
        start = stock["average"]
    if name == "better":
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    trained = [weight for weight in vae.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-3, (0.9, 0.98), weight_decay=1e-3)
    return resume(folder / f"{name}.pt", vae, optimizer, steps, start)


def train(
    folder: Path,
    pictures: NDArray[np.uint8],
    steps: int,
    times: int,
    name: str = "vae",
    start: Mapping[str, Tensor] | None = None,
    calm: Calm | None = None,
) -> None:
    """Train the autoencoder ("vae"), take its last spikes away ("calm"), or train only its decoder ("better")."""
    seed = {"vae": 1, "better": 2, "calm": 3}[name]
    torch.manual_seed(seed)
    run = _session(folder, name, steps, start)
    if run.done >= 1:
        return
    rng = np.random.default_rng(seed + run.step)
    small, log = halve(np.asarray(pictures)), Log(folder / f"{name}.csv")
    spikes = Spikes(run.network)
    compile_blocks(run.network)
    while run.done < 1:
        squares = crops(pictures, small, rng, times, WHOLE if name == "better" else CROPS)
        log.add(run.step, step(run, squares, name, spikes, calm))
        if run.step % SAVE_EVERY == 0 or run.done >= 1:
            run.save(folder / f"{name}.pt")
            _report(folder, name, run)


def step(
    run: Session[AutoencoderKL], batch: Tensor, name: str, spikes: Spikes, calm: Calm | None = None
) -> dict[str, float]:
    """Take one optimizer step; return the loss, the measure of spikes, and the distance from evened latents."""
    with half_precision():
        output, mean = _reconstruct(run.network, batch, name)
    error = loss(output.float(), batch, better=name == "better")
    tails = spikes.total() + _tails(mean.float(), 4.0)
    apart = calm.loss(batch, mean.float()) if calm else torch.zeros(())
    run.descend(error + 0.02 * tails + CALM * apart, PEAKS[name])
    return {"loss": float(error.detach()), "spikes": float(tails.detach()), "apart": float(apart.detach())}


def _report(folder: Path, name: str, run: Session[AutoencoderKL]) -> None:
    """Measure the averaged weights on unseen pictures."""
    probe = build_vae().to(memory_format=torch.channels_last)
    probe.load_state_dict(run.average.weights)
    quality = psnr(probe, unseen_pictures(folder, 16))
    Log(folder / f"{name}_psnr.csv").write({"step": run.step, "psnr": quality})

"""Measure how well the embedded model follows prompts, with the container's own engine and the judge.

    python -m pastel_tiny.measure --judge tests/data --pictures 96 --seed 1

The prompts are combinations that were never trained on (`scenes.held_out`). Each measure has a control that must fail.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pastel_tiny.dataset import SHAPES, SIDE, TEST_SEED, halve
from pastel_tiny.judge import Judge, load_judge, truth
from pastel_tiny.render import render
from pastel_tiny.scenes import Scene, scene
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest, HiresSettings
from pipelines.drawing.phases import FINAL, Beside, Picture
from pipelines.drawing.phases import render as draw
from pipelines.models.loader import load
from pipelines.models.model import Model
from weights_script.resolve import resolve

Pictures = NDArray[np.uint8]
PLACE = {"sea": "on", "hills": "on", "meadow": "in", "desert": "in", "snow": "in", "mountains": "before"}
HELD_SEED = 30_000_000


@dataclass(frozen=True)
class Asked:
    """A prompt and what it names, in the judge's words."""

    prompt: str
    named: dict[str, str]


def thing_of(shown: Scene) -> str:
    """Return a scene's subject in its colour, or its light, with an article."""
    thing = f"{shown.subject_colour if shown.subject else shown.light_colour} {shown.subject or shown.light}".strip()
    if shown.subject == "girl":
        dress = f"{'an' if shown.subject_colour == 'orange' else 'a'} {shown.subject_colour} dress"
        thing = f"girl with {shown.hair} hair in {dress}"
    article = "" if thing == "stars" else "an " if thing[0] in "aeiou" else "a "
    return article + thing


def asked_of(shown: Scene) -> Asked:
    """Return one plain sentence that names what the judge can see in a scene."""
    ground = shown.ground if shown.ground == "snow" else f"{shown.ground_colour} {shown.ground}"
    prompt = f"{thing_of(shown)} {PLACE[shown.ground]} the {ground} under a {shown.sky} sky"
    names = ["sky", "ground"] + ["ground_colour"] * (shown.ground != "snow")
    names += ["subject", "subject_colour"] if shown.subject else ["light", "light_colour"]
    names += ["hair"] * (shown.subject == "girl")
    return Asked(prompt, {name: truth(shown)[name] for name in names})


def held_out(count: int, seed: int) -> list[Asked]:
    """Return prompts of day scenes that pair a subject or light with a colour or ground as no training scene does."""
    found = (scene(HELD_SEED + 1000 * seed + k, held=True) for k in range(10 * count))
    return [asked_of(each) for each in found if not each.night][:count]


ALONE = Beside()
DRAFT = GenerationRequest(
    prompt="", seed=0, width=SIDE, height=SIDE, num_inference_steps=12, guidance_scale=5.0, hires=None
)


def drawn(
    networks: Model, prompts: Sequence[str], like: GenerationRequest = DRAFT, beside: Beside = ALONE
) -> Iterator[Pictures]:
    """Yield a picture (H, W, 3) for each prompt, with the number of the prompt as its seed."""
    for seed, prompt in enumerate(prompts):
        request = replace(like, prompt=prompt, seed=seed)
        events = draw(networks, request, make_plan(request), beside=beside)
        yield from (event.pixels for event in events if isinstance(event, Picture) and event.kind == FINAL)


def accuracy(judge: Judge, pictures: Pictures, asked: Sequence[Asked]) -> dict[str, float]:
    """Return the share of pictures that show what was asked, by attribute, over the prompts that name it."""
    seen = judge.see(pictures)
    names = sorted({name for each in asked for name in each.named})
    hits = {
        name: [s[name] == a.named[name] for s, a in zip(seen, asked, strict=True) if name in a.named] for name in names
    }
    return {name: float(np.mean(values)) for name, values in hits.items()}


def share(judge: Judge, pictures: Pictures, name: str, value: str) -> float:
    """Return the share of pictures that show one value of one attribute."""
    return float(np.mean([each[name] == value for each in judge.see(pictures)]))


UNSAID = (
    ("a sun over the sea", "light_colour", "sun"),
    ("a house on the green hills", "sky", "sky"),
    ("a tree under a blue sky", "subject_colour", "tree"),
)
"""Prompts, the attribute that they leave open, and the word for it."""


def taken_away(judge: Judge, networks: Model, prompt: str, name: str, thing: str) -> tuple[str, float, float]:
    """Return the value that a prompt shows most often for an attribute it leaves open, its share, and its share if the
    negative prompt names it."""
    plain = np.stack(list(drawn(networks, [prompt] * 8)))
    value = Counter(each[name] for each in judge.see(plain)).most_common(1)[0][0]
    against = np.stack(list(drawn(networks, [prompt] * 8, replace(DRAFT, negative_prompt=f"{value} {thing}"))))
    return value, share(judge, plain, name, value), share(judge, against, name, value)


def detail(pictures: Pictures) -> float:
    """Return the mean strength of fine structures: the brightness difference of neighbouring pixels, in grey levels."""
    grey = pictures.astype(np.float32).mean(-1)
    return float((np.abs(np.diff(grey, axis=1)).mean() + np.abs(np.diff(grey, axis=2)).mean()) / 2)


SUN = "a pink sun over the blue sea under a blue sky"


def roundness(pictures: Pictures) -> float:
    """Return the mean share of its enclosing circle that the largest pink shape fills: 0.96 for drawn suns of the base
    size and 0.98 at twice that size, less for one with dents and for two that have grown together."""
    shares = []
    for picture in pictures:
        red, green, blue = np.moveaxis(picture.astype(int), -1, 0)
        pink = ((red > 225) & (red - blue > 20) & (red - green > 25)).astype(np.uint8)
        for operation, side in ((cv2.MORPH_OPEN, 5), (cv2.MORPH_CLOSE, 9)):  # remove specks and small gaps
            pink = cv2.morphologyEx(pink, operation, np.ones((side, side), np.uint8)).astype(np.uint8)
        outlines, _ = cv2.findContours(pink, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        largest = max(outlines, key=cv2.contourArea)
        _, radius = cv2.minEnclosingCircle(largest)
        shares.append(cv2.contourArea(largest) / (np.pi * radius**2))
    return float(np.mean(shares))


SKY = 0.52
"""The share of the height that is above every horizon."""


def specks(picture: Pictures) -> int:
    """Return how many pale spots a picture (H, W, 3) has that belong to nothing: small, roundish, lighter than what is
    around them, and that is one plain colour. In the sky faint ones count, below it only bright ones.

    It finds one in 0.4 % of drawn scenes. Stars, rain and snow are such spots; scenes with them are not measured.
    """
    scale = picture.shape[0] / SIDE
    lighter = (picture.astype(int) - cv2.medianBlur(picture, 2 * int(4 * scale) + 1)).min(-1)
    least = np.full(lighter.shape, 64)
    least[: int(SKY * len(least))] = 14
    number, labels, boxes, _ = cv2.connectedComponentsWithStats((lighter > least).astype(np.uint8), connectivity=8)
    return sum(_speck(picture, labels == label, boxes[label], scale) for label in range(1, number))


def _speck(picture: Pictures, spot: NDArray[np.bool_], box: NDArray[np.int32], scale: float) -> bool:
    left, top, width, height, area = (int(value) for value in box)
    if not 2 * scale <= area <= 40 * scale**2 or max(width, height) > 2.2 * min(width, height) + 1:
        return False
    margin = int(4 * scale)
    near = np.s_[max(0, top - margin) : top + height + margin, max(0, left - margin) : left + width + margin]
    ring = cv2.dilate(spot[near].astype(np.uint8), np.ones((3, 3))) == 0
    around = picture[near][ring].astype(int)
    return bool(np.abs(around - np.median(around, 0)).mean(0).max() < 7)


def speckless(pictures: Pictures) -> float:
    """Return the share of pictures without a speck."""
    return float(np.mean([specks(each) == 0 for each in pictures]))


def spectrum(pictures: Pictures) -> NDArray[np.float64]:
    """Return the mean log power of square pictures by spatial frequency, which blur and noise both change."""
    grey = pictures.astype(np.float64).mean(-1)
    window = np.hanning(grey.shape[1])
    power = np.abs(np.fft.fft2((grey - grey.mean((1, 2), keepdims=True)) * np.outer(window, window))) ** 2
    frequency = np.abs(np.fft.fftfreq(grey.shape[1]))
    radius = np.hypot(*np.meshgrid(frequency, frequency))
    rings = np.digitize(radius, np.linspace(0, 0.5, 17))
    means = power.mean(0)
    return np.array([np.log(means[rings == ring].mean()) for ring in range(1, 17)])


def spectrum_distance(first: Pictures, second: Pictures) -> float:
    """Return the root mean square difference of two sets' spectra, in nepers."""
    return float(np.sqrt(np.square(spectrum(first) - spectrum(second)).mean()))


def real_pictures(count: int, side: int) -> Pictures:
    """Return drawn scenes to compare with."""
    return np.stack([render(scene(HELD_SEED + k), side, side) for k in range(count)])


def enlarged(pictures: Pictures, side: int) -> Pictures:
    """Return pictures resized by Lanczos, which highres fix must beat."""
    sizes = [Image.fromarray(each).resize((side, side), Image.Resampling.LANCZOS) for each in pictures]
    return np.stack([np.asarray(each) for each in sizes])


WRONG = 0.1
"""How wrong the UNet's idea of a picture's latents is at t = 100, the root mean square. Their own deviation is 1."""


def returned(networks: Model, pictures: Pictures, wrong: float = 0.0) -> Pictures:
    """Return pictures (B, H, W, 3) after a pass through the autoencoder, with noise of a deviation on their latents."""
    noise, back = torch.Generator().manual_seed(0), []
    for picture in pictures:
        pixels = torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)
        latents = networks.vae.encode(pixels, torch.zeros(4, pixels.shape[1] // 8, pixels.shape[2] // 8))
        back.append(networks.vae.decode(latents + wrong * torch.randn(latents.shape, generator=noise)))
    return np.stack(back)


def psnr(first: Pictures, second: Pictures) -> float:
    """Return the mean signal-to-noise ratio of pictures in dB."""
    squares = np.square(first.astype(np.float32) - second).mean((1, 2, 3))
    return float((10 * np.log10(255**2 / squares)).mean())


def saturation(pictures: Pictures) -> NDArray[np.int16]:
    """Return each pixel's saturation, from 0 to 255: the largest channel less the smallest."""
    return np.ptp(pictures.astype(np.int16), axis=-1)


def saturation_error(first: Pictures, second: Pictures) -> float:
    """Return the mean absolute difference of the pixels' saturation."""
    return float(np.abs(saturation(first) - saturation(second)).mean())


HIRES = HiresSettings(upscaler="Lanczos", steps=8, denoising_strength=0.4)
"""As in the embedded model's own settings."""


def measure_autoencoder(better: Model, stock: Model) -> None:
    """Print how pictures come back from both autoencoders."""
    scenes = [scene(TEST_SEED + number) for number in range(24)]
    pictures = np.concatenate([halve(render(each, *SHAPES[0])[None]) for each in scenes])
    print(f"drawn scenes: detail {detail(pictures):.2f}")
    for name, networks in (("stock", stock), ("better", better)):
        for wrong in (0, WRONG):
            back = returned(networks, pictures, wrong)
            paler = float((saturation(back) - saturation(pictures)).mean())
            print(
                f"{name} VAE, latents wrong by {wrong:g}: PSNR {psnr(back, pictures):.2f} dB,",
                f"detail {detail(back):.2f},",
                f"saturation error {saturation_error(back, pictures):.2f}, mean {paler:+.2f}",
            )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path, required=True, help="folder of judge.safetensors")
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    networks, judge = load(resolve(None, None).files), load_judge(options.judge)
    measure_autoencoder(networks, load(replace(resolve(None, None).files, vae=None)))
    asked = held_out(options.pictures, options.seed)
    prompts = [each.prompt for each in asked]
    drafts = {
        guidance: np.stack(list(drawn(networks, prompts, replace(DRAFT, guidance_scale=guidance))))
        for guidance in (1.0, 5.0, 7.0)
    }
    for guidance, pictures in drafts.items():
        print(f"guidance {guidance:g}:", *(f"{k} {v:.0%}" for k, v in accuracy(judge, pictures, asked).items()))
    shuffled = [*asked[1:], asked[0]]
    print("control, others' prompts:", *(f"{k} {v:.0%}" for k, v in accuracy(judge, drafts[5.0], shuffled).items()))
    for prompt, name, thing in UNSAID:
        value, with_it, without = taken_away(judge, networks, prompt, name, thing)
        print(f"{prompt!r}: {value} {thing} {with_it:.0%}, with '{value} {thing}' in the negative prompt {without:.0%}")
    finals = np.stack(list(drawn(networks, prompts[:12], replace(DRAFT, hires=HIRES))))
    lanczos, real = enlarged(drafts[5.0][:12], 2 * SIDE), real_pictures(48, 2 * SIDE)
    print(f"without specks: drafts {speckless(drafts[5.0]):.0%}, after highres fix {speckless(finals):.0%}")
    for name, pictures in (("drawn scenes", real), ("highres fix", finals), ("resized drafts", lanczos)):
        print(f"{name}: detail {detail(pictures):.2f}, spectrum distance {spectrum_distance(pictures, real):.3f}")
    for width, height in ((SIDE, 3 * SIDE // 2), (3 * SIDE // 2, SIDE), (SIDE, SIDE)):
        suns = np.stack(list(drawn(networks, [SUN] * 4, replace(DRAFT, width=width, height=height, hires=HIRES))))
        print(f"{width}x{height} with highres fix: suns fill {roundness(suns):.0%} of their circle")


if __name__ == "__main__":
    main()

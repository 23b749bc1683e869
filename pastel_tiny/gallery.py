"""Contact sheets of the embedded model for README.md (hero) and docs/, by the container's own engine.

    python -m pastel_tiny.gallery --to docs/pictures
    python -m pastel_tiny.gallery --to docs/pictures versions --before FOLDER

FOLDER holds an earlier version's two files.
"""

import argparse
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pastel_tiny.adapt import SNOWMAN
from pastel_tiny.captions import caption
from pastel_tiny.dataset import SHAPES, SIDE, TEST_SEED, halve
from pastel_tiny.measure import HIRES, asked_of, held_out
from pastel_tiny.measure_forms import (
    HEART,
    ON_MEADOW,
    hearts,
    loaded,
    relayed,
    shown,
    sources,
    under_map,
    variations,
    with_subjects,
)
from pastel_tiny.probe import WITH_AFTERGLOW, WITH_SNOWMAN
from pastel_tiny.render import nearness
from pastel_tiny.render import render as paint
from pastel_tiny.scenes import scene
from pipelines.ask.catalog import LATENT_NETWORK
from pipelines.ask.identity import ModelFiles
from pipelines.ask.networks import NO_EXTRAS, in_folders
from pipelines.ask.plan import make_plan
from pipelines.ask.request import ControlSettings, GenerationRequest, HiresSettings, ImageSettings, MaskSettings
from pipelines.drawing.phases import DRAFT, FINAL, UPSCALED, Beside, Picture
from pipelines.drawing.phases import render as draw
from pipelines.images.preprocess import canny
from pipelines.models.loader import load
from pipelines.models.model import Model
from pipelines.upscalers.interpolation import Upscaler, load_upscaler
from weights_script.resolve import resolve

Pixels = NDArray[np.uint8]
CAPTION = 13
TESTS = Path(__file__).parents[1] / "tests" / "data"
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
BASE = GenerationRequest(
    prompt="",
    negative_prompt="lowres, worst quality, low quality",
    width=SIDE,
    height=SIDE,
    seed=5,
    guidance_scale=5,
    hires=None,
)
VERSIONS_SEED, EARLIER_SIDE = 80_000_000, 128
"""The first scene that versions are compared by, and the base size of the fifth version."""
PROMPTS = (
    "a pink sun over the sea",
    "a red boat on the blue sea under an orange sky",
    "a yellow moon over purple mountains, night",
    "a white house on the green hills under a blue sky",
    "a red heart over the desert, pink sky",
    "a rainbow over a green meadow, blue sky",
)


def kinds(
    networks: Model, request: GenerationRequest, phases: bool = False, upscaler: Upscaler | None = None
) -> dict[str, Pixels]:
    """Return the pictures of a request by kind: the finished one, and with `phases` also draft and upscaled."""
    events = draw(networks, request, make_plan(request), show_phases=phases, beside=Beside(upscaler=upscaler))
    return {event.kind: event.pixels for event in events if isinstance(event, Picture)}


def page(rows: Sequence[Sequence[Pixels]], captions: Sequence[Sequence[str]], side: int) -> Image.Image:
    """Lay out pictures in rows, each `side` high with its caption below."""
    width = round(side * max(each.shape[1] / each.shape[0] for row in rows for each in row))
    sheet = Image.new("RGB", ((width + 4) * max(map(len, rows)), (side + CAPTION + 2) * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for y, (row, texts) in enumerate(zip(rows, captions, strict=True)):
        for x, (pixels, text) in enumerate(zip(row, texts, strict=True)):
            place = x * (width + 4), y * (side + CAPTION + 2)
            picture = Image.fromarray(pixels)
            scale = side / picture.height
            picture = picture.resize((round(picture.width * scale), side), Image.Resampling.LANCZOS)
            sheet.paste(picture, place)
            pen.text((place[0] + 1, place[1] + side), text[: width // 6], fill="black")
    return sheet


def beside(networks: Model) -> Image.Image:
    """Show two drafts, each beside its finished picture."""
    drawn = [kinds(networks, replace(BASE, prompt=PROMPTS[number], hires=HIRES), phases=True) for number in (1, 3)]
    pictures = [each[kind] for each in drawn for kind in (DRAFT, FINAL)]
    names = ("draft", "picture") * len(drawn)
    captions = [f"{name}, {each.shape[1]} x {each.shape[0]}" for name, each in zip(names, pictures, strict=True)]
    return page([pictures], [captions], 200)


def by_phase(networks: Model) -> Image.Image:
    """Show draft, upscaled and refined pictures."""
    drawn = [kinds(networks, replace(BASE, prompt=prompt, hires=HIRES), phases=True) for prompt in PROMPTS[:4]]
    return page([list(each.values()) for each in drawn], [list(each) for each in drawn], 192)


def by_guidance(networks: Model) -> Image.Image:
    """Show guidance 1, 4 and 7."""
    scales = (1.0, 4.0, 7.0)
    rows = [
        [kinds(networks, replace(BASE, prompt=prompt, guidance_scale=scale))[FINAL] for prompt in PROMPTS]
        for scale in scales
    ]
    return page(rows, [[f"{scale:g}: {prompt}" for prompt in PROMPTS] for scale in scales], SIDE)


def by_sampler(networks: Model) -> Image.Image:
    """Show the same noise through different samplers."""
    samplers = ("DPM++ 2M", "DPM++ SDE", "Euler a", "Euler", "DDIM", "UniPC")
    rows = [
        [kinds(networks, replace(BASE, prompt=prompt, sampler=sampler))[FINAL] for sampler in samplers]
        for prompt in PROMPTS[:3]
    ]
    return page(rows, [samplers] * len(rows), SIDE)


def by_vae(networks: Model) -> Image.Image:
    """Show the stock autoencoder's decoder above and the better one's below, with the same latents."""
    stock = load(replace(resolve(None, None).files, vae=None))
    rows = [[kinds(each, replace(BASE, prompt=prompt))[FINAL] for prompt in PROMPTS] for each in (stock, networks)]
    return page(rows, [["stock"] * len(PROMPTS), ["better"] * len(PROMPTS)], SIDE)


def by_prompt(networks: Model) -> Image.Image:
    """Show held-out prompts one after another with consecutive seeds, without choosing."""
    asked = [each.prompt for each in held_out(24, 5)]
    pictures = [kinds(networks, replace(BASE, prompt=prompt, seed=seed))[FINAL] for seed, prompt in enumerate(asked)]
    rows = [pictures[start : start + 6] for start in range(0, 24, 6)]
    return page(rows, [asked[start : start + 6] for start in range(0, 24, 6)], SIDE)


def by_version(networks: Model, before: Path) -> Image.Image:
    """Show an earlier version above, and this one below, each with its own size and second pass.

    The scenes are random, and their numbers are the seeds. Nothing is chosen.
    """
    asked = [asked_of(scene(VERSIONS_SEED + number)).prompt for number in range(24)]
    checkpoint, vae = before / "pastel-tiny.safetensors", before / "pastel-tiny-better.vae.safetensors"
    earlier = load(ModelFiles(name="earlier", checkpoint=checkpoint, vae=vae))
    rows: list[list[Pixels]] = []
    for start in range(0, len(asked), 8):
        for model, side, hires in ((earlier, EARLIER_SIDE, HiresSettings()), (networks, SIDE, HIRES)):
            like = replace(BASE, width=side, height=side, hires=hires)
            numbers = range(start, start + 8)
            rows.append([kinds(model, replace(like, prompt=asked[k], seed=k))[FINAL] for k in numbers])
    captions = [asked[row // 2 * 8 : row // 2 * 8 + 8] if row % 2 else [""] * 8 for row in range(len(rows))]
    return page(rows, captions, SIDE)


def by_shape(networks: Model) -> Image.Image:
    """Show 3:2, 2:3 and squares, with highres fix."""
    sizes = ((3 * SIDE // 2, SIDE), (SIDE, 3 * SIDE // 2), (SIDE, SIDE))
    rows = [
        [
            kinds(networks, replace(BASE, prompt=prompt, width=width, height=height, hires=HIRES))[FINAL]
            for width, height in sizes
        ]
        for prompt in PROMPTS[:3]
    ]
    return page(rows, [[f"{2 * width}x{2 * height}" for width, height in sizes]] * len(rows), 256)


def by_adapter(networks: Model) -> Image.Image:
    """Show a LoRA at 0, 0.5 and 1, and an embedding's word without and with its file."""
    here = in_folders(TESTS / "loras", TESTS / "embeddings")
    rows = [
        *((f"LoRA at {weight:g}", WITH_SNOWMAN, f" <lora:{SNOWMAN}:{weight:g}>", here) for weight in (0, 0.5, 1)),
        ("no embedding", WITH_AFTERGLOW, "", NO_EXTRAS),
        ("the embedding", WITH_AFTERGLOW, "", here),
    ]
    pictures = [
        [
            kinds(networks, replace(BASE, prompt=prompt + tag, seed=seed, extras=extras))[FINAL]
            for seed, prompt in enumerate(prompts)
        ]
        for _, prompts, tag, extras in rows
    ]
    captions = [[caption] * len(prompts) for caption, prompts, *_ in rows]
    return page(pictures, captions, SIDE)


def by_control(networks: Model) -> Image.Image:
    """Show the edges of unseen scenes, their captions alone, and with a ControlNet at 1 and 1.5."""
    extras, rows = in_folders(None, None, TESTS / "controlnets"), []
    for seed in range(TEST_SEED, TEST_SEED + 4):
        drawing = halve(paint(scene(seed), *SHAPES[0])[None])[0]
        control = ControlSettings(model="canny-tiny", picture=Image.fromarray(drawing))
        request = replace(BASE, prompt=caption(scene(seed), random.Random(0))[0], extras=extras)
        row = [canny(drawing, 100, 200)]
        for controls in ((), (control,), (replace(control, weight=1.5),)):
            row.append(kinds(networks, replace(request, controls=controls))[FINAL])
        rows.append(row)
    return page(rows, [["edges", "caption alone", "ControlNet at 1", "at 1.5"]] * len(rows), SIDE)


def by_upscaler(networks: Model) -> Image.Image:
    """Show a draft enlarged in four ways, before it is refined."""
    files = {"4x-tiny": TESTS / "upscalers" / "4x-tiny.safetensors", LATENT_NETWORK: TESTS / "upscalers" / "x2-tiny"}
    networked = {name: load_upscaler(file, networks.device) for name, file in files.items()}
    ways = [
        HiresSettings(steps=1, upscaler=name, upscaler_file=files.get(name))
        for name in ("Lanczos", "4x-tiny", "Latent", LATENT_NETWORK)
    ]
    rows = [
        [
            kinds(networks, replace(BASE, prompt=prompt, hires=way), True, networked.get(way.upscaler))[UPSCALED]
            for way in ways
        ]
        for prompt in PROMPTS[:4]
    ]
    return page(rows, [[way.upscaler for way in ways]] * len(rows), 192)


def by_form(_: Model) -> Image.Image:
    """Show hearts under depth maps, and variations of unseen scenes without and with a prompt."""
    maps, scenes = [nearness(each, SIDE, SIDE) for each in hearts(6)], sources(6)
    with tempfile.TemporaryDirectory() as folder:
        depth, unclip = (loaded(name, TESTS / "forms", Path(folder)) for name in ("depth", "unclip"))
        rows = {
            "depth map": [np.repeat(near[..., None], 3, axis=2) for near in maps],
            HEART: [under_map(depth, near, ON_MEADOW, seed) for seed, near in enumerate(maps)],
            "image": [shown(each) for each in scenes],
            "variation": list(variations(unclip, scenes)),
            f"with {HEART}": list(variations(unclip, scenes, HEART)),
        }
    return page(list(rows.values()), [[name] * 6 for name in rows], 112)


def by_start(networks: Model) -> Image.Image:
    """Show a picture and its mask, and what is drawn from them."""
    sun, mask = (Image.open(PICTURES / name).convert("RGB") for name in ("default.webp", "mask.png"))
    start = ImageSettings(picture=sun, denoising_strength=0.6)
    masked = replace(start, denoising_strength=0.9, mask=MaskSettings(picture=mask.convert("L")))
    wider = replace(start, denoising_strength=0.85, outpaint=(0, 0, SIDE // 2 // 8 * 8, 0))
    made = {"a picture": np.asarray(sun), "its mask": np.asarray(mask)}
    for name, prompt, image in (
        ("redrawn", "a yellow moon over purple mountains", start),
        ("under the mask", PROMPTS[1], masked),
        ("more on its right", "the blue sea under an orange sky", wider),
    ):
        width, height = image.size
        made[name] = kinds(networks, replace(BASE, prompt=prompt, width=width, height=height, image=image))[FINAL]
    return page([list(made.values())], [list(made)], SIDE)


def by_relay(_: Model) -> Image.Image:
    """Show SDXL's form alone, and with its refiner."""
    asked = with_subjects(8)
    with tempfile.TemporaryDirectory() as folder:
        base, refiner = (loaded(name, TESTS / "forms", Path(folder)) for name in ("sdxl", "refiner"))
        rows = {
            "base alone": list(relayed(base, None, asked)),
            "base, then refiner": list(relayed(base, refiner, asked)),
        }
    return page(list(rows.values()), [[name] * len(asked) for name in rows], SIDE)


SHEETS: dict[str, Callable[[Model], Image.Image]] = {
    "hero": beside,
    "phases": by_phase,
    "guidance": by_guidance,
    "samplers": by_sampler,
    "vae": by_vae,
    "held-out": by_prompt,
    "shapes": by_shape,
    "adapters": by_adapter,
    "control": by_control,
    "upscalers": by_upscaler,
    "forms": by_form,
    "inpainting": by_start,
    "relay": by_relay,
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, help="folder for the WebP files")
    parser.add_argument("names", nargs="*", default=list(SHEETS), help=f"which of {', '.join(SHEETS)}, versions")
    parser.add_argument("--before", type=Path, help="folder of an earlier version, for versions")
    options = parser.parse_args()
    if unknown := set(options.names) - {*SHEETS, "versions"}:
        parser.error(f"no sheet is called {', '.join(sorted(unknown))}")
    if "versions" in options.names and options.before is None:
        parser.error("versions needs --before")
    torch.set_num_threads(1)
    networks = load(resolve(None, None).files)
    for name in options.names:
        sheet = by_version(networks, options.before) if name == "versions" else SHEETS[name](networks)
        sheet.save(options.to / f"{name}.webp", quality=80, method=6)
        print(f"{name}.webp", flush=True)


if __name__ == "__main__":
    main()

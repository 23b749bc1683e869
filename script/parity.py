"""Draw the cases that WebUI itself computed and compare noise, conditioning, latents, pictures and infotexts.

A folder of reference cases holds a checkpoint, `settings.json` (options, parameters and infotexts by case) and
`cases/NAME.safetensors` (the tensors of each pass). Only text-to-image cases are compared.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipelines.__main__ import tensors_of
from pipelines.highres import PassResult, Picture, render
from pipelines.loader import Networks, load
from pipelines.model import ModelFiles
from pipelines.parameters import VERSION, of_picture
from pipelines.plan import make_plan
from pipelines.request import GenerationRequest, HiresSettings, NoiseSettings

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT.parent / "shared" / "webui_reference"
REPORT = ROOT / "docs" / "parity.md"
NOT_YET = ("init_images",)
"""Parameters of what this project does not do yet."""

Json = Mapping[str, Any]


@dataclass
class Comparison:
    """Largest absolute differences of one case, share of equal bytes, and whether the infotexts are equal."""

    name: str
    noise: float = 0.0
    conditioning: float = 0.0
    latents: list[float] = field(default_factory=list)
    equal_pixels: float = 1.0
    pixel: int = 0
    infotext: bool = True


def cases(folder: Path) -> dict[str, Json]:
    """Text-to-image cases by name, without those that need embeddings or LoRAs."""
    settings: dict[str, Json] = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    return {
        name: case
        for name, case in settings.items()
        if not any(key in case["params"] for key in NOT_YET) and not name.startswith(("ti_", "lora_"))
    }


def request_of(case: Json) -> GenerationRequest:
    """A case's options and parameters, which have WebUI's names, as a request."""
    p, options = case["params"], case["options"]
    hires = HiresSettings(
        scale=p.get("hr_scale", 2.0),
        resize_to=(p.get("hr_resize_x", 0), p.get("hr_resize_y", 0)),
        upscaler=p.get("hr_upscaler", "Latent"),
        steps=p.get("hr_second_pass_steps", 0),
        denoising_strength=p.get("denoising_strength", 0.75),
    )
    return GenerationRequest(
        prompt=p["prompt"],
        negative_prompt=p["negative_prompt"],
        width=p["width"],
        height=p["height"],
        seed=p["seed"],
        num_outputs=p.get("batch_size", 1),
        num_inference_steps=p["steps"],
        guidance_scale=p["cfg_scale"],
        sampler=p["sampler_name"],
        schedule_type=p["scheduler"],
        clip_skip=options.get("CLIP_stop_at_last_layers", 1),
        noise=NoiseSettings(
            source=options.get("randn_source", "GPU"),
            variation_seed=p.get("subseed", 0),
            variation_strength=p.get("subseed_strength", 0.0),
        ),
        hires=hires if p.get("enable_hr") else None,
    )


def compare(networks: Networks, name: str, case: Json, expected: Mapping[str, Tensor]) -> Comparison:
    """Draw one case and compare everything that its file holds."""
    request = request_of(case)
    plan = make_plan(request)
    found = Comparison(name)
    for event in render(networks, request, plan):
        if isinstance(event, PassResult):
            _compare_pass(found, event, expected)
        elif isinstance(event, Picture):
            difference = (torch.from_numpy(event.pixels).int() - expected["images"][event.index].int()).abs()
            found.equal_pixels = min(found.equal_pixels, float((difference == 0).float().mean()))
            found.pixel = max(found.pixel, int(difference.max()))
            text = of_picture(request, plan, networks.identity, event.index)
            found.infotext &= _without_version(text) == _without_version(case["infotexts"][event.index])
    return found


def _compare_pass(found: Comparison, result: PassResult, expected: Mapping[str, Tensor]) -> None:
    for name, ours in tensors_of(result).items():
        kind = name.rpartition("_")[2]
        if kind == "noise":
            found.noise = max(found.noise, _apart(ours, expected[name]))
        elif kind in ("cond", "uncond"):  # the file has what the first call saw, repeated for the images of a batch
            found.conditioning = max(found.conditioning, _apart(ours[:1], expected[name][:1]))
        elif kind == "latent":
            found.latents.append(_apart(ours, expected[name]))


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.cpu() - theirs).abs().max())


def _without_version(text: str) -> str:
    return text.rpartition(", Version: ")[0]


def run(folder: Path) -> Iterator[Comparison]:
    """Compare every case of a folder; the checkpoint is loaded once."""
    (checkpoint,) = folder.glob("*.safetensors")
    networks = load(ModelFiles(name=checkpoint.stem, checkpoint=checkpoint, vae=None))
    for name, case in cases(folder).items():
        yield compare(networks, name, case, load_file(folder / "cases" / f"{name}.safetensors"))


def row(found: Comparison) -> str:
    latents = " | ".join(f"{value:.1e}" for value in found.latents) + (" | " if len(found.latents) < 2 else "")
    share = f"{found.equal_pixels:.2%}, {found.pixel}"
    infotext = "equal" if found.infotext else "differs"
    return f"| {found.name} | {found.noise:.0e} | {found.conditioning:.0e} | {latents} | {share} | {infotext} |"


HEADER = f"""# Parity with stable-diffusion-webui 1.10.1

Made by `script/parity` with {VERSION}, float32 on a CPU. The reference is a small checkpoint of exactly SD 1.5's form
that WebUI drew with; the numbers are largest absolute differences to WebUI's own tensors. Two runs of WebUI differ by
2e-5 to 4e-5 themselves, and by 2e-3 (at worst 2.6e-2) where a pixel upscaler rounds to 8 bits between the passes.

| case | noise | conditioning | latents, first pass | hires pass | equal pixels, largest step | infotext |
|---|---|---|---|---|---|---|
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/parity", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "folder", type=Path, nargs="?", default=REFERENCE, help="reference cases (default: %(default)s)"
    )
    parser.add_argument("-o", "--output", type=Path, default=REPORT, help="the report (default: %(default)s)")
    options = parser.parse_args()
    if not (options.folder / "settings.json").exists():
        print(f"script/parity: {options.folder}: no reference cases there (settings.json)", file=sys.stderr)
        return 1
    rows = []
    for found in run(options.folder):
        rows.append(row(found))
        print(rows[-1], flush=True)
    options.output.write_text(HEADER + "\n".join(rows) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

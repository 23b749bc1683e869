"""Draw the cases that WebUI itself computed and compare noise, conditioning, latents, pictures and infotexts.

A folder of reference cases contains a checkpoint, `settings.json` (options, parameters and infotexts by case) and
`cases/NAME.safetensors` (the tensors of each pass). WebUI draws the encoder's noise without a seed. Where the state of
its generator is known, the same noise is drawn; other passes from a picture start from the case's own latents.
"""

import argparse
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.__main__ import FIRST_CONDITION, HIRES_NAME, tensors_of
from pipelines.ask.catalog import INPAINT_AREAS, MASKED_CONTENTS, RESIZE_MODES
from pipelines.ask.identity import ModelFiles
from pipelines.ask.networks import Extras, in_folders
from pipelines.ask.plan import make_plan
from pipelines.ask.prompt import parse_attention
from pipelines.ask.request import (
    SAME_SAMPLER,
    SAME_SCHEDULE,
    AddedNoise,
    FramingSettings,
    GenerationRequest,
    HiresSettings,
    ImageSettings,
    MaskSettings,
    NoiseSettings,
    RefinerSettings,
    ScheduleSettings,
    SkippedGuidance,
)
from pipelines.drawing.drawing import Given
from pipelines.drawing.phases import NOTHING_BESIDE, Beside, PassResult, Picture, render
from pipelines.images.masks import Canvas, prepare
from pipelines.infotext.writing import VERSION, of_picture
from pipelines.models.depth import DepthEstimator
from pipelines.models.loader import load, sha256_of
from pipelines.models.model import Model

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path(os.environ.get("WEBUI_REFERENCE") or ROOT.parent / "shared" / "webui_reference")
"""The folder of reference cases: set by the environment, or next to the clone."""
REPORT = ROOT / "docs" / "parity.md"
OF_FAMILIES = ROOT / "tests" / "data" / "webui" / "families.json"
"""The cases of other families that this container draws. Their tensors are in a folder next to SD 1's."""
Json = Mapping[str, Any]
MEAN_APART = 1e-4
"""The limit for an encoder's mean, in proportion to values above 10. At 30, WebUI's are 1.1e-4 away from exact ones."""
RESTORING_MAX = 3e-4
"""The most that emphasis may add to the conditioning's limit. In the case that needs it, the mean is 0.0025, the values
are up to 8, and two instruction sets of one processor differ by 1.7e-4."""


@dataclass
class Comparison:
    """Largest absolute differences of one case, share of equal bytes, and what is exactly equal."""

    name: str
    noise: float = 0.0
    conditioning: float = 0.0
    restoring: float = 0.0
    """How much more rounding may change the conditioning through emphasis, in addition to its limit of 1e-4."""
    latents: list[float] = field(default_factory=list)
    largest: float = 0.0
    """The largest value of the last pass's latents."""
    equal_pixels: float = 1.0
    pixel: int = 0
    masks: list[bool] = field(default_factory=list)
    """For passes from a picture: whether encoder mean (to `MEAN_APART`), overlay and latent mask match WebUI's."""
    infotext: bool = True


def cases(folder: Path) -> dict[str, Json]:
    """Return the cases by name."""
    settings: dict[str, Json] = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    return settings


def checkpoint_of(folder: Path, name: str, into: Path) -> Path:
    """Return a checkpoint of the folder. If it is stored as differences from another, write it to `into` first."""
    known: Json = json.loads((folder / "checkpoints.json").read_text(encoding="utf-8"))[name]
    if "variant_of" not in known:
        return folder / f"{name}.safetensors"
    path = into / f"{name}.safetensors"
    if not path.exists():
        tensors = load_file(folder / known["variant_of"])
        tensors = {each: tensor for each, tensor in tensors.items() if each not in known["remove"]}
        for delta in known["deltas_in_order"]:
            tensors |= load_file(folder / "variants" / delta)
        save_file(tensors, path, metadata={"format": "pt"})
    if sha256_of(path) != known["sha256"]:
        raise ValueError(f"{path}: not the file that WebUI drew with")
    return path


@cache  # or they would be read and hashed again for every case
def extras_of(folder: Path) -> Extras:
    """Return the LoRAs and embeddings that the cases use."""
    return in_folders(folder / "loras", folder / "embeddings")


def request_of(case: Json, tensors: Mapping[str, Tensor], extras: Extras) -> GenerationRequest:
    """Make a request from a case's options and parameters, which have WebUI's names, and its pictures and networks."""
    p, options = case["params"], case["options"]
    hires = HiresSettings(
        scale=p.get("hr_scale", 2.0),
        width=p.get("hr_resize_x", 0),
        height=p.get("hr_resize_y", 0),
        upscaler=p.get("hr_upscaler", "Latent"),
        steps=p.get("hr_second_pass_steps", 0),
        prompt=p.get("hr_prompt", ""),
        negative_prompt=p.get("hr_negative_prompt", ""),
        denoising_strength=p.get("denoising_strength", 0.75),
        sampler=p.get("hr_sampler_name") or SAME_SAMPLER,
        schedule_type=p.get("hr_scheduler") or SAME_SCHEDULE,
        checkpoint=p.get("hr_checkpoint_name") or "",
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
        tiling=bool(p.get("tiling") or options.get("tiling")),
        noise=NoiseSettings(
            source=options.get("randn_source", "GPU"),
            ensd=options.get("eta_noise_seed_delta", 0),
            variation_seed=p.get("subseed", 0),
            variation_strength=p.get("subseed_strength", 0.0),
            resize_width=max(p.get("seed_resize_from_w", 0), 0),
            resize_height=max(p.get("seed_resize_from_h", 0), 0),
        ),
        image=_image_of(p, options, tensors) if "init_images" in p else None,
        hires=hires if p.get("enable_hr") else None,
        extras=extras,
        **_named(options, OF_REQUEST),
        schedule=ScheduleSettings(**_named(options, OF_SCHEDULE)),
        added_noise=AddedNoise(**_named(p, OF_ADDED_NOISE) | _named(options, OF_ADDED_NOISE)),
        skipped_guidance=SkippedGuidance(**_named({**options, **p}, OF_SKIPPED)),
        refiner=RefinerSettings(**_named({**options, **p}, OF_REFINER)),
        framing=FramingSettings(**_named(options, OF_FRAMING)),
    )


OF_REQUEST = {
    "CLIP_stop_at_last_layers": "clip_skip",
    "emphasis": "emphasis",
    "pad_cond_uncond": "pad_conds",
    "use_old_scheduling": "old_editing",
    "sgm_noise_multiplier": "sgm_noise",
    "img2img_extra_noise": "extra_noise",
    "inpainting_mask_weight": "mask_weight",
}
OF_SCHEDULE = {
    "sigma_min": "sigma_min",
    "sigma_max": "sigma_max",
    "rho": "rho",
    "always_discard_next_to_last_sigma": "discard_penultimate",
    "sd_noise_schedule": "kind",
    "use_downcasted_alpha_bar": "downcast",
}
OF_ADDED_NOISE = {
    "eta_ancestral": "eta",
    "eta_ddim": "eta_ddim",
    "s_churn": "churn",
    "s_tmin": "tmin",
    "s_tmax": "tmax",
    "s_noise": "scale",
}
OF_SKIPPED = {"skip_early_cond": "early", "s_min_uncond": "minimum_sigma", "s_min_uncond_all": "all_steps"}
OF_REFINER = {
    "refiner_checkpoint": "name",
    "refiner_switch_at": "switch_at",
    "refiner_switch_by_sample_steps": "by_steps",
    "hires_fix_refiner_pass": "passes",
}
OF_FRAMING = {
    "sdxl_crop_top": "crop_top",
    "sdxl_crop_left": "crop_left",
    "sdxl_refiner_high_aesthetic_score": "score",
    "sdxl_refiner_low_aesthetic_score": "negative_score",
    "sdxl_clip_l_skip": "clip_l_skip",
}
OF_IMAGE = {"initial_noise_multiplier": "noise_multiplier", "img2img_fix_steps": "exact_steps"}
"""WebUI's options -> our attributes."""


def _named(options: Json, names: Mapping[str, str]) -> dict[str, Any]:
    """Return those options that are among the names, by our attributes. None values are left out."""
    return {ours: options[name] for name, ours in names.items() if options.get(name) is not None}


def _image_of(p: Json, options: Json, tensors: Mapping[str, Tensor]) -> ImageSettings:
    picture, *masks = (Image.fromarray(tensors[name].numpy()) for name in (*p["init_images"], p.get("mask")) if name)
    blur = p.get("mask_blur", 4)
    mask = MaskSettings(
        picture=masks[0] if masks else None,
        invert=bool(p.get("inpainting_mask_invert", 0)),
        blur=(p.get("mask_blur_x", blur), p.get("mask_blur_y", blur)),
        content=MASKED_CONTENTS[p.get("inpainting_fill", 0)],
        area=INPAINT_AREAS[p.get("inpaint_full_res", True)],
        padding=p.get("inpaint_full_res_padding", 0),
        soft=not p.get("mask_round", True),
    )
    return ImageSettings(
        picture=picture,
        denoising_strength=p["denoising_strength"],
        resize_mode=RESIZE_MODES[p.get("resize_mode", 0)],
        mask=mask if masks else None,
        **_named({**options, **p}, OF_IMAGE),
    )


def compare(model: Model, folder: Path, name: str, case: Json, beside: Beside = NOTHING_BESIDE) -> Comparison:
    """Draw one case of the folder and compare all that its file has. `beside` has other models, by their files."""
    expected = load_file(folder / "cases" / f"{name}.safetensors")
    request = request_of(case, expected, extras_of(folder))
    plan = make_plan(request)
    found = Comparison(name)
    if request.image:
        # the mean was recorded after the pass, with the model that was then loaded
        last = beside.others[request.refiner.name] if request.refiner.acts else model
        _compare_canvas(found, last, prepare(request.image, plan.final_size), expected)
    if "depth_map" in expected:
        model = replace(model, depth=_Estimated(expected["depth_map"]))
    for event in render(model, request, plan, beside=beside, given=_given(case, expected, len(plan.seeds))):
        if isinstance(event, PassResult):
            _compare_pass(found, event, expected)
            found.restoring = max(found.restoring, _restoring([model, *beside.others.values()], request, event))
        elif isinstance(event, Picture):
            difference = (torch.from_numpy(event.pixels).int() - expected["images"][event.index].int()).abs()
            found.equal_pixels = min(found.equal_pixels, float((difference == 0).float().mean()))
            found.pixel = max(found.pixel, int(difference.max()))
            identities = {name: other.identity for name, other in beside.others.items()}
            text = of_picture(request, plan, model.identity, event.index, event.embeddings, identities)
            found.infotext &= _without_version(text) == _without_version(case["infotexts"][event.index])
    return found


class _Estimated(DepthEstimator):
    """Takes MiDaS's place, as it did in WebUI: the depth of every picture is that of the case."""

    def __init__(self, depth: Tensor) -> None:
        self._depth = depth

    def depth(self, picture: Image.Image) -> Tensor:
        return self._depth


def _given(case: Json, expected: Mapping[str, Tensor], images: int) -> Given:
    """Return what WebUI drew without a seed: the state that its generator had, or else the tensors themselves."""
    if (seed := case.get("torch_global_seed_before")) is not None:
        return Given(unseeded=torch.Generator().manual_seed(seed))
    first = next((expected[name] for name in FIRST_CONDITION if name in expected), None)
    hires = expected.get(f"{HIRES_NAME}_image_cond")
    # the rows below the images' are the negative prompt's
    first, hires = (None if each is None else each[:images] for each in (first, hires))
    return Given(expected.get("0_img2img_init_latent"), first, hires)


@torch.inference_mode()
def _compare_canvas(found: Comparison, model: Model, canvas: Canvas, expected: Mapping[str, Tensor]) -> None:
    pixels = torch.from_numpy(np.asarray(canvas.picture) / np.float32(255)).permute(2, 0, 1)
    theirs = expected["0_img2img_vae_mean"][:1]
    mean = model.vae.encode(pixels, torch.zeros(theirs.shape[1:])) / model.vae.scale
    found.masks.append(_apart(mean[None], theirs) < MEAN_APART * max(1, float(theirs.abs().max()) / 10))
    if canvas.overlay is not None and "overlay_image" in expected:
        found.masks.append(np.array_equal(np.asarray(canvas.overlay), expected["overlay_image"].numpy()))


def _compare_pass(found: Comparison, result: PassResult, expected: Mapping[str, Tensor]) -> None:
    for name, ours in tensors_of(result).items():
        kind = name.rpartition("_")[2]
        if kind == "noise":
            found.noise = max(found.noise, _apart(ours, expected[name]))
        elif kind in (
            "cond",
            "uncond",
            "vector",
        ):  # the file has the first call's values, repeated for the images of a batch
            same = name.replace(HIRES_NAME, "0_txt2img")  # a hires pass's are omitted if it shares them
            theirs = expected[name if name in expected else same]
            found.conditioning = max(found.conditioning, _apart(ours[:1, : theirs.shape[1]], theirs[:1]))
        elif name.endswith("latent_mask"):
            theirs = expected[name][0]
            if f"{name.removesuffix('mask')}blended" not in expected:  # such files have the kept part instead
                theirs = 1 - theirs
            found.masks.append(torch.equal(ours.cpu(), theirs))
        elif kind == "blended" and name in expected:
            found.latents[-1] = max(found.latents[-1], _apart(ours, expected[name]))
        elif kind == "latent":
            found.largest = float(ours.abs().max())
            found.latents.append(_apart(ours, expected[name]))


def _restoring(models: Iterable[Model], request: GenerationRequest, result: PassResult) -> float:
    """Return how much rounding may change a condition, which one of the models made, through emphasis; 0 without it.

    Emphasis divides an encoder's output for a chunk by its mean, and multiplies it by the mean that it shall keep. The
    encoder's rounding moves either by about an epsilon. The smaller the mean is, the more that changes the values.
    """
    weights = [weight for text in (request.prompt, request.negative_prompt) for _, weight in parse_attention(text)]
    if request.emphasis != "Original" or all(weight == 1 for weight in weights):
        return 0.0
    conditions = [each.tokens for each in result.prompts.at(0)]
    of_models = ([tower.width for tower in model.text.towers] for model in models)
    widths = next(widths for widths in of_models if sum(widths) == conditions[0].shape[2])
    chunks = [chunk for each in conditions for chunk in each.split(77, 1)]
    parts = [part for chunk in chunks for part in chunk.split(widths, 2)]
    epsilon = torch.finfo(torch.float32).eps
    return min(RESTORING_MAX, max(float(epsilon * part.abs().max() / part.mean().abs()) for part in parts))


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.cpu() - theirs).abs().max())


def _without_version(text: str) -> str:
    return text.rpartition(", Version: ")[0]


def run(folder: Path) -> Iterator[Comparison]:
    """Compare every case of a folder, loading the checkpoint once."""
    (checkpoint,) = folder.glob("*.safetensors")
    model = load(ModelFiles(name=checkpoint.stem, checkpoint=checkpoint, vae=None))
    for name, case in cases(folder).items():
        yield compare(model, folder, name, case)


class FamilyCases:
    """The cases of other families in a folder, whose models are loaded once each."""

    def __init__(self, folder: Path, into: Path) -> None:
        """Write checkpoints that are stored as differences from others to `into`."""
        self._folder, self._into = folder, into
        self._models: dict[str, Model] = {}

    def model(self, name: str) -> Model:
        """Return a checkpoint's model by the name that `checkpoints.json` has for it."""
        if name not in self._models:
            own = {V_BY_YAML: "tiny_sdxl"}.get(name, name)
            file = SD15 if own == SD15.stem else checkpoint_of(self._folder, own, self._into)
            prediction = "v_prediction" if name == V_BY_YAML else ""
            self._models[name] = load(ModelFiles(name=name, checkpoint=file, vae=None, prediction=prediction))
        return self._models[name]

    def compare(self, name: str, case: Json) -> Comparison:
        """Draw a case with its models and compare everything in its file."""
        files = {case["params"][key] for key in OTHER_MODELS if case["params"].get(key)}
        others = {file: self.model(Path(file).stem) for file in files}
        return compare(self.model(case["checkpoint"]), self._folder, name, case, Beside(others=others))


SD15 = REFERENCE / "tiny_sd15.safetensors"
V_BY_YAML = "tiny_sdxl_v"
"""A name for tiny_sdxl, with a configuration beside it that declares v-prediction."""
OTHER_MODELS = ("refiner_checkpoint", "hr_checkpoint_name")
"""Parameters of a case that name other models, by their files."""


def run_families(folder: Path) -> Iterator[Comparison]:
    """Compare every case of the other families in a folder."""
    with tempfile.TemporaryDirectory() as written:
        models = FamilyCases(folder, Path(written))
        for name, case in json.loads(OF_FAMILIES.read_text(encoding="utf-8")).items():
            yield models.compare(name, case)


def row(found: Comparison) -> str:
    latents = " | ".join(f"{value:.1e}" for value in found.latents) + (" | " if len(found.latents) < 2 else "")
    share = f"{found.equal_pixels:.2%}, {found.pixel}"
    masks, infotext = ("equal" if same else "differs" for same in (all(found.masks), found.infotext))
    masks = masks if found.masks else ""
    exact = f"{found.noise:.0e} | {found.conditioning:.0e}"
    return f"| {found.name} | {exact} | {latents} | {share} | {masks} | {infotext} |"


def _rows(compared: Iterable[Comparison]) -> str:
    """Return the table's rows, each printed as soon as it is known."""
    rows = []
    for found in compared:
        rows.append(row(found))
        print(rows[-1], flush=True)
    return "\n".join(rows) + "\n"


def processor() -> str:
    """Return this machine's processor and the instruction set that torch uses; both affect rounding."""
    cpuinfo = Path("/proc/cpuinfo")
    facts = dict(re.findall(r"^(.+?)\s*: (.+)$", cpuinfo.read_text(), re.M)) if cpuinfo.exists() else {}
    name = facts.get("model name") or platform.processor() or platform.machine()
    family = f" (family {facts['cpu family']}, model {facts['model']})" if "cpu family" in facts else ""
    return f"{name}{family}; torch uses {torch.backends.cpu.get_cpu_capability()}"


HEADER = """# Parity with stable-diffusion-webui 1.10.1

With this page you can judge how close the results are to WebUI's, case by case. [checking.md](checking.md) says how to
compare with your own WebUI.

Made by `script/parity` with {version}, float32 on a CPU. The reference is what WebUI drew with a small
checkpoint of exactly SD 1.5's structure, and in the second table with small checkpoints of other families. The numbers
are the largest absolute differences from WebUI's own tensors.

These limits hold on every processor:

| quantity | at most | |
|---|---|---|
| tokens and their weights, steps, sizes, masks, infotext | equal | integers, text and copied values |
| NV noise | 1e-6 | integers, then log and sine in double precision |
| torch's CPU noise | 4e-6 | torch approximates log and sine in ways that differ by 2e-6 among instruction sets |
| sigmas | 1e-6 of the value | about eight roundings of float32 |
| conditioning | 1e-4 | matrix products, summed in the order that suits the processor; up to 4e-4 if emphasis \
divides by a mean of nearly 0 |
| latents | 3e-4 | two runs of WebUI differ by 2e-5 to 4e-5 themselves; of a tenth of latents above 10 |
| latents after a pixel upscaler | 2.6e-2 | it rounds to 8 bits; two runs of WebUI differ by 2e-3, at worst 2.6e-2 |
| 8-bit values of a picture | 1, and 99 % are equal | after a pixel upscaler 2, and 95 %; less where latents are small |

[options.md](options.md) says what WebUI's rarer options are based on, as few cases use them.

The exact differences below depend on the processor: an earlier table from another processor had 0 for all noise and
conditioning.

Measured on: {processor}.

"""
FAMILIES = """
## Other families

The same for the families of [families.md](families.md). After a pixel upscaler (`hr_lanczos`), two runs of WebUI differ
by up to 7e-3: some ten values round to another of 8 bits, and each changes the start of the hires pass by 3e-3. The
latents of `xlv_dpmpp2m_karras` are a seventh of the other cases', so that the same error in them changes more pixels.

"""
COLUMNS = """\
| case | noise | conditioning | latents, first pass | hires pass | equal pixels, largest step | pictures | infotext |
|---|---|---|---|---|---|---|---|
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
    report = HEADER.format(version=VERSION, processor=processor()) + COLUMNS + _rows(run(options.folder))
    families = options.folder.with_name(f"{options.folder.name}_families")
    if (families / "settings.json").exists():
        report += FAMILIES + COLUMNS + _rows(run_families(families))
    options.output.write_text(report, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

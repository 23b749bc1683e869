"""Draw pasted generation data without Cog: `python -m pipelines CHECKPOINT --infotext FILE ... -o FOLDER`.

Use it to check parity with your own WebUI: give it the same checkpoint and a picture's generation data.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipelines.animation.frames import Frame, FrameTexts, draw_film
from pipelines.ask.catalog import NOISE_SOURCES, RESIZE_MODES
from pipelines.ask.film import Film, make_film
from pipelines.ask.identity import ModelFiles
from pipelines.ask.inputs import Inputs
from pipelines.ask.networks import in_folders
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest
from pipelines.drawing.cast import Cast, cast_of, picked
from pipelines.drawing.drawing import Given
from pipelines.drawing.phases import BASE, Beside, Notice, PassResult, Picture, render
from pipelines.drawing.pictures import check_noise_level, with_depth
from pipelines.errors import InvalidInput, PastelError, in_one_line
from pipelines.images import reading as picture
from pipelines.images.files import FileFormat, read_parameters, write
from pipelines.infotext.asked import (
    WEBUI_SIZE,
    Fetched,
    Pictures,
    read_data,
    request_from,
    settle,
    settle_keys,
    with_networks,
)
from pipelines.infotext.obstacles import drop_unsupported, obstacles
from pipelines.infotext.other_models import with_models
from pipelines.infotext.writing import of_picture
from pipelines.models.loader import load
from pipelines.models.room import makers
from pipelines.models.roster import Member, Roster, made
from pipelines.runtime.device import best_device, limit_threads
from pipelines.upscalers.interpolation import load_upscaler
from weights_script.resolve import labelled, upscaler_file

PASS_NAMES = {(BASE, True): "0_txt2img", (BASE, False): "0_img2img"}
HIRES_NAME = "1_hires"
FIRST_CONDITION = tuple(f"{name}_image_cond" for name in PASS_NAMES.values())


def read_models(options: argparse.Namespace) -> Roster:
    """Load the models. One that is broken does not stop the others. Raises ModelError if all are."""
    listed = [name.strip() for text in options.model for name in text.split(",") if name.strip()]
    chosen = labelled([*([str(options.checkpoint)] if options.checkpoint else []), *listed])
    own = dict(zip(("width", "height"), WEBUI_SIZE, strict=True))

    vaes = dict.fromkeys([next(iter(chosen))], options.vae)
    files = {
        name: ModelFiles(name=Path(path).stem, checkpoint=Path(path), vae=vaes.get(name))
        for name, path in chosen.items()
    }
    limit_threads()
    device = best_device()

    def loaded(name: str) -> Member:
        return Member(model=load(files[name], device), settings=own)

    names = {name: each.name for name, each in files.items()}
    return Roster(*made(makers(files, device, loaded)), names)


def read_requests(path: Path, roster: Roster, options: argparse.Namespace) -> tuple[list[GenerationRequest], Cast]:
    """Read the request from one infotext file, or those of a film, and say which models draw it.

    Raises InvalidInput if the picture would be a different one.
    """
    data = read_data(read_parameters(path))
    member = picked(roster, "", data)
    model = member.model
    said = {"rng": options.rng, "resize_mode": options.resize_mode}
    data = replace(data, values={**data.values, **{name: value for name, value in said.items() if value}})
    pictures = Pictures(
        image=picture.read(options.init, "init") if options.init else None,
        mask=picture.read(options.mask, "mask") if options.mask else None,
        controls=tuple(picture.read(path, "control", deep=True) for path in options.control),
    )
    pictures = with_depth(model, pictures, controlled=bool(data.controls))
    inputs = Inputs(num_outputs=options.num_outputs)
    asked = settle(inputs, data, member.settings, pictures)
    keys = settle_keys(asked, inputs, member.settings, pictures) if asked.settings.animation.asked else ()
    names = roster.names_beside(model)
    cast = cast_of(roster, member, with_models(asked, names))
    folders = options.lora_dir, options.embeddings_dir, options.controlnet_dir, options.hypernetworks_dir
    extras, upscalers = in_folders(*folders), {file.stem: file for file in options.upscaler}
    fetched, requests = Fetched(extras=extras, controls=data.controls, upscalers=upscalers), list[GenerationRequest]()
    for each in (asked, *keys):
        each = with_networks(with_models(each, names), fetched)
        found = obstacles(each, model.identity, pictures, extras, names)
        for obstacle in found:
            print(f"{path.name}: {obstacle.text}", file=sys.stderr)
        each = drop_unsupported(each, found, options.strict)
        check_noise_level(model, each.settings.image_noise_level)
        requests.append(request_from(each, pictures, extras))
    return requests, cast


def read_given(options: argparse.Namespace) -> Given:
    """Read the tensors that the options give in place of the encoded --init. Raises InvalidInput."""
    latents, condition, hires = options.init_latent, options.image_cond, options.hires_image_cond
    return Given(
        latents=_tensor(latents, "init_latent", ("init_latent", "img2img_init")) if latents else None,
        condition=_tensor(condition, "image_cond", FIRST_CONDITION) if condition else None,
        hires_condition=_tensor(hires, "hires_image_cond", (f"{HIRES_NAME}_image_cond",)) if hires else None,
    )


def _tensor(path: Path, name: str, endings: tuple[str, ...]) -> Tensor:
    """Return the first tensor whose name has one of the endings, or the file's only one. Raises InvalidInput."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            fitting = [each for each in names if each.endswith(endings) or each == name]
            if not fitting and len(names) > 1:
                raise ValueError(f"holds {len(names)} tensors, none of which is called {name}")
            tensor: Tensor = file.get_tensor((fitting or names)[0])
            return tensor
    except (OSError, ValueError, SafetensorError) as error:
        rule = f"cannot be read ({in_one_line(error)})"
        raise InvalidInput(name, path.name, rule, "Give a safetensors file with this tensor.") from error


def draw(cast: Cast, request: GenerationRequest, stem: str, options: argparse.Namespace) -> Iterator[Path]:
    """Write `<stem>-<k>.png`, and `<stem>.safetensors` with --keep-latents. Yield the paths."""
    plan, model = make_plan(request), cast.model
    file = upscaler_file(request.hires)
    upscaler = load_upscaler(file, model.device) if file else None
    kept: dict[str, Tensor] = {}
    for event in render(
        model, request, plan, beside=Beside(upscaler=upscaler, others=cast.others), given=read_given(options)
    ):
        if isinstance(event, PassResult):
            kept |= tensors_of(event)
        elif isinstance(event, Notice):
            print(event.text, file=sys.stderr)
        elif isinstance(event, Picture):
            path = options.output / f"{stem}-{event.index}.png"
            told = request.as_drawn(event.refined)
            text = of_picture(told, plan, model.identity, event.index, event.embeddings, cast.identities)
            write(event.pixels, path, FileFormat("png"), text)
            yield path
    if options.keep_latents:
        path = options.output / f"{stem}.safetensors"
        save_file(kept, path)
        yield path


def write_frames(cast: Cast, film: Film, stem: str, folder: Path) -> Iterator[Path]:
    """Write a film's frames, or the one that is asked for, as `<stem>-<k>.png`. Yield the paths."""
    model, told = cast.model, FrameTexts(film, cast)
    file = upscaler_file(film.base.hires)
    beside = Beside(upscaler=load_upscaler(file, model.device) if file else None, others=cast.others)
    for event in draw_film(model, film, beside):
        if isinstance(event, Notice):
            print(event.text, file=sys.stderr)
        elif isinstance(event, Frame):
            path = folder / f"{stem}-{event.place:g}.png"
            write(event.pixels, path, FileFormat("png"), told.of(event))
            yield path


def tensors_of(result: PassResult) -> dict[str, Tensor]:
    """Return the tensors of a pass by name. Conditioning is that of the first denoiser call."""
    positive, negative = result.prompts.at(0)
    levels = "timesteps" if all(isinstance(level, int) for level in result.sigmas) else "sigmas"
    found = {
        "noise": result.noise,
        levels: torch.tensor(result.sigmas),
        "cond": positive.tokens,
        "uncond": negative.tokens,
        "latent": result.sampled,
    }
    for name, condition in (("cond", positive), ("uncond", negative)):
        if condition.vector is not None:
            found[f"{name}_vector"] = condition.vector
    if result.refiner_prompts is not None and result.refined_from is not None:
        for name, condition in zip(("cond", "uncond"), result.refiner_prompts.at(result.refined_from), strict=True):
            found[f"refiner_{name}"] = condition.tokens
            if condition.vector is not None:
                found[f"refiner_{name}_vector"] = condition.vector
    if result.start is not None:
        found["init"] = result.start
    if result.mask is not None:
        found["latent_mask"] = result.mask.drawn
        found["latent_blended"] = result.latents
    prefix = PASS_NAMES.get((result.phase, result.start is None), HIRES_NAME)
    return {f"{prefix}_{name}": tensor.cpu().contiguous() for name, tensor in found.items()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipelines", description=__doc__.partition(":")[0])
    parser.add_argument(
        "checkpoint", type=Path, nargs="?", help="single file (.safetensors, .ckpt) or diffusers folder"
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="FILE",
        help="another model that the generation data may name, also as its refiner or for its hires pass; several: "
        "separated by commas, or the option again",
    )
    parser.add_argument(
        "--infotext",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="generation data: a text file, or a picture that contains it",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where pictures go")
    parser.add_argument("--vae", type=Path, help="a VAE to use instead of the first model's own")
    parser.add_argument(
        "--upscaler",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="an ESRGAN that the generation data names by its file name",
    )
    folders = {
        "lora": "LoRAs",
        "embeddings": "textual inversion embeddings",
        "controlnet": "ControlNets",
        "hypernetworks": "hypernetworks",
    }
    for kind, name in folders.items():
        parser.add_argument(f"--{kind}-dir", type=Path, metavar="FOLDER", help=f"folder with the {name} to use")
    _add_pictures(parser)
    parser.add_argument("--num-outputs", type=int, default=1, help="pictures per file, with consecutive seeds")
    parser.add_argument("--rng", choices=NOISE_SOURCES, help="noise source, instead of the generation data's")
    parser.add_argument("--keep-latents", action="store_true", help="also write the tensors of each pass")
    parser.add_argument("--no-strict", dest="strict", action="store_false", help="draw even if the picture will differ")
    options = parser.parse_args()
    if options.checkpoint is None and not options.model:
        parser.error("name a checkpoint")
    if options.init is None and (options.mask or options.init_latent):
        parser.error("--mask and --init-latent need --init, the picture that they belong to")
    return options


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    """Add the options for pictures, and for tensors in their place, which generation data does not contain."""
    parser.add_argument(
        "--control",
        type=Path,
        action="append",
        default=[],
        metavar="IMAGE",
        help="picture for the ControlNets: one each, or one for all",
    )
    parser.add_argument("--init", type=Path, metavar="IMAGE", help="the picture to start from")
    parser.add_argument("--mask", type=Path, metavar="IMAGE", help="mask for --init: white where to redraw it")
    parser.add_argument(
        "--init-latent", type=Path, metavar="FILE", help="latents to start from in place of the encoded --init"
    )
    parser.add_argument(
        "--image-cond",
        type=Path,
        metavar="FILE",
        help="what an inpainting, depth or unCLIP model gets about the picture, in place of what --init gives",
    )
    parser.add_argument(
        "--hires-image-cond",
        type=Path,
        metavar="FILE",
        help="the same for the hires pass; may be the same file",
    )
    parser.add_argument("--resize-mode", choices=RESIZE_MODES, help="how to bring --init to the size to draw")


def main() -> int:
    options = arguments()
    failed = False
    stems = [path.stem for path in options.infotext]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        print(f"error: more than one file is called {', '.join(sorted(twice))}; rename all but one", file=sys.stderr)
        return 1
    try:
        roster = read_models(options)
        options.output.mkdir(parents=True, exist_ok=True)
    except (PastelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in options.infotext:
        try:
            requests, cast = read_requests(path, roster, options)
            request, *keys = requests
            roster.use([cast.model, *cast.others.values()], make_plan(request), request)
            film = make_film(requests) if keys else None
            for written in (
                write_frames(cast, film, path.stem, options.output) if film else draw(cast, request, path.stem, options)
            ):
                print(written)
        except PastelError as error:
            print(f"error: {path}: {error}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

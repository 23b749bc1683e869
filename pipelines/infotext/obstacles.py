"""What stands in the way of the picture that generation data describes."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.ask.identity import ModelIdentity
from pipelines.ask.networks import (
    NO_EXTRAS,
    ExtraFile,
    Extras,
    hypernetwork_tags,
    in_hashes,
    lora_names,
    missing_hypernetworks,
    missing_loras,
    without_missing,
)
from pipelines.ask.prompt import cut_networks
from pipelines.ask.request import (
    SAME_SAMPLER,
    SAME_SCHEDULE,
    SEED_MAX,
    ControlSettings,
    GenerationRequest,
    ImageSettings,
    MaskSettings,
)
from pipelines.ask.settings import Choice, Values, rows
from pipelines.ask.table import ROWS
from pipelines.errors import InvalidInput, shown
from pipelines.infotext.asked import NO_PICTURES, RANDOM, Asked, Pictures, ignored_tags
from pipelines.infotext.civitai import of_another_family
from pipelines.infotext.keys import done_afterwards
from pipelines.infotext.reading import GenerationData
from pipelines.infotext.syntax import version_of

OBSTACLE_MAX = 300
"""Characters of an obstacle's text."""
OBSTACLES_MAX = 50
"""Obstacles that are told: a text may hold thousands of keys that nobody knows."""


@dataclass(frozen=True)
class Obstacle:
    """Something that generation data asks for and that is not done here. Its text may be shown."""

    text: str
    other_picture: bool
    """The picture would be another one."""
    instead: Values = field(default_factory=dict[str, Any])
    """Settings that could not be drawn, and what takes their place."""
    controls: tuple[ControlSettings, ...] | None = None
    """The ControlNets that are left; None: all of them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", shown(self.text, OBSTACLE_MAX))


def drop_unsupported(asked: Asked, found: list[Obstacle], strict: bool) -> Asked:
    """What is asked for without what cannot be done.

    Raises InvalidInput where that is another picture, unless not `strict`.
    """
    if strict and any(obstacle.other_picture for obstacle in found):
        told = "; ".join(obstacle.text for obstacle in found if obstacle.other_picture)
        fix = "Change that in the generation data, or add Strict: False to it (--no-strict) to draw what can be drawn."
        raise InvalidInput("generation_data", asked["prompt"], f"the picture would be another one: {told}", fix)
    values = {name: value for obstacle in found for name, value in obstacle.instead.items()}
    controls = next((obstacle.controls for obstacle in found if obstacle.controls is not None), asked.controls)
    return replace(asked.with_values(**values), controls=controls)


def obstacles(
    asked: Asked, model: ModelIdentity, pictures: Pictures = NO_PICTURES, extras: Extras = NO_EXTRAS
) -> list[Obstacle]:
    """What of a block of generation data cannot be honoured with this model, these pictures and these networks."""
    found = [
        *_of_silence(asked.data, asked),
        *_of_model(asked.data, model),
        *_of_vae(asked.data, model),
        *_of_names(asked),
        *_of_networks(asked, extras),
        *_of_controls(asked, pictures, extras),
        *_of_pictures(asked, pictures),
        *_of_keys(asked, pictures),
    ]
    worst_first = sorted(found, key=lambda obstacle: not obstacle.other_picture)
    return found if len(found) <= OBSTACLES_MAX else worst_first[:OBSTACLES_MAX]


def _of_silence(data: GenerationData, asked: Asked) -> Iterator[Obstacle]:
    """What a block must say, or else only chance would draw its picture."""
    keys = {"num_inference_steps": "Steps", "sampler": "Sampler", "guidance_scale": "CFG scale", "seed": "Seed"}
    said = {name for name in asked.values if name in data.values or name in asked.chosen}
    said -= {"seed"} if asked.values.get("seed") == RANDOM else set()
    missing = [key for name, key in keys.items() if name not in said]
    missing += ["Size"] if not {"width", "height"} & (data.values.keys() | asked.chosen) else []
    if len(missing) == len(keys) + 1:
        yield Obstacle("it has no line of parameters (Steps: 20, Sampler: ...)", other_picture=True)
    elif missing:
        yield Obstacle(f"it does not say {', '.join(missing)}", other_picture=True)


def _of_model(data: GenerationData, model: ModelIdentity) -> Iterator[Obstacle]:
    told, here = data.model_hash or "", f"{model.name} ({'a folder' if model.folder else model.sha256[:10]})"
    named = f"made with the checkpoint {data.model or ''} ({told})".replace("  ", " ").replace(" ()", "")
    same_name = data.model is None or _stem(data.model) == _stem(model.name)
    if told and model.sha256.startswith(told.lower()):
        return
    if len(told) == 8 and same_name:  # the hash of before 2023 is of a part of the file
        yield Obstacle(f"{told} is an old hash, of 8 digits, which cannot be compared; here is {here}", False)
    elif model.folder:
        yield Obstacle(f"{named}, which cannot be compared; here is {here}", False)
    elif told or not same_name:
        yield Obstacle(f"{named}, here is {here}", other_picture=True)


def _of_vae(data: GenerationData, model: ModelIdentity) -> Iterator[Obstacle]:
    here = f"{model.vae_name} ({model.vae_sha256[:10]})" if model.vae_name else "the checkpoint's own"
    if data.vae_hash or data.vae:
        hashes_agree = bool(data.vae_hash) and model.vae_sha256.startswith((data.vae_hash or "").lower())
        names_agree = not data.vae_hash and _stem(data.vae or "") == _stem(model.vae_name)
        if not hashes_agree and not names_agree:
            told = f"{data.vae or ''} ({data.vae_hash or 'no hash'})".strip()
            yield Obstacle(f"made with the VAE {told}, here is {here}", other_picture=not model.vae_folder)
    elif model.vae_name and data.model_hash:  # from 1.6 on WebUI names every VAE that is not the checkpoint's own
        certain = (version_of(data.version or "") or (0,)) >= (1, 6)
        yield Obstacle(f"made with the checkpoint's own VAE, as far as it says; here is {here}", certain)


def _stem(name: str) -> str:
    """A model's name without folder, ending and case."""
    return re.sub(r"\.(safetensors|ckpt|pt|vae)", "", name.replace("\\", "/").rpartition("/")[2].casefold())


def _of_names(asked: Asked) -> Iterator[Obstacle]:
    seed = asked.values.get("seed", RANDOM)
    if seed > SEED_MAX:
        told = f"its Seed {seed} is more than the largest of WebUI, {SEED_MAX}"
        yield Obstacle(told, other_picture=True, instead={"seed": seed % (SEED_MAX + 1)})
    for name, instead in (
        ("sampler", GenerationRequest.sampler),
        ("schedule_type", GenerationRequest.schedule_type),
        ("emphasis", GenerationRequest.emphasis),
        ("hires_upscaler", "Lanczos"),
        ("hires_sampler", SAME_SAMPLER),
        ("hires_schedule_type", SAME_SCHEDULE),
    ):
        value, rule = asked[name], ROWS[name].rule
        assert isinstance(rule, Choice)
        known = value in rule.names or (name == "hires_upscaler" and value in asked.upscalers)
        if not known and (asked.hires or not name.startswith("hires_")):
            fix = "; bring its weights in files (--upscaler)" if name == "hires_upscaler" else ""
            called = name.replace("_", " ")
            yield Obstacle(f"the {called} {value} is not here ({instead} is){fix}", True, {name: instead})


def _of_networks(asked: Asked, extras: Extras) -> Iterator[Obstacle]:
    yield from _of_tags(asked)
    yield from _of_missing(asked, extras)
    yield from _of_hypernetwork(asked, extras)
    yield from _of_unnamed_loras(asked, extras)
    yield from _of_hashes("LoRA", asked.data.lora_hashes, extras.loras)
    yield from _of_hashes("embedding", asked.data.ti_hashes, extras.embeddings)
    for name in asked.data.ti_hashes.keys() - set(map(in_hashes, extras.embeddings)):
        told = f"the embedding {name} is not here; bring it in files (--embeddings-dir)"
        yield Obstacle(told, other_picture=True)
    yield from _of_resources(asked.data, extras)


def _of_tags(asked: Asked) -> Iterator[Obstacle]:
    """What tags say and is not applied."""
    for told in ignored_tags(asked):
        yield Obstacle(told, other_picture=True)


def _of_missing(asked: Asked, extras: Extras) -> Iterator[Obstacle]:
    """Networks that prompts name and that are not here."""
    prompts = asked.prompts.values()
    instead = {name: without_missing(prompt, extras) for name, prompt in asked.prompts.items()}
    for lora in {lora: None for prompt in prompts for lora in missing_loras(prompt, extras)}:
        told = f"{lora}: no LoRA of this name is here; bring it in loras or files (--lora-dir)"
        yield Obstacle(told, other_picture=True, instead=instead)
    for missing in {tag: None for prompt in prompts for tag in missing_hypernetworks(prompt, extras)}:
        told = f"{missing}: no hypernetwork of this name is here; send it in files (--hypernetworks-dir)"
        yield Obstacle(told, other_picture=True, instead=instead)


def _of_unnamed_loras(asked: Asked, extras: Extras) -> Iterator[Obstacle]:
    """LoRAs that the block tells of and that no prompt names."""
    data = asked.data
    named = {
        in_hashes(name) for text in (*asked.prompts.values(), *asked.options.values()) for name in lora_names(text)
    }
    told = {in_hashes(name): name for name in (*data.lora_hashes, *data.networks)}
    for name in told.keys() - named:
        text = f"the LoRA {told[name]} is not in its prompt, so that its multiplier is not known"
        yield Obstacle(text, other_picture=True)


def _of_hashes(what: str, hashes: Mapping[str, str], files: Mapping[str, ExtraFile]) -> Iterator[Obstacle]:
    """Files here that are others than those of the same name that the block was made with."""
    here = {in_hashes(name): file for name, file in files.items()}
    for name, digits in hashes.items():
        if name in here and not here[name].hashed_as(digits):
            yield Obstacle(f"made with another {what} {name} ({digits}) than the one here", other_picture=True)


def _of_resources(data: GenerationData, extras: Extras) -> Iterator[Obstacle]:
    """Files of CivitAI that no prompt and no other key of the block names."""
    digests = {digits.lower() for digits in (*data.lora_hashes.values(), *data.ti_hashes.values())}
    origins = [file.origin for file in (*extras.loras.values(), *extras.embeddings.values())]
    names = {tag.args[0] for prompt in data.prompts.values() for tag in cut_networks(prompt)[1]}
    for each in data.resources:
        known = each.name in names or (each.digest and each.digest.lower() in digests)
        brought = each.address and any(f"{each.address}'" in origin for origin in origins)
        if of_another_family(each):
            yield Obstacle(f"made with {each}, which is for models of the family {each.base}", other_picture=True)
        elif each.kind == "checkpoint":
            if not (data.model or data.model_hash):
                told = f"made with {each}, which cannot be compared with the checkpoint here"
                yield Obstacle(told, other_picture=True)
        elif each.kind == "VAE" and (data.vae or data.vae_hash):
            continue
        elif not (known or brought):
            yield Obstacle(f"made with {each}, which its prompt does not name: {each.advice}", other_picture=True)


def _of_hypernetwork(asked: Asked, extras: Extras) -> Iterator[Obstacle]:
    """A block from before 2023 tells the hash of its hypernetwork, the last one of its prompt."""
    digits, files = asked.data.hypernetwork_hash, extras.hypernetworks
    for tag in hypernetwork_tags(asked["prompt"] or "")[-1:] if digits else ():
        if tag.name in files and not files[tag.name].sha256.startswith(digits.lower()):
            yield Obstacle(f"made with another hypernetwork {tag.name} ({digits}) than the one here", True)


def _of_controls(asked: Asked, pictures: Pictures, extras: Extras) -> Iterator[Obstacle]:
    """ControlNets of a block; of those that are not here nothing is drawn, nor of those that have no picture."""
    missing = [control for control in asked.controls if control.model not in extras.controls]
    kept = tuple(control for control in asked.controls if control not in missing)
    for control in missing:
        told = f"the ControlNet {control.model} is not here; bring it in controls or files (--controlnet-dir)"
        yield Obstacle(told, other_picture=True, controls=kept)
    for control in kept:
        digits = extras.controls[control.model].short_hash
        if control.model_hash and control.model_hash != digits:
            told = f"made with another ControlNet {control.model} ({control.model_hash}) than the one here ({digits})"
            yield Obstacle(told, other_picture=True)
    if kept and pictures.image is None and not pictures.controls:
        told = "it was made with ControlNet: send its pictures (control_images, --control)"
        yield Obstacle(told, other_picture=True, controls=())


def _of_pictures(asked: Asked, pictures: Pictures) -> Iterator[Obstacle]:
    """What was made from a picture needs it. What was not, and now is, is left without its hires pass."""
    block = asked.data
    if pictures.image is None and block.from_picture:
        told = "its Denoising strength is of a pass from a picture: it was made from another picture (image, --init)"
        yield Obstacle(told, other_picture=True, instead={"outpaint": ImageSettings.outpaint})
    if pictures.image is not None and block.hires and not asked.hires:
        yield Obstacle("its highres fix is left out, as there is an image (highres_fix=On asks for it)", False)
    of_mask = {row.name: row for row in rows(MaskSettings).values()}
    masked = any(block.values.get(name, row.default) != row.default for name, row in of_mask.items() if name != BLUR)
    masked = masked or any(block.values.get(BLUR, ()))
    if pictures.mask is None and not any(block.values.get("outpaint", ())) and masked:
        yield Obstacle("it was made with a mask (mask, --mask)", other_picture=True)


BLUR = "mask_blur"


def _of_keys(asked: Asked, pictures: Pictures) -> Iterator[Obstacle]:
    data = asked.data
    yield from (Obstacle(doubt, other_picture=True) for doubt in data.doubts)
    yield from (Obstacle(warning, other_picture=False) for warning in data.warnings)
    by = f" of {data.program}" if data.program else ""
    for key, value in data.unknown.items():
        if done_afterwards(key):
            yield Obstacle(f"{key}: {value} was done to the finished picture, and is not done here", False)
            continue
        sent = key.startswith("Init image") and pictures.image is not None
        yield Obstacle(f"{key}: {value}{by} is not understood", other_picture=not sent)

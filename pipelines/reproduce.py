"""Pasted generation data and flat inputs -> the request that draws the same picture, and what stands in its way."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.catalog import (
    EMPHASES,
    LATENT_UPSCALERS,
    ONLY_MASKED,
    PIXEL_UPSCALERS,
    SAMPLERS,
    SCHEDULE_TYPES,
    UPSCALERS,
)
from pipelines.errors import InvalidInput
from pipelines.extras import (
    LORA_KINDS,
    NO_EXTRAS,
    Extras,
    in_hashes,
    missing_loras,
    name_of_upload,
    without_missing,
)
from pipelines.infotext import version_of
from pipelines.model import ModelIdentity
from pipelines.pasted import OLD_RULES, Parameters
from pipelines.prompt import cut_networks, schedule
from pipelines.request import (
    SAME_SAMPLER,
    SAME_SCHEDULE,
    SIDES,
    ControlSettings,
    FreeU,
    GenerationRequest,
    HiresSettings,
    ImageSettings,
    MaskSettings,
    NoiseSettings,
    Picture,
    ScheduleSettings,
    nothing_to_follow,
    plain,
    random_seed,
    size_to_draw,
)

DEFAULT_SIZE = (512, 512)
"""(width, height) that WebUI starts with."""
_OTHER_PICTURE = re.compile(
    r"(?i)\b(refiner|token merging|controlnet|adetailer|face restoration|tiling|hypernet|noise multiplier|sigma|eta\b"
    r"|s_churn|ddim discretize|unipc|hires checkpoint|hires cfg|hires vae|hires module|cfg rescale|freeu|mask|inpaint"
    r"|resize mode|conditional mask|init image|seed resize|skip early|ngms|extra noise|vae encoder|vae decoder"
    r"|fp8 weight|beta schedule|downcast|pad conds v0|addnet|dynamic thresholding|tiled|latent couple"
    r"|regional prompter|rp active|hypertile|perturbed|self attention guidance|distilled cfg|shift|rescale|dynthres"
    r"|sag_|pag_|kohya|negpip|cutoff|animatediff|lora block|cfg scheduler|uncond skip|script|sd upscale|ultimate sd"
    r"|prediction type|denoise)"
)
"""Keys of what draws another picture if it is left out."""


# --- inputs over a block ----------------------------------------------------------------------------------------------

_FIELD_OF = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "seed": "seed",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance_scale",
    "guidance_rescale": "guidance_rescale",
    "freeu": "freeu",
    "sampler": "sampler",
    "schedule_type": "schedule_type",
    "clip_skip": "clip_skip",
    "rng": "rng",
    "ensd": "ensd",
    "variation_seed": "variation_seed",
    "variation_strength": "variation_strength",
    "denoising_strength": "denoising_strength",
    "hires_scale": "hires_upscale",
    "hires_steps": "hires_steps",
    "hires_upscaler": "hires_upscaler",
    "hires_sampler": "hires_sampler",
    "hires_schedule_type": "hires_schedule_type",
    "hires_prompt": "hires_prompt",
    "hires_negative_prompt": "hires_negative_prompt",
    "hires_denoising_strength": "hires_denoising_strength",
    "mask_invert": "mask_invert",
    "mask_blur": "mask_blur",
    "masked_content": "masked_content",
    "inpaint_area": "inpaint_area",
    "inpaint_padding": "inpaint_padding",
}
"""Input -> the field of `Parameters` that it sets, for those that set just one."""
_OUTPAINT = tuple(f"outpaint_{side}" for side in SIDES)
SET_BY_DATA = frozenset({*_FIELD_OF, *_OUTPAINT, "width", "height", "hires", "hires_width", "hires_height"})
"""The inputs whose values a block of generation data brings, too."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What generation data cannot hold of a picture that was made from another."""

    image: Picture | None = None
    mask: Picture | None = None
    resize_mode: str = ImageSettings.resize_mode
    soft: bool = False
    controls: tuple[Picture, ...] = ()
    """Control images: one for each ControlNet, or one for all; without any it is the image that they look at."""


NO_PICTURES = Pictures()


def size_of(pictures: Pictures, inputs: Mapping[str, Any], model: tuple[int, int]) -> tuple[int, int]:
    """The size where nobody says one: the image's, with what outpainting adds; the model's own without an image, and
    for the part of it that alone is drawn."""
    left, top, right, bottom = sides = [inputs[name] for name in _OUTPAINT]
    part = inputs["inpaint_area"] == ONLY_MASKED and (pictures.mask is not None or any(sides))
    if pictures.image is None or part:
        return model
    width, height = pictures.image.size
    return size_to_draw(width + left + right, height + top + bottom)


def with_inputs(data: Parameters, inputs: Mapping[str, Any], size: tuple[int, int] = DEFAULT_SIZE) -> Parameters:
    """The data with the inputs, by their names, in place of what it says.

    An input of the hires pass turns it on unless `hires` is an input, too. With an `image` only `hires` does, or data
    of a picture that was made from one, and the denoising strength is that of the pass from it. `size` is that of a
    picture where neither says one. None is no input.
    """
    given = {
        name: plain(value) if isinstance(value, float) else value for name, value in inputs.items() if value is not None
    }
    image = "image" in given
    changes: dict[str, Any] = {_FIELD_OF[name]: value for name, value in given.items() if name in _FIELD_OF}
    if given.keys() & {"width", "height"}:
        width, height = data.size or size
        changes["size"] = given.get("width", width), given.get("height", height)
    if given.keys() & {"hires_width", "hires_height"}:
        changes["hires_resize"] = given.get("hires_width", 0), given.get("hires_height", 0)
    elif "hires_scale" in given:
        changes["hires_resize"] = None
    if given.keys() & set(_OUTPAINT):
        sides = zip(_OUTPAINT, data.outpaint, strict=True)
        changes["outpaint"] = tuple(given.get(name, pixels) for name, pixels in sides)
    of_hires = any(name.startswith("hires_") or name == "denoising_strength" for name in given)
    changes["hires"] = given.get("hires", data.hires and data.from_picture if image else data.hires or of_hires)
    if not image and not changes["hires"] and (data.hires or of_hires):
        changes["denoising_strength"] = None
    return replace(data, **changes)


def from_data(data: Parameters, changed: Collection[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What data with the `changed` inputs over it sets otherwise than the form's `defaults` do, by the inputs' names;
    without the prompts."""
    values: dict[str, Any] = {name: getattr(data, field) for name, field in _FIELD_OF.items() if "prompt" not in name}
    sizes = ("width", "height"), ("hires_width", "hires_height"), _OUTPAINT
    for names, numbers in zip(sizes, (data.size, data.hires_resize, data.outpaint), strict=True):
        values |= zip(names, numbers or (), strict=False)
    if not data.hires:
        values = {name: value for name, value in values.items() if not name.startswith("hires_")}
    values["hires"] = data.hires
    return {
        name: value for name, value in values.items() if name not in changed and value not in (None, defaults[name])
    }


_OF_MASK = ("mask_invert", "mask_blur", "mask_soft", "masked_content", "inpaint_area", "inpaint_padding")


def idle(changed: Collection[str], request: GenerationRequest) -> Iterator[str]:
    """Of the inputs that were changed, those that do nothing in this request: a line for the log on each kind."""
    image, hires = request.image, request.hires
    for names, there, what in (
        (("resize_mode",), image, "an image"),
        (_OF_MASK, image and image.mask, "a mask or outpainting"),
        ([name for name in changed if name.startswith("hires_")], hires, "the highres fix (hires)"),
        (("denoising_strength",), image or hires, "an image or the highres fix"),
    ):
        found = [name for name in names if name in changed]
        if found and not there:
            yield f"Without {what} nothing comes of {', '.join(found)}."
    prompts = [request.prompt, request.negative_prompt, *((hires.prompt, hires.negative_prompt) if hires else ())]
    for name, file in request.extras.embeddings.items():
        if file.origin and not any(name.casefold() in prompt.casefold() for prompt in prompts):
            yield f"No prompt says {name}, so that nothing comes of {file.origin}."


def name_of_upscaler(stem: str, called: str | None) -> str:
    """What infotexts call an uploaded upscaler: as the block does that it was uploaded for, else as its file."""
    if called and called not in UPSCALERS:
        return called
    name = name_of_upload(stem)
    return f"{name} (uploaded)" if name in UPSCALERS else name


# --- parameters to a request ------------------------------------------------------------------------------------------


def request_from(
    data: Parameters,
    size: tuple[int, int] = DEFAULT_SIZE,
    count: int = 1,
    upscalers: Mapping[str, Path] | None = None,
    block: Parameters | None = None,
    pictures: Pictures = NO_PICTURES,
    extras: Extras = NO_EXTRAS,
) -> GenerationRequest:
    """The request of `data`; `size` where it names none, a random seed where it names none or -1.

    `upscalers` are weight files by the names that blocks call them. Raises InvalidInput for what cannot be drawn; the
    error speaks of the generation data where the value comes from `block`, else of the input.
    """
    try:
        return _request(data, size, count, upscalers or {}, pictures, extras)
    except InvalidInput as error:
        name, key = _KEY_OF.get(error.field, ("", ""))
        if block is None or not name or getattr(data, name) != getattr(block, name):
            raise
        raise InvalidInput("generation_data", f"{key}: {error.value}", error.rule, error.fix) from None


_KEY_OF = {
    "num_inference_steps": ("steps", "Steps"),
    "guidance_scale": ("guidance_scale", "CFG scale"),
    "guidance_rescale": ("guidance_rescale", "Guidance rescale"),
    "freeu": ("freeu", "FreeU"),
    "seed": ("seed", "Seed"),
    "width": ("size", "Size, width"),
    "height": ("size", "Size, height"),
    "clip_skip": ("clip_skip", "Clip skip"),
    "ensd": ("ensd", "ENSD"),
    "variation_seed": ("variation_seed", "Variation seed"),
    "variation_strength": ("variation_strength", "Variation seed strength"),
    "denoising_strength": ("denoising_strength", "Denoising strength"),
    "hires_denoising_strength": ("hires_denoising_strength", "Hires denoising strength"),
    "mask_blur": ("mask_blur", "Mask blur"),
    "inpaint_padding": ("inpaint_padding", "Masked area padding"),
    **dict.fromkeys(_OUTPAINT, ("outpaint", "Outpaint")),
    "hires_scale": ("hires_upscale", "Hires upscale"),
    "hires_steps": ("hires_steps", "Hires steps"),
    "hires_width": ("hires_resize", "Hires resize"),
    "hires_height": ("hires_resize", "Hires resize"),
    "schedule_sigma_min": ("sigma_min", "Schedule min sigma"),
    "schedule_sigma_max": ("sigma_max", "Schedule max sigma"),
    "schedule_rho": ("rho", "Schedule rho"),
}
"""Field of a request -> the field of `Parameters` that it comes from, and what infotext calls it."""


def _request(
    data: Parameters,
    size: tuple[int, int],
    count: int,
    upscalers: Mapping[str, Path],
    pictures: Pictures,
    extras: Extras,
) -> GenerationRequest:
    width, height = data.size or size
    named = {"num_inference_steps": data.steps, "guidance_scale": data.guidance_scale, "sampler": data.sampler}
    return GenerationRequest(
        prompt=data.prompt,
        negative_prompt=data.negative_prompt,
        width=width,
        height=height,
        seed=random_seed() if data.seed is None or data.seed == -1 else data.seed,
        num_outputs=count,
        schedule_type=data.schedule_type,
        guidance_rescale=data.guidance_rescale,
        freeu=FreeU.read(data.freeu),
        clip_skip=data.clip_skip,
        emphasis=data.emphasis,
        pad_conds=data.pad_conds,
        schedule=ScheduleSettings(
            sigma_min=data.sigma_min,
            sigma_max=data.sigma_max,
            rho=data.rho,
            discard_penultimate=data.discard_penultimate,
        ),
        noise=NoiseSettings(
            source=data.rng,
            ensd=data.ensd,
            variation_seed=(data.variation_seed or 0) if data.variation_strength else 0,
            variation_strength=data.variation_strength,
        ),
        image=_image(data, pictures),
        hires=_hires(data, upscalers) if data.hires else None,
        controls=_controls(data.controls, pictures.controls),
        extras=extras,
        **{name: value for name, value in named.items() if value is not None},  # type: ignore[arg-type]
    )


def check_pictured(controls: Sequence[ControlSettings], pictures: Pictures) -> None:
    """What can be told of ControlNets before one is fetched. Raises InvalidInput."""
    for control in _controls(controls, pictures.controls) if controls else ():
        if control.picture is None and pictures.image is None:
            raise nothing_to_follow(control)


def _controls(controls: Sequence[ControlSettings], pictures: tuple[Picture, ...]) -> tuple[ControlSettings, ...]:
    """The ControlNets, each with its picture."""
    asked, sent = len(controls), len(pictures)
    if sent and not asked:
        fix = "Name one in controls, or send it in control_file."
        raise InvalidInput("control_images", f"{sent} sent", "there is no ControlNet to follow them", fix)
    if sent > 1 and sent != asked:
        rule = f"must be one for each of the {asked} lines of controls, or one for all"
        raise InvalidInput("control_images", f"{sent} sent", rule, "Repeat one that serves twice.")
    each = pictures * asked if sent == 1 else pictures or (None,) * asked
    return tuple(replace(control, picture=shown) for control, shown in zip(controls, each, strict=True))


def _image(data: Parameters, pictures: Pictures) -> ImageSettings | None:
    if pictures.image is None:
        asked = {"mask": pictures.mask is not None, **dict(zip(_OUTPAINT, data.outpaint, strict=True))}
        for name in (name for name, value in asked.items() if value):
            raise InvalidInput(name, asked[name], "there is no image to do that with", "Send it in image, too.")
        return None
    mask = MaskSettings(
        picture=pictures.mask,
        invert=data.mask_invert,
        blur=MaskSettings.blur if data.mask_blur is None else (data.mask_blur, data.mask_blur),
        content=data.masked_content,
        area=data.inpaint_area,
        padding=data.inpaint_padding,
        soft=pictures.soft,
    )
    strength = data.denoising_strength
    return ImageSettings(
        picture=pictures.image,
        denoising_strength=ImageSettings.denoising_strength if strength is None else strength,
        resize_mode=pictures.resize_mode,
        mask=mask if pictures.mask is not None or any(data.outpaint) else None,
        outpaint=data.outpaint,
    )


def _hires(data: Parameters, upscalers: Mapping[str, Path]) -> HiresSettings:
    upscaler = data.hires_upscaler or HiresSettings.upscaler
    strength = data.hires_denoising_strength or data.denoising_strength
    try:
        return HiresSettings(
            scale=data.hires_upscale or HiresSettings.scale,
            resize_to=data.hires_resize or (0, 0),
            upscaler=upscaler,
            upscaler_file=None if upscaler in LATENT_UPSCALERS + PIXEL_UPSCALERS else upscalers.get(upscaler),
            steps=data.hires_steps or 0,
            denoising_strength=HiresSettings.denoising_strength if strength is None else strength,
            prompt=data.hires_prompt,
            negative_prompt=data.hires_negative_prompt,
            sampler=data.hires_sampler or SAME_SAMPLER,
            schedule_type=data.hires_schedule_type or SAME_SCHEDULE,
        )
    except InvalidInput as error:
        if error.field == "denoising_strength" and data.hires_denoising_strength:
            raise InvalidInput("hires_denoising_strength", error.value, error.rule, error.fix) from None
        raise


# --- what stands in the way -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Obstacle:
    """Something that generation data asks for and that is not done here."""

    text: str
    other_picture: bool
    """The picture would be another one."""
    instead: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Fields of `Parameters` without which nothing could be drawn, and what takes their place."""


def honour(data: Parameters, found: list[Obstacle], strict: bool) -> Parameters:
    """The data without what cannot be done. Raises InvalidInput where that is another picture, unless not `strict`."""
    if strict and any(obstacle.other_picture for obstacle in found):
        told = "; ".join(obstacle.text for obstacle in found if obstacle.other_picture)
        fix = "Change that in the generation data, or turn strict off (--no-strict) to draw what can be drawn."
        raise InvalidInput("generation_data", data.prompt, f"the picture would be another one: {told}", fix)
    return replace(data, **{name: value for obstacle in found for name, value in obstacle.instead.items()})


def obstacles(
    data: Parameters,
    model: ModelIdentity,
    upscalers: Mapping[str, Path] | None = None,
    pictures: Pictures = NO_PICTURES,
    extras: Extras = NO_EXTRAS,
    block: Parameters | None = None,
) -> list[Obstacle]:
    """What of a block cannot be honoured with this model, these upscalers, pictures, LoRAs and embeddings.

    `data` is the `block` with inputs over it; without one it is the block itself.
    """
    return [
        *_of_missing(data),
        *_of_model(data, model),
        *_of_vae(data, model),
        *_of_names(data, upscalers or {}),
        *_of_networks(data, extras),
        *_of_controls(data, pictures, extras),
        *_of_pictures(data, block or data, pictures),
        *_of_keys(data, pictures),
    ]


def _of_missing(data: Parameters) -> Iterator[Obstacle]:
    """What a block must say, or else only chance would draw its picture."""
    said = {
        "Steps": data.steps,
        "Sampler": data.sampler,
        "CFG scale": data.guidance_scale,
        "Seed": None if data.seed == -1 else data.seed,
        "Size": data.size,
    }
    missing = [key for key, value in said.items() if value is None]
    if len(missing) == len(said):
        yield Obstacle("it has no line of parameters (Steps: 20, Sampler: ...)", other_picture=True)
    elif missing:
        yield Obstacle(f"it does not say {', '.join(missing)}", other_picture=True)


def _of_model(data: Parameters, model: ModelIdentity) -> Iterator[Obstacle]:
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


def _of_vae(data: Parameters, model: ModelIdentity) -> Iterator[Obstacle]:
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


def _of_names(data: Parameters, upscalers: Mapping[str, Path]) -> Iterator[Obstacle]:
    known_upscalers = (*UPSCALERS, *upscalers)
    for name, called, choices, instead in (
        ("sampler", "sampler", tuple(SAMPLERS), GenerationRequest.sampler),
        ("schedule_type", "schedule type", SCHEDULE_TYPES, GenerationRequest.schedule_type),
        ("emphasis", "emphasis", EMPHASES, GenerationRequest.emphasis),
        ("hires_upscaler", "hires upscaler", known_upscalers, "Lanczos"),
        ("hires_sampler", "hires sampler", (SAME_SAMPLER, *SAMPLERS), SAME_SAMPLER),
        ("hires_schedule_type", "hires schedule type", (SAME_SCHEDULE, *SCHEDULE_TYPES), SAME_SCHEDULE),
    ):
        value = getattr(data, name)
        if value and value not in choices and (data.hires or not name.startswith("hires_")):
            fix = "; bring its weights in hires_upscaler_file (--upscaler)" if name == "hires_upscaler" else ""
            yield Obstacle(f"the {called} {value} is not here ({instead} is){fix}", True, {name: instead})


def _of_networks(data: Parameters, extras: Extras) -> Iterator[Obstacle]:
    prompts = {"prompt": data.prompt, "hires_prompt": data.hires_prompt if data.hires else ""}
    tags = {tag: None for prompt in prompts.values() for tag in cut_networks(prompt)[1]}  # a set that keeps the order
    for tag in tags:
        if tag.kind not in LORA_KINDS and not re.fullmatch(r"0*\.?0*", tag.args[1] if len(tag.args) == 2 else "1"):
            yield Obstacle(f"<{tag.kind}:{':'.join(tag.args)}>: only LoRAs are applied here", other_picture=True)
    instead = {name: without_missing(prompt, extras) for name, prompt in prompts.items()}
    for lora in {lora: None for prompt in prompts.values() for lora in missing_loras(prompt, extras)}:
        told = f"{lora}: no LoRA of this name is here; bring it in loras or lora_file (--lora-dir)"
        yield Obstacle(told, other_picture=True, instead=instead)
    for name in data.lora_hashes.keys() - {in_hashes(tag.args[0]) for tag in tags}:
        yield Obstacle(f"the LoRA {name} is not in its prompt, so that its multiplier is not known", other_picture=True)
    for what, hashes, files in (
        ("LoRA", data.lora_hashes, extras.loras),
        ("embedding", data.ti_hashes, extras.embeddings),
    ):
        here = {in_hashes(name): file for name, file in files.items()}
        for name, digits in hashes.items():
            if name in here and not here[name].hashed_as(digits):
                yield Obstacle(f"made with another {what} {name} ({digits}) than the one here", other_picture=True)
    for name in data.ti_hashes.keys() - set(map(in_hashes, extras.embeddings)):
        told = f"the embedding {name} is not here; bring it in embeddings (--embeddings-dir)"
        yield Obstacle(told, other_picture=True)


def _of_controls(data: Parameters, pictures: Pictures, extras: Extras) -> Iterator[Obstacle]:
    """ControlNets of a block; of those that are not here nothing is drawn, nor of those that have no picture."""
    missing = [control for control in data.controls if control.model not in extras.controls]
    kept = tuple(control for control in data.controls if control not in missing)
    for control in missing:
        told = f"the ControlNet {control.model} is not here; bring it in controls or control_file (--controlnet-dir)"
        yield Obstacle(told, other_picture=True, instead={"controls": kept})
    for control in kept:
        digits = extras.controls[control.model].short_hash
        if control.model_hash and control.model_hash != digits:
            told = f"made with another ControlNet {control.model} ({control.model_hash}) than the one here ({digits})"
            yield Obstacle(told, other_picture=True)
    if kept and pictures.image is None and not pictures.controls:
        told = "it was made with ControlNet: send its pictures (control_images, --control)"
        yield Obstacle(told, other_picture=True, instead={"controls": ()})


def _of_pictures(data: Parameters, block: Parameters, pictures: Pictures) -> Iterator[Obstacle]:
    """What was made from a picture needs it; and what was not, but shall be, is left without its hires pass."""
    if pictures.image is None and block.from_picture:
        told = "its Denoising strength is of a pass from a picture: it was made from another picture (image, --init)"
        yield Obstacle(told, other_picture=True, instead={"outpaint": Parameters.outpaint})
    if pictures.image is not None and block.hires and not data.hires:
        yield Obstacle(
            "its highres fix is left out, as there is an image (hires=true asks for it)", other_picture=False
        )
    said = block.mask_blur or None, block.mask_invert, block.masked_content, block.inpaint_area
    unmasked = Parameters.mask_blur, Parameters.mask_invert, Parameters.masked_content, Parameters.inpaint_area
    if pictures.mask is None and not any(block.outpaint) and said != unmasked:
        yield Obstacle("it was made with a mask (mask, --mask)", other_picture=True)


def _of_keys(data: Parameters, pictures: Pictures) -> Iterator[Obstacle]:
    yield from (Obstacle(doubt, other_picture=True) for doubt in data.doubts)
    edits = any(len(schedule(prompt, 1000)) > 1 for prompt in (data.prompt, data.negative_prompt))
    for warning in data.warnings:
        yield Obstacle(warning, other_picture=edits and warning.startswith(OLD_RULES))
    for key, value in data.unknown.items():
        sent = key == "Init image hash" and pictures.image is not None
        yield Obstacle(f"{key}: {value} is not understood", bool(_OTHER_PICTURE.search(key)) and not sent)

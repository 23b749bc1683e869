"""The form's inputs, generation data and the model's own defaults -> one set of settings -> a request.

The form overrides generation data, and generation data overrides the model's defaults. A whole block describes a whole
picture: settings that it does not mention then get WebUI's defaults, not the model's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.ask.catalog import LATENT_UPSCALERS, ONLY_MASKED, PIXEL_UPSCALERS, UPSCALERS
from pipelines.ask.inputs import AUTOMATIC, ON, Inputs, size_like, size_of_aspect
from pipelines.ask.networks import NETWORK_KINDS, NO_EXTRAS, Extras, lora_tags, name_of_upload
from pipelines.ask.prompt import cut_networks
from pipelines.ask.request import (
    SIDES,
    AddedNoise,
    ControlSettings,
    FramingSettings,
    GenerationRequest,
    HiresSettings,
    ImageSettings,
    MaskSettings,
    NoiseSettings,
    Picture,
    RefinerSettings,
    ScheduleSettings,
    SkippedGuidance,
    nothing_to_follow,
    random_seed,
)
from pipelines.ask.settings import Values, of_group, rows
from pipelines.ask.sizes import Size, size_to_draw
from pipelines.ask.table import KEY_OF, ROWS
from pipelines.ask.wildcards import lift_wildcards, options_of, with_picks
from pipelines.errors import InvalidInput
from pipelines.infotext.reading import GenerationData, holds_settings, read, read_settings

WEBUI_SIZE = (512, 512)
"""WebUI's default size."""
UNSAID: Values = {
    row.name: row.unsaid for row in ROWS.values() if row.key and row.unsaid != row.default and row.unsaid is not None
}
"""Values of settings that a whole block does not mention, if they differ from our own defaults."""
STRENGTH, HIRES_STRENGTH = "denoising_strength", "hires_denoising_strength"
RANDOM = -1
"""The seed that asks for a random one."""
NO_DATA = GenerationData(whole=False)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The decoded pictures of a request. Generation data never contains them."""

    image: Picture | None = None
    mask: Picture | None = None
    controls: tuple[Picture, ...] = ()
    """Control images: one for each ControlNet or one for all. If there are none, the ControlNets use the image."""
    depth: Picture | None = None
    """A depth map of the image, for a depth checkpoint."""


NO_PICTURES = Pictures()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Everything that was requested, as one set of settings."""

    values: Values
    hires: bool = False
    """Whether there is a hires pass."""
    controls: tuple[ControlSettings, ...] = ()
    data: GenerationData = NO_DATA
    """The generation data, as it was read."""
    chosen: frozenset[str] = frozenset()
    """The settings that were filled in on the form."""
    upscalers: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """Weight files of upscalers, by their names in generation data."""
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    """Everything that dynamic prompts could have picked, by the prompt's setting. A network named there counts as
    used."""

    @property
    def wanted(self) -> frozenset[str]:
        """The settings whose values somebody gave for this request. A whole block says everything, so its are left
        out."""
        return self.chosen if self.data.whole else self.chosen | self.data.values.keys()

    @property
    def resolved(self) -> bool:
        """Whether dynamic prompts are on."""
        return bool(self["dynamic_prompts"] or self.data.wildcards)

    def __getitem__(self, name: str) -> Any:
        """Return the value of a setting, or its default."""
        return self.values.get(name, ROWS[name].default)

    def with_values(self, **values: Any) -> "Asked":
        """Return a copy with other settings."""
        return replace(self, values={**self.values, **values})

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts that may name networks, by setting. The hires prompt is included only with a hires pass."""
        names = ("prompt", "hires_prompt") if self.hires else ("prompt",)
        return {name: self[name] or "" for name in names}


def read_data(text: str) -> GenerationData:
    """Read generation data, either a whole block or single settings. Raises InvalidInput."""
    text, wildcards = lift_wildcards(text)
    if not text.strip():
        return replace(NO_DATA, wildcards=wildcards)
    if holds_settings(text):
        return replace(read_settings(text), wildcards=wildcards)
    data = read(text)
    if not data.values.keys() - _PROMPTS and not data.unknown and not data.doubts:
        rule = "there is no line of parameters in it, and no setting such as ENSD: 31337"
        raise InvalidInput("generation_data", text, rule, "Write key: value, with commas or line breaks in between.")
    return replace(data, wildcards=wildcards)


def settle(inputs: Inputs, data: GenerationData, defaults: Values, pictures: Pictures = NO_PICTURES) -> Asked:
    """Merge everything into one set of settings. `defaults` are the model's own, with its size. Raises InvalidInput."""
    base = UNSAID if data.whole else defaults
    values = {**_for_the_first_pass(base, pictures), **data.values, **inputs.said}
    if inputs.said.keys() & {"hires_scale"} and not inputs.said.keys() & {"hires_width", "hires_height"}:
        values |= {"hires_width": 0, "hires_height": 0}  # a scale on the form overrides a size in generation data
    own = defaults["width"], defaults["height"]
    size = size_of_aspect(inputs.aspect_ratio, own) or _size_said(data)
    asked = Asked(values=values, controls=data.controls, data=data, chosen=frozenset(inputs.said))
    variation = base.get(STRENGTH) == asked[STRENGTH] == 1
    width, height = size or _size_unsaid(asked, pictures, own, variation)
    hires = _has_hires(inputs, data, pictures)
    sides = {"width": inputs.said.get("width", width), "height": inputs.said.get("height", height)}
    return replace(asked.with_values(**sides), hires=hires)


def _for_the_first_pass(own: Values, pictures: Pictures) -> Values:
    """Return the model's own settings, with its strength for an image alone: a hires pass has the usual one."""
    if STRENGTH not in own:
        return own
    if pictures.image is None:
        return {name: value for name, value in own.items() if name != STRENGTH}
    return {HIRES_STRENGTH: ROWS[HIRES_STRENGTH].default, **own}


def _size_said(data: GenerationData) -> Size | None:
    said = data.values
    return (said["width"], said["height"]) if "width" in said and "height" in said else None


def _size_unsaid(asked: Asked, pictures: Pictures, own: Size, variation: bool) -> Size:
    """Return the size to draw if neither the form nor the data gives one.

    With an image it is the image's size plus what outpainting adds. It is the model's own size (for a whole block
    WebUI's) without an image, and the model's own if only the masked part is drawn. A variation, which keeps nothing of
    the image itself, has its aspect ratio and the model's number of pixels.
    """
    if pictures.image is None:
        return WEBUI_SIZE if asked.data.whole else own
    outpaint = asked["outpaint"]
    masked = pictures.mask is not None or any(outpaint)
    if masked and asked["inpaint_area"] == ONLY_MASKED:
        return own
    width, height = pictures.image.size
    if variation and not masked:
        return size_like(pictures.image.size, own)
    left, top, right, bottom = outpaint
    return size_to_draw(width + left + right, height + top + bottom)


def _has_hires(inputs: Inputs, data: GenerationData, pictures: Pictures) -> bool:
    """Decide whether the highres fix is on. Automatic follows a whole block; otherwise it is on without an image."""
    if inputs.highres_fix != AUTOMATIC:
        return inputs.highres_fix == ON
    if pictures.image is not None:
        return data.hires and (data.from_picture or not data.whole)
    if data.whole:
        return data.hires or any(name.startswith("hires_") for name in inputs.said)
    return True


def pick(asked: Asked) -> Asked:
    """Resolve dynamic prompts by the seed. If there is no seed, choose a random one and keep it.

    Does nothing unless dynamic prompts are on or a wildcard is defined. Raises InvalidInput.
    """
    if not asked.resolved:
        return asked
    seed = seed_of(asked)
    prompts, wildcards = {name: asked[name] or "" for name in _PROMPTS}, asked.data.wildcards
    options = {name: options_of(prompt, wildcards) for name, prompt in prompts.items()}
    return replace(asked.with_values(seed=seed, **with_picks(prompts, wildcards, seed)), options=options)


def seed_of(asked: Asked) -> int:
    """Return the requested seed, or a random one."""
    seed: int = asked.values.get("seed", RANDOM)
    return random_seed() if seed == RANDOM else seed


_PROMPTS = ("prompt", "negative_prompt", "hires_prompt", "hires_negative_prompt")


def said_by_data(asked: Asked) -> str:
    """Describe for the log which settings come from the generation data instead of the form."""
    said = asked.data.values
    told = []
    for name in ROWS:
        if name in said and name not in _PROMPTS and name not in asked.chosen and asked[name] == said[name]:
            told.append(f"{name}={said[name]}")
    return ", ".join(told)


# --- settings to a request --------------------------------------------------------------------------------------------


def request_from(
    asked: Asked, count: int = 1, pictures: Pictures = NO_PICTURES, extras: Extras = NO_EXTRAS
) -> GenerationRequest:
    """Make the request, with a random seed if none was given.

    Raises InvalidInput for what cannot be drawn. The error names the generation data if the value comes from there, and
    otherwise the input.
    """
    try:
        return _request(asked, count, pictures, extras)
    except InvalidInput as error:
        if error.field not in asked.data.values or error.field in asked.chosen:
            raise
        key = KEY_OF.get(error.field, error.field)
        key = key.partition(", ")[0] if "x" in str(error.value) else key  # both sides of a size at once
        raise InvalidInput("generation_data", f"{key}: {error.value}", error.rule, error.fix) from None


def _request(asked: Asked, count: int, pictures: Pictures, extras: Extras) -> GenerationRequest:
    values = {**asked.values, "seed": seed_of(asked), "num_outputs": count}
    if not asked["variation_strength"]:
        values.pop("variation_seed", None)
    elif values.get("variation_seed") == RANDOM:
        values["variation_seed"] = random_seed()
    return GenerationRequest(
        **of_group(GenerationRequest, {"prompt": "", **values}),
        schedule=ScheduleSettings(**of_group(ScheduleSettings, values)),
        added_noise=AddedNoise(**of_group(AddedNoise, values)),
        skipped_guidance=SkippedGuidance(**of_group(SkippedGuidance, values)),
        refiner=RefinerSettings(**of_group(RefinerSettings, values)),
        framing=FramingSettings(**of_group(FramingSettings, values)),
        noise=NoiseSettings(**of_group(NoiseSettings, values)),
        image=_image(asked, pictures),
        hires=_hires(asked) if asked.hires else None,
        controls=paired(asked.controls, pictures.controls),
        extras=extras,
    )


def check_pictured(controls: Sequence[ControlSettings], pictures: Pictures) -> None:
    """Check that every ControlNet has a picture, before any of them is fetched. Raises InvalidInput."""
    for control in paired(controls, pictures.controls) if controls else ():
        if control.picture is None and pictures.image is None:
            raise nothing_to_follow(control)


def paired(controls: Sequence[ControlSettings], pictures: tuple[Picture, ...]) -> tuple[ControlSettings, ...]:
    """Give each ControlNet its picture. Raises InvalidInput if the numbers do not match."""
    count, sent = len(controls), len(pictures)
    if sent and not count:
        fix = "Name one in controls, or send it in files. Only a depth checkpoint takes a depth map without one."
        raise InvalidInput("control_images", f"{sent} sent", "there is no ControlNet to follow them", fix)
    if sent > 1 and sent != count:
        rule = f"must be one for each of the {count} lines of controls, or one for all"
        raise InvalidInput("control_images", f"{sent} sent", rule, "Send a picture twice to use it twice.")
    each = pictures * count if sent == 1 else pictures or (None,) * count
    return tuple(replace(control, picture=shown) for control, shown in zip(controls, each, strict=True))


def _image(asked: Asked, pictures: Pictures) -> ImageSettings | None:
    """Make the settings of the picture to start from. Raises InvalidInput if it is missing but needed."""
    if pictures.image is None:
        _check_without_image(asked, pictures)
        return None
    mask = None
    if pictures.mask is not None or any(asked["outpaint"]):
        mask = MaskSettings(picture=pictures.mask, **of_group(MaskSettings, asked.values))
    settings = of_group(ImageSettings, asked.values)
    return ImageSettings(picture=pictures.image, depth=pictures.depth, mask=mask, **settings)


def _check_without_image(asked: Asked, pictures: Pictures) -> None:
    """Refuse a mask and outpainting. Also check the picture's other settings, although they have no effect."""
    fix = "Send it in image, too."
    if pictures.mask is not None:
        raise InvalidInput("mask", "a picture", "there is no image", fix)
    if any(asked["outpaint"]):
        sides = [f"{side} {pixels}" for side, pixels in zip(SIDES, asked["outpaint"], strict=True) if pixels]
        raise InvalidInput("outpaint", ", ".join(sides), "there is no image", fix)
    for row in rows(ImageSettings).values():
        if row.name in asked.values:
            row.check(asked[row.name])


def _hires(asked: Asked) -> HiresSettings:
    """Make the settings of the second pass. If it has no strength of its own, it uses the first pass's."""
    own = HIRES_STRENGTH
    if own not in asked.values or not asked[own]:
        own = STRENGTH
    name = asked["hires_upscaler"]
    file = None
    if name not in LATENT_UPSCALERS + PIXEL_UPSCALERS:
        file = asked.upscalers.get(name)
    values = {**of_group(HiresSettings, asked.values), "denoising_strength": asked[own], "upscaler_file": file}
    try:
        return HiresSettings(**values)
    except InvalidInput as error:
        if error.field == HIRES_STRENGTH:
            raise InvalidInput(own, error.value, error.rule, error.fix) from None
        raise


# --- inputs without effect --------------------------------------------------------------------------------------------

_OF_MASK = frozenset(row.name for row in rows(MaskSettings).values())
_OF_HIRES = frozenset(row.name for row in rows(HiresSettings).values())


def unused_inputs(asked: Asked, request: GenerationRequest) -> Iterator[str]:
    """Yield lines for the log about inputs that have no effect in this request, one line for each kind."""
    yield from _without_object(asked, request)
    yield from _unnamed_embeddings(asked, request)
    if not asked.data.whole:  # a whole block's are reported as obstacles
        yield from dict.fromkeys(ignored_tags(asked))
    used = request.hires.upscaler_file if request.hires else None
    for path in dict.fromkeys(asked.upscalers.values()):
        if path != used:
            yield f"No highres fix uses the upscaler {name_of_upload(path.stem)} from files, so it does nothing."


def _without_object(asked: Asked, request: GenerationRequest) -> Iterator[str]:
    """Report settings of an image, a mask, a highres fix or a variation if there is none."""
    image, hires = request.image, request.hires
    mask = image.mask if image else None
    for names, there, what in (
        ({"resize_mode"}, image, "an image"),
        (_OF_MASK, mask, "a mask or outpainting"),
        (_OF_HIRES, hires, "the highres fix (highres_fix)"),
        ({"denoising_strength"}, image or hires, "an image or the highres fix"),
        ({"variation_seed"}, request.noise.variation_strength, "a variation seed strength"),
    ):
        found = sorted(asked.wanted & names)
        if found and not there:
            yield f"Without {what}, {', '.join(found)} {'do' if len(found) > 1 else 'does'} nothing."


def _unnamed_embeddings(asked: Asked, request: GenerationRequest) -> Iterator[str]:
    """Report embeddings that were sent although no prompt, and no option of a prompt, contains their names."""
    prompts = [request.prompt, request.negative_prompt, *asked.options.values()]
    if request.hires:
        prompts += (request.hires.prompt, request.hires.negative_prompt)
    named = "\n".join(prompts).casefold()
    for name, file in request.extras.embeddings.items():
        if file.origin and name.casefold() not in named:
            yield f"No prompt contains {name}, so {file.origin} does nothing."


def ignored_tags(asked: Asked) -> Iterator[str]:
    """Report tags in the prompts, and arguments of tags, that are not applied here."""
    for name, prompt in asked.prompts.items():
        for tag in cut_networks(prompt)[1]:
            known = tag.kind in NETWORK_KINDS
            if not known and not tag.off:
                yield f"{tag}: only LoRAs and hypernetworks are applied here"
        for lora in lora_tags(prompt, name):
            if lora.acts and lora.ignored:
                yield f"{lora}: its {', '.join(lora.ignored)} is not applied here, so the whole LoRA acts"


def name_of_upscaler(stem: str, called: str | None) -> str:
    """Return the name of an uploaded upscaler: the one that the block uses, or else its file's name."""
    if called and called not in UPSCALERS:
        return called
    name = name_of_upload(stem)
    return f"{name} (uploaded)" if name in UPSCALERS else name

"""The form's inputs, generation data and the model's own defaults -> one set of settings -> a request.

The form overrides generation data, and generation data overrides the model's defaults. A whole block describes a whole
picture: settings that it does not mention then get WebUI's defaults, not the model's.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipelines.ask.animation import FIELD, AnimationSettings, KeyFrame
from pipelines.ask.catalog import LATENT_UPSCALERS, ONLY_MASKED, PIXEL_UPSCALERS
from pipelines.ask.inputs import AUTOMATIC, OFF, ON, Inputs, size_like, size_of_aspect
from pipelines.ask.networks import NO_EXTRAS, Extras, LoraTag, lora_names, lora_tags
from pipelines.ask.plan import make_plan
from pipelines.ask.prompt import cut_networks, has_word
from pipelines.ask.request import (
    SEED_MAX,
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
    Settings,
    SkippedGuidance,
    nothing_to_follow,
    random_seed,
)
from pipelines.ask.settings import Values, of_group, rows
from pipelines.ask.sizes import Size, size_to_draw
from pipelines.ask.table import KEY_OF, ROWS, Handling
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
PROMPTS = ("prompt", "negative_prompt", "hires_prompt", "hires_negative_prompt")
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
class Wanted:
    """The names of networks in a request, apart from those in the form's own lines."""

    loras: frozenset[str]
    """LoRAs that the prompts use."""
    optional_loras: frozenset[str]
    """LoRAs that dynamic prompts could have picked."""
    controls: tuple[ControlSettings, ...]
    """The control networks of the generation data."""
    upscaler: str
    """The upscaler of the generation data; empty if it names none."""
    file_names: str
    """Names for the files that were sent, separated by commas."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """The networks that a request names or sends."""

    extras: Extras = NO_EXTRAS
    controls: tuple[ControlSettings, ...] = ()
    """The control networks to use, by their names in `extras`."""
    multipliers: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    """LoRAs to use even if no prompt names them, with their multipliers for the UNet and the text encoder."""
    words: Mapping[str, str] = field(default_factory=dict[str, str])
    """LoRAs of the container by the words that they were trained for. A prompt with such a word uses its LoRA."""
    upscalers: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """Weight files of upscalers, by their names in generation data."""
    upscaler: str = ""
    """The upscaler to use unless the form names another; empty for that of the settings."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Everything that was requested, and where it comes from."""

    settings: Settings
    handling: Handling
    data: GenerationData
    """The generation data, as it was read."""
    chosen: frozenset[str]
    """Names of the settings that were filled in on the form."""
    taken: Values
    """The settings that come from the generation data, for the log."""
    options: Mapping[str, str]
    """Everything that dynamic prompts could have picked, by the prompt's setting. A network named there counts as
    used."""
    random: bool
    """Whether nobody gave a seed."""
    upscalers: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """Weight files of upscalers that were sent, by their names in generation data."""
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    """What errors and the log call settings that a key frame of an animation gives."""

    @property
    def given(self) -> frozenset[str]:
        """Names of the settings that somebody gave for this request. A whole block says everything, so its settings are
        left out."""
        return self.chosen if self.data.whole else self.chosen | self.data.values.keys()

    def called(self, name: str) -> str:
        """Return what the log calls a setting: the option of a key frame, the key in generation data, or the input."""
        if name in self.names:
            return self.names[name]
        return KEY_OF.get(name, name) if name in self.data.values and name not in self.chosen else name

    @property
    def resolved(self) -> bool:
        """Whether dynamic prompts are on."""
        return self.handling.dynamic_prompts or bool(self.data.wildcards)

    @property
    def wanted(self) -> Wanted:
        """The networks to look for. Raises InvalidInput for a tag that cannot be read."""
        with _naming(self.names):
            tags = [tag for name, prompt in self.settings.prompts.items() for tag in lora_tags(prompt, name)]
        return Wanted(
            loras=frozenset(tag.name for tag in tags if tag.acts),
            optional_loras=frozenset(name for text in self.options.values() for name in lora_names(text)),
            controls=self.settings.controls,
            upscaler=self.data.values.get("hires_upscaler", ""),
            file_names=self.handling.file_names,
        )


def wanted_by(asked: Sequence[Asked]) -> Wanted:
    """Return the networks to look for, for several requests of the same form."""
    each = [one.wanted for one in asked]
    return replace(
        each[0],
        loras=frozenset().union(*(wanted.loras for wanted in each)),
        optional_loras=frozenset().union(*(wanted.optional_loras for wanted in each)),
    )


def settle_keys(asked: Asked, inputs: Inputs, defaults: Values, pictures: Pictures = NO_PICTURES) -> tuple[Asked, ...]:
    """Return what each key frame of an animation asks for: the form with its prompt, seed and numbers.

    The others have the film's values, also where the form alone would derive them from the key frame's: the options
    that a hires prompt picks, and with an image the strength of the hires pass. So the film's generation data has them.
    Raises InvalidInput as `settle` does.
    """
    settings, film = asked.settings, rows(AnimationSettings).values()
    told = {name: value for name, value in asked.data.values.items() if name not in {row.name for row in film}}
    if "variation_seed" in told:
        told["variation_seed"] = settings.noise.variation_seed
    if hires := settings.hires:
        told |= {"hires_prompt": hires.prompt, "hires_negative_prompt": hires.negative_prompt}
        told |= {HIRES_STRENGTH: hires.denoising_strength} if settings.image else {}
    data = replace(asked.data, values=told)
    inputs = replace(inputs, highres_fix=ON if hires else OFF, animation="", frames_per_second=None, loop=None)
    return tuple(
        settle(_of_key(key, inputs, settings.seed), data, defaults, pictures, _names_of(key))
        for key in settings.animation.timeline.keys[: settings.animation.timeline.prompts]
    )


def _of_key(key: KeyFrame, inputs: Inputs, seed: int) -> Inputs:
    """Return the form as it would be filled in for the key frame's picture."""
    negative = key.negative
    return replace(
        inputs,
        prompt=key.prompt,
        seed=seed if key.seed is None else key.seed,
        denoising_strength=inputs.denoising_strength if key.strength is None else key.strength,
        guidance_scale=inputs.guidance_scale if key.guidance is None else key.guidance,
        negative_prompt=inputs.negative_prompt if negative is None else negative or " ",
    )


def _names_of(key: KeyFrame) -> dict[str, str]:
    """Return what errors and the log call the settings that a key frame gives."""
    options = {"prompt": "prompt"}
    if key.strength is not None:
        options[STRENGTH] = "strength"
    if key.negative is not None:
        options["negative_prompt"] = "negative"
    return {name: f"{FIELD} ({option} of frame {key.frame})" for name, option in options.items()}


@contextmanager
def _naming(names: Mapping[str, str]) -> Iterator[None]:
    """Make an InvalidInput that is raised inside call its field by one of these names."""
    try:
        yield
    except InvalidInput as error:
        if error.field not in names:
            raise
        raise InvalidInput(names[error.field], error.value, error.rule, error.fix) from None


def read_data(text: str) -> GenerationData:
    """Read generation data, either a whole block or single settings. Raises InvalidInput."""
    text, wildcards = lift_wildcards(text)
    if not text.strip():
        return replace(NO_DATA, wildcards=wildcards)
    if holds_settings(text):
        return replace(read_settings(text), wildcards=wildcards)
    data = read(text)
    if not data.values.keys() - set(PROMPTS) and not data.unknown and not data.doubts:
        rule = "there is no line of parameters in it, and no setting such as ENSD: 31337"
        raise InvalidInput("generation_data", text, rule, "Write key: value, with commas or line breaks in between.")
    return replace(data, wildcards=wildcards)


def settle(
    inputs: Inputs,
    data: GenerationData,
    defaults: Values,
    pictures: Pictures = NO_PICTURES,
    names: Mapping[str, str] = MappingProxyType({}),
) -> Asked:
    """Merge everything into one set of settings, with a random seed if there is none. Resolve dynamic prompts by it.

    `defaults` are the model's own, with its size. Raises InvalidInput for what cannot be drawn. The error names the
    generation data if the value comes from there, and otherwise the input, or what `names` calls it.
    """
    names = dict(names)
    said, options = inputs.filled_in(), dict[str, str]()
    values = _merged(inputs, said, data, defaults, pictures)
    random = values.get("seed", RANDOM) == RANDOM
    if random:
        values["seed"] = random_seed()
    with _naming(names), _blaming(data, said):
        handling = Handling(**of_group(Handling, values))
        animation = _animation(values)
        if animation.asked:
            first = animation.timeline.keys[0]
            values["prompt"], names["prompt"] = first.prompt, _names_of(first)["prompt"]
            if handling.upscale_only:
                fix = "Leave out one of them."
                raise InvalidInput(FIELD, animation.text, "Upscale only draws nothing, so there is no film", fix)
        if handling.dynamic_prompts or data.wildcards:
            prompts = {name: values.get(name, "") for name in PROMPTS}
            options = {name: options_of(prompt, data.wildcards) for name, prompt in prompts.items()}
            values |= with_picks(prompts, data.wildcards, values["seed"])
        if handling.upscale_only:
            settings = _to_enlarge(values, defaults)
        else:
            hires = _has_hires(inputs.highres_fix, said, data, pictures, animation.asked)
            settings = _settings(values, data, pictures, hires)
    from_data = [name for name in ROWS if name in data.values and name not in (*said, *PROMPTS)]
    return Asked(
        settings=settings,
        handling=handling,
        data=data,
        chosen=frozenset(said),
        taken={name: values[name] for name in from_data if values.get(name) == data.values[name]},
        options=options,
        random=random,
        names=names,
    )


def _merged(inputs: Inputs, said: Values, data: GenerationData, defaults: Values, pictures: Pictures) -> dict[str, Any]:
    """Return the form's settings over those of the data over the defaults, with a size."""
    base = UNSAID if data.whole else defaults
    values: dict[str, Any] = {"prompt": "", **_strengths_chosen(base, {**data.values, **said}, pictures), **data.values}
    if data.whole:  # what cannot be drawn is reported as an obstacle
        if values.get("seed", RANDOM) > SEED_MAX:
            values["seed"] %= SEED_MAX + 1
        if pictures.image is None:
            values.pop("outpaint", None)
    values |= said
    if "hires_scale" in said:  # it overrides a size in generation data
        values |= {"hires_width": 0, "hires_height": 0}
    if not values.get("variation_strength"):
        values.pop("variation_seed", None)
    elif values.get("variation_seed") == RANDOM:
        values["variation_seed"] = random_seed()
    own = defaults["width"], defaults["height"]
    size = size_of_aspect(inputs.aspect_ratio, own) or _size_said(data)
    if size is None:
        variation = base.get(STRENGTH) == values.get(STRENGTH) == 1
        size = _size_unsaid(values, WEBUI_SIZE if data.whole else own, own, pictures, variation)
    return {**values, "width": size[0], "height": size[1], **said}


def _strengths_chosen(own: Values, told: Values, pictures: Pictures) -> Values:
    """Return the model's own settings, without the strengths that the form or the data make void.

    A hires pass's own strength belongs to the model's own upscaler. It gives way if another upscaler is named, or any
    strength. `denoising_strength` is for an image alone: a hires pass beside it has its own, or the usual one.
    """
    found = dict(own)
    if STRENGTH in told or told.get("hires_upscaler", own.get("hires_upscaler")) != own.get("hires_upscaler"):
        found.pop(HIRES_STRENGTH, None)
    if pictures.image is None:
        found.pop(STRENGTH, None)
    elif STRENGTH in own:
        found.setdefault(HIRES_STRENGTH, ROWS[HIRES_STRENGTH].default)
    return found


def _size_said(data: GenerationData) -> Size | None:
    said = data.values
    return (said["width"], said["height"]) if "width" in said and "height" in said else None


def _size_unsaid(values: Values, usual: Size, own: Size, pictures: Pictures, variation: bool) -> Size:
    """Return the size to draw if neither the form nor the data gives one.

    With an image it is the image's size plus what outpainting adds. Without an image it is the usual one, and the
    model's own if only the masked part is drawn. A variation, which keeps nothing of the image itself, has its aspect
    ratio and the model's number of pixels.
    """
    if pictures.image is None:
        return usual
    outpaint = values.get("outpaint", ImageSettings.outpaint)
    masked = pictures.mask is not None or any(outpaint)
    if masked and values.get("inpaint_area") == ONLY_MASKED:
        return own
    width, height = pictures.image.size
    if variation and not masked:
        return size_like(pictures.image.size, own)
    left, top, right, bottom = outpaint
    return size_to_draw(width + left + right, height + top + bottom)


def _has_hires(highres_fix: str, said: Values, data: GenerationData, pictures: Pictures, film: bool) -> bool:
    """Decide whether the highres fix is on. Automatic follows a whole block; otherwise it is on for a picture without
    an image."""
    if highres_fix != AUTOMATIC:
        return highres_fix == ON
    if pictures.image is not None:
        return data.hires and (data.from_picture or not data.whole)
    if data.whole:
        return data.hires or any(name.startswith("hires_") for name in said)
    return not film


@contextmanager
def _blaming(data: GenerationData, chosen: Collection[str]) -> Iterator[None]:
    """Make an InvalidInput that is raised inside name the generation data if the value comes from there."""
    try:
        yield
    except InvalidInput as error:
        if error.field not in data.values or error.field in chosen:
            raise
        key = KEY_OF.get(error.field, error.field)
        key = key.partition(", ")[0] if "x" in str(error.value) else key  # both sides of a size at once
        raise InvalidInput("generation_data", f"{key}: {error.value}", error.rule, error.fix) from None


def _settings(values: Values, data: GenerationData, pictures: Pictures, hires: bool) -> Settings:
    return Settings(
        **of_group(Settings, values),
        schedule=ScheduleSettings(**of_group(ScheduleSettings, values)),
        added_noise=AddedNoise(**of_group(AddedNoise, values)),
        skipped_guidance=SkippedGuidance(**of_group(SkippedGuidance, values)),
        refiner=RefinerSettings(**of_group(RefinerSettings, values)),
        framing=FramingSettings(**of_group(FramingSettings, values)),
        noise=NoiseSettings(**of_group(NoiseSettings, values)),
        image=_image(values, pictures),
        hires=_hires(values) if hires else None,
        controls=data.controls,
        animation=_animation(values),
    )


def _animation(values: Values) -> AnimationSettings:
    """Make the settings of the film. Without key frames, the others have no effect and are left out."""
    settings = AnimationSettings(**of_group(AnimationSettings, values))
    return settings if settings.asked else AnimationSettings()


def _image(values: Values, pictures: Pictures) -> ImageSettings | None:
    """Make the settings of the picture to start from. Raises InvalidInput if it is missing but needed."""
    if pictures.image is None:
        _check_without_image(values, pictures)
        return None
    mask = None
    if pictures.mask is not None or any(values.get("outpaint", ())):
        mask = MaskSettings(picture=pictures.mask, **of_group(MaskSettings, values))
    return ImageSettings(picture=pictures.image, mask=mask, **of_group(ImageSettings, values))


def _check_without_image(values: Values, pictures: Pictures) -> None:
    """Refuse a mask and outpainting. Also check the picture's other settings, although they have no effect."""
    fix, outpaint = "Send it in image, too.", values.get("outpaint", ())
    if pictures.mask is not None:
        raise InvalidInput("mask", "a picture", "there is no image", fix)
    if any(outpaint):
        sides = [f"{side} {pixels}" for side, pixels in zip(SIDES, outpaint, strict=True) if pixels]
        raise InvalidInput("outpaint", ", ".join(sides), "there is no image", fix)
    for row in rows(ImageSettings).values():
        if row.name in values:
            row.check(values[row.name])


def _hires(values: Values) -> HiresSettings:
    """Make the settings of the second pass. If it has no strength of its own, it uses the first pass's."""
    own = HIRES_STRENGTH if values.get(HIRES_STRENGTH) else STRENGTH
    told = {**values, HIRES_STRENGTH: values.get(own, ROWS[own].default)}
    try:
        return HiresSettings(**of_group(HiresSettings, told))
    except InvalidInput as error:
        if error.field == HIRES_STRENGTH:
            raise InvalidInput(own, error.value, error.rule, error.fix) from None
        raise


SIZED = ("hires_scale", "hires_width", "hires_height", "hires_upscaler")
"""The settings that say how to enlarge a picture."""


def _to_enlarge(values: Values, defaults: Values) -> Settings:
    """Make settings that only say how to enlarge a picture. Nothing else has an effect, so it is not checked."""
    hires = HiresSettings(**of_group(HiresSettings, {name: values[name] for name in SIZED if name in values}))
    return Settings(prompt="", width=defaults["width"], height=defaults["height"], seed=0, hires=hires)


# --- settings to a request --------------------------------------------------------------------------------------------


def with_networks(asked: Asked, fetched: Fetched) -> Asked:
    """Return the request with what was fetched for it: control networks, an upscaler, and tags of LoRAs in the prompts.

    A prompt gets a tag for every LoRA that neither it nor its options name.
    """
    prompts = {
        name: _tagged(name, prompt, asked, {**_meant(prompt, asked, fetched.words), **fetched.multipliers})
        for name, prompt in asked.settings.prompts.items()
    }
    settings = replace(asked.settings.with_prompts(prompts), controls=fetched.controls)
    if settings.hires:
        chosen = "hires_upscaler" in asked.chosen
        name = settings.hires.upscaler if chosen or not fetched.upscaler else fetched.upscaler
        file = None if name in LATENT_UPSCALERS + PIXEL_UPSCALERS else fetched.upscalers.get(name)
        settings = replace(settings, hires=replace(settings.hires, upscaler=name, upscaler_file=file))
    return replace(asked, settings=settings, upscalers=fetched.upscalers)


def _meant(prompt: str, asked: Asked, words: Mapping[str, str]) -> dict[str, tuple[float, ...]]:
    """Return the LoRAs whose words are in a prompt, with the multiplier 1. A whole block says itself what it uses."""
    if asked.data.whole:
        return {}
    return {lora: (1.0,) for word, lora in words.items() if has_word(cut_networks(prompt)[0], word)}


def _tagged(name: str, prompt: str, asked: Asked, multipliers: Mapping[str, tuple[float, ...]]) -> str:
    """Add the tags of LoRAs to a prompt. An empty hires prompt stays empty: it is the first pass's."""
    if name == "hires_prompt" and not prompt:
        return prompt
    named = {tag.name for tag in lora_tags(prompt, name)} | lora_names(asked.options.get(name, ""))
    tags = (LoraTag(lora, te=own[-1], unet=own[0]) for lora, own in multipliers.items() if lora not in named)
    return " ".join((prompt, *map(str, tags)))


def request_from(asked: Asked, pictures: Pictures = NO_PICTURES, extras: Extras = NO_EXTRAS) -> GenerationRequest:
    """Make the request. Raises InvalidInput for what cannot be drawn with these networks, as `settle` does."""
    settings = asked.settings
    with _naming(asked.names), _blaming(asked.data, asked.chosen):
        image = settings.image and replace(settings.image, depth=pictures.depth)
        controls = paired(settings.controls, pictures.controls)
        request = GenerationRequest(**{**vars(settings), "image": image, "controls": controls}, extras=extras)
        make_plan(request)  # its errors are named here, too
        return request


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

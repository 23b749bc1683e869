"""Reports inputs that have no effect on a picture."""

from collections.abc import Iterator, Sequence

from pipelines.ask.animation import FIELD, FILM, PING_PONG, AnimationSettings
from pipelines.ask.networks import NETWORK_KINDS, lora_tags, name_of_upload
from pipelines.ask.prompt import cut_networks
from pipelines.ask.request import GenerationRequest, HiresSettings, MaskSettings, RefinerSettings
from pipelines.ask.settings import rows
from pipelines.infotext.asked import Asked

_OF_MASK = frozenset(row.name for row in rows(MaskSettings).values())
_OF_FILM = frozenset(row.name for row in rows(AnimationSettings).values()) - {FIELD}
_OF_REFINER = frozenset(row.name for row in rows(RefinerSettings).values()) - {"refiner"}
_OF_HIRES = frozenset(row.name for row in rows(HiresSettings).values()) | {"hires_refiner"}


def unused_inputs(
    asked: Asked, request: GenerationRequest, keys: Sequence[tuple[Asked, GenerationRequest]] = ()
) -> Iterator[str]:
    """Yield lines for the log about inputs that have no effect in this request, one line for each kind.

    `keys` are the key frames of an animation, in each of which an input may have an effect. A line may come twice.
    """
    if request.animation.asked:
        yield from _unused_in_film(asked, request.animation)
    for each, drawn in ((asked, request), *keys):
        yield from _without_object(each, drawn)
        if not each.data.whole:  # a whole block's are reported as obstacles
            yield from dict.fromkeys(ignored_tags(each))
    yield from _unnamed_embeddings([asked, *(each for each, _ in keys)], [request, *(drawn for _, drawn in keys)])
    used = request.hires.upscaler_file if request.hires else None
    for path in dict.fromkeys(asked.upscalers.values()):
        if path != used:
            yield f"No highres fix uses the upscaler {name_of_upload(path.stem)} from files, so it does nothing."


def unused_in_files(asked: Asked, film: str | None, show_phases: bool) -> Iterator[str]:
    """Yield lines for the log about inputs that have no effect on the files of an animation. `film` is the film's
    format; None: only frames are drawn."""
    if show_phases:
        yield "An animation has no phases to show, so show_phases does nothing."
    animation = asked.settings.animation
    of_film = {"frames_per_second"}
    of_film |= {"loop"} if animation.loop == PING_PONG else set()
    of_film |= {"interpolation", "frames_between"} if animation.interpolation == FILM else set()
    found = sorted(asked.given & of_film)
    if found and film is None:
        yield f"Only frames are drawn, and no film, so {_do_nothing(asked, found)}"


def _unused_in_film(asked: Asked, film: AnimationSettings) -> Iterator[str]:
    """Report settings and a prompt that do nothing in this animation."""
    prompt = " ".join(asked.data.values.get("prompt", "").split())
    if "prompt" in asked.chosen or prompt not in ("", film.timeline.keys[0].prompt):
        yield "The prompts of an animation are in animation, so prompt does nothing."
    if "frames_between" in asked.given and film.interpolation != FILM:
        yield f"Without Interpolation: FILM, {asked.called('frames_between')} does nothing."
    if "blended_beginning" in asked.given and film.blended_beginning and film.common_beginning:
        yield f"With a common beginning, {asked.called('blended_beginning')} does nothing."
    if "animation_frames" in asked.given and film.frames not in (0, film.timeline.count):
        yield f"The key frames have numbers of their own, so {asked.called('animation_frames')} does nothing."


def _do_nothing(asked: Asked, names: Sequence[str]) -> str:
    return f"{', '.join(map(asked.called, names))} {'do' if len(names) > 1 else 'does'} nothing."


def _without_object(asked: Asked, request: GenerationRequest) -> Iterator[str]:
    """Report settings of an image, a mask, a highres fix or a variation if there is none."""
    image, hires = request.image, request.hires
    mask = image.mask if image else None
    for names, there, what in (
        ({"resize_mode"}, image, "an image"),
        (_OF_MASK, mask, "a mask or outpainting"),
        (_OF_HIRES, hires, "the highres fix (highres_fix)"),
        (_OF_REFINER, request.refiner.name, "a refiner"),
        ({"denoising_strength"}, image or hires, "an image or the highres fix"),
        ({"variation_seed"}, request.noise.variation_strength, "a variation seed strength"),
        (_OF_FILM, request.animation.asked, "an animation"),
    ):
        found = sorted(asked.given & names)
        if found and not there:
            yield f"Without {what}, {_do_nothing(asked, found)}"


def _unnamed_embeddings(asked: Sequence[Asked], requests: Sequence[GenerationRequest]) -> Iterator[str]:
    """Report embeddings that were sent although no prompt, and no option of a prompt, contains their names."""
    prompts = [text for each in asked for text in each.options.values()]
    for request in requests:
        prompts += (request.prompt, request.negative_prompt)
        prompts += (request.hires.prompt, request.hires.negative_prompt) if request.hires else ()
    named = "\n".join(prompts).casefold()
    for name, file in requests[0].extras.embeddings.items():
        if file.origin and name.casefold() not in named:
            yield f"No prompt contains {name}, so {file.origin} does nothing."


def ignored_tags(asked: Asked) -> Iterator[str]:
    """Report tags in the prompts, and arguments of tags, that are not applied here."""
    for name, prompt in asked.settings.prompts.items():
        for tag in cut_networks(prompt)[1]:
            known = tag.kind in NETWORK_KINDS
            if not known and not tag.off:
                yield f"{tag}: only LoRAs and hypernetworks are applied here"
        for lora in lora_tags(prompt, name):
            if lora.acts and lora.ignored:
                yield f"{lora}: its {', '.join(lora.ignored)} is not applied here, so the whole LoRA acts"

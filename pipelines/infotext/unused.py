"""Reports inputs that have no effect on a picture."""

from collections.abc import Iterator

from pipelines.ask.animation import AnimationSettings
from pipelines.ask.networks import NETWORK_KINDS, lora_tags, name_of_upload
from pipelines.ask.prompt import cut_networks
from pipelines.ask.request import GenerationRequest, HiresSettings, MaskSettings, RefinerSettings
from pipelines.ask.settings import rows
from pipelines.infotext.asked import Asked

_OF_MASK = frozenset(row.name for row in rows(MaskSettings).values())
_OF_FILM = frozenset(row.name for row in rows(AnimationSettings).values())
_OF_REFINER = frozenset(row.name for row in rows(RefinerSettings).values()) - {"refiner"}
_OF_HIRES = frozenset(row.name for row in rows(HiresSettings).values()) | {"hires_refiner"}


def unused_inputs(asked: Asked, request: GenerationRequest) -> Iterator[str]:
    """Yield lines for the log about inputs that have no effect in this request, one line for each kind."""
    if request.animation.asked and "prompt" in asked.chosen:
        yield "The prompts of an animation are in animation, so prompt does nothing."
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
        (_OF_REFINER, request.refiner.name, "a refiner"),
        ({"denoising_strength"}, image or hires, "an image or the highres fix"),
        ({"variation_seed"}, request.noise.variation_strength, "a variation seed strength"),
        (_OF_FILM, request.animation.asked, "an animation"),
    ):
        found = sorted(asked.given & names)
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
    for name, prompt in asked.settings.prompts.items():
        for tag in cut_networks(prompt)[1]:
            known = tag.kind in NETWORK_KINDS
            if not known and not tag.off:
                yield f"{tag}: only LoRAs and hypernetworks are applied here"
        for lora in lora_tags(prompt, name):
            if lora.acts and lora.ignored:
                yield f"{lora}: its {', '.join(lora.ignored)} is not applied here, so the whole LoRA acts"

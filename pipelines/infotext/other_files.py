"""Compares the files that generation data names with the files in use."""

from collections.abc import Iterator, Mapping

from pipelines.ask.identity import SHORT_HASH, ModelIdentity
from pipelines.ask.models import ModelNames, same_hash, split_title, stem
from pipelines.ask.networks import (
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
from pipelines.infotext.asked import Asked
from pipelines.infotext.civitai import Resource, of_another_family
from pipelines.infotext.obstacle import Obstacle, another_picture
from pipelines.infotext.other_models import model_of
from pipelines.infotext.reading import GenerationData
from pipelines.infotext.syntax import version_of
from pipelines.infotext.unused import ignored_tags

OLD_HASH = 8
"""Digits of the hash used before 2023, which covers only a part of the file."""
NAMES_EVERY_VAE = (1, 6)
"""Since this version WebUI names every VAE that is not the checkpoint's own."""


def of_model(data: GenerationData, model: ModelIdentity, models: ModelNames) -> Iterator[Obstacle]:
    """Report a checkpoint that is broken, differs from ours or cannot be compared with it."""
    name, digits = split_title(data.model or "")
    hashes = [each.lower() for each in (data.model_hash, digits) if each]
    wrong = [each for each in hashes if not same_hash(model.sha256, each)]  # a block may tell two
    told = next(iter((*wrong, *hashes)), "")
    if same_hash(model.sha256, told or name):
        return
    meant = model_of(data, models)
    if meant is None and (reason := models.reason(name)):
        yield another_picture(f"the model {name} of this container cannot be used: {reason}")
        return
    same_name = not name or stem(name) == stem(model.name)
    same_name = same_name or (meant is not None and models.identities[meant] == model)
    if same_name and not told and not model.folder:
        return
    here = _called(model.name, "a folder" if model.folder else model.sha256[:SHORT_HASH])
    named = f"made with {_called(f'the checkpoint {name}', told)}"
    if len(told) == OLD_HASH and same_name:
        yield Obstacle(f"{told} is an old hash of 8 digits, which cannot be compared; this model is {here}", False)
    elif model.folder:
        yield Obstacle(f"{named}, which cannot be compared; this model is {here}", False)
    else:
        yield another_picture(f"{named}; this model is {here}")


def of_mask_weight(data: GenerationData, model: ModelIdentity) -> Iterator[Obstacle]:
    """Report a conditional mask weight other than 1 if the model is not an inpainting checkpoint."""
    weight = data.values.get("conditional_mask_weight", 1)
    if weight != 1 and not model.inpainting:
        yield another_picture(f"Conditional mask weight: {weight} needs an inpainting checkpoint; this is not one")


def of_vae(data: GenerationData, model: ModelIdentity) -> Iterator[Obstacle]:
    """Report a VAE that differs from ours, or a VAE of ours that the block does not mention."""
    here = "the checkpoint's own"
    if model.vae_name:
        here = _called(model.vae_name, model.vae_sha256[:SHORT_HASH])
    if data.vae_hash or data.vae:
        if not _same_vae(data, model):
            told = _called(data.vae or "", data.vae_hash or "no hash")
            yield Obstacle(f"made with the VAE {told}; this VAE is {here}", other_picture=not model.vae_folder)
    elif model.vae_name and data.model_hash:
        version = version_of(data.version or "") or (0,)
        told = f"apparently made with the checkpoint's own VAE; this VAE is {here}"
        yield Obstacle(told, other_picture=version >= NAMES_EVERY_VAE)


def _same_vae(data: GenerationData, model: ModelIdentity) -> bool:
    """Return whether our VAE has the block's hash, or its name if there is no hash."""
    if data.vae_hash:
        return same_hash(model.vae_sha256, data.vae_hash)
    return stem(data.vae or "") == stem(model.vae_name)


def _called(name: str, detail: str | None) -> str:
    """Format a name and a detail as `name (detail)`, leaving out what is empty."""
    detail = f"({detail})" if detail else ""
    return " ".join(filter(None, (name.strip(), detail)))


# --- networks ---------------------------------------------------------------------------------------------------------


def of_networks(asked: Asked, extras: Extras) -> Iterator[Obstacle]:
    """Report networks that are missing, different, or not applied as the block says."""
    data = asked.data
    yield from map(another_picture, ignored_tags(asked))
    yield from _of_missing(asked, extras)
    yield from _of_hypernetwork(asked, extras)
    yield from _of_unnamed_loras(asked)
    yield from _of_hashes("LoRA", data.lora_hashes, extras.loras)
    yield from _of_hashes("embedding", data.ti_hashes, extras.embeddings)
    for name in data.ti_hashes.keys() - set(map(in_hashes, extras.embeddings)):
        yield another_picture(f"the embedding {name} is missing; send it in files (--embeddings-dir)")
    known = _KnownNetworks(data, extras)
    for resource in data.resources:
        yield from map(another_picture, _of_resource(resource, data, known))


def _of_missing(asked: Asked, extras: Extras) -> Iterator[Obstacle]:
    """Report missing networks that the prompts ask for."""
    prompts = asked.settings.prompts
    present = {name: without_missing(prompt, extras) for name, prompt in prompts.items()}
    told: dict[str, None] = {}  # a set that keeps the order
    for prompt in prompts.values():
        for lora in missing_loras(prompt, extras):
            told[f"{lora}: there is no LoRA of this name; add it in loras or files (--lora-dir)"] = None
        for tag in missing_hypernetworks(prompt, extras):
            told[f"{tag}: there is no hypernetwork of this name; send it in files (--hypernetworks-dir)"] = None
    for text in told:
        yield Obstacle(text, other_picture=True, instead=lambda settings: settings.with_prompts(present))


def _of_unnamed_loras(asked: Asked) -> Iterator[Obstacle]:
    """Report LoRAs that the block lists but no prompt asks for."""
    data = asked.data
    named = set[str]()
    for text in (*asked.settings.prompts.values(), *asked.options.values()):
        named |= set(map(in_hashes, lora_names(text)))
    told = {in_hashes(name): name for name in (*data.lora_hashes, *data.networks)}
    for name in told.keys() - named:
        yield another_picture(f"the LoRA {told[name]} is not in its prompt, so its multiplier is unknown")


def _of_hashes(what: str, hashes: Mapping[str, str], files: Mapping[str, ExtraFile]) -> Iterator[Obstacle]:
    """Report files whose hash differs from the one that the block gives for their name."""
    here = {in_hashes(name): file for name, file in files.items()}
    for name, digits in hashes.items():
        file = here.get(name)
        if file is not None and not file.hashed_as(digits):
            yield another_picture(f"made with a different {what} {name} ({digits}) than this one")


def _of_hypernetwork(asked: Asked, extras: Extras) -> Iterator[Obstacle]:
    """Compare the hypernetwork of a block from before 2023, whose hash is that of the last one in its prompt."""
    digits = asked.data.hypernetwork_hash
    if not digits:
        return
    for tag in hypernetwork_tags(asked.settings.prompt)[-1:]:
        file = extras.hypernetworks.get(tag.name)
        if file is not None and not file.sha256.startswith(digits.lower()):
            yield another_picture(f"made with a different hypernetwork {tag.name} ({digits}) than this one")


class _KnownNetworks:
    """The networks that a block names in other ways, and those that the request provides."""

    def __init__(self, data: GenerationData, extras: Extras) -> None:
        self.names = set[str]()
        for prompt in data.prompts.values():
            self.names |= {tag.args[0] for tag in cut_networks(prompt)[1]}
        self.digests = set[str]()
        for hashes in (data.lora_hashes, data.ti_hashes):
            self.digests |= {digits.lower() for digits in hashes.values()}
        self.origins = "\n".join(file.origin for file in (*extras.loras.values(), *extras.embeddings.values()))

    def __contains__(self, resource: Resource) -> bool:
        if resource.address and f"{resource.address}'" in self.origins:
            return True
        named = resource.name != "" and resource.name in self.names
        hashed = resource.digest != "" and resource.digest.lower() in self.digests
        return named or hashed


def _of_resource(resource: Resource, data: GenerationData, known: _KnownNetworks) -> Iterator[str]:
    """Report a file listed by CivitAI if it changes the picture."""
    told = {
        "checkpoint": data.model or data.model_hash,
        "VAE": data.vae or data.vae_hash,
    }
    if of_another_family(resource):
        yield f"made with {resource}, which is for models of the family {resource.base}"
    elif told.get(resource.kind) or resource in known:
        return
    elif resource.kind == "checkpoint":
        yield f"made with {resource}, which cannot be compared with the checkpoint here"
    else:
        yield f"made with {resource}, which its prompt does not name: {resource.advice}"

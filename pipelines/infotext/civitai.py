"""What CivitAI tells of the networks of a picture: `Hashes: {...}` and `Civitai resources: [...]`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

KINDS = {
    "lora": "LoRA",
    "lycoris": "LoRA",
    "locon": "LoRA",
    "dora": "LoRA",
    "embed": "embedding",
    "embedding": "embedding",
    "textualinversion": "embedding",
    "checkpoint": "checkpoint",
    "model": "checkpoint",
    "vae": "VAE",
    "hypernet": "hypernetwork",
    "hypernetwork": "hypernetwork",
    "controlnet": "ControlNet",
    "upscaler": "upscaler",
}
"""CivitAI's words for what a file is, and ours."""
_AIR = re.compile(r"urn:air:(?P<base>[\w.-]+):(?P<kind>\w+):(?P<site>\w+):(?P<model>[^@]+?)(?:@(?P<version>[\w.-]+))?")
"""https://developer.civitai.com/docs/getting-started/ai-resource-identifier"""
_TYPE = re.compile(r"\bType = (\w+)")
"""In some of CivitAI's own texts a type is printed with all that belongs to it."""
_SD1 = ("sd1", "sd-1", "sd15", "sd1.5", "other", "multi")


@dataclass(frozen=True)
class Resource:
    """A file that made a picture, as CivitAI tells of it. What it does not tell is empty."""

    kind: str
    name: str = ""
    version: str = ""
    """The number of the model's version, by which the file can be fetched."""
    weight: str = ""
    digest: str = ""
    base: str = ""
    """The family of models that it belongs to."""

    @property
    def address(self) -> str:
        """Where the file is fetched from; empty if that is not told."""
        return f"https://civitai.com/api/download/models/{self.version}" if self.version else ""

    def __str__(self) -> str:
        named = f" {self.name}" if self.name else ""
        details = (f"version {self.version}" if self.version else "", f"weight {self.weight}" if self.weight else "")
        told = ", ".join(filter(None, details))
        return f"the {self.kind}{named} of CivitAI" + (f" ({told})" if told else "")

    @property
    def advice(self) -> str:
        """How a request brings the file."""
        if self.kind == "LoRA" and self.address:
            return f"write {self.address}{f':{self.weight}' if self.weight else ''} in loras"
        return "send its file in files"


def resources(listed: object) -> Iterator[Resource]:
    """The files that a list tells of."""
    for each in listed if isinstance(listed, list) else ():
        if isinstance(each, dict) and each:
            yield _resource({key: str(value) for key, value in each.items() if value is not None})


def _resource(said: Mapping[str, str]) -> Resource:
    air = _AIR.fullmatch(said.get("air") or said.get("urn") or "")
    told = air.groupdict() if air else {}
    printed = _TYPE.search(said.get("type", ""))
    kind = (printed[1] if printed else said.get("type") or told.get("kind") or "").casefold()
    on_civitai = told.get("site", "civitai") == "civitai"
    return Resource(
        kind=KINDS.get(kind, kind or "file"),
        name=said.get("modelName") or said.get("name") or "",
        version=said.get("modelVersionId") or (told.get("version") or "" if on_civitai else ""),
        weight=said.get("weight") or said.get("strength") or "",
        digest=said.get("hash", ""),
        base=told.get("base") or "",
    )


def add_hashes(facts: dict[str, Any], hashes: object) -> Iterator[Resource]:
    """Fill in what `{"model": ..., "vae": ..., "lora:name": ..., "embed:name": ...}` says and other keys do not.

    Yields the files of other kinds that it names.
    """
    for key, digest in hashes.items() if isinstance(hashes, dict) else ():
        word, _, name = str(key).partition(":")
        kind = KINDS.get(word.casefold(), word)
        if kind in _HASHED_BY_NAME:
            named = {name: str(digest)} if name else {}
            facts[_HASHED_BY_NAME[kind]] = named | facts.get(_HASHED_BY_NAME[kind], {})
        elif kind in _HASHED:
            facts[_HASHED[kind]] = facts.get(_HASHED[kind]) or str(digest) or None
        elif kind != "upscaler":
            yield Resource(kind, name, digest=str(digest))


_HASHED = {"checkpoint": "model_hash", "VAE": "vae_hash"}
_HASHED_BY_NAME = {"LoRA": "lora_hashes", "embedding": "ti_hashes"}
"""Attributes of `GenerationData` by the kind of file."""


def of_another_family(resource: Resource) -> bool:
    """Whether its file is for other models than Stable Diffusion 1."""
    return bool(resource.base) and resource.base.casefold() not in _SD1

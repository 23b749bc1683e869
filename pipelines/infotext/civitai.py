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
    told = _of_air(said.get("air") or said.get("urn") or "")
    kind = said.get("type") or told["kind"]
    printed = _TYPE.search(kind)
    if printed is not None:
        kind = printed[1]
    return Resource(
        kind=KINDS.get(kind.casefold(), kind) or "file",
        name=_first(said, "modelName", "name"),
        version=said.get("modelVersionId") or told["version"],
        weight=_first(said, "weight", "strength"),
        digest=said.get("hash", ""),
        base=told["base"],
    )


def _first(said: Mapping[str, str], *keys: str) -> str:
    """The value of the first of these keys that is there."""
    return next((said[key] for key in keys if said.get(key)), "")


def _of_air(air: str) -> dict[str, str]:
    """The parts of an AIR; empty where it does not tell them. A version is a number of CivitAI only there."""
    found = _AIR.fullmatch(air)
    if found is None:
        return dict.fromkeys(("base", "kind", "version"), "")
    version = found["version"] if found["site"] == "civitai" else None
    return {"base": found["base"], "kind": found["kind"], "version": version or ""}


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

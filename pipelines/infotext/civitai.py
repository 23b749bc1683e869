"""What CivitAI writes about the networks of a picture: `Hashes: {...}` and `Civitai resources: [...]`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.infotext.keys import first_said

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
"""CivitAI's words for a kind of file -> ours."""
_AIR = re.compile(
    r"(?:urn:)?(?:air:)?(?:(?P<base>[\w.-]+):(?P<kind>\w+):)?"
    r"(?P<site>\w+):(?P<model>[^@:]+?)(?:@(?P<version>[\w-]+))?(?::\w+)?(?:\.\w+)?"
)
"""https://developer.civitai.com/docs/getting-started/ai-resource-identifier"""
_TYPE = re.compile(r"\bType = (\w+)")
"""Some of CivitAI's texts contain a whole printed object in place of a type."""
_SD1 = ("sd1", "sd-1", "sd15", "sd1.5", "other", "multi")


CIVITAI, HUGGING_FACE = "CivitAI", "Hugging Face"
_SITES = {"civitai": CIVITAI, "huggingface": HUGGING_FACE}
"""The words for sites in an AIR -> their names."""


@dataclass(frozen=True)
class Resource:
    """A file that a picture was made with, as CivitAI describes it. Unknown fields are empty."""

    kind: str
    name: str = ""
    version: str = ""
    """The id of the model's version, which is enough to fetch the file."""
    model: str = ""
    """The id of the model, whose page lists all its versions; on Hugging Face the repository."""
    site: str = CIVITAI
    weight: str = ""
    digest: str = ""
    base: str = ""
    """The family of models that it is for."""

    @property
    def address(self) -> str:
        """Where to fetch the file: its URL, the model's page or a repository; empty if none is known."""
        if self.site == HUGGING_FACE:
            return self.model
        if self.version:
            return f"https://civitai.com/api/download/models/{self.version}"
        return f"https://civitai.com/models/{self.model}" if self.model else ""

    def __str__(self) -> str:
        named = f" {self.name}" if self.name else ""
        numbers = {"version": self.version, "model": "" if self.version else self.model, "weight": self.weight}
        told = ", ".join(f"{what} {number}" for what, number in numbers.items() if number)
        return f"the {self.kind}{named} from {self.site}" + (f" ({told})" if told else "")

    @property
    def advice(self) -> str:
        """What a user can do to add the file."""
        if self.kind == "LoRA" and self.address:
            return f"write {self.address}{f':{self.weight}' if self.weight else ''} in loras"
        return "send its file in files"


def resources(listed: object) -> Iterator[Resource]:
    """Read a list of files."""
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
        name=first_said(said, "modelName", "name"),
        version=first_said(said, "modelVersionId", "versionId") or told["version"],
        model=first_said(said, "modelId", "id") or told["model"],
        weight=first_said(said, "weight", "strength"),
        digest=said.get("hash", ""),
        base=told["base"],
        site=_SITES.get(told["site"], told["site"] or CIVITAI),
    )


def _of_air(air: str) -> dict[str, str]:
    """Split an AIR into its parts. The version is kept only for CivitAI; other sites' versions are not ids."""
    found = _AIR.fullmatch(air)
    if found is None:
        return dict.fromkeys(("base", "kind", "site", "version", "model"), "")
    told = {name: text or "" for name, text in found.groupdict().items()}
    if told["site"] != "civitai":
        told["version"] = ""
    return told


def add_hashes(facts: dict[str, Any], hashes: object) -> Iterator[Resource]:
    """Add hashes such as `{"model": ..., "lora:name": ..., "embed:name": ...}` to the facts from other keys.

    Yields the files of other kinds. Facts that are already there win.
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
    """Return whether the file belongs to another family of models than Stable Diffusion 1."""
    return bool(resource.base) and resource.base.casefold() not in _SD1

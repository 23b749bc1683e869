"""LoRA, embedding and ControlNet files by their names, and what a prompt's tags ask of them. No tensors."""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from pipelines.ask.prompt import NetworkTag, cut_networks
from pipelines.errors import InvalidInput, ModelError, shown_name
from pipelines.files.headers import read_header

LORA_KINDS = ("lora", "lyco")
HYPERNETWORK_KIND = "hypernet"
NETWORK_KINDS = (*LORA_KINDS, HYPERNETWORK_KIND)
"""Of the tags that are applied here."""
LORA_SUFFIXES = CONTROL_SUFFIXES = (".safetensors",)
EMBEDDING_SUFFIXES = (".safetensors", ".pt")
HYPERNETWORK_SUFFIXES = (".pt",)
LORAS_MAX = 16
"""In one prompt: each is read and added to the weights."""
MULTIPLIER_MAX = 100


def name_of_upload(stem: str) -> str:
    """What a file was called that was uploaded: Cog puts "tmp" and eight letters before it."""
    return shown_name(re.sub(r"^tmp[a-z0-9_]{8}(?=.)", "", stem))


def plain_name(name: str) -> str:
    """The name as tags and generation data can hold it: short, and without what would end it there."""
    return re.sub(r"[<>:,=\"]", "_", shown_name(name))


def in_hashes(name: str) -> str:
    """The name without what would end it in an infotext's list of hashes."""
    return re.sub("[:,]", "", name)


@dataclass(frozen=True)
class ExtraFile:
    """A file at one moment: what is written over it later is another one."""

    path: Path
    size: int
    modified: int
    origin: str = field(default="", compare=False)
    """The input that brought it; empty for what lies in a folder here."""

    @classmethod
    def at(cls, path: Path, origin: str = "") -> "ExtraFile":
        """Raises OSError where there is no file."""
        state = path.stat()
        return cls(path, state.st_size, state.st_mtime_ns, origin)

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """A ModelError that is raised inside names the input, and not the place where its file was put."""
        try:
            yield
        except ModelError as error:
            reason = str(error).removeprefix(f"{self.path}: ")
            raise ModelError(f"{self.origin or self.path}: {reason}") from error

    @property
    def sha256(self) -> str:
        """Of the whole file: an embedding's hash in infotexts."""
        return _sha256(self, 0)

    @property
    def tensors_sha256(self) -> str:
        """Of the bytes after the safetensors header, which tools rewrite: a LoRA's hash in infotexts."""
        return _sha256(self, min(_header_length(self.path) + 8, self.size))

    @property
    def short_hash(self) -> str:
        """Eight digits of a part of the file: a ControlNet's hash in infotexts."""
        return _short_hash(self)

    def hashed_as(self, digits: str) -> bool:
        """Whether the digits begin one of its hashes: sites publish both for a LoRA."""
        return any(sha256.startswith(digits.lower()) for sha256 in (self.sha256, self.tensors_sha256))


@lru_cache(256)
def _sha256(file: ExtraFile, start: int) -> str:
    with file.path.open("rb") as stream:
        stream.seek(start)
        return hashlib.file_digest(stream, "sha256").hexdigest()


@lru_cache(256)
def _short_hash(file: ExtraFile) -> str:
    """As WebUI did for all files before 2023: of 64 KiB from 1 MiB on."""
    with file.path.open("rb") as stream:
        stream.seek(1 << 20)
        return hashlib.sha256(stream.read(1 << 16)).hexdigest()[:8]


def _header_length(path: Path) -> int:
    with path.open("rb") as stream:
        return int.from_bytes(stream.read(8), "little")


@lru_cache(4096)
def training_name(file: ExtraFile) -> str:
    """The name that a LoRA had when it was trained, by which WebUI calls it in prompts; empty where none is told."""
    try:
        return plain_name(read_header(file.path).texts.get("ss_output_name", ""))
    except (ValueError, RecursionError):
        return ""


@dataclass(frozen=True, kw_only=True)
class Extras:
    """The LoRAs, embeddings, ControlNets and hypernetworks that are here, by name."""

    loras: Mapping[str, ExtraFile] = field(default_factory=dict[str, ExtraFile])
    embeddings: Mapping[str, ExtraFile] = field(default_factory=dict[str, ExtraFile])
    controls: Mapping[str, ExtraFile] = field(default_factory=dict[str, ExtraFile])
    hypernetworks: Mapping[str, ExtraFile] = field(default_factory=dict[str, ExtraFile])

    def __or__(self, other: "Extras") -> "Extras":
        """Both; where names are equal, the other's."""
        return Extras(
            loras={**self.loras, **other.loras},
            embeddings={**self.embeddings, **other.embeddings},
            controls={**self.controls, **other.controls},
            hypernetworks={**self.hypernetworks, **other.hypernetworks},
        )


NO_EXTRAS = Extras()


def in_folders(
    loras: Path | None, embeddings: Path | None, controls: Path | None = None, hypernetworks: Path | None = None
) -> Extras:
    """What lies in these folders and below them. A LoRA also goes by the name it was trained under, if no file does."""
    found = _files(loras, LORA_SUFFIXES)
    trained = {name: file for file in found.values() if (name := training_name(file))}
    return Extras(
        loras=trained | found,
        embeddings=_files(embeddings, EMBEDDING_SUFFIXES),
        controls=_files(controls, CONTROL_SUFFIXES),
        hypernetworks=_files(hypernetworks, HYPERNETWORK_SUFFIXES),
    )


def _files(folder: Path | None, suffixes: tuple[str, ...]) -> dict[str, ExtraFile]:
    paths = sorted(folder.rglob("*")) if folder else []
    return {path.stem: ExtraFile.at(path) for path in paths if path.suffix in suffixes and path.is_file()}


@dataclass(frozen=True)
class LoraTag:
    """`<lora:name:te:unet:rank>`: multipliers for text encoder and UNet; of a rank only the first so many are used."""

    name: str
    te: float
    unet: float
    rank: int | None = None

    @property
    def acts(self) -> bool:
        return bool(self.te or self.unet) and self.rank != 0

    def __str__(self) -> str:
        shortest = [self.te] if self.te == self.unet else [self.te, self.unet]
        args = shortest if self.rank is None else [self.te, self.unet, self.rank]
        return f"<lora:{self.name}:{':'.join(f'{arg:g}' for arg in args)}>"


def lora_tags(prompt: str, field: str = "prompt") -> list[LoraTag]:
    """The LoRAs that a prompt asks for. Raises InvalidInput for a multiplier or rank that is none."""
    tags = [_read(tag, field) for tag in cut_networks(prompt)[1] if tag.kind in LORA_KINDS]
    if len(tags) > LORAS_MAX:
        raise InvalidInput(field, prompt, f"at most {LORAS_MAX} LoRAs in a prompt, this has {len(tags)}", "Leave some.")
    return tags


def _read(tag: NetworkTag, field: str) -> LoraTag:
    named = dict(arg.split("=") for arg in tag.args if arg.count("=") == 1)
    name, *numbers = [arg for arg in tag.args if arg.count("=") != 1] or [""]
    of_te, of_unet, ranks = [*numbers, "", "", ""][:3]
    try:
        te = _multiplier(named.get("te", of_te) or "1")
        unet = _multiplier(named.get("unet", of_unet) or str(te))
        dyn = named.get("dyn", ranks)
        rank = int(dyn) if dyn else None
        if rank is not None and rank < 0:
            raise ValueError
    except ValueError:
        shown = f"<{tag.kind}:{':'.join(tag.args)}>"
        rule = f"multipliers must be numbers from -{MULTIPLIER_MAX} to {MULTIPLIER_MAX}, and a rank a whole number"
        raise InvalidInput(field, shown, rule, "Write <lora:name:0.8>, or <lora:name:te=0.5:unet=0.8>.") from None
    return LoraTag(name, te, unet, rank)


def _multiplier(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and abs(value) <= MULTIPLIER_MAX):
        raise ValueError
    return value


@dataclass(frozen=True)
class HypernetworkTag:
    """`<hypernet:name:multiplier>`, whose multiplier is 1 unless it is said."""

    name: str
    multiplier: float = 1.0

    def __str__(self) -> str:
        return f"<{HYPERNETWORK_KIND}:{self.name}:{self.multiplier:g}>"


def hypernetwork_tags(prompt: str, field: str = "prompt") -> list[HypernetworkTag]:
    """The hypernetworks that a prompt asks for. Raises InvalidInput for a multiplier that is none."""
    tags = []
    for tag in cut_networks(prompt)[1]:
        if tag.kind == HYPERNETWORK_KIND:
            try:
                tags.append(HypernetworkTag(tag.args[0], _multiplier((*tag.args, "1")[1] or "1")))
            except ValueError:
                shown = f"<{tag.kind}:{':'.join(tag.args)}>"
                rule = f"the multiplier must be a number from -{MULTIPLIER_MAX} to {MULTIPLIER_MAX}"
                raise InvalidInput(field, shown, rule, f"Write <{HYPERNETWORK_KIND}:name:0.8>.") from None
    if len(tags) > LORAS_MAX:
        rule = f"at most {LORAS_MAX} hypernetworks in a prompt, this has {len(tags)}"
        raise InvalidInput(field, prompt, rule, "Leave some.")
    return tags


def missing_hypernetworks(prompt: str, extras: Extras, field: str = "prompt") -> list[HypernetworkTag]:
    """The prompt's tags of hypernetworks that are not here; with a multiplier of 0 nothing is asked for."""
    tags = hypernetwork_tags(prompt, field)
    return [tag for tag in tags if tag.multiplier and tag.name not in extras.hypernetworks]


def missing_loras(prompt: str, extras: Extras, field: str = "prompt") -> list[LoraTag]:
    """The prompt's tags of LoRAs that are not here; with multipliers of 0 nothing is asked for."""
    return [tag for tag in lora_tags(prompt, field) if tag.acts and tag.name not in extras.loras]


def without_missing(prompt: str, extras: Extras) -> str:
    """The prompt without its tags of LoRAs and hypernetworks that are not here."""
    loras = [tag.name for tag in missing_loras(prompt, extras)]
    hypernetworks = [tag.name for tag in missing_hypernetworks(prompt, extras)]
    for kinds, missing in ((LORA_KINDS, loras), ((HYPERNETWORK_KIND,), hypernetworks)):
        names = "|".join(map(re.escape, missing))
        prompt = re.sub(rf"<(?:{'|'.join(kinds)}):(?:{names})(?::[^>]*)?>", "", prompt) if names else prompt
    return prompt


def check_present(field: str, prompt: str, extras: Extras) -> None:
    """Raise InvalidInput for a LoRA or hypernetwork that is not here: the picture would be another one."""
    for tag in missing_loras(prompt, extras, field):
        here = ", ".join(sorted(extras.loras)[:20]) or "none"
        fix = "Bring it in loras or files (--lora-dir), or take the tag out."
        raise InvalidInput(field, str(tag), f"no LoRA of this name is here; here are: {here}", fix)
    for hypernetwork in missing_hypernetworks(prompt, extras, field):
        here = ", ".join(sorted(extras.hypernetworks)[:20]) or "none"
        fix = "Send it in files (--hypernetworks-dir), or take the tag out."
        raise InvalidInput(field, str(hypernetwork), f"no hypernetwork of this name is here; here are: {here}", fix)

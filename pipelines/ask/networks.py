"""LoRA, embedding and ControlNet files by name, and the prompt tags that refer to them. No tensors."""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

from pipelines.ask.prompt import NetworkTag, cut_networks
from pipelines.errors import InvalidInput, ModelError, shown, shown_name
from pipelines.files.headers import read_header

LORA_KINDS = ("lora", "lyco")
HYPERNETWORK_KIND = "hypernet"
NETWORK_KINDS = (*LORA_KINDS, HYPERNETWORK_KIND)
"""The kinds of tags that are applied here."""
LORA_SUFFIXES = (".safetensors", ".pt", ".ckpt")
CONTROL_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
EMBEDDING_SUFFIXES = (".safetensors", ".pt", ".bin")
HYPERNETWORK_SUFFIXES = (".pt",)
LORAS_MAX = 16
"""Limit for one prompt. Each LoRA is read and added to the weights."""
MULTIPLIER_MAX = 100
_IMAGE_ENCODER = re.compile(r"(?i)clip[-_ ]?(vision|vit)[-_ ]?h|image[-_ ]?encoder")
"""Matches the file name of the IP-Adapters' image encoder in a folder of control networks."""


def name_of_upload(stem: str) -> str:
    """Return the original name of an uploaded file: Cog puts "tmp" and eight characters in front of it."""
    return shown_name(re.sub(r"^tmp[a-z0-9_]{8}(?=.)", "", stem))


def plain_name(name: str) -> str:
    """Return the name in a form that fits into tags and generation data: short and without their punctuation."""
    return re.sub(r"[<>:,=\"]", "_", shown_name(name))


def check_name(field: str, name: str) -> str:
    """Return the name that a request gives to a file. Raises InvalidInput if the name cannot be written in a tag."""
    if name and plain_name(name) != shown_name(name):
        fix = f"Call it {plain_name(name)}."
        raise InvalidInput(field, name, 'a name in tags must not contain < > : , = "', fix)
    return name


def in_hashes(name: str) -> str:
    """Return the name without the characters that separate entries in an infotext's list of hashes."""
    return re.sub("[:,]", "", name)


@dataclass(frozen=True)
class ExtraFile:
    """A file in its current state. If it is overwritten later, it counts as another file."""

    path: Path
    size: int
    modified: int
    origin: str = field(default="", compare=False)
    """The input that it was sent in; empty for a file in a local folder."""

    @classmethod
    def at(cls, path: Path, origin: str = "") -> "ExtraFile":
        """Describe the file at `path`. Raises OSError if there is none."""
        state = path.stat()
        return cls(path, state.st_size, state.st_mtime_ns, origin)

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Make a ModelError raised inside name the input instead of the path where its file is stored."""
        try:
            yield
        except ModelError as error:
            reason = str(error).removeprefix(f"{shown(str(self.path))}: ")  # the path in the form that errors show
            raise type(error)(f"{self.origin or self.path}: {reason}") from error

    @property
    def sha256(self) -> str:
        """Hash of the whole file, which infotexts use for embeddings."""
        return _sha256(self, 0)

    @property
    def tensors_sha256(self) -> str:
        """Hash of the bytes after the safetensors header (tools rewrite headers), which infotexts use for LoRAs."""
        return _sha256(self, min(_header_length(self.path) + 8, self.size))

    @property
    def short_hash(self) -> str:
        """Eight digits of the hash of a part of the file, which infotexts use for ControlNets."""
        return _short_hash(self)

    def hashed_as(self, digits: str) -> bool:
        """Return whether one of its hashes begins with the digits. Sites publish both hashes of a LoRA."""
        return any(sha256.startswith(digits.lower()) for sha256 in (self.sha256, self.tensors_sha256))


@lru_cache(256)
def _sha256(file: ExtraFile, start: int) -> str:
    with file.path.open("rb") as stream:
        stream.seek(start)
        return hashlib.file_digest(stream, "sha256").hexdigest()


@lru_cache(256)
def _short_hash(file: ExtraFile) -> str:
    """Hash 64 KiB from an offset of 1 MiB, as WebUI did for all files before 2023."""
    with file.path.open("rb") as stream:
        stream.seek(1 << 20)
        return hashlib.sha256(stream.read(1 << 16)).hexdigest()[:8]


def _header_length(path: Path) -> int:
    """Return the length of a safetensors header in bytes; -8 for a pickle, so that it is hashed from its first byte."""
    with path.open("rb") as stream:
        start = stream.read(9)
    return int.from_bytes(start[:8], "little") if start[8:] == b"{" else -8


@lru_cache(4096)
def training_name(file: ExtraFile) -> str:
    """Return the name that a LoRA was given in training, which WebUI uses in prompts. Empty if the file has none."""
    try:
        return plain_name(read_header(file.path).texts.get("ss_output_name", ""))
    except (ValueError, RecursionError):
        return ""


@dataclass(frozen=True, kw_only=True)
class Extras:
    """The available LoRAs, embeddings, control networks and hypernetworks, by name."""

    loras: Mapping[str, ExtraFile] = field(default_factory=dict[str, ExtraFile])
    embeddings: Mapping[str, ExtraFile] = field(default_factory=dict[str, ExtraFile])
    controls: Mapping[str, ExtraFile] = field(default_factory=dict[str, ExtraFile])
    """ControlNets and adapters."""
    hypernetworks: Mapping[str, ExtraFile] = field(default_factory=dict[str, ExtraFile])
    image_encoder: ExtraFile | None = None
    """The network through which IP-Adapters see a picture; None if there is none."""

    def __or__(self, other: "Extras") -> "Extras":
        """Combine both. If a name is in both, the other's file wins."""
        return Extras(
            loras={**self.loras, **other.loras},
            embeddings={**self.embeddings, **other.embeddings},
            controls={**self.controls, **other.controls},
            hypernetworks={**self.hypernetworks, **other.hypernetworks},
            image_encoder=other.image_encoder or self.image_encoder,
        )


NO_EXTRAS = Extras()


def in_folders(
    loras: Path | None, embeddings: Path | None, controls: Path | None = None, hypernetworks: Path | None = None
) -> Extras:
    """Return the files in and below these folders. A LoRA can also be called by its training name, unless a file has
    that name."""
    found = _files(loras, LORA_SUFFIXES)
    trained = {name: file for file in found.values() if (name := training_name(file))}
    networks = _files(controls, CONTROL_SUFFIXES)
    encoders = [name for name in networks if _IMAGE_ENCODER.search(name)]
    return Extras(
        loras=trained | found,
        embeddings=_files(embeddings, EMBEDDING_SUFFIXES),
        image_encoder=networks.pop(encoders[0]) if encoders else None,
        controls=networks,
        hypernetworks=_files(hypernetworks, HYPERNETWORK_SUFFIXES),
    )


def _files(folder: Path | None, suffixes: tuple[str, ...]) -> dict[str, ExtraFile]:
    paths = sorted(folder.rglob("*")) if folder else []
    return {path.stem: ExtraFile.at(path) for path in paths if path.suffix in suffixes and path.is_file()}


@dataclass(frozen=True)
class LoraTag:
    """`<lora:name:te:unet:rank>`: multipliers for text encoder and UNet, and how many of its ranks are used."""

    name: str
    te: float
    unet: float
    rank: int | None = None
    ignored: tuple[str, ...] = field(default=(), compare=False)
    """Arguments that only extensions understand, such as `lbw=OUTALL`. They change nothing here."""

    @property
    def acts(self) -> bool:
        return bool(self.te or self.unet) and self.rank != 0

    def __str__(self) -> str:
        shortest = [self.te] if self.te == self.unet else [self.te, self.unet]
        args = shortest if self.rank is None else [self.te, self.unet, self.rank]
        return f"<lora:{self.name}:{':'.join(f'{arg:g}' for arg in args)}>"


def lora_tags(prompt: str, field: str = "prompt") -> list[LoraTag]:
    """Return the LoRAs that a prompt asks for. Raises InvalidInput for an unreadable multiplier or rank."""
    tags = [_read(tag, field) for tag in cut_networks(prompt)[1] if tag.kind in LORA_KINDS]
    if len(tags) > LORAS_MAX:
        raise InvalidInput(field, prompt, f"at most {LORAS_MAX} LoRAs in a prompt, this has {len(tags)}", "Use fewer.")
    return tags


_ARGUMENTS = ("te", "unet", "dyn")
"""The arguments after the name in a tag, in order. Each may also be written as `key=value`."""


def _read(tag: NetworkTag, field: str) -> LoraTag:
    name, *args = tag.args
    named = dict(arg.split("=", 1) for arg in args if "=" in arg)
    placed = [arg for arg in args if "=" not in arg]
    said = dict(zip(_ARGUMENTS, placed, strict=False)) | {key: named[key] for key in _ARGUMENTS if key in named}
    unknown = [arg for arg in args if "=" in arg and arg.partition("=")[0] not in _ARGUMENTS]
    try:
        te = _multiplier(said.get("te") or "1")
        unet = _multiplier(said.get("unet") or str(te))
        rank = _rank(said.get("dyn"))
    except ValueError:
        rule = f"multipliers must be numbers from -{MULTIPLIER_MAX} to {MULTIPLIER_MAX}, and a rank a whole number"
        raise InvalidInput(field, str(tag), rule, _advice(tag)) from None
    return LoraTag(name, te, unet, rank, ignored=(*unknown, *placed[len(_ARGUMENTS) :]))


def _advice(tag: NetworkTag) -> str:
    """Return advice on writing a tag that cannot be read. Words after its name may be part of a name with a colon."""
    words = list(takewhile(lambda arg: "=" not in arg and not _NUMERIC.fullmatch(arg), tag.args))
    if len(words) > 1:
        return f"A name in a tag has no colon: call the file {'_'.join(words)}, and write <lora:{'_'.join(words)}:1>."
    return "Write <lora:name:0.8>, or <lora:name:te=0.5:unet=0.8>."


_NUMERIC = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?|nan|inf")


def _rank(text: str | None) -> int | None:
    rank = int(text) if text else None
    if rank is not None and rank < 0:
        raise ValueError(text)
    return rank


def _multiplier(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and abs(value) <= MULTIPLIER_MAX):
        raise ValueError
    return value


def lora_names(text: str) -> set[str]:
    """Return the names of the LoRAs in a text's tags, whatever else the tags say."""
    return {tag.args[0] for tag in cut_networks(text)[1] if tag.kind in LORA_KINDS}


@dataclass(frozen=True)
class HypernetworkTag:
    """`<hypernet:name:multiplier>`. The multiplier defaults to 1."""

    name: str
    multiplier: float = 1.0

    def __str__(self) -> str:
        return f"<{HYPERNETWORK_KIND}:{self.name}:{self.multiplier:g}>"


def hypernetwork_tags(prompt: str, field: str = "prompt") -> list[HypernetworkTag]:
    """Return the hypernetworks that a prompt asks for. Raises InvalidInput for an unreadable multiplier."""
    tags = []
    for tag in cut_networks(prompt)[1]:
        if tag.kind == HYPERNETWORK_KIND:
            try:
                tags.append(HypernetworkTag(tag.args[0], _multiplier((*tag.args, "1")[1] or "1")))
            except ValueError:
                rule = f"the multiplier must be a number from -{MULTIPLIER_MAX} to {MULTIPLIER_MAX}"
                raise InvalidInput(field, str(tag), rule, f"Write <{HYPERNETWORK_KIND}:name:0.8>.") from None
    if len(tags) > LORAS_MAX:
        rule = f"at most {LORAS_MAX} hypernetworks in a prompt, this has {len(tags)}"
        raise InvalidInput(field, prompt, rule, "Use fewer.")
    return tags


def missing_hypernetworks(prompt: str, extras: Extras, field: str = "prompt") -> list[HypernetworkTag]:
    """Return the tags of missing hypernetworks. A tag with the multiplier 0 needs no file."""
    tags = hypernetwork_tags(prompt, field)
    return [tag for tag in tags if tag.multiplier and tag.name not in extras.hypernetworks]


def missing_loras(prompt: str, extras: Extras, field: str = "prompt") -> list[LoraTag]:
    """Return the tags of missing LoRAs. A tag whose multipliers are 0 needs no file."""
    return [tag for tag in lora_tags(prompt, field) if tag.acts and tag.name not in extras.loras]


def without_missing(prompt: str, extras: Extras) -> str:
    """Return the prompt without the tags of missing LoRAs and hypernetworks."""
    loras = [tag.name for tag in missing_loras(prompt, extras)]
    hypernetworks = [tag.name for tag in missing_hypernetworks(prompt, extras)]
    for kinds, missing in ((LORA_KINDS, loras), ((HYPERNETWORK_KIND,), hypernetworks)):
        names = "|".join(map(re.escape, missing))
        prompt = re.sub(rf"<(?:{'|'.join(kinds)}):(?:{names})(?::[^>]*)?>", "", prompt) if names else prompt
    return prompt


def check_present(field: str, prompt: str, extras: Extras) -> None:
    """Raise InvalidInput for a missing LoRA or hypernetwork, because the picture would be a different one."""
    for tag in missing_loras(prompt, extras, field):
        here = ", ".join(sorted(extras.loras)[:20]) or "none"
        fix = "Add it in loras or files (--lora-dir), or remove the tag."
        raise InvalidInput(field, str(tag), f"there is no LoRA of this name; available: {here}", fix)
    for hypernetwork in missing_hypernetworks(prompt, extras, field):
        here = ", ".join(sorted(extras.hypernetworks)[:20]) or "none"
        fix = "Send it in files (--hypernetworks-dir), or remove the tag."
        raise InvalidInput(field, str(hypernetwork), f"there is no hypernetwork of this name; available: {here}", fix)

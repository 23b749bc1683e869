"""The manifest as data: every weight file that the project knows. Uses only the standard library, for a fast start."""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pipelines.ask.catalog import PREDICTION_NAMES
from pipelines.ask.request import SETTINGS
from pipelines.errors import InvalidInput, ModelError

HERE = Path(__file__).parent
KINDS = ("model", "vae", "upscaler", "safety-checker", "adapter", "controlnet", "image-encoder", "interpolator")
FORMATS = ("ldm-safetensors", "ldm-ckpt", "diffusers-folder", "esrgan-pth", "adapter", "transformers", "torchscript")
DEFAULT_MODEL = "pastel-tiny"
TRAINED_SIZE = (512, 512)
"""(width, height) for an entry that names no size: what Stable Diffusion 1.x was trained on."""


class ManifestError(ModelError):
    """The manifest breaks a rule. The text names the entry, the field and the rule."""

    def __init__(self, entry: str, name: str, rule: str) -> None:
        super().__init__(f"manifest entry {entry!r}, field {name!r}: {rule}")


@dataclass(frozen=True, kw_only=True)
class Licence:
    """A licence: its SPDX identifier if there is one, else its usual name, and where to read it."""

    name: str
    url: str
    note: str = ""
    """What users must know in addition to the licence text."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One place to get an entry from. Exactly one of `repo`, `url` and `path` is set."""

    repo: str = ""
    """Hugging Face repository. Without `file` it is a folder: its `files`, or whatever a diffusers pipeline needs."""
    revision: str = ""
    file: str = ""
    files: tuple[str, ...] = ()
    url: str = ""
    path: str = ""
    """Path relative to this package, for a file that is part of the project."""

    @property
    def is_folder(self) -> bool:
        return bool(self.repo) and not self.file

    def __str__(self) -> str:
        return self.path or self.url or "/".join(filter(None, (self.repo, self.file)))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A weight file or diffusers folder: what it is and where to get it."""

    name: str
    kind: str
    format: str
    base: str
    licence: Licence
    sources: tuple[Source, ...]
    title: str = ""
    """The usual name if it is not a plain word: an upscaler's name in WebUI."""
    file: str = ""
    """Name of the single file in the cache; empty for folders and for files that are part of the project."""
    size: int | None = None
    """Bytes of the single file."""
    about: int | None = None
    """Bytes of the entry's files, if they are only known roughly."""
    sha256: str = ""
    sha256_prefix: str = ""
    """The first digits, if no more are published (WebUI's "Model hash" has ten)."""
    hashes: Mapping[str, str] = field(default_factory=dict[str, str])
    """SHA-256 of files inside a folder."""
    webui_hash: str = ""
    """WebUI's eight-digit hash of a ControlNet's original file."""
    verified: bool = False
    """Whether a fetch of ours has confirmed size and hash."""
    vae: str = ""
    """Entry of the better VAE that replaces this model's own."""
    prediction: str = ""
    """What the UNet predicts, by diffusers' name, if its files do not say so."""
    width: int = TRAINED_SIZE[0]
    height: int = TRAINED_SIZE[1]
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The author's recommended settings, by the settings' names. Requests take them unless they say otherwise."""

    @property
    def picture_size(self) -> tuple[int, int]:
        """Default (width, height) of a picture."""
        return self.width, self.height

    @property
    def embedded(self) -> Path | None:
        """The file if this entry is part of the project; None otherwise. The file may be missing."""
        return next((HERE / source.path for source in self.sources if source.path), None)


SOURCE_FIELDS: dict[str, type] = {"repo": str, "revision": str, "file": str, "files": list, "url": str, "path": str}
LICENCE_FIELDS: dict[str, type] = {"name": str, "url": str, "note": str}
ENTRY_FIELDS: dict[str, type] = {
    "kind": str,
    "format": str,
    "base": str,
    "licence": dict,
    "sources": list,
    "title": str,
    "file": str,
    "size": int,
    "about": int,
    "sha256": str,
    "sha256_prefix": str,
    "hashes": dict,
    "webui_hash": str,
    "verified": bool,
    "vae": str,
    "prediction": str,
    "width": int,
    "height": int,
    "settings": dict,
}
REQUIRED = ("kind", "format", "base", "licence", "sources")


def _full_hash(text: object) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", str(text)) is not None


def _hash_prefix(text: str) -> bool:
    return re.fullmatch(r"([0-9a-f]{10,63})?", text) is not None


def _one_place(source: Source) -> bool:
    return [bool(source.repo), bool(source.url), bool(source.path)].count(True) == 1


def _needs_file_name(entry: Entry) -> bool:
    return any(not source.is_folder and not source.path for source in entry.sources)


def _settings_hold(entry: Entry) -> bool:
    try:
        for name, value in entry.settings.items():
            SETTINGS[name].check(value)
    except (KeyError, InvalidInput):
        return False
    return True


ENTRY_RULES: tuple[tuple[str, Callable[[Entry], bool], str], ...] = (
    ("kind", lambda e: e.kind in KINDS, f"must be one of {', '.join(KINDS)}"),
    ("format", lambda e: e.format in FORMATS, f"must be one of {', '.join(FORMATS)}"),
    ("sources", lambda e: bool(e.sources), "needs at least one source"),
    ("sources", lambda e: all(map(_one_place, e.sources)), "each needs exactly one of repo, url, path"),
    ("sources", lambda e: all(s.revision for s in e.sources if s.repo), "each repo needs a revision"),
    ("sources", lambda e: all(re.match("https?://", s.url) for s in e.sources if s.url), "urls are http or https"),
    ("file", lambda e: bool(e.file) == _needs_file_name(e), "is for single files that are fetched"),
    ("file", lambda e: Path(e.file).name == e.file, "must be a plain file name"),
    ("size", lambda e: e.size is None or e.size > 0, "must be positive"),
    ("about", lambda e: e.about is None or e.about > 0, "must be positive"),
    ("sha256", lambda e: not e.sha256 or _full_hash(e.sha256), "must be 64 small hexadecimal digits"),
    ("sha256_prefix", lambda e: _hash_prefix(e.sha256_prefix), "must be 10-63 small hexadecimal digits"),
    ("sha256_prefix", lambda e: not (e.sha256 and e.sha256_prefix), "is for entries without sha256"),
    ("hashes", lambda e: all(map(_full_hash, e.hashes.values())), "must be 64 small hexadecimal digits each"),
    ("prediction", lambda e: e.prediction in ("", *PREDICTION_NAMES.values()), "must be epsilon or v_prediction"),
    ("width", lambda e: e.width > 0 and e.width % 8 == 0, "must be a positive multiple of 8"),
    ("height", lambda e: e.height > 0 and e.height % 8 == 0, "must be a positive multiple of 8"),
    ("settings", _settings_hold, "must be settings of a request, by their names and within their ranges"),
)


def load_manifest(path: Path = HERE / "manifest.toml") -> dict[str, Entry]:
    """Return every entry by its name, in the file's order. Raises ManifestError, which names entry, field and rule."""
    with path.open("rb") as stream:
        tables = tomllib.load(stream)
    entries = {name: _entry(name, table) for name, table in tables.items()}
    for entry in entries.values():
        if entry.vae and (entry.vae not in entries or entries[entry.vae].kind != "vae"):
            raise ManifestError(entry.name, "vae", f"{entry.vae!r} is no entry of kind vae")
    return entries


def _entry(name: str, table: Mapping[str, Any]) -> Entry:
    values = _checked(name, "", table, ENTRY_FIELDS, REQUIRED)
    values["licence"] = Licence(**_checked(name, "licence", values["licence"], LICENCE_FIELDS, ("name", "url")))
    values["sources"] = tuple(_source(name, source) for source in values["sources"])
    entry = Entry(name=name, **values)
    for field_name, holds, rule in ENTRY_RULES:
        if not holds(entry):
            raise ManifestError(name, field_name, rule)
    return entry


def _source(name: str, table: Mapping[str, Any]) -> Source:
    values = _checked(name, "sources", table, SOURCE_FIELDS, ())
    values["files"] = tuple(values.get("files", ()))
    return Source(**values)


def _checked(
    entry: str, inside: str, table: Any, fields: Mapping[str, type], required: tuple[str, ...]
) -> dict[str, Any]:
    """Return the table's values. Raises ManifestError for unknown fields, wrong types and missing required fields."""
    if type(table) is not dict:
        raise ManifestError(entry, inside, "must be a table")
    prefix = f"{inside}." if inside else ""
    values: dict[str, Any] = dict(cast(Mapping[str, Any], table))
    for key, value in values.items():
        if key not in fields:
            raise ManifestError(entry, f"{prefix}{key}", f"is not known; known are {', '.join(fields)}")
        if type(value) is not fields[key]:
            raise ManifestError(entry, f"{prefix}{key}", f"must be of type {fields[key].__name__}, is {value!r}")
    for key in required:
        if key not in values:
            raise ManifestError(entry, f"{prefix}{key}", "is missing")
    return values

"""The lines of `loras` and `controls`: what each names, and where it is fetched from."""

import difflib
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.ask.networks import ExtraFile, check_name
from pipelines.errors import InvalidInput, shown
from weights_script.manifest import Entry, load_manifest

if TYPE_CHECKING:  # it needs an HTTP client, and start-up does not
    from weights_script.shelf import Shelf

HOSTS = ("huggingface.co", "civitai.com", "replicate.delivery")
"""Hosts that files are fetched from, including subdomains; also HF_ENDPOINT, which the operator sets."""
LINES_MAX = 32
KIND_OF = {"loras": "adapter", "controls": "controlnet"}
"""Input -> the kind of manifest entries that it may name."""
USUAL = (
    "pytorch_lora_weights.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.safetensors",
)
"""The file to choose from a repository with several, the best one first."""

OR_SENT = ", or send the file in files."
"""The end of a piece of advice."""

_NAME = re.compile(r"[^=:/?<>]+")
_WIDE = str.maketrans("／？：＝＆＃＠", "/?:=&#@")
"""Punctuation as Chinese and Japanese keyboards produce it."""
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")
_WITHOUT_SCHEME = re.compile(rf"(?:[\w-]+\.)*(?:{'|'.join(map(re.escape, HOSTS))})/.*", re.IGNORECASE)
_REPOSITORY = re.compile(r"(?!.*\.\.)([\w.-]+/[\w.-]+)(?:/(.+))?")
_USER = re.compile(r"^((?:[^/@]*://)?)[^/]*@")
"""The part of an address before the host."""
_HUB_PAGE = re.compile(r"/([\w.-]+/[\w.-]+)(?:/(?:blob|resolve|raw|tree)/([^/]+)(?:/(.+))?)?/?")
_CIVITAI_PAGE = re.compile(r"/models/(\d+)(?:/.*)?")


@dataclass(frozen=True)
class Line:
    """`name = source : weight : text weight`. Only the source is required."""

    field: str
    name: str
    source: str
    weights: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.field}={shown(self.address, 200)!r}"

    @property
    def address(self) -> str:
        """The source without user name and query, which may contain secrets with any characters."""
        return _USER.sub(r"\1", re.split(r"[?#]", self.source, maxsplit=1)[0])

    @property
    def secrets(self) -> tuple[str, ...]:
        """Text that must never be shown, in every spelling: the user name and the values of the source's query."""
        head, *rest = re.split(r"[?#]", self.source)
        user = found[0] if (found := _USER.search(head)) else ""
        pairs = [pair for query in rest for pair in (query, *query.split("&"))]
        values = [*pairs, *(pair.partition("=")[2] for pair in pairs), *re.split(r"[/:@]+", user)[1:]]
        spelled = [*values, *map(urllib.parse.unquote, values), *map(urllib.parse.unquote_plus, values)]
        return tuple(sorted(set(spelled), key=len, reverse=True))


def read_lines(field: str, text: str) -> Iterator[Line]:
    """Yield the lines of an input. Raises InvalidInput if there are too many."""
    lines = [line.strip().translate(_WIDE) for line in text.splitlines() if line.strip()]
    if len(lines) > LINES_MAX:
        raise InvalidInput(field, text, f"at most {LINES_MAX} lines, this has {len(lines)}", "Leave some out.")
    for line in lines:
        rest, weights = line, list[float]()
        while len(weights) < 2:  # from the end: one pattern for the whole line would take quadratic time
            before, _, number = rest.rpartition(":")
            if not before.strip() or not _NUMBER.fullmatch(number.strip()):
                break
            rest, weights = before.rstrip(), [float(number), *weights]
        name, equals, source = rest.partition("=")
        if equals and not re.search("[/?#]", name):  # else it is a link with a query
            check_name(field, name.strip())
        if not equals or not _NAME.fullmatch(name) or not source.strip():
            name, source = "", rest
        if not source.strip():
            raise InvalidInput(
                field, re.split(r"[?#]", line)[0], "names nothing", "Write a name, an address or owner/repository."
            )
        yield Line(field, name.strip(), source.strip(), tuple(weights))


def entry_of(name: str, field: str) -> Entry | None:
    """Return the manifest entry that an input names, by its own name or its file's; None if there is none."""
    for entry in load_manifest().values():
        stems = {Path(file).stem for source in entry.sources for file in (source.file, *source.files) if file}
        names = {entry.name, *stems, *(stem.removesuffix("_fp16") for stem in stems)}
        if entry.kind == KIND_OF[field] and name in names:
            return entry
    return None


def address_of(line: Line, here: Mapping[str, ExtraFile], shelf: "Shelf") -> str:
    """Return the download address for a link or a repository of the Hub. Raises InvalidInput for other places."""
    source = f"https://{line.source}" if _WITHOUT_SCHEME.fullmatch(line.source) else line.source
    if "://" not in source:
        if repository := _REPOSITORY.fullmatch(source):
            return _on_the_hub(line, shelf, repository[1], "main", repository[2])
        fix = f"{_names_like(line, here)} Or give an https address or owner/repository."
        raise InvalidInput(line.field, line.address, "nothing of this name is here", fix)
    address = _of_known_host(line, source)
    host = (address.hostname or "").removeprefix("www.")
    if (page := _HUB_PAGE.fullmatch(address.path)) and (host == "huggingface.co" or _is_mirror(address)):
        return _on_the_hub(line, shelf, page[1], page[2] or "main", page[3])
    if host.endswith("civitai.com") and (model := _CIVITAI_PAGE.fullmatch(address.path)):
        return _on_civitai(shelf, model[1], dict(urllib.parse.parse_qsl(address.query)))
    return source


def _of_known_host(line: Line, source: str) -> urllib.parse.SplitResult:
    """Parse an address. Raises InvalidInput if files are not fetched from there."""
    rule = f"must be an https address of {', '.join(HOSTS)}"
    elsewhere = InvalidInput(line.field, line.address, rule, f"Put the file there{OR_SENT}")
    try:
        address = urllib.parse.urlsplit(source)
        _ = address.port  # raises ValueError if it is not a number
    except ValueError as error:
        raise elsewhere from error
    host = (address.hostname or "").removeprefix("www.")
    known = address.scheme == "https" and any(f".{host}".endswith(f".{each}") for each in HOSTS)
    if not known and not _is_mirror(address):
        raise elsewhere
    if "@" in address.netloc:
        raise InvalidInput(line.field, line.address, "must hold no user name", "Leave out what stands before the @.")
    return address


def _is_mirror(address: urllib.parse.SplitResult) -> bool:
    """Return whether the operator fetches the Hub's files from this server."""
    from weights_script import hub

    mirror = urllib.parse.urlsplit(hub.endpoint())
    return (address.scheme, address.netloc) == (mirror.scheme, mirror.netloc)


def _names_like(line: Line, here: Iterable[str]) -> str:
    """Suggest names for a line, among files that are here and those that can be fetched by a short name."""
    known = sorted({*here, *(entry.name for entry in load_manifest().values() if entry.kind == KIND_OF[line.field])})
    if similar := difflib.get_close_matches(line.source, known, n=3):
        return f"Did you mean {' or '.join(similar)}?"
    return f"Known names are {', '.join(known[:20])}." if known else "There are no files with names of their own."


def _on_the_hub(line: Line, shelf: "Shelf", repository: str, revision: str, file: str | None) -> str:
    from weights_script import hub
    from weights_script.manifest import Source

    def the_weights(told: Any) -> str:
        names = [sibling["rfilename"] for sibling in told["siblings"]]
        weights = [name for name in names if name.endswith(".safetensors")]
        weights = [name for name in USUAL if name in weights][:1] or weights
        if len(weights) != 1:
            shown = ", ".join(weights[:20]) or "none"
            rule = f"must hold one .safetensors file, its files are: {shown}"
            raise InvalidInput(line.field, line.address, rule, f"Write {repository}/FILE.")
        return str(weights[0])

    if not file:
        url = f"{hub.endpoint()}/api/models/{repository}/revision/{urllib.parse.quote(revision, safe='')}"
        file = shelf.listed(url, the_weights)
    return hub.file_url(Source(repo=repository, revision=revision), urllib.parse.unquote(file))


def _on_civitai(shelf: "Shelf", model: str, query: Mapping[str, str]) -> str:
    """Return the download address of a model. `token` in the link's query is the requester's own API key."""
    key = f"?{urllib.parse.urlencode({'token': query['token']})}" if "token" in query else ""
    version = query.get("modelVersionId") or shelf.listed(
        f"https://civitai.com/api/v1/models/{model}{key}", lambda told: str(told["modelVersions"][0]["id"])
    )
    return f"https://civitai.com/api/download/models/{urllib.parse.quote(version, safe='')}{key}"

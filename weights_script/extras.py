"""Find or fetch the LoRAs, embeddings and control networks that a request names or uploads, and apply its names."""

import difflib
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.ask.catalog import IMAGE_PROMPT, NO_PREPROCESSOR, UPSCALERS, preprocessor_for
from pipelines.ask.inputs import Inputs
from pipelines.ask.networks import (
    ExtraFile,
    Extras,
    check_name,
    in_folders,
    name_of_upload,
    plain_name,
    training_name,
)
from pipelines.ask.request import ControlSettings
from pipelines.errors import InvalidInput, ModelError, redacted, shown
from pipelines.infotext.asked import Fetched, Wanted
from pipelines.infotext.control_lines import read_lines as read_controls
from weights_script.manifest import Entry, load_manifest
from weights_script.room import room
from weights_script.uploads import Uploads, sort_uploads

if TYPE_CHECKING:  # imported where they are used: start-up needs no HTTP client
    from weights_script.shelf import Shelf
    from weights_script.web import SourceFailed

HOSTS = ("huggingface.co", "civitai.com", "replicate.delivery")
"""Hosts that files are fetched from, including subdomains; also HF_ENDPOINT, which the operator sets."""
OWN_FOLDERS = ("loras", "embeddings", "controlnets", "hypernetworks")
"""Folders of the cache for files that the operator puts there."""
LINES_MAX = 32
IMAGE_ENCODER = "clip-vit-h"
"""The manifest entry of the image encoder for IP-Adapters."""
KIND_OF = {"loras": "adapter", "controls": "controlnet"}
"""Input -> the kind of manifest entries that it may name."""
USUAL = (
    "pytorch_lora_weights.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.safetensors",
)
"""The file to choose from a repository with several, the best one first."""

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


OR_SENT = ", or send the file in files."
"""The end of a piece of advice."""


class Library:
    """The LoRAs, embeddings and control networks that requests may use. Files in use are kept until released."""

    def __init__(self) -> None:
        """Raises ModelError: the setting of the cache's size cannot be read."""
        self._shelf: Shelf | None = None
        room()

    def release(self) -> None:
        """Release the files of the last request, so that others may delete them from the cache."""
        if self._shelf:
            self._shelf.close()
        self._shelf = None

    def load_only(self, wanted: Wanted, inputs: Inputs) -> Fetched:
        """Find what a request names or sends, and release what the last one used.

        Raises InvalidInput for a line that cannot be read, and ModelError if a fetch fails.
        """
        from weights_script.fetch import cache_folder
        from weights_script.shelf import Shelf

        self.release()
        cache = cache_folder()
        shelf = self._shelf = Shelf(cache)
        here = in_folders(*(cache / folder for folder in OWN_FOLDERS))
        uploads = sort_uploads(inputs.files, wanted.file_names)
        loras, multipliers = _loras(wanted, inputs.loras, here, shelf, uploads)
        extras = here | Extras(loras=loras, embeddings=uploads.embeddings, hypernetworks=uploads.hypernetworks)
        extras, controls = _controls(wanted.controls, inputs.controls, extras, shelf, uploads)
        extras = _with_encoder(extras, controls, uploads)
        upscalers, upscaler = _upscalers(uploads, wanted.upscaler)
        return Fetched(
            extras=extras, controls=controls, multipliers=multipliers, upscalers=upscalers, upscaler=upscaler
        )


def _upscalers(uploads: Uploads, called: str) -> tuple[dict[str, Path], str]:
    """Return the uploaded upscalers, and the name of the one to use: the generation data's name, or else its own."""
    sent = {name: file.path for name, file in uploads.upscalers.items()}
    if not sent or called in sent:
        return sent, called
    own, path = next(iter(sent.items()))
    name = name_of_upscaler(own, called)
    return {**sent, name: path}, name


def name_of_upscaler(stem: str, called: str) -> str:
    """Return the name of an uploaded upscaler: the one that the block uses, or else its file's name."""
    if called and called not in UPSCALERS:
        return called
    name = name_of_upload(stem)
    return f"{name} (uploaded)" if name in UPSCALERS else name


def _loras(
    wanted: Wanted, text: str, here: Extras, shelf: "Shelf", uploads: Uploads
) -> tuple[dict[str, ExtraFile], dict[str, tuple[float, ...]]]:
    """Return the LoRAs of the lines and uploads, and the multipliers that the lines give them."""
    found: dict[str, ExtraFile] = {}
    multipliers: dict[str, tuple[float, ...]] = {}
    lines = list(read_lines("loras", text))
    for line in lines:
        name, file = _found(line, here.loras, shelf)
        if len(lines) == 1 and not (uploads.loras or line.name or line.source in here.loras):
            name = _as_prompted(name, wanted, here)
        found[name], multipliers[name] = file, line.weights or (1.0,)
    for name, file in uploads.loras.items():
        known = here | Extras(loras={**found, **uploads.loras})
        called = _as_prompted(name, wanted, known) if len(uploads.loras) == 1 else name
        found[called], multipliers[called] = file, (1.0,)
    return found, multipliers


def _controls(
    named: Sequence[ControlSettings], text: str, extras: Extras, shelf: "Shelf", uploads: Uploads
) -> tuple[Extras, tuple[ControlSettings, ...]]:
    """Return the control networks of the form's lines, or else of the generation data, and their files.

    If no line names an uploaded file, but one line has a plain name that nothing here has, the file gets that name.
    If there is no such line, the uploaded file is applied as it is.
    """
    lines = read_controls(text)
    wanted, sent = lines or named, dict(uploads.controls)
    files: dict[str, ExtraFile] = {}
    found: list[ControlSettings] = []
    for control in wanted:
        entry = _entry(control.model, "controls")
        unnamed = entry is None and control.model not in extras.controls and "/" not in control.model
        if control.model in files:  # another line has the same file
            name, file = control.model, files[control.model]
        elif control.model in sent:
            name, file = control.model, sent.pop(control.model)
        elif unnamed and len(sent) == 1:
            name, file = control.model, sent.popitem()[1]
        elif lines or entry or control.model in extras.controls:
            name, file = _found(Line("controls", "", control.model, ()), extras.controls, shelf)
        else:
            found.append(control)  # generation data names it and it is missing, which is reported later
            continue
        files[name] = file
        known = entry is not None and entry.webui_hash == control.model_hash  # same network, other number format
        found.append(replace(control, model=name, model_hash="" if known else control.model_hash))
    for name, file in sent.items():
        files[name] = file
        found.append(ControlSettings(model=name))
    return extras | Extras(controls=files), tuple(_as_its_file(control, files) for control in found)


def _with_encoder(extras: Extras, controls: Sequence[ControlSettings], uploads: Uploads) -> Extras:
    """Add the image encoder: the uploaded one, or one in the folders; fetch it if an IP-Adapter needs it."""
    extras |= Extras(image_encoder=next(iter(uploads.encoders.values()), None))
    needed = any(control.image_prompt and control.model in extras.controls for control in controls)
    return extras | Extras(image_encoder=_image_encoder()) if needed and extras.image_encoder is None else extras


def _as_its_file(control: ControlSettings, files: Mapping[str, ExtraFile]) -> ControlSettings:
    """Adjust the unit to what its file is: an IP-Adapter sees its picture without a preprocessor, whatever its name.

    Raises InvalidInput if the requested preprocessor does not fit the file.
    """
    if control.model not in files:
        return control
    from pipelines.models.checkpoint import IP_ADAPTER, content_of, kind_of, stored_in  # here: they import torch

    file, asked = files[control.model], control.preprocessor
    told = preprocessor_for(control.model)
    with file.blamed():
        is_prompt = kind_of(stored_in(file.path, content_of(file.path))) is IP_ADAPTER
    if is_prompt and asked not in (told, NO_PREPROCESSOR, IMAGE_PROMPT):
        rule = "an IP-Adapter sees its picture without a preprocessor"
        raise InvalidInput(f"controls, preprocessor of {control.model}", asked, rule, "Leave it out.")
    if not is_prompt and asked == IMAGE_PROMPT != told:
        rule = "its file is no IP-Adapter"
        raise InvalidInput(f"controls, preprocessor of {control.model}", asked, rule, "Use another preprocessor.")
    if is_prompt:
        return replace(control, preprocessor=IMAGE_PROMPT)
    return replace(control, preprocessor=NO_PREPROCESSOR) if asked == IMAGE_PROMPT else control


def _image_encoder() -> ExtraFile:
    """Return the manifest's image encoder, fetching it if necessary. Raises ModelError if that fails."""
    from weights_script.fetch import cache_folder, ensure

    try:
        return ExtraFile.at(ensure(load_manifest()[IMAGE_ENCODER], cache_folder()))
    except ModelError as error:
        raise ModelError(f"The image encoder of IP-Adapters: {error}") from None


def _entry(name: str, field: str) -> Entry | None:
    """Return the manifest entry that an input names, by its own name or its file's; None if there is none."""
    for entry in load_manifest().values():
        stems = {Path(file).stem for source in entry.sources for file in (source.file, *source.files) if file}
        names = {entry.name, *stems, *(stem.removesuffix("_fp16") for stem in stems)}
        if entry.kind == KIND_OF[field] and name in names:
            return entry
    return None


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


def _names_like(line: Line, here: Iterable[str]) -> str:
    """Suggest names for a line, among files that are here and those that can be fetched by a short name."""
    known = sorted({*here, *(entry.name for entry in load_manifest().values() if entry.kind == KIND_OF[line.field])})
    if similar := difflib.get_close_matches(line.source, known, n=3):
        return f"Did you mean {' or '.join(similar)}?"
    return f"Known names are {', '.join(known[:20])}." if known else "There are no files with names of their own."


def _found(line: Line, here: Mapping[str, ExtraFile], shelf: "Shelf") -> tuple[str, ExtraFile]:
    """Return the name and the file of a line, fetching it if necessary."""
    if line.source in here:
        return line.name or line.source, replace(here[line.source], origin=str(line))
    from weights_script.fetch import cache_folder, ensure
    from weights_script.web import SourceFailed

    entry = _entry(line.source, line.field)
    try:
        if entry:
            path = ensure(entry, cache_folder())
            path = path if path.is_file() else next(path.glob("*.safetensors"))
        else:
            path = shelf.fetch(_address(line, here, shelf), line.field)
    except SourceFailed as failure:
        raise ModelError(f"{line}: {redacted(str(failure), line.secrets)}. {_fix(line, failure)}") from None
    except ModelError as error:
        raise ModelError(f"{line}: {redacted(str(error), line.secrets)}") from None
    file = ExtraFile.at(path, str(line))
    stem = training_name(file) or path.stem if path.stem.isdigit() else path.stem
    return line.name or plain_name(stem), file


def _fix(line: Line, failure: "SourceFailed") -> str:
    from weights_script.web import Denied

    if "civitai.com/" in line.source.lower():
        return "Check the link; for a file that CivitAI gives to members only put ?token= and your API key at its end."
    fix = "Name one that is open to everybody" if isinstance(failure, Denied) else "Check the line"
    return fix + OR_SENT


def _address(line: Line, here: Mapping[str, ExtraFile], shelf: "Shelf") -> str:
    """Return the download address for a link or a repository of the Hub. Raises InvalidInput for other places."""
    from weights_script import hub

    source = f"https://{line.source}" if _WITHOUT_SCHEME.fullmatch(line.source) else line.source
    elsewhere = InvalidInput(
        line.field, line.address, f"must be an https address of {', '.join(HOSTS)}", f"Put the file there{OR_SENT}"
    )
    try:
        address = urllib.parse.urlsplit(source if "://" in source else "")
        _ = address.port  # raises ValueError if it is not a number
    except ValueError as error:
        raise elsewhere from error
    page = _HUB_PAGE.fullmatch(address.path)
    repository = _REPOSITORY.fullmatch(source)
    mirror = urllib.parse.urlsplit(hub.endpoint())
    ours = (address.scheme, address.netloc) == (mirror.scheme, mirror.netloc)
    host = (address.hostname or "").removeprefix("www.")
    if not address.netloc:
        if repository is None:
            fix = f"{_names_like(line, here)} Or give an https address or owner/repository."
            raise InvalidInput(line.field, line.address, "nothing of this name is here", fix)
        return _on_the_hub(line, shelf, repository[1], "main", repository[2])
    if not ours and not (address.scheme == "https" and any(f".{host}".endswith(f".{known}") for known in HOSTS)):
        raise elsewhere
    if "@" in address.netloc:
        raise InvalidInput(line.field, line.address, "must hold no user name", "Leave out what stands before the @.")
    if page and (ours or host == "huggingface.co"):
        return _on_the_hub(line, shelf, page[1], page[2] or "main", page[3])
    if host.endswith("civitai.com") and (model := _CIVITAI_PAGE.fullmatch(address.path)):
        return _on_civitai(shelf, model[1], dict(urllib.parse.parse_qsl(address.query)))
    return source


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


def _as_prompted(name: str, wanted: Wanted, extras: Extras) -> str:
    """Return the one missing LoRA that the prompts, or else their options, name. If there is not exactly one, return
    `name`."""
    missing = wanted.loras - extras.loras.keys() or wanted.optional_loras - extras.loras.keys()
    return next(iter(missing)) if len(missing) == 1 else name

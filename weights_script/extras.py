"""LoRAs, embeddings and control networks that a request names or brings along -> files here, which it then asks for."""

import difflib
import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.ask.catalog import IMAGE_PROMPT, NO_PREPROCESSOR, preprocessor_for
from pipelines.ask.inputs import Inputs
from pipelines.ask.networks import (
    ExtraFile,
    Extras,
    LoraTag,
    check_name,
    in_folders,
    lora_names,
    lora_tags,
    missing_loras,
    plain_name,
    training_name,
)
from pipelines.ask.request import ControlSettings
from pipelines.errors import InvalidInput, ModelError, redacted, shown
from pipelines.infotext.asked import Asked, name_of_upscaler
from pipelines.infotext.control_lines import read_lines as read_controls
from weights_script.manifest import Entry, load_manifest
from weights_script.uploads import Uploads, sort_uploads

if TYPE_CHECKING:  # imported where they are used: start-up needs no HTTP client
    from weights_script.shelf import Shelf
    from weights_script.web import SourceFailed

HOSTS = ("huggingface.co", "civitai.com", "replicate.delivery")
"""Whom files are fetched from, subdomains included; beside them HF_ENDPOINT, which the operator sets."""
OWN_FOLDERS = ("loras", "embeddings", "controlnets", "hypernetworks")
"""In the cache: what whoever runs the container has put there."""
LINES_MAX = 32
IMAGE_ENCODER = "clip-vit-h"
"""The manifest's entry that IP-Adapters see by."""
KIND_OF = {"loras": "adapter", "controls": "controlnet"}
"""Input -> the kind of the manifest's entries that it may name."""
USUAL = (
    "pytorch_lora_weights.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.safetensors",
)
"""The file to take of a repository that holds several, the best first."""

_NAME = re.compile(r"[^=:/?<>]+")
_WIDE = str.maketrans("／？：＝＆＃＠", "/?:=&#@")
"""Marks as keyboards for Chinese and Japanese write them."""
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")
_WITHOUT_SCHEME = re.compile(rf"(?:[\w-]+\.)*(?:{'|'.join(map(re.escape, HOSTS))})/.*", re.IGNORECASE)
_REPOSITORY = re.compile(r"(?!.*\.\.)([\w.-]+/[\w.-]+)(?:/(.+))?")
_USER = re.compile(r"^((?:[^/@]*://)?)[^/]*@")
"""What stands before the host of an address."""
_HUB_PAGE = re.compile(r"/([\w.-]+/[\w.-]+)(?:/(?:blob|resolve|raw|tree)/([^/]+)(?:/(.+))?)?/?")
_CIVITAI_PAGE = re.compile(r"/models/(\d+)(?:/.*)?")


@dataclass(frozen=True)
class Line:
    """`name = source : weight : text weight`, of which only the source must be there."""

    field: str
    name: str
    source: str
    weights: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.field}={shown(self.address, 200)!r}"

    @property
    def address(self) -> str:
        """The source without its user name and query, in which there may be secrets of any characters."""
        return _USER.sub(r"\1", re.split(r"[?#]", self.source, maxsplit=1)[0])

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown again, in every spelling: the values of the source's query."""
        head, *rest = re.split(r"[?#]", self.source)
        user = found[0] if (found := _USER.search(head)) else ""
        pairs = [pair for query in rest for pair in (query, *query.split("&"))]
        values = [*pairs, *(pair.partition("=")[2] for pair in pairs), *re.split(r"[/:@]+", user)[1:]]
        spelled = [*values, *map(urllib.parse.unquote, values), *map(urllib.parse.unquote_plus, values)]
        return tuple(sorted(set(spelled), key=len, reverse=True))


OR_SENT = ", or send the file in files."
"""The end of an advice."""


class Library:
    """The LoRAs, embeddings and control networks that requests may use. What one uses is kept until it is released."""

    def __init__(self) -> None:
        """Raises ModelError: the setting of the cache's size cannot be read."""
        self._shelf: Shelf | None = None
        if "PASTEL_FETCHED_GB" in os.environ:
            from weights_script.shelf import room

            room()

    def release(self) -> None:
        """Let go of the files of the last request: others may delete them from the cache."""
        if self._shelf:
            self._shelf.close()
        self._shelf = None

    def load_only(self, asked: Asked, inputs: Inputs) -> tuple[Extras, Asked]:
        """What the form and the cache's folders hold, and what asks for it.

        Raises InvalidInput for a line that names nothing, and ModelError where a file cannot be had.
        """
        from weights_script.fetch import cache_folder
        from weights_script.shelf import Shelf

        self.release()
        cache = cache_folder()
        shelf = self._shelf = Shelf(cache)
        here = in_folders(*(cache / folder for folder in OWN_FOLDERS))
        uploads = sort_uploads(inputs.files, asked["file_names"])
        loras, weights = _loras(asked, inputs.loras, here, shelf, uploads)
        extras = here | Extras(loras=loras, embeddings=uploads.embeddings, hypernetworks=uploads.hypernetworks)
        extras, guided = _controls(asked, inputs.controls, extras, shelf, uploads)
        extras = _with_encoder(extras, guided, uploads)
        upscalers = {name: file.path for name, file in uploads.upscalers.items()}
        return extras, _with_upscaler(replace(_tagged(asked, weights), controls=guided, upscalers=upscalers))


def _with_upscaler(asked: Asked) -> Asked:
    """An upscaler that was sent is used, unless the form names another."""
    if not asked.upscalers or "hires_upscaler" in asked.chosen:
        return asked
    called, sent = asked.data.values.get("hires_upscaler"), dict(asked.upscalers)
    if called in sent:
        return asked
    (own, path), *_ = sent.items()
    name = name_of_upscaler(own, called)
    return replace(asked.with_values(hires_upscaler=name), upscalers={**sent, name: path})


Weights = dict[str, tuple[float, ...]]


def _loras(
    asked: Asked, text: str, here: Extras, shelf: "Shelf", uploads: Uploads
) -> tuple[dict[str, ExtraFile], Weights]:
    """The LoRAs of the lines and of the files, and the multipliers that the lines give them."""
    found: dict[str, ExtraFile] = {}
    weights: Weights = {}
    lines = list(read_lines("loras", text))
    for line in lines:
        name, file = _found(line, here.loras, shelf)
        if len(lines) == 1 and not (uploads.loras or line.name or line.source in here.loras):
            name = _as_prompted(name, asked, here)
        found[name], weights[name] = file, line.weights
    for name, file in uploads.loras.items():
        known = here | Extras(loras={**found, **uploads.loras})
        called = _as_prompted(name, asked, known) if len(uploads.loras) == 1 else name
        found[called], weights[called] = file, ()
    return found, weights


def _controls(
    asked: Asked, text: str, extras: Extras, shelf: "Shelf", uploads: Uploads
) -> tuple[Extras, tuple[ControlSettings, ...]]:
    """The control networks of the form's lines, or else of the generation data, and their files.

    A file that no line names is called by the one plain name that nothing here has; with no such line it acts as it is.
    """
    lines = read_controls(text)
    wanted, sent = lines or list(asked.controls), dict(uploads.controls)
    files: dict[str, ExtraFile] = {}
    found: list[ControlSettings] = []
    for control in wanted:
        entry = _entry(control.model, "controls")
        unnamed = entry is None and control.model not in extras.controls and "/" not in control.model
        if control.model in files:  # of another line
            name, file = control.model, files[control.model]
        elif control.model in sent:
            name, file = control.model, sent.pop(control.model)
        elif unnamed and len(sent) == 1:
            name, file = control.model, sent.popitem()[1]
        elif lines or entry or control.model in extras.controls:
            name, file = _found(Line("controls", "", control.model, ()), extras.controls, shelf)
        else:
            found.append(control)  # generation data names it, and it is not here: that is told later
            continue
        files[name] = file
        known = entry is not None and entry.webui_hash == control.model_hash  # the same in another number format
        found.append(replace(control, model=name, model_hash="" if known else control.model_hash))
    for name, file in sent.items():
        files[name] = file
        found.append(ControlSettings(model=name))
    return extras | Extras(controls=files), tuple(_as_its_file(control, files) for control in found)


def _with_encoder(extras: Extras, controls: Sequence[ControlSettings], uploads: Uploads) -> Extras:
    """The files with the image encoder that was sent, that is here, or that an IP-Adapter needs fetched."""
    extras |= Extras(image_encoder=next(iter(uploads.encoders.values()), None))
    needed = any(control.image_prompt and control.model in extras.controls for control in controls)
    return extras | Extras(image_encoder=_image_encoder()) if needed and extras.image_encoder is None else extras


def _as_its_file(control: ControlSettings, files: Mapping[str, ExtraFile]) -> ControlSettings:
    """The unit as what its file is: an IP-Adapter sees its picture without a preprocessor, whatever its name tells.

    Raises InvalidInput where a preprocessor was asked for that cannot be.
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
    """The manifest's image encoder, fetched if need be. Raises ModelError where it cannot be had."""
    from weights_script.fetch import cache_folder, ensure

    try:
        return ExtraFile.at(ensure(load_manifest()[IMAGE_ENCODER], cache_folder()))
    except ModelError as error:
        raise ModelError(f"The image encoder of IP-Adapters: {error}") from None


def _entry(name: str, field: str) -> Entry | None:
    """The manifest's entry that an input may name, by its own name or its file's."""
    for entry in load_manifest().values():
        stems = {Path(file).stem for source in entry.sources for file in (source.file, *source.files) if file}
        names = {entry.name, *stems, *(stem.removesuffix("_fp16") for stem in stems)}
        if entry.kind == KIND_OF[field] and name in names:
            return entry
    return None


def read_lines(field: str, text: str) -> Iterator[Line]:
    """The lines of an input. Raises InvalidInput where there are too many."""
    lines = [line.strip().translate(_WIDE) for line in text.splitlines() if line.strip()]
    if len(lines) > LINES_MAX:
        raise InvalidInput(field, text, f"at most {LINES_MAX} lines, this has {len(lines)}", "Leave some out.")
    for line in lines:
        rest, weights = line, list[float]()
        while len(weights) < 2:  # from the end: one pattern for the whole line takes the square of its length
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
    """The names that a line may have meant, of files that are here and of those that are fetched by a short name."""
    known = sorted({*here, *(entry.name for entry in load_manifest().values() if entry.kind == KIND_OF[line.field])})
    if similar := difflib.get_close_matches(line.source, known, n=3):
        return f"Did you mean {' or '.join(similar)}?"
    return f"Known names are {', '.join(known[:20])}." if known else "There are no files with names of their own."


def _found(line: Line, here: Mapping[str, ExtraFile], shelf: "Shelf") -> tuple[str, ExtraFile]:
    """Name and file of a line, fetched if need be."""
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
    """Where a link, or a repository of the Hub, has its file. Raises InvalidInput for other places."""
    from weights_script import hub

    source = f"https://{line.source}" if _WITHOUT_SCHEME.fullmatch(line.source) else line.source
    elsewhere = InvalidInput(
        line.field, line.address, f"must be an https address of {', '.join(HOSTS)}", f"Put the file there{OR_SENT}"
    )
    try:
        address = urllib.parse.urlsplit(source if "://" in source else "")
        _ = address.port  # which is read now, and may be no number
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
    """`token` in the link's query is the asker's own API key."""
    key = f"?{urllib.parse.urlencode({'token': query['token']})}" if "token" in query else ""
    version = query.get("modelVersionId") or shelf.listed(
        f"https://civitai.com/api/v1/models/{model}{key}", lambda told: str(told["modelVersions"][0]["id"])
    )
    return f"https://civitai.com/api/download/models/{urllib.parse.quote(version, safe='')}{key}"


def _as_prompted(name: str, asked: Asked, extras: Extras) -> str:
    """The one LoRA that the prompts, or else their options, name and that is not here; without one this name."""
    missing = {tag.name for prompt in asked.prompts.values() for tag in missing_loras(prompt, extras)}
    missing = missing or {each for text in asked.options.values() for each in lora_names(text)} - extras.loras.keys()
    return missing.pop() if len(missing) == 1 else name


def _tagged(asked: Asked, weights: Weights) -> Asked:
    """What is asked for, with prompts that ask for these LoRAs: a prompt none of whose options names one gets its tag,
    with its line's multipliers, else with 1."""
    prompts = {name: prompt for name, prompt in asked.prompts.items() if name == "prompt" or prompt}
    for field, prompt in prompts.items():
        present = {tag.name for tag in lora_tags(prompt, field)} | lora_names(asked.options.get(field, ""))
        wanted = {name: given or (1.0,) for name, given in weights.items() if name not in present}
        tags = (LoraTag(name, te=given[-1], unet=given[0]) for name, given in wanted.items())
        prompts[field] = " ".join((prompt, *map(str, tags)))
    return asked.with_values(**prompts)

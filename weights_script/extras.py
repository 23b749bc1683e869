"""LoRAs, embeddings and ControlNets that a request names or brings along -> files here, which it then asks for."""

import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import InvalidInput, ModelError, redacted
from pipelines.extras import (
    ExtraFile,
    Extras,
    LoraTag,
    in_folders,
    lora_tags,
    missing_loras,
    name_of_upload,
    training_name,
)
from pipelines.pasted import Parameters
from pipelines.request import ControlSettings
from pipelines.units import read_lines as read_controls
from weights_script.manifest import Entry, load_manifest

if TYPE_CHECKING:  # imported where they are used: start-up needs no HTTP client
    from weights_script.shelf import Shelf
    from weights_script.web import SourceFailed

HOSTS = ("huggingface.co", "civitai.com", "replicate.delivery")
"""Whom files are fetched from, subdomains included; beside them HF_ENDPOINT, which the operator sets."""
OWN_FOLDERS = ("loras", "embeddings", "controlnets")
"""In the cache: what whoever runs the container has put there."""
LINES_MAX = 32
OWN_FILE = {"loras": "lora_file", "embeddings": "embedding_file", "controls": "control_file"}
"""Input -> the one for a file of one's own."""
KIND_OF = {"loras": "adapter", "embeddings": "adapter", "controls": "controlnet"}
"""Input -> the kind of the manifest's entries that it may name."""
USUAL = (
    "pytorch_lora_weights.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.safetensors",
)
"""The file to take of a repository that holds several, the best first."""

_LINE = re.compile(r"(?:([^=:/?<>]+)=)?\s*(.+?)((?:\s*:\s*[-+]?(?:\d+\.?\d*|\.\d+)){0,2})")
_WITHOUT_SCHEME = re.compile(rf"(?:[\w-]+\.)*(?:{'|'.join(map(re.escape, HOSTS))})/.*", re.IGNORECASE)
_REPOSITORY = re.compile(r"(?!.*\.\.)([\w.-]+/[\w.-]+)(?:/(.+))?")
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
        return f"{self.field}={redacted(self.source)!r}"

    @property
    def or_sent(self) -> str:
        """The end of an advice: the input for a file of one's own."""
        return f", or send the file in {OWN_FILE[self.field]}."


def bring(data: Parameters, inputs: Mapping[str, Any]) -> tuple[Extras, Parameters]:
    """What the inputs of LoRAs, embeddings and ControlNets and the cache's folders hold; the data that asks for it.

    Raises InvalidInput for a line that names nothing, and ModelError where a file cannot be had.
    """
    from weights_script.fetch import cache_folder
    from weights_script.shelf import Shelf

    cache = cache_folder()
    shelf = Shelf(cache)
    extras = in_folders(*(cache / folder for folder in OWN_FOLDERS))
    brought: dict[str, ExtraFile] = {}
    weights: dict[str, tuple[float, ...]] = {}
    lines, uploaded = list(read_lines("loras", inputs["loras"])), inputs["lora_file"]
    for line in lines:
        name, file = _found(line, extras.loras, shelf)
        if len(lines) == 1 and not (uploaded or line.name or line.source in extras.loras):
            name = _as_prompted(name, data, extras)
        brought[name], weights[name] = file, line.weights
    extras |= Extras(loras=brought, embeddings=dict(_embeddings(inputs, extras.embeddings, shelf)))
    if uploaded:
        name = _as_prompted(_plain(name_of_upload(Path(uploaded).stem)), data, extras)
        extras |= Extras(loras={name: _uploaded("lora_file", uploaded)})
        weights[name] = ()
    controls, guided = _controls(data, inputs, extras.controls, shelf)
    return extras | Extras(controls=controls), replace(_tagged(data, weights), controls=guided)


def _embeddings(
    inputs: Mapping[str, Any], here: Mapping[str, ExtraFile], shelf: "Shelf"
) -> Iterator[tuple[str, ExtraFile]]:
    """Those of the lines. `embedding_file` is the one of a plain name that nothing here has, else it has its own."""
    uploaded = inputs["embedding_file"]
    name = _plain(name_of_upload(Path(uploaded).stem)) if uploaded else ""
    for line in read_lines("embeddings", inputs["embeddings"]):
        if uploaded and not line.name and line.source not in here and "/" not in line.source:
            name = line.source
        else:
            yield _found(line, here, shelf)
    if uploaded:
        yield name, _uploaded("embedding_file", uploaded)


def _controls(
    data: Parameters, inputs: Mapping[str, Any], here: Mapping[str, ExtraFile], shelf: "Shelf"
) -> tuple[dict[str, ExtraFile], tuple[ControlSettings, ...]]:
    """The ControlNets of the input `controls`, or else of the data, and their files.

    `control_file` is the one that is called by a plain name that nothing here has; with no such line it acts as it is.
    """
    lines, uploaded = read_controls(inputs["controls"]), inputs["control_file"]
    asked = lines or list(data.controls)
    files: dict[str, ExtraFile] = {}
    found: list[ControlSettings] = []
    for control in asked:
        entry = _entry(control.model, "controls")
        plain_name = entry is None and control.model not in here and "/" not in control.model
        if plain_name and uploaded:
            name, file = control.model, _uploaded("control_file", uploaded)
        elif lines or entry or control.model in here:
            name, file = _found(Line("controls", "", control.model, ()), here, shelf)
        else:
            found.append(control)  # generation data's, and not here: it is told
            continue
        files[name] = file
        known = entry is not None and entry.webui_hash == control.model_hash  # the same in another number format
        found.append(replace(control, model=name, model_hash="" if known else control.model_hash))
    if uploaded and Path(uploaded) not in {file.path for file in files.values()}:
        name = _plain(name_of_upload(Path(uploaded).stem))
        files[name] = _uploaded("control_file", uploaded)
        found.append(ControlSettings(model=name))
    return files, tuple(found)


def _uploaded(field: str, path: Path) -> ExtraFile:
    path = Path(path)
    return ExtraFile.at(path, f"{field}={name_of_upload(path.name)!r}")


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
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > LINES_MAX:
        raise InvalidInput(field, text, f"at most {LINES_MAX} lines, this has {len(lines)}", "Leave some out.")
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None:
            raise InvalidInput(field, line, "names nothing", "Write a name, an address or owner/repository.")
        name, source, numbers = match.groups()
        yield Line(field, (name or "").strip(), source, tuple(map(float, numbers.split(":")[1:])))


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
            path = shelf.fetch(_address(line, here, shelf))
    except SourceFailed as failure:
        raise ModelError(f"{line}: {failure}. {_fix(line, failure)}") from failure
    except ModelError as error:
        raise ModelError(f"{line}: {error}") from error
    file = ExtraFile.at(path, str(line))
    stem = training_name(file) or path.stem if path.stem.isdigit() else path.stem
    return line.name or _plain(stem), file


def _fix(line: Line, failure: "SourceFailed") -> str:
    from weights_script.web import Denied

    if "civitai.com/" in line.source.lower():
        return "Check the link; for a file that CivitAI gives to members only put ?token= and your API key at its end."
    fix = "Name one that is open to everybody" if isinstance(failure, Denied) else "Check the line"
    return fix + line.or_sent


def _address(line: Line, here: Mapping[str, ExtraFile], shelf: "Shelf") -> str:
    """Where a link, or a repository of the Hub, has its file. Raises InvalidInput for other places."""
    from weights_script import hub

    source = f"https://{line.source}" if _WITHOUT_SCHEME.fullmatch(line.source) else line.source
    elsewhere = InvalidInput(
        line.field, line.source, f"must be an https address of {', '.join(HOSTS)}", f"Put the file there{line.or_sent}"
    )
    try:
        address = urllib.parse.urlsplit(source if "://" in source else "")
    except ValueError as error:
        raise elsewhere from error
    page = _HUB_PAGE.fullmatch(address.path)
    repository = _REPOSITORY.fullmatch(source)
    mirror = urllib.parse.urlsplit(hub.endpoint())
    ours = (address.scheme, address.netloc) == (mirror.scheme, mirror.netloc)
    host = (address.hostname or "").removeprefix("www.")
    if not address.netloc:
        if repository is None:
            shown = ", ".join(sorted(here)[:20]) or "none"
            fix = f"Use an https address or owner/repository, or one of those here: {shown}."
            raise InvalidInput(line.field, line.source, "nothing of this name is here", fix)
        return _on_the_hub(line, shelf, repository[1], "main", repository[2])
    if not ours and not (address.scheme == "https" and any(f".{host}".endswith(f".{known}") for known in HOSTS)):
        raise elsewhere
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
            raise InvalidInput(line.field, line.source, rule, f"Write {repository}/FILE.")
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


def _as_prompted(name: str, data: Parameters, extras: Extras) -> str:
    """The one LoRA that the prompts name and that is not here, else this name."""
    missing = {tag.name for prompt in (data.prompt, data.hires_prompt) for tag in missing_loras(prompt, extras)}
    return missing.pop() if len(missing) == 1 else name


def _plain(name: str) -> str:
    """The name without what tags and infotexts cannot hold."""
    return re.sub(r"[<>:,=]", "_", name)


def _tagged(data: Parameters, weights: Mapping[str, tuple[float, ...]]) -> Parameters:
    """The data whose prompts ask for these LoRAs: where they do not name one, by its line's weights, else at 1."""
    prompts = {"prompt": data.prompt, **({"hires_prompt": data.hires_prompt} if data.hires_prompt else {})}
    for field, prompt in prompts.items():
        present = {tag.name for tag in lora_tags(prompt, field)}
        asked = {name: given or (1.0,) for name, given in weights.items() if name not in present}
        tags = (LoraTag(name, te=given[-1], unet=given[0]) for name, given in asked.items())
        prompts[field] = " ".join((prompt, *map(str, tags)))
    return replace(data, prompt=prompts["prompt"], hires_prompt=prompts.get("hires_prompt", ""))

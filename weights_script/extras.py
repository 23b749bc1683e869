"""LoRAs and embeddings that a request names or brings along -> files here; the prompt then asks for them by tags."""

import json
import os
import re
import shutil
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.errors import InvalidInput, ModelError
from pipelines.extras import ExtraFile, Extras, LoraTag, in_folders, lora_tags, missing_loras, training_name
from pipelines.pasted import Parameters
from weights_script.manifest import load_manifest

HOSTS = ("huggingface.co", "civitai.com", "replicate.delivery")
"""Whom files are fetched from, subdomains included; beside them HF_ENDPOINT, which the operator sets."""
OWN_FOLDERS = ("loras", "embeddings")
"""In the cache: what whoever runs the container has put there."""
FETCHED = "fetched"
"""In the cache: what requests brought."""
LARGEST = 2 << 30
"""Bytes of one file: a LoRA of every layer at full rank has less."""
CACHE_MAX = 16 << 30
"""Bytes of fetched files that are kept; those not used for the longest time go first."""
LINES_MAX = 32

_LINE = re.compile(r"(?:([^=:/?<>]+)=)?\s*(.+?)((?:\s*:\s*[-+]?(?:\d+\.?\d*|\.\d+)){0,2})")
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


def bring(data: Parameters, inputs: Mapping[str, Any]) -> tuple[Extras, Parameters]:
    """What the inputs `loras`, `embeddings` and `lora_file` and the cache's folders hold; the data with tags for it.

    Raises InvalidInput for a line that names nothing, and ModelError where a file cannot be had.
    """
    from weights_script.fetch import cache_folder

    cache = cache_folder()
    extras = in_folders(*(cache / folder for folder in OWN_FOLDERS))
    brought: dict[str, ExtraFile] = {}
    weights: dict[str, tuple[float, ...]] = {}
    for line in read_lines("loras", inputs["loras"]):
        name, file = _found(line, extras.loras, cache)
        brought[name], weights[name] = file, line.weights
    named = {_found(line, extras.embeddings, cache) for line in read_lines("embeddings", inputs["embeddings"])}
    extras |= Extras(loras=brought, embeddings=dict(named))
    if uploaded := inputs["lora_file"]:
        name = _name_of_upload(uploaded, data, extras)
        extras |= Extras(loras={name: ExtraFile.at(Path(uploaded))})
        weights[name] = ()
    _forget_old(cache / FETCHED, {file.path for file in (*brought.values(), *dict(named).values())})
    return extras, _tagged(data, weights)


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


def _found(line: Line, here: Mapping[str, ExtraFile], cache: Path) -> tuple[str, ExtraFile]:
    """Name and file of a line, fetched if need be."""
    if line.source in here:
        return line.name or line.source, here[line.source]
    from weights_script.fetch import ensure, fetch_url

    entry = load_manifest().get(line.source)
    try:
        if entry and entry.kind == "adapter":
            path = ensure(entry, cache)
        else:
            path = fetch_url(_address(line, here), cache / FETCHED, at_most=LARGEST)
            os.utime(path)  # for `_forget_old`
    except ModelError as error:
        raise ModelError(f"{line.field}: {error}") from error
    file = ExtraFile.at(path)
    stem = training_name(file) or path.stem if path.stem.isdigit() else path.stem
    return line.name or re.sub(r"[<>:,=]", "_", stem), file


def _address(line: Line, here: Mapping[str, ExtraFile]) -> str:
    """Where a link, or a repository of the Hub, has its file. Raises InvalidInput for other places."""
    from weights_script import hub

    address = urllib.parse.urlsplit(line.source if "://" in line.source else "")
    page = _HUB_PAGE.fullmatch(address.path)
    repository = _REPOSITORY.fullmatch(line.source)
    mirror = urllib.parse.urlsplit(hub.endpoint())
    ours = (address.scheme, address.netloc) == (mirror.scheme, mirror.netloc)
    host = address.hostname or ""
    if not address.netloc:
        if repository is None:
            shown = ", ".join(sorted(here)[:20]) or "none"
            fix = f"Use an https address or owner/repository, or one of those here: {shown}."
            raise InvalidInput(line.field, line.source, "nothing of this name is here", fix)
        return _on_the_hub(line, repository[1], "main", repository[2])
    if not ours and not (address.scheme == "https" and any(f".{host}".endswith(f".{known}") for known in HOSTS)):
        rule = f"must be an https address of {', '.join(HOSTS)}"
        raise InvalidInput(line.field, line.source, rule, "Put the file there, or send it in lora_file.")
    if page and (ours or host == "huggingface.co"):
        return _on_the_hub(line, page[1], page[2] or "main", page[3])
    if host.endswith("civitai.com") and (model := _CIVITAI_PAGE.fullmatch(address.path)):
        return _on_civitai(line, model[1], urllib.parse.parse_qs(address.query).get("modelVersionId", []))
    return line.source


def _on_the_hub(line: Line, repository: str, revision: str, file: str | None) -> str:
    from weights_script import hub
    from weights_script.download import read_text
    from weights_script.manifest import Source

    source = Source(repo=repository, revision=revision)
    if not file:
        url = f"{hub.endpoint()}/api/models/{repository}/revision/{urllib.parse.quote(revision, safe='')}"
        names = _json(
            line, read_text(url, token=hub.token_for(url)), lambda told: [s["rfilename"] for s in told["siblings"]]
        )
        weights = [name for name in names if name.endswith(".safetensors")]
        weights = [name for name in weights if name == "pytorch_lora_weights.safetensors"] or weights
        if len(weights) != 1:
            shown = ", ".join(weights[:20]) or "none"
            rule = f"must hold one .safetensors file, its files are: {shown}"
            raise InvalidInput(line.field, line.source, rule, f"Write {repository}/FILE.")
        file = weights[0]
    return hub.file_url(source, urllib.parse.unquote(file))


def _on_civitai(line: Line, model: str, version: list[str]) -> str:
    from weights_script.download import read_text

    if not version:
        told = read_text(f"https://civitai.com/api/v1/models/{model}")
        version = [str(_json(line, told, lambda told: told["modelVersions"][0]["id"]))]
    return f"https://civitai.com/api/download/models/{urllib.parse.quote(version[0], safe='')}"


def _json(line: Line, text: str, pick: Any) -> Any:
    try:
        return pick(json.loads(text))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ModelError(f"{line.field}: {line.source}: answered with something else than a listing.") from error


def _name_of_upload(path: Path, data: Parameters, extras: Extras) -> str:
    """The one LoRA that the prompts name and that is not here, else the file's name.

    Cog puts "tmp" and eight letters before an uploaded file's name.
    """
    prompts = data.prompt, data.hires_prompt
    missing = {tag.name for prompt in prompts for tag in missing_loras(prompt, extras)}
    if len(missing) == 1:
        return missing.pop()
    return re.sub(r"[<>:,=]", "_", re.sub(r"^tmp[a-z0-9_]{8}(?=.)", "", path.stem))


def _tagged(data: Parameters, weights: Mapping[str, tuple[float, ...]]) -> Parameters:
    """The data whose prompts ask for these LoRAs: by a line's weight, else at 1 where they do not name it."""
    prompts = {"prompt": data.prompt, **({"hires_prompt": data.hires_prompt} if data.hires_prompt else {})}
    for field, prompt in prompts.items():
        present = {tag.name for tag in lora_tags(prompt, field)}
        asked = {name: (*given, 1.0) for name, given in weights.items() if given or name not in present}
        tags = (
            LoraTag(name, te=given[1] if len(given) > 2 else given[0], unet=given[0]) for name, given in asked.items()
        )
        prompts[field] = " ".join((prompt, *map(str, tags)))
    return replace(data, prompt=prompts["prompt"], hires_prompt=prompts.get("hires_prompt", ""))


def _forget_old(fetched: Path, kept: set[Path]) -> None:
    """Remove the fetched files that were not used for the longest time, until the rest has room.

    Each lies in a folder of its own, beside its lock.
    """
    folders = {folder: [path.stat() for path in folder.iterdir()] for folder in fetched.glob("urls/*")}
    room = CACHE_MAX
    for folder, files in sorted(folders.items(), key=lambda item: -max((file.st_mtime for file in item[1]), default=0)):
        room -= sum(file.st_size for file in files)
        if room < 0 and not any(path.parent == folder for path in kept):
            shutil.rmtree(folder, ignore_errors=True)

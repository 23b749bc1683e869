"""Find or fetch the LoRAs, embeddings and control networks that a request names or uploads, and apply its names."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.ask.catalog import IMAGE_PROMPT, NO_PREPROCESSOR, UPSCALERS, preprocessor_for
from pipelines.ask.inputs import Inputs
from pipelines.ask.networks import (
    ExtraFile,
    Extras,
    in_folders,
    name_of_upload,
    plain_name,
    training_name,
)
from pipelines.ask.request import ControlSettings
from pipelines.errors import InvalidInput, ModelError, redacted
from pipelines.infotext.asked import Fetched, Wanted
from pipelines.infotext.control_lines import read_lines as read_controls
from weights_script.lines import OR_SENT, Line, address_of, entry_of, read_lines
from weights_script.manifest import load_manifest
from weights_script.room import room
from weights_script.trained import LORAS, STRANGERS, Trained, is_result, opened
from weights_script.uploads import Uploads, sent_files, sort_uploads

if TYPE_CHECKING:  # imported where they are used: start-up needs no HTTP client
    from weights_script.shelf import Shelf
    from weights_script.web import SourceFailed

OWN_FOLDERS = ("loras", "embeddings", "controlnets", "hypernetworks")
"""Folders of the cache for files that the operator puts there."""
IMAGE_ENCODER = "clip-vit-h"
"""The manifest entry of the image encoder for IP-Adapters."""


class Library:
    """The LoRAs, embeddings and control networks that requests may use. Files in use are kept until released."""

    def __init__(self, trained: Sequence[Trained] = ()) -> None:
        """Raises ModelError: the setting of the cache's size cannot be read. `trained` belong to the container."""
        self._shelf: Shelf | None = None
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None
        self._own, self._words = Extras(), dict[str, str]()
        for each in trained:
            self._own |= _as_extras(each, "")
            self._words |= {each.token: each.name} if each.task in LORAS else {}
        room()

    def release(self) -> None:
        """Release the files of the last request, so that others may delete them from the cache."""
        if self._shelf:
            self._shelf.close()
        self._shelf = None
        if self._unpacked:
            self._unpacked.cleanup()
        self._unpacked = None

    def load_only(self, wanted: Wanted, inputs: Inputs) -> Fetched:
        """Find what a request names or sends, and release what the last one used.

        Raises InvalidInput for a line that cannot be read, and ModelError if a fetch fails.
        """
        from weights_script.fetch import cache_folder
        from weights_script.shelf import Shelf

        self.release()
        cache = cache_folder()
        shelf = self._shelf = Shelf(cache)
        here = in_folders(*(cache / folder for folder in OWN_FOLDERS)) | self._own
        files = [self._sent(path) for path in sent_files(inputs.files)]
        uploads = sort_uploads(files, wanted.file_names)
        named, multipliers = _loras(wanted, inputs.loras, here, shelf, uploads, self._inside)
        extras = here | named | Extras(embeddings=uploads.embeddings, hypernetworks=uploads.hypernetworks)
        extras, controls = _controls(wanted.controls, inputs.controls, extras, shelf, uploads)
        extras = _with_encoder(extras, controls, uploads)
        upscalers, upscaler = _upscalers(uploads, wanted.upscaler)
        return Fetched(
            extras=extras,
            controls=controls,
            multipliers=multipliers,
            words=self._words,
            upscalers=upscalers,
            upscaler=upscaler,
        )

    def _inside(self, file: ExtraFile) -> Trained:
        """Unpack the result of a training, until the next request. Raises ModelError, also for a checkpoint."""
        if self._unpacked is None:
            self._unpacked = tempfile.TemporaryDirectory(prefix="pastel-results-", ignore_cleanup_errors=True)
        folder = tempfile.mkdtemp(dir=self._unpacked.name)
        with file.blamed():
            unpacked = sum(each.stat().st_size for each in Path(self._unpacked.name).rglob("*") if each.is_file())
            trained = opened(file.path, Path(folder), replace(STRANGERS, total=max(0, STRANGERS.total - unpacked)))
            if not trained.belongs_to_base:
                raise ModelError(f"{file.path}: holds a checkpoint. Start a container with it in COG_WEIGHTS.")
        return trained

    def _sent(self, path: Path) -> Path:
        """Return an uploaded file, or what is inside it if it is the result of a training."""
        if not is_result(path):
            return path
        return self._inside(ExtraFile.at(path, f"files={name_of_upload(path.name)!r}")).file


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


def _as_extras(trained: Trained, origin: str) -> Extras:
    """Return the result of a training as requests use it."""
    file = {trained.name: ExtraFile.at(trained.file, origin)}
    return Extras(loras=file) if trained.task in LORAS else Extras(embeddings=file)


def _loras(
    wanted: Wanted,
    text: str,
    here: Extras,
    shelf: "Shelf",
    uploads: Uploads,
    inside: Callable[[ExtraFile], Trained],
) -> tuple[Extras, dict[str, tuple[float, ...]]]:
    """Return the LoRAs of the lines and uploads, and the multipliers that the lines give them.

    A line may also name the result of a training, which `inside` unpacks. An embedding in one has no multipliers.
    """
    found: dict[str, ExtraFile] = {}
    words = Extras()
    multipliers: dict[str, tuple[float, ...]] = {}
    lines = list(read_lines("loras", text))
    for line in lines:
        name, file = _found(line, here.loras, shelf)
        if is_result(file.path):
            trained = inside(file)
            if trained.task not in LORAS:
                words |= _as_extras(trained, str(line))
                continue
            name, file = line.name or trained.name, ExtraFile.at(trained.file, str(line))
        if len(lines) == 1 and not (uploads.loras or line.name or line.source in here.loras):
            name = _as_prompted(name, wanted, here)
        found[name], multipliers[name] = file, line.weights or (1.0,)
    for name, file in uploads.loras.items():
        known = here | Extras(loras={**found, **uploads.loras})
        called = _as_prompted(name, wanted, known) if len(uploads.loras) == 1 else name
        found[called], multipliers[called] = file, (1.0,)
    return words | Extras(loras=found), multipliers


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
        name, entry = control.model, entry_of(control.model, "controls")
        here = entry is not None or name in extras.controls
        file = files.get(name) or _sent_as(name, sent, alone=not here and "/" not in name)
        if file is None and not lines and not here:
            found.append(control)  # generation data names it and it is missing, which is reported later
            continue
        if file is None:
            name, file = _found(Line("controls", "", name, ()), extras.controls, shelf)
        files[name] = file
        known = entry is not None and entry.webui_hash == control.model_hash  # same network, other number format
        found.append(replace(control, model=name, model_hash="" if known else control.model_hash))
    for name, file in sent.items():
        files[name] = file
        found.append(ControlSettings(model=name))
    return extras | Extras(controls=files), tuple(_as_its_file(control, files) for control in found)


def _sent_as(name: str, sent: dict[str, ExtraFile], alone: bool) -> ExtraFile | None:
    """Take the uploaded file of this name; if `alone`, also the only uploaded file. None if there is none."""
    if name not in sent and alone and len(sent) == 1:
        name = next(iter(sent))
    return sent.pop(name, None)


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


def _found(line: Line, here: Mapping[str, ExtraFile], shelf: "Shelf") -> tuple[str, ExtraFile]:
    """Return the name and the file of a line, fetching it if necessary."""
    if line.source in here:
        return line.name or line.source, replace(here[line.source], origin=str(line))
    from weights_script.fetch import cache_folder, ensure
    from weights_script.web import SourceFailed

    entry = entry_of(line.source, line.field)
    try:
        if entry:
            path = ensure(entry, cache_folder())
            path = path if path.is_file() else next(path.glob("*.safetensors"))
        else:
            path = shelf.fetch(address_of(line, here, shelf), line.field)
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


def _as_prompted(name: str, wanted: Wanted, extras: Extras) -> str:
    """Return the one missing LoRA that the prompts, or else their options, name. If there is not exactly one, return
    `name`."""
    missing = wanted.loras - extras.loras.keys() or wanted.optional_loras - extras.loras.keys()
    return next(iter(missing)) if len(missing) == 1 else name

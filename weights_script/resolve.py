"""Choose the models that a container loads: the given file, else the named ones, else the embedded default."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

from pipelines.ask.catalog import LATENT_NETWORK, NETWORK_UPSCALERS, PREDICTION_NAMES
from pipelines.ask.identity import ModelFiles
from pipelines.ask.request import HiresSettings
from pipelines.ask.settings import Values
from pipelines.errors import InvalidInput, ModelError, redacted, shown_name
from weights_script.manifest import DEFAULT_MODEL, Entry, load_manifest
from weights_script.trained import Trained, is_result, unpacked_here

log = logging.getLogger(__name__)

OFF = "off"
"""The value of PASTEL_SAFETY_CHECKER that turns off the checker that the container's settings turn on."""
INTERPOLATOR = "film"
"""The manifest's entry of the network that computes frames between drawn ones."""


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model whose files are here."""

    files: ModelFiles
    settings: Values
    """Defaults from the manifest for requests to this model: width, height and the author's recommended settings. They
    override the defaults of the model's family."""
    safety_checker: Path | None
    description: str
    """For the log: what is loaded, why, and from where."""
    trained: Trained | None = None
    """The LoRA or embedding that COG_WEIGHTS adds to the model."""


def resolvers(weights: str | None, models: str | None) -> dict[str, Callable[[], ResolvedModel]]:
    """Return the models that a container serves, by what requests call them, each as a function that makes it ready.

    `models` (PASTEL_MODEL) is a list with commas between manifest entries, paths and URLs. Requests call a model by its
    entry, or by its file's name without extension. The first model is used unless a request says otherwise. PASTEL_VAE
    and PASTEL_PREDICTION are lists in the same order if there are several models; where a place is empty or missing,
    that model keeps its own. The functions raise ModelError, as `resolve` does.
    """
    chosen = [each.strip() for each in (models or "").split(",") if each.strip()]
    if weights or len(chosen) < 2:
        model = chosen[0] if chosen else ""
        return {_label(weights or model or DEFAULT_MODEL): partial(resolve, weights, model)}
    vaes, predictions = (_places(setting, len(chosen)) for setting in ("PASTEL_VAE", "PASTEL_PREDICTION"))
    ways = zip(labelled(chosen).items(), vaes, predictions, strict=True)
    return {label: partial(_resolve, None, model, *own) for (label, model), *own in ways}


def labelled(models: Iterable[str]) -> dict[str, str]:
    """Return models (manifest entries, paths and URLs) by what requests call them: no two differ only in case."""
    found: dict[str, str] = {}
    for model in models:
        label = _label(model)
        numbered = (label if number == 1 else f"{label}-{number}" for number in count(1))
        taken = {each.casefold() for each in found}
        found[next(each for each in numbered if each.casefold() not in taken)] = model
    return found


def file_names(labels: Iterable[str]) -> dict[str, str]:
    """Return the names of the single files that manifest entries stand for. They need not be here."""
    entries = load_manifest()
    return {label: entries[label].file for label in labels if label in entries and entries[label].file}


def _label(value: str) -> str:
    """Return what requests call a model: its manifest entry, or its file's name without extension."""
    if value in load_manifest():
        return value
    name = Path(urlsplit(value).path if "://" in value else value).name
    known = name.endswith((".safetensors", ".ckpt", ".pt", ".tar"))
    return shown_name(name.rpartition(".")[0] if known else name) or value


def _places(setting: str, number: int) -> Iterator[str]:
    """Yield what a setting says for each of several models."""
    given = [each.strip() for each in os.environ.get(setting, "").split(",")]
    if len(given) > number:
        raise ModelError(f"{setting}: names {len(given)}, but PASTEL_MODEL names {number} models. Give one for each.")
    yield from (*given, *[""] * (number - len(given)))


def resolve(weights: str | None, model: str | None) -> ResolvedModel:
    """Return the model: `weights` (COG_WEIGHTS: a path or URL), else `model` (PASTEL_MODEL: a manifest entry, path or
    URL), else the embedded one.

    `weights` may also be the result of a training: a checkpoint, or a LoRA or embedding for a model that it names.

    PASTEL_VAE (path, URL or manifest entry) replaces its VAE. PASTEL_SAFETY_CHECKER (folder or manifest entry) turns a
    checker on; for the embedded model only a folder does. PASTEL_PREDICTION sets what the UNet predicts, if its files
    are wrong or silent about it. Missing files are fetched. Raises ModelError, which names the setting, what was tried
    and the fix.
    """
    return _resolve(weights, model, os.environ.get("PASTEL_VAE", ""), os.environ.get("PASTEL_PREDICTION", ""))


def _resolve(weights: str | None, model: str | None, vae: str, prediction: str) -> ResolvedModel:
    """Do the same with this VAE and prediction in place of the model's own. Empty: its own."""
    entries = load_manifest()
    setting, file = ("COG_WEIGHTS", weights) if weights else ("PASTEL_MODEL", model or "")
    reason = f"{setting}={redacted(file)}" if file else "the embedded default: no setting names a model"
    if weights or (file not in entries and _is_file(file)):
        checkpoint, sha256 = _path_or_url(setting, file)
        if is_result(checkpoint):
            trained = unpacked_here(checkpoint)
            if trained.belongs_to_base:
                return _with_trained(trained, reason, vae, prediction)
            checkpoint, sha256 = trained.file, ""
        # If the manifest knows the file by its name, that entry's picture size applies.
        entry = next((entry for entry in entries.values() if checkpoint.name in _file_names(entry)), None)
        own_vae = ""
    else:
        entry = _named("PASTEL_MODEL", file or DEFAULT_MODEL, "model", entries)
        checkpoint, sha256, own_vae = _entry_path(reason, entry), entry.sha256, entry.vae
    name = checkpoint.stem if checkpoint.is_file() else checkpoint.name  # as WebUI names models
    files = ModelFiles(
        name=name,
        checkpoint=checkpoint,
        vae=_vae(vae, own_vae, entries),
        prediction=_prediction(prediction, entry),
        sha256=sha256 if checkpoint.is_file() else "",
    )
    return _resolved(files, reason, entry, entries)


def _with_trained(trained: Trained, reason: str, vae: str, prediction: str) -> ResolvedModel:
    """Return the base model of a LoRA or an embedding, with it. Raises ModelError."""
    entries, base = load_manifest(), trained.base
    if base not in entries:
        base = _first_model()
    if not base:
        known = f"it was trained on {shown_name(trained.base)!r}, which the manifest does not know"
        raise ModelError(f"{reason}: {known}. Name that model in PASTEL_MODEL.")
    resolved = _resolve(None, base, vae, prediction)
    what = f"{trained.task} {trained.name} ({reason}): prompts with {trained.token} use it"
    return replace(resolved, trained=trained, description=f"{resolved.description}; {what}")


def _first_model() -> str:
    """Return the first model of PASTEL_MODEL; empty if it names none."""
    return next((each.strip() for each in os.environ.get("PASTEL_MODEL", "").split(",") if each.strip()), "")


def base_of(model: str) -> tuple[str, ResolvedModel]:
    """Return the model to train, and what a result calls it: the named entry of the manifest, else the first model of
    PASTEL_MODEL, else the embedded one. Raises ModelError."""
    configured = _first_model()
    chosen = model.strip() or configured or DEFAULT_MODEL
    entries = load_manifest()
    if chosen not in entries and chosen != configured:
        known = ", ".join(entry.name for entry in entries.values() if entry.kind == "model")
        raise InvalidInput("model", model, f"must be a model of the manifest: {known}", "Name one of these.")
    resolved = resolve(None, model.strip() or configured)
    return chosen if chosen in entries else resolved.files.name, resolved


def _is_file(value: str) -> bool:
    """Return whether a model is given as a path or URL and not as a manifest entry."""
    return "://" in value or "/" in value or value.endswith((".safetensors", ".ckpt"))


def _resolved(files: ModelFiles, reason: str, entry: Entry | None, entries: dict[str, Entry]) -> ResolvedModel:
    checker, checker_shown = _safety_checker(entry, entries)
    size = dict(zip(("width", "height"), entry.picture_size, strict=True)) if entry else {}
    advised = entry.settings if entry else {}
    shown = ", ".join(f"{name} {value}" for name, value in advised.items() if "prompt" not in name)
    vae = files.vae.name if files.vae else "its own"
    return ResolvedModel(
        files=files,
        settings={**size, **advised},
        safety_checker=checker,
        description=f"{files.name} ({reason}) from {files.checkpoint}; VAE: {vae}; "
        f"{f'its own settings: {shown}; ' if shown else ''}"
        f"safety checker: {checker_shown}",
    )


def upscaler_file(hires: HiresSettings | None) -> Path | None:
    """Return the weights of the requested upscaler, fetching them if necessary; None if it needs none.

    Raises ModelError.
    """
    if hires is None or hires.upscaler_file or hires.upscaler not in (*NETWORK_UPSCALERS, LATENT_NETWORK):
        return hires.upscaler_file if hires else None
    entry = next(entry for entry in load_manifest().values() if entry.title == hires.upscaler)
    return _entry_path(f"hires_upscaler={hires.upscaler}", entry)


def interpolator_file() -> tuple[Path, str]:
    """Return FILM's file and its SHA-256, fetching it if necessary. Raises ModelError."""
    entry = load_manifest()[INTERPOLATOR]
    return _entry_path("Interpolation: FILM", entry), entry.sha256


def _vae(chosen: str, own: str, entries: dict[str, Entry]) -> Path | None:
    """Return the chosen VAE, else the manifest's for the model; None if there is neither."""
    if not chosen:
        return _entry_path(f"the VAE {own}", entries[own]) if own else None
    if chosen in entries:
        return _entry_path("PASTEL_VAE", _named("PASTEL_VAE", chosen, "vae", entries))
    return _path_or_url("PASTEL_VAE", chosen)[0]


def _prediction(chosen: str, entry: Entry | None) -> str:
    """Return what the UNet predicts, by diffusers' name: as chosen, else what the manifest says. Empty if only the
    model's files say it."""
    if chosen and chosen.lower() not in PREDICTION_NAMES:
        raise ModelError(f"PASTEL_PREDICTION={chosen}: not known. Known are {', '.join(PREDICTION_NAMES)}.")
    return PREDICTION_NAMES.get(chosen.lower(), entry.prediction if entry else "")


def _safety_checker(model: Entry | None, entries: dict[str, Entry]) -> tuple[Path | None, str]:
    """Return the folder of the checker that PASTEL_SAFETY_CHECKER names, and a text for the log: its size, or why there
    is no checker."""
    setting, chosen = "PASTEL_SAFETY_CHECKER", os.environ.get("PASTEL_SAFETY_CHECKER")
    if not chosen or chosen == OFF:
        return None, f"off, {setting} names none"
    folder = Path(chosen)
    if not folder.is_dir():
        checker = _named(setting, chosen, "safety-checker", entries)
        if model and model.embedded:
            return None, "off, as the embedded model draws simple scenes alone"
        folder = _entry_path(setting, checker)
    megabytes = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6
    return folder, f"{folder}, {megabytes:,.0f} MB ({setting}={OFF} leaves it out)"


def _named(setting: str, name: str, kind: str, entries: dict[str, Entry]) -> Entry:
    choices = [entry.name for entry in entries.values() if entry.kind == kind]
    if name not in choices:
        raise ModelError(f"{setting}={name}: not a {kind} of the manifest. Known are {', '.join(choices)}.")
    return entries[name]


def _entry_path(setting: str, entry: Entry) -> Path:
    if entry.embedded and entry.embedded.is_file():
        return entry.embedded
    # Imported here: the embedded model needs no network, and start-up needs no HTTP client.
    from weights_script.fetch import cache_folder, ensure, present

    if entry.licence.note and not present(entry, cache_folder()):
        log.warning("Licence of %s: %s", entry.name, entry.licence.note)  # before gigabytes are fetched in vain
    try:
        return ensure(entry, cache_folder())
    except ModelError as error:
        raise ModelError(f"{setting}: {error}") from error


def _path_or_url(setting: str, value: str) -> tuple[Path, str]:
    """Return the path, and its SHA-256 if a fetch recorded it, else an empty text."""
    if "://" not in value:
        try:
            path = Path(value).expanduser()
            if path.exists():
                return path.absolute(), ""
        except (OSError, RuntimeError) as error:  # name too long, folder not readable, unknown home directory
            raise ModelError(f"{setting}={value}: cannot be looked up ({error}). Give another path.") from error
        raise ModelError(f"{setting}={value}: no such file or folder. Give a path, or an http or https URL.")
    from weights_script.fetch import cache_folder, fetch_url, for_operators
    from weights_script.ledger import Ledger
    from weights_script.web import SourceFailed

    try:
        path = fetch_url(value, cache_folder())
    except SourceFailed as failure:
        reason = f"{failure}{for_operators(failure)}"
        fix = "Check the address, or give a local path."
        raise ModelError(f"{setting}: {redacted(value)}: {reason}. {fix}") from failure
    except ModelError as error:
        raise ModelError(f"{setting}: {error}") from error
    record = Ledger(cache_folder()).get(str(path.relative_to(cache_folder())))
    return path, record.sha256 if record else ""


def _file_names(entry: Entry) -> set[str]:
    return {Path(source.file or source.path).name for source in entry.sources} | {entry.file} - {""}

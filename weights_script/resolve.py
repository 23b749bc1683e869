"""Choose the model that a container loads: the given file, else the named entry, else the embedded default."""

import os
from dataclasses import dataclass
from pathlib import Path

from pipelines.ask.catalog import LATENT_NETWORK, NETWORK_UPSCALERS, PREDICTION_NAMES
from pipelines.ask.identity import ModelFiles
from pipelines.ask.request import HiresSettings
from pipelines.ask.settings import Values
from pipelines.errors import ModelError, redacted
from weights_script.manifest import DEFAULT_MODEL, Entry, load_manifest

OFF = "off"
"""The value of PASTEL_SAFETY_CHECKER that turns off the checker that the container's settings turn on."""


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


def resolve(weights: str | None, model: str | None) -> ResolvedModel:
    """Return the model: `weights` (COG_WEIGHTS: a path or URL), else `model` (PASTEL_MODEL: a manifest entry), else the
    embedded one.

    PASTEL_VAE (path, URL or manifest entry) replaces its VAE. PASTEL_SAFETY_CHECKER (folder or manifest entry) turns a
    checker on; for the embedded model only a folder does. PASTEL_PREDICTION sets what the UNet predicts, if its files
    are wrong or silent about it. Missing files are fetched. Raises ModelError, which names the setting, what was tried
    and the fix.
    """
    entries = load_manifest()
    if weights:
        checkpoint, sha256 = _path_or_url("COG_WEIGHTS", weights)
        # If the manifest knows the file by its name, that entry's picture size applies.
        entry = next((entry for entry in entries.values() if checkpoint.name in _file_names(entry)), None)
        return _resolved(checkpoint, sha256, f"COG_WEIGHTS={redacted(weights)}", _vae("", entries), entry, entries)
    reason = f"PASTEL_MODEL={model}" if model else "the embedded default: neither COG_WEIGHTS nor PASTEL_MODEL is set"
    entry = _named("PASTEL_MODEL", model or DEFAULT_MODEL, "model", entries)
    checkpoint = _entry_path(reason, entry)
    return _resolved(checkpoint, entry.sha256, reason, _vae(entry.vae, entries), entry, entries)


def _resolved(
    checkpoint: Path, sha256: str, reason: str, vae: Path | None, entry: Entry | None, entries: dict[str, Entry]
) -> ResolvedModel:
    name = checkpoint.stem if checkpoint.is_file() else checkpoint.name  # as WebUI names models
    checker, checker_shown = _safety_checker(entry, entries)
    size = dict(zip(("width", "height"), entry.picture_size, strict=True)) if entry else {}
    advised = entry.settings if entry else {}
    shown = ", ".join(f"{name} {value}" for name, value in advised.items() if "prompt" not in name)
    return ResolvedModel(
        files=ModelFiles(
            name=name,
            checkpoint=checkpoint,
            vae=vae,
            prediction=_prediction(entry),
            sha256=sha256 if checkpoint.is_file() else "",
        ),
        settings={**size, **advised},
        safety_checker=checker,
        description=f"{name} ({reason}) from {checkpoint}; VAE: {vae.name if vae else 'its own'}; "
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


def _vae(entry_name: str, entries: dict[str, Entry]) -> Path | None:
    """Return PASTEL_VAE if set, else the manifest's VAE for the model; None if there is neither."""
    chosen = os.environ.get("PASTEL_VAE")
    if not chosen:
        return _entry_path(f"the VAE {entry_name}", entries[entry_name]) if entry_name else None
    if chosen in entries:
        return _entry_path("PASTEL_VAE", _named("PASTEL_VAE", chosen, "vae", entries))
    return _path_or_url("PASTEL_VAE", chosen)[0]


def _prediction(entry: Entry | None) -> str:
    """Return what the UNet predicts, by diffusers' name: PASTEL_PREDICTION if set, else what the manifest says. Empty
    if only the model's files say it."""
    chosen = os.environ.get("PASTEL_PREDICTION", "")
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
    from weights_script.fetch import cache_folder, ensure

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

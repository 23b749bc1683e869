"""Turn entries and URLs into local paths. Missing files are fetched from mirrors in turn, by one process per file."""

import hashlib
import json
import logging
import os
import re
import urllib.parse
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import NAME_MAX, ModelError, in_one_line, redacted
from pipelines.files.contents import read_content, tensors_in
from pipelines.files.headers import Stored
from weights_script import hub
from weights_script.claims import claim, wait_for_claim
from weights_script.download import Expected, download
from weights_script.ledger import Ledger, sha256_of
from weights_script.manifest import Entry, Source
from weights_script.trained import is_result
from weights_script.web import PATIENCE, Access, Denied, Patience, SourceFailed, Unreachable

log = logging.getLogger(__name__)

COMPLETE = ".complete"
"""Written last into a fetched folder: the list of its files. A folder without it is not trusted."""
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def cache_folder() -> Path:
    """Return PASTEL_CACHE, or `pastel` in the user's cache folder (XDG_CACHE_HOME, ~/.cache)."""
    if chosen := os.environ.get("PASTEL_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pastel"


def ensure(entry: Entry, cache: Path, patience: Patience = PATIENCE) -> Path:
    """Return the path of the entry's file or diffusers folder, fetching it if necessary.

    Sources are tried in turn. Raises ModelError with what was tried, or NoRoom if the disk is full.
    """
    if path := present(entry, cache):
        return path
    if entry.embedded:
        raise ModelError(f"{entry.name}: {entry.embedded} is missing. Restore it: it is part of the project.")
    tried: list[str] = []
    unreachable: set[str] = set()
    for source in entry.sources:
        host = urllib.parse.urlsplit(source.url or hub.endpoint()).netloc
        if host in unreachable:
            continue
        try:
            return _from_source(entry, source, cache, patience)
        except SourceFailed as failure:
            tried.append(f"{source}: {failure}{for_operators(failure)}")
            log.warning("%s: %s: %s", entry.name, source, failure)
            if isinstance(failure, Unreachable):
                unreachable.add(host)
    skipped = len(entry.sources) - len(tried)
    raise ModelError(
        f"{entry.name} cannot be fetched. Tried {'; '.join(tried)}"
        f"{f'; {skipped} more on the same host' if skipped else ''}. "
        f"Fix the network and run `python -m weights_script fetch {entry.name}`, or {OWN_FILE[entry.kind]}."
    )


OWN_FILE = {
    "model": "set COG_WEIGHTS to a file of your own",
    "vae": "set PASTEL_VAE to a file of your own",
    "upscaler": "choose another upscaler",
    "safety-checker": "set PASTEL_SAFETY_CHECKER to a folder of your own, or to off",
    "adapter": "leave it out",
    "controlnet": "send it in files",
    "image-encoder": "send it in files",
    "interpolator": "leave Interpolation out",
}
"""Advice for when an entry cannot be fetched, by its kind."""


def for_operators(failure: SourceFailed) -> str:
    """Say what the operator of the container can do about it."""
    return "; for a gated repository accept its terms and set HF_TOKEN" if isinstance(failure, Denied) else ""


def present(entry: Entry, cache: Path) -> Path | None:
    """Return the entry's path if it is here and complete; None otherwise. Does not use the network."""
    if entry.embedded:
        return entry.embedded if entry.embedded.is_file() else None
    if entry.file and Ledger(cache).vouches(_file_key(entry), _stated(entry)):
        return cache / _file_key(entry)
    folders = (source for source in entry.sources if source.is_folder)
    return next((cache / _folder_key(entry, s) for s in folders if _folder_is_whole(entry, s, cache)), None)


def fetch_url(
    url: str, cache: Path, stated: Expected | None = None, patience: Patience = PATIENCE, access: Access | None = None
) -> Path:
    """Fetch a weight file by its address and return its path. A name without a known suffix counts as safetensors.

    `access` replaces the operator's own access. Raises ModelError for anything but http and https, and SourceFailed
    if the file cannot be fetched or differs from what was `stated`.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ModelError(f"{redacted(url)}: not an http or https URL. Give one of those, or a local path.")
    key, stated = f"{url_key(url)}/{_file_name(parts.path)}", stated or Expected()
    if Ledger(cache).vouches(key, stated):
        return cache / key
    return _File(key=key, url=url, stated=stated, access=access).fetched(cache, patience)


def url_key(url: str) -> str:
    """Return the cache folder for the file of an address."""
    return f"urls/{hashlib.sha256(url.encode()).hexdigest()[:16]}"


def _file_name(path: str) -> str:
    """Return a short, plain file name for an address, with a suffix of weights."""
    name = re.sub(r"[^\w.-]", "_", urllib.parse.unquote(Path(path).name)).lstrip(".") or "weights"
    stem, suffix = (Path(name).stem, Path(name).suffix) if name.endswith(SUFFIXES) else (name, ".safetensors")
    return shorter(stem, NAME_MAX) + suffix


def shorter(name: str, longest: int) -> str:
    """Cut a name to at most `longest` bytes; file systems count bytes."""
    return name.encode()[:longest].decode(errors="ignore")


def _stated(entry: Entry) -> Expected:
    return Expected(size=entry.size, sha256=entry.sha256 or entry.sha256_prefix)


def _file_key(entry: Entry) -> str:
    return f"{entry.name}/{entry.file}"


def _folder_key(entry: Entry, source: Source) -> str:
    return f"{entry.name}/{source.repo.replace('/', '--')}-{source.revision[:8].replace('/', '-')}"


def _folder_is_whole(entry: Entry, source: Source, cache: Path) -> bool:
    key = _folder_key(entry, source)
    marker = cache / key / COMPLETE
    if not marker.is_file():
        return False
    try:
        files = json.loads(marker.read_text())
    except ValueError:  # killed while writing it
        return False
    ledger = Ledger(cache)
    return all(ledger.vouches(f"{key}/{name}", Expected(sha256=entry.hashes.get(name, ""))) for name in files)


def _from_source(entry: Entry, source: Source, cache: Path, patience: Patience) -> Path:
    if source.is_folder:
        return _folder(entry, source, cache, patience)
    url = source.url or hub.file_url(source, source.file)
    found = hub.cached(source, source.file) if source.repo else None
    return _File(key=_file_key(entry), url=url, stated=_stated(entry), found=found).fetched(cache, patience)


def _folder(entry: Entry, source: Source, cache: Path, patience: Patience) -> Path:
    refuse_offline()
    key = _folder_key(entry, source)
    files = hub.folder_files(source, patience)
    for name, listed in files.items():
        stated = Expected(size=listed.size, sha256=entry.hashes.get(name, listed.sha256))
        url, found = hub.file_url(source, name), hub.cached(source, name)
        _File(key=f"{key}/{name}", url=url, stated=stated, found=found).fetched(cache, patience)
    (cache / key / COMPLETE).write_text(json.dumps(list(files)))
    return cache / key


@dataclass(frozen=True, kw_only=True)
class _File:
    """A file that should be at its place in the cache."""

    key: str
    url: str
    stated: Expected
    found: Path | None = None
    """A copy elsewhere that can be used instead."""
    access: Access | None = None
    """Replaces the operator's own access if set."""

    def fetched(self, cache: Path, patience: Patience) -> Path:
        """Return the path of the recorded file, fetching it if necessary. Raises SourceFailed and ModelError."""
        target, ledger = cache / self.key, Ledger(cache)
        with _alone(cache, self.key):
            if ledger.vouches(self.key, self.stated):  # Another process was faster.
                return target
            expected = ledger.expectation(self.key, self.stated)
            if self.found and (digest := self._hash_of_copy(expected)):
                _link(self.found, target)
                ledger.add(self.key, digest, str(self.found))
                return target
            refuse_offline()
            access = Access(token=hub.token_for(self.url)) if self.access is None else self.access
            digest = download(self.url, target, expected, access=access, patience=patience)
            if len(expected.sha256) < 64 and target.name.endswith(SUFFIXES):
                _check_weights(target, self.stated.use)
            if not expected.sha256:
                log.info("%s: no hash is published; %s is trusted from now on", target.name, digest)
            ledger.add(self.key, digest, self.url)
        return target

    def _hash_of_copy(self, expected: Expected) -> str:
        """Return the SHA-256 of the copy; empty if it is not the expected file."""
        if self.found is None:
            return ""
        digest = sha256_of(self.found)
        return "" if expected.problem(self.found.stat().st_size, digest) else digest


def _link(found: Path, target: Path) -> None:
    """Make a symbolic link, under a temporary name first, then renamed like any other file."""
    beside = target.with_name(f".{target.name}.link")
    beside.unlink(missing_ok=True)
    beside.symlink_to(found.resolve())
    beside.replace(target)


def refuse_offline() -> None:
    if hub.offline():
        raise SourceFailed("not here, and HF_HUB_OFFLINE forbids fetching it")


def _check_weights(target: Path, use: str) -> None:
    """Read a fetched file before it is trusted: a server may send an error or another kind of weights instead.

    The result of a training is an archive, which is looked into when it is unpacked. Otherwise, raises SourceFailed and
    deletes the file.
    """
    if use in ("", "loras") and is_result(target):
        return
    try:
        tensors = tensors_in(read_content(target))
        if not tensors:
            raise ValueError("it has no tensors")
    except Exception as error:  # zipfile and the readers raise many kinds
        target.unlink(missing_ok=True)
        raise SourceFailed(f"sent no weights ({in_one_line(error)})") from error
    what = _other_kind(tensors, use) if use else ""
    if what:
        target.unlink(missing_ok=True)
        raise SourceFailed(f"sent {what}, which does not belong in {use}")


def _other_kind(tensors: Mapping[str, Stored], use: str) -> str:
    """Return what the file is if it does not fit its use; empty if it may fit."""
    from pipelines.models.checkpoint import kind_of  # here: imports torch, which is loaded if requests name files
    from weights_script.uploads import group_of

    kind = kind_of(tensors)
    return kind.what if kind and group_of(kind.what) != use else ""


@contextmanager
def _alone(cache: Path, key: str) -> Generator[None]:
    """Let only one process fetch into a folder; the kernel releases the claim if the process is killed."""
    target, folder = cache / key, key.rpartition("/")[0]
    try:
        held = claim(cache, folder, alone=True)
        if held is None:
            log.info("%s: another process is fetching it; waiting", target.name)
            held = wait_for_claim(cache, folder, alone=True)
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"{target.parent}: cannot be written ({error.strerror}). Set PASTEL_CACHE.") from error
    with held:
        try:
            yield
        finally:
            with suppress(OSError):  # not empty: the download is kept
                target.parent.rmdir()

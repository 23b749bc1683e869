"""Specifics of the Hugging Face Hub: addresses, the token, a repository's listing, its local cache.

Honours HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE. The Hub's client library only provides the token and the
cache, and is only imported when a file has to be fetched, because importing it costs start-up time.
"""

import json
import os
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weights_script.download import Expected, read_text
from weights_script.manifest import Source
from weights_script.web import Access, Patience, SourceFailed

ALWAYS = ("model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json")
OPTIONAL_FOLDERS = ("scheduler/", "tokenizer/", "image_normalizer/")
_OF_TRANSFORMERS = "model.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "pytorch_model.fp16.bin"
_FORMS = "{}.safetensors", "{}.fp16.safetensors", "{}.bin", "{}.fp16.bin"
NETWORK_WEIGHTS: dict[str, tuple[str, ...]] = {
    "unet": tuple(form.format("diffusion_pytorch_model") for form in _FORMS),
    "vae": tuple(form.format("diffusion_pytorch_model") for form in _FORMS),
    "text_encoder": _OF_TRANSFORMERS,
}
"""File names of each network's weights, the best format first. Repositories often have several formats of the same."""
OPTIONAL_NETWORKS: dict[str, tuple[str, ...]] = {
    "image_encoder": _OF_TRANSFORMERS,
    "depth_estimator": _OF_TRANSFORMERS,
}
"""The same for networks that only some families have."""


def endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def is_ours(url: str) -> bool:
    """Return whether the address belongs to the Hub or to its mirror that HF_ENDPOINT names."""
    ours, theirs = urllib.parse.urlsplit(endpoint()), urllib.parse.urlsplit(url)
    return (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc)


def token_for(url: str) -> str:
    """Return the user's token for addresses of the Hub; empty for all others."""
    if not is_ours(url):
        return ""
    from huggingface_hub import get_token

    return get_token() or ""


def file_url(source: Source, file: str) -> str:
    revision = urllib.parse.quote(source.revision, safe="")
    return f"{endpoint()}/{source.repo}/resolve/{revision}/{urllib.parse.quote(file)}"


def cached(source: Source, file: str) -> Path | None:
    """Return the file from the Hub's own cache (HF_HOME); None if no program has put it there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.repo, file, revision=source.revision)
    return Path(found) if isinstance(found, str) else None


def folder_files(source: Source, patience: Patience) -> dict[str, Expected]:
    """Return the files of a folder source and what the Hub states about them. Raises SourceFailed."""
    revision = urllib.parse.quote(source.revision, safe="")
    url = f"{endpoint()}/api/models/{source.repo}/revision/{revision}?blobs=true"
    try:
        siblings = json.loads(read_text(url, access=Access(token=token_for(url)), patience=patience))["siblings"]
        stated = {item["rfilename"]: _stated(item) for item in siblings}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceFailed("did not answer with a repository's listing") from error
    return {name: stated[name] for name in _wanted(source, stated)}


def _stated(item: dict[str, Any]) -> Expected:
    """Return what the listing states: size and SHA-256 for large files, only the size for small ones."""
    large: dict[str, str] = item.get("lfs") or {}
    return Expected(size=item.get("size"), sha256=large.get("sha256", ""))


def _wanted(source: Source, stated: Mapping[str, Expected]) -> list[str]:
    if source.files:
        missing = [name for name in source.files if name not in stated]
        if missing:
            raise SourceFailed(f"has no {missing[0]}")
        return list(source.files)
    weights = [_weights(network, stated) for network in NETWORK_WEIGHTS]
    for network in OPTIONAL_NETWORKS:
        if (config := f"{network}/config.json") in stated:
            weights += [config, _weights(network, stated)]
    missing = [name for name in ALWAYS if name not in stated]
    if missing:
        raise SourceFailed(f"is no diffusers folder: it has no {missing[0]}")
    return [*ALWAYS, *weights, *(name for name in stated if name.startswith(OPTIONAL_FOLDERS))]


def _weights(network: str, stated: Mapping[str, Expected]) -> str:
    for name in {**NETWORK_WEIGHTS, **OPTIONAL_NETWORKS}[network]:
        if f"{network}/{name}" in stated:
            return f"{network}/{name}"
    raise SourceFailed(f"is no diffusers folder: it has no weights in {network}/")

"""A model as data: its files, names and hashes. No tensors."""

from dataclasses import dataclass
from pathlib import Path

TOKENIZER = Path(__file__).resolve().parents[2] / "weights_script" / "embedded" / "tokenizer"
"""CLIP's vocabulary, which is part of this project."""
SHORT_HASH = 10
"""Digits of a file's SHA-256 in WebUI's short hash."""


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The files of a model to load."""

    name: str
    checkpoint: Path
    """A single file in the original (LDM) layout, or a diffusers folder."""
    vae: Path | None
    """A better VAE to use instead of the checkpoint's own."""
    tokenizer: Path = TOKENIZER
    prediction: str = ""
    """What the UNet predicts, by diffusers' name. It overrides the files; empty: the files decide."""
    sha256: str = ""
    """The checkpoint's hash if the download already computed it: hashing gigabytes again takes seconds."""


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Names and SHA-256 of the checkpoint and of the VAE that replaces its own ("" if none does), as in infotexts."""

    name: str
    sha256: str
    vae_name: str = ""
    vae_sha256: str = ""
    inpainting: bool = False
    """Whether the checkpoint was made for inpainting."""
    masks_pictures_only: bool = False
    """Whether WebUI writes the conditional mask weight only for passes that start from a picture, as for SDXL."""
    folder: bool = False
    """Whether it is a diffusers folder. Its hash is then the UNet's and cannot be compared with a single file's."""
    vae_folder: bool = False

    @property
    def title(self) -> str:
        """The name with WebUI's short hash, as infotexts name models that take part in a picture."""
        return f"{self.name} [{self.sha256[:SHORT_HASH]}]" if self.sha256 else self.name

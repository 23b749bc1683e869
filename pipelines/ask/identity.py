"""A model as data: which files it is made of, and who it is. No tensors."""

from dataclasses import dataclass
from pathlib import Path

TOKENIZER = Path(__file__).resolve().parents[2] / "weights_script" / "embedded" / "tokenizer"
"""CLIP's vocabulary, which comes with the project."""


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The files of a model to load."""

    name: str
    checkpoint: Path
    """A single file in the original (LDM) layout, or a diffusers folder."""
    vae: Path | None
    """A better VAE to put over the checkpoint's own."""
    tokenizer: Path = TOKENIZER
    prediction: str = ""
    """What the UNet predicts, by diffusers' name, whatever the files say; empty: what they say."""
    sha256: str = ""
    """Of the checkpoint, where it is known from fetching it; reading gigabytes again takes seconds."""


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Names and SHA-256 of the checkpoint in use and of the VAE over it ("" for its own), as infotexts tell them."""

    name: str
    sha256: str
    vae_name: str = ""
    vae_sha256: str = ""
    inpainting: bool = False
    """The checkpoint was made for inpainting."""
    folder: bool = False
    """The checkpoint is a diffusers folder: its hash is its UNet's and cannot be compared with a single file's."""
    vae_folder: bool = False

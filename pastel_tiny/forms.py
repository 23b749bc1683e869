"""Forms of the embedded model as the families of Stable Diffusion 2.x have it: SD 2.x (v), depth and unCLIP.

A form's file in `tests/data/forms` holds what training changed (`pastel_tiny.reform`); the embedded model is the rest.
`compose` writes the whole checkpoint by the published names, as a container loads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipelines.ask.identity import ModelFiles
from pipelines.families.family import Family
from pipelines.families.layouts import UNET_PREFIX, VAE_PREFIX, openclip_layout
from pipelines.families.sd1 import SD1
from pipelines.families.sd2 import DEPTH, SD2, UNCLIP
from pipelines.models.build import count_of
from pipelines.models.checkpoint import map_tensors
from pipelines.models.depth import DEPTH_PREFIX
from pipelines.models.image_prompt import IMAGE_PREFIX
from weights_script.resolve import resolve

UP, DOWN = ".up", ".down"
"""What the names of a low-rank change end in."""
EMBEDDING = 64
"""Width of a picture's embedding."""
MARK = "embedder.model.ln_final.weight"
"""A tensor of unCLIP's embedder that nothing uses, as published files have it."""


@dataclass(frozen=True)
class Form:
    """One form: what it is and what it begins its training as."""

    name: str
    family: Family
    v: bool
    parent: str = ""
    """The form that it is trained from; the embedded model itself if empty."""
    least_noise: int = 0
    """The first time (of 1000) that is trained: what maps and pictures tell is settled while there is more noise."""
    scenes: int = 256
    """How many painted scenes it learns from."""
    whole: tuple[str, ...] = ()
    """Parts of the names of further weights that it learns as a whole."""
    fast: Mapping[str, float] = field(default_factory=dict[str, float])
    """Parts of the names of new weights, which begin knowing nothing, and the highest rates that they learn at."""


FORMS = {
    form.name: form
    for form in (
        Form("sd2", SD2, v=True),
        Form("depth", DEPTH, v=False, least_noise=250, fast={"input_blocks.0.0.weight": 4e-3}),
        # a picture reaches the UNet through the few values of its time: a low rank there is too narrow
        Form(
            "unclip",
            UNCLIP,
            True,
            "sd2",
            least_noise=150,
            scenes=1600,
            whole=("emb_layers.",),
            fast={"label_emb.": 2e-3},
        ),
    )
}


def compose(change: dict[str, Tensor], path: Path, form: Form) -> Path:
    """Write the checkpoint that the embedded model becomes by a change: whole tensors, and up @ down to add to them."""
    tensors = _of_family(map_tensors(resolve(None, None).files.checkpoint), form.family)
    for name, value in change.items():
        if name.endswith(UP):
            own = name.removesuffix(UP)
            added = (value.float() @ change[own + DOWN].float()).view_as(tensors[own])
            tensors[own] = tensors[own].float() + added
        elif not name.endswith(DOWN):
            tensors[name] = value
    halves = {name: tensor.half().contiguous().clone() for name, tensor in tensors.items()}
    # said by the file: what WebUI's probe asks is too far from anything that so small a model ever saw
    save_file(halves, path, {"format": "pt", "modelspec.prediction_type": "v" if form.v else "epsilon"})
    return path


def files_of(checkpoint: Path) -> ModelFiles:
    """A composed checkpoint with the embedded model's better VAE."""
    return ModelFiles(name=checkpoint.stem, checkpoint=checkpoint, vae=resolve(None, None).files.vae)


def _of_family(embedded: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    """The embedded model's tensors by the names and in the shapes of a family."""
    tensors = {name: each for name, each in embedded.items() if name.startswith((UNET_PREFIX, VAE_PREFIX))}
    for name, tensor in tensors.items():
        if name.startswith(UNET_PREFIX) and name.endswith(("proj_in.weight", "proj_out.weight")):
            tensors[name] = tensor.flatten(1)
    own = f"{SD1.texts[0].prefix}text_model."
    text = {name.removeprefix(own): tensor for name, tensor in embedded.items() if name.startswith(own)}
    layers, prefix = count_of(text, "encoder.layers."), family.texts[0].prefix
    tensors |= openclip_layout(layers).tensors_to_ldm(text, prefix)
    if family is DEPTH:  # of MiDaS only a name: a map of one's own is given
        tensors[f"{DEPTH_PREFIX}pretrained.model.cls_token"] = torch.zeros(1, 1, 1)
    if family is UNCLIP:
        tensors[MARK] = torch.ones(1)
    return tensors


def untrained(form: Form, earlier: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a form's training begins with: an earlier change, and new inputs where it has none.

    A depth map is read by chance at first: from zeros it learned nothing in 200 steps.
    """
    embedded = map_tensors(resolve(None, None).files.checkpoint)
    start: dict[str, Tensor] = {}
    if form.family is DEPTH:
        first = f"{UNET_PREFIX}input_blocks.0.0.weight"
        start[first] = torch.cat([embedded[first], 0.15 * torch.randn_like(embedded[first][:, :1])], 1)
    if form.family is UNCLIP:
        assert any(name.startswith(IMAGE_PREFIX) for name in earlier), "the image tower comes first"
        width, inputs = embedded[f"{UNET_PREFIX}time_embed.2.weight"].shape[0], 2 * EMBEDDING
        start[f"{UNET_PREFIX}label_emb.0.0.weight"] = torch.randn(width, inputs) / inputs**0.5
        start[f"{UNET_PREFIX}label_emb.0.2.weight"] = torch.zeros(width, width)
        for layer in (0, 2):
            start[f"{UNET_PREFIX}label_emb.0.{layer}.bias"] = torch.zeros(width)
    return start | earlier

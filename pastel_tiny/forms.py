"""Forms of the embedded model as other families have it: SD 2.x (v), depth, unCLIP, SDXL and its refiner.

    python -m pastel_tiny.forms sdxl refiner --to models

A form's file in `tests/data/forms` holds what training changed (`pastel_tiny.reform`); the embedded model is the rest.
`compose` writes the whole checkpoint by the published names, as a container loads it. So does the command.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.ask.identity import ModelFiles
from pipelines.families.family import Family, TextTower
from pipelines.families.layouts import UNET_PREFIX, VAE_PREFIX, openclip_layout
from pipelines.families.sd1 import SD1
from pipelines.families.sd2 import DEPTH, SD2, UNCLIP
from pipelines.families.sdxl import REFINER, SDXL
from pipelines.models.build import count_of
from pipelines.models.checkpoint import OPENCLIP_PROJECTION, map_tensors
from pipelines.models.depth import DEPTH_PREFIX
from pipelines.models.image_prompt import IMAGE_PREFIX
from pipelines.sampling.prompts import SIZE_WAVES
from weights_script.resolve import resolve

FILES = Path(__file__).parents[1] / "tests" / "data" / "forms"

UP, DOWN = ".up", ".down"
"""What the names of a low-rank change end in."""
EMBEDDING = 64
"""Width of a picture's embedding."""
READERS = (".attn2.to_k.weight", ".attn2.to_v.weight")
"""The layers that read the prompt's tokens."""
LABEL = f"{UNET_PREFIX}label_emb.0."
"""The two layers that read a condition's vector."""
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
    most_noise: int = 1000
    """The first time that is not trained: a refiner only ends what another model began."""
    scenes: int = 256
    """How many painted scenes it learns from."""
    steps: int = 400
    """How many steps it learns for."""
    whole: tuple[str, ...] = ()
    """Parts of the names of further weights that it learns as a whole."""
    fast: Mapping[str, float] = field(default_factory=dict[str, float])
    """Parts of the names of new weights, which begin knowing nothing, and the highest rates that they learn at."""


FORMS = {
    form.name: form
    for form in (
        Form("sd2", SD2, v=True, steps=140),
        Form("depth", DEPTH, v=False, least_noise=250, steps=465, fast={"input_blocks.0.0.weight": 4e-3}),
        # a picture reaches the UNet through the few values of its time: a low rank there is too narrow
        Form(
            "unclip",
            UNCLIP,
            True,
            "sd2",
            least_noise=150,
            scenes=1600,
            steps=4200,
            whole=("emb_layers.",),
            fast={"label_emb.": 2e-3},
        ),
        Form("sdxl", SDXL, v=False, steps=160, fast={"label_emb.": 2e-3}),
        Form("refiner", REFINER, False, "sdxl", most_noise=300, scenes=128, steps=1400, fast={"label_emb.": 2e-3}),
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


def files_of(checkpoint: Path, form: Form) -> ModelFiles:
    """A composed checkpoint with the embedded model's better VAE, which SDXL's forms hold in their own scale."""
    vae = None if _rescaled(form.family) else resolve(None, None).files.vae
    return ModelFiles(name=checkpoint.stem, checkpoint=checkpoint, vae=vae)


def _rescaled(family: Family) -> bool:
    return family.latent_scale != SD1.latent_scale


def _of_family(embedded: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    """The embedded model's tensors by the names and in the shapes of a family."""
    tensors = {name: each for name, each in embedded.items() if name.startswith((UNET_PREFIX, VAE_PREFIX))}
    for name, tensor in tensors.items():
        if name.startswith(UNET_PREFIX) and name.endswith(("proj_in.weight", "proj_out.weight")):
            tensors[name] = tensor.flatten(1)
    own = f"{SD1.texts[0].prefix}text_model."
    text = {name.removeprefix(own): tensor for name, tensor in embedded.items() if name.startswith(own)}
    for tower in family.texts:
        tensors |= _tower(text, tower)
    if _rescaled(family):
        tensors |= _better_vae(SD1.latent_scale / family.latent_scale)
    if family is DEPTH:  # of MiDaS only a name: a map of one's own is given
        tensors[f"{DEPTH_PREFIX}pretrained.model.cls_token"] = torch.zeros(1, 1, 1)
    if family is UNCLIP:
        tensors[MARK] = torch.ones(1)
    return tensors


def _tower(text: dict[str, Tensor], tower: TextTower) -> dict[str, Tensor]:
    """The embedded text encoder by a tower's names. Its pooled text is the end token's output as it is."""
    if not tower.openclip:
        return {f"{tower.prefix}text_model.{name}": tensor for name, tensor in text.items()}
    named = openclip_layout(count_of(text, "encoder.layers.")).tensors_to_ldm(text, tower.prefix)
    pooled = {tower.prefix + OPENCLIP_PROJECTION: torch.eye(EMBEDDING)} if tower.pooled else {}
    return named | pooled


def _better_vae(factor: float) -> dict[str, Tensor]:
    """The better VAE's tensors in a checkpoint, with latents that are larger by a factor."""
    file = resolve(None, None).files.vae
    assert file is not None
    tensors = {f"{VAE_PREFIX}{name}": tensor.float() for name, tensor in map_tensors(file).items()}
    for kind in ("weight", "bias"):
        made = tensors[f"{VAE_PREFIX}quant_conv.{kind}"].clone()
        made[: len(made) // 2] *= factor  # the means; behind them are the logarithms of variances, which are tiny
        tensors[f"{VAE_PREFIX}quant_conv.{kind}"] = made
    tensors[f"{VAE_PREFIX}post_quant_conv.weight"] /= factor
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
    width, inputs = embedded[f"{UNET_PREFIX}time_embed.2.weight"].shape[0], _vector_width(form.family)
    if inputs:
        start[f"{LABEL}0.weight"] = torch.randn(width, inputs) / inputs**0.5
        start[f"{LABEL}2.weight"] = torch.zeros(width, width)
        for layer in (0, 2):
            start[f"{LABEL}{layer}.bias"] = torch.zeros(width)
    start |= earlier
    for name, tensor in {**embedded, **start}.items():
        if name.endswith(READERS):
            start[name] = _as_wide(tensor, EMBEDDING * len(form.family.texts))
        elif name == f"{LABEL}0.weight":
            start[name] = _as_wide(tensor, inputs)
    return start


def _vector_width(family: Family) -> int:
    """How many values a condition's vector has: a picture's and its noise level's, or a text's and the sizes'."""
    if family is UNCLIP:
        return 2 * EMBEDDING
    return EMBEDDING + SIZE_WAVES * len(family.sizes) if family.sizes else 0


def _as_wide(weight: Tensor, width: int) -> Tensor:
    """The weight for an input of another width: its last columns are left out, or further ones are zeros."""
    return torch.nn.functional.pad(weight, (0, width - weight.shape[1]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=tuple(FORMS))
    parser.add_argument("--to", type=Path, required=True, help="folder for the checkpoints")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        change, path = load_file(FILES / f"{name}.safetensors"), options.to / f"pastel-tiny-{name}.safetensors"
        print(compose(change, path, FORMS[name]))


if __name__ == "__main__":
    main()

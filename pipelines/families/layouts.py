"""The two names of every layer: latent diffusion's (LDM), as in single files, and diffusers'.

A layout is one table of pairs, used in both directions: loading, LoRA names, packing and exporting share it. A pair
names a layer or a block; the rest of a tensor's name (`.weight`, `.transformer_blocks.0.attn1.to_q.weight`) is the same
in both. Names here do not have the prefixes that distinguish a network from the others in its file.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

Pair = tuple[str, str]
"""(LDM's name, diffusers' name)"""

LAYERS = 2
"""Residual blocks on each level of the encoder. The decoder has one more."""

RESNET = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)
UNET_START = (
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "class_embedding.linear_1"),
    ("label_emb.0.2", "class_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
)
UNET_MIDDLE = (
    ("middle_block.0", "mid_block.resnets.0"),
    ("middle_block.1", "mid_block.attentions.0"),
    ("middle_block.2", "mid_block.resnets.1"),
)
UNET_END = (("out.0", "conv_norm_out"), ("out.2", "conv_out"))
HINT_BLOCKS = 6
OPENCLIP_ENDS = (
    ("token_embedding", "embeddings.token_embedding"),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("ln_final", "final_layer_norm"),
)
IMAGE_TOWER_ENDS = (
    ("class_embedding", "vision_model.embeddings.class_embedding"),
    ("conv1", "vision_model.embeddings.patch_embedding"),
    ("positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("ln_pre", "vision_model.pre_layrnorm"),
    ("ln_post", "vision_model.post_layernorm"),
    ("proj", "visual_projection.weight"),
)
OPENCLIP_LAYER = (
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
    ("attn.out_proj", "self_attn.out_proj"),
)
VAE_SAME = ("conv1", "conv2", "norm1", "norm2")
VAE_ATTENTION = (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD = re.compile(rf"(?<=\.)({'|'.join(_OLD_ATTENTION)})(?=\.(?:weight|bias)$)")
"""The names that diffusers used for the layers of an autoencoder's attention until 2023."""
ADDED, CLASSES = "add_embedding.", "class_embedding."
"""diffusers' names of the layers for SDXL's vector, and of those for unCLIP's."""
VAE_ENDS = (
    ("norm_out", "conv_norm_out"),
    ("mid.block_1", "mid_block.resnets.0"),
    ("mid.block_2", "mid_block.resnets.1"),
)


class Layout:
    """The names of one network's layers in both layouts."""

    def __init__(
        self,
        pairs: Iterable[Pair],
        convolutions: Iterable[str] = (),
        joined: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    ) -> None:
        """Make a layout of `pairs`, which must be one to one.

        `convolutions` are layers, by diffusers' names, whose weights are 1x1 convolutions (n, m, 1, 1) in LDM and
        matrices (n, m) in diffusers. `joined` are LDM's tensors that hold several of diffusers', one below the other.
        """
        self.pairs = tuple(pairs)
        self._convolutions = {f"{layer}.weight" for layer in convolutions}
        self._joined = joined
        self._to_diffusers = dict(self.pairs)
        self._to_ldm = {diffusers: ldm for ldm, diffusers in self.pairs}

    def to_diffusers(self, name: str) -> str:
        """Return diffusers' name of a layer or tensor that LDM calls `name`. An unknown name is returned unchanged."""
        return _translated(name, self._to_diffusers)

    def to_ldm(self, name: str) -> str:
        """Return LDM's name of a layer or tensor that diffusers calls `name`. An unknown name is returned unchanged."""
        return _translated(name, self._to_ldm)

    def tensors_to_diffusers(self, tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Return the tensors whose LDM names begin with `prefix`, under their diffusers names."""
        made: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if not name.startswith(prefix):
                continue
            own = name.removeprefix(prefix)
            if own in self._joined:
                theirs = self._joined[own]
                made |= zip(theirs, tensor.chunk(len(theirs)), strict=True)
            else:
                one = self.to_diffusers(own)
                made[one] = tensor.flatten(1) if one in self._convolutions and tensor.dim() > 2 else tensor
        return made

    def tensors_to_ldm(self, tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Return all tensors under their LDM names, each preceded by `prefix`."""
        made, parts = {}, {part for theirs in self._joined.values() for part in theirs}
        for name, tensor in tensors.items():
            matrix = name in self._convolutions and tensor.dim() == 2
            if name not in parts:
                made[prefix + self.to_ldm(name)] = tensor[:, :, None, None] if matrix else tensor
        for own, theirs in self._joined.items():
            made[prefix + own] = torch.cat([tensors[part] for part in theirs])
        return made


def _translated(name: str, table: Mapping[str, str]) -> str:
    """Replace the longest leading part of whole words that is in the table."""
    end = len(name)
    while end > 0:
        if name[:end] in table:
            return table[name[:end]] + name[end:]
        end = name.rfind(".", 0, end)
    return name


def vector_layer(name: str) -> str:
    """Return the name here of a layer that reads a condition's vector. diffusers has one for unCLIP's, which is ours,
    and another for SDXL's. Other names are unchanged."""
    return name.replace(ADDED, CLASSES)


def of_today(name: str) -> str:
    """Return diffusers' present name for a layer or tensor of an autoencoder."""
    return _OLD.sub(lambda match: _OLD_ATTENTION[match[0]], name) if ".attentions." in name else name


def unet_layout(down_block_types: Sequence[str]) -> Layout:
    """Return the names of a UNet with these levels, given as in diffusers' configurations."""
    return Layout(_unet([kind.startswith("CrossAttn") for kind in down_block_types]))


def control_layout(levels: int) -> Layout:
    """Return the names of a ControlNet: a UNet's encoder, the layers that read the map, and an output per block."""
    return Layout(_control(levels))


def vae_layout(levels: int) -> Layout:
    """Return the names of an autoencoder. In LDM its attention consists of 1x1 convolutions."""
    matrices = [diffusers for _, diffusers in VAE_ATTENTION if diffusers != "group_norm"]
    halves = [f"{half}.mid_block.attentions.0" for half in ("encoder", "decoder")]
    return Layout(_vae(levels), [f"{half}.{matrix}" for half in halves for matrix in matrices])


def openclip_layout(layers: int) -> Layout:
    """Return the names of an OpenCLIP text model's first layers and those in transformers' CLIP model."""
    return _openclip(layers, OPENCLIP_ENDS, "")


def image_tower_layout(layers: int) -> Layout:
    """Return the names of an OpenCLIP image tower and those in transformers' CLIP model. OpenCLIP's `proj` is the
    transpose of its counterpart."""
    return _openclip(layers, IMAGE_TOWER_ENDS, "vision_model.")


def _openclip(layers: int, ends: Iterable[Pair], prefix: str) -> Layout:
    places = [(f"transformer.resblocks.{layer}", f"{prefix}encoder.layers.{layer}") for layer in range(layers)]
    inside = [(f"{ldm}.{a}", f"{theirs}.{b}") for ldm, theirs in places for a, b in OPENCLIP_LAYER]
    joined = {
        f"{ldm}.attn.in_proj_{kind}": tuple(f"{theirs}.self_attn.{part}_proj.{kind}" for part in "qkv")
        for ldm, theirs in places
        for kind in ("weight", "bias")
    }
    return Layout((*ends, *inside), joined=joined)


def _unet(attends: Sequence[bool]) -> Iterator[Pair]:
    yield from _encoding_half(len(attends))
    for block, level_attends in enumerate(reversed(attends)):
        first = block * (LAYERS + 1)
        for layer in range(LAYERS + 1):
            yield from _resnet(f"output_blocks.{first + layer}.0", f"up_blocks.{block}.resnets.{layer}")
            if level_attends:
                yield f"output_blocks.{first + layer}.1", f"up_blocks.{block}.attentions.{layer}"
        # the last layer of a level also upsamples, after its attention if it has one
        place = 2 if level_attends else 1
        yield f"output_blocks.{first + LAYERS}.{place}.conv", f"up_blocks.{block}.upsamplers.0.conv"
    yield from UNET_END


def _encoding_half(levels: int) -> Iterator[Pair]:
    yield from UNET_START
    for level in range(levels):
        first = 1 + level * (LAYERS + 1)
        for layer in range(LAYERS):
            yield from _resnet(f"input_blocks.{first + layer}.0", f"down_blocks.{level}.resnets.{layer}")
            yield f"input_blocks.{first + layer}.1", f"down_blocks.{level}.attentions.{layer}"
        yield f"input_blocks.{first + LAYERS}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
    for ldm, diffusers in UNET_MIDDLE:
        if "resnets" in diffusers:
            yield from _resnet(ldm, diffusers)
        else:
            yield ldm, diffusers


def _resnet(ldm: str, diffusers: str) -> Iterator[Pair]:
    for inside, theirs in RESNET:
        yield f"{ldm}.{inside}", f"{diffusers}.{theirs}"


def _control(levels: int) -> Iterator[Pair]:
    yield from _encoding_half(levels)
    yield "input_hint_block.0", "controlnet_cond_embedding.conv_in"
    for block in range(HINT_BLOCKS):
        yield f"input_hint_block.{2 * block + 2}", f"controlnet_cond_embedding.blocks.{block}"
    yield f"input_hint_block.{2 * HINT_BLOCKS + 2}", "controlnet_cond_embedding.conv_out"
    for block in range(levels * (LAYERS + 1)):
        yield f"zero_convs.{block}.0", f"controlnet_down_blocks.{block}"
    yield "middle_block_out.0", "controlnet_mid_block"


def _vae(levels: int) -> Iterator[Pair]:
    for half in ("encoder", "decoder"):
        for ldm, diffusers in VAE_ENDS:
            yield f"{half}.{ldm}", f"{half}.{diffusers}"
        for ldm, diffusers in VAE_ATTENTION:
            yield f"{half}.mid.attn_1.{ldm}", f"{half}.mid_block.attentions.0.{diffusers}"
    for level in range(levels):
        up = levels - 1 - level  # LDM numbers the decoder's levels from the largest size, diffusers from the smallest
        yield from _vae_level(f"encoder.down.{level}", f"encoder.down_blocks.{level}", LAYERS)
        yield from _vae_level(f"decoder.up.{up}", f"decoder.up_blocks.{level}", LAYERS + 1)
        yield f"encoder.down.{level}.downsample.conv", f"encoder.down_blocks.{level}.downsamplers.0.conv"
        yield f"decoder.up.{up}.upsample.conv", f"decoder.up_blocks.{level}.upsamplers.0.conv"


def _vae_level(ldm: str, diffusers: str, layers: int) -> Iterator[Pair]:
    for layer in range(layers):
        yield f"{ldm}.block.{layer}.nin_shortcut", f"{diffusers}.resnets.{layer}.conv_shortcut"
        for inside in VAE_SAME:
            yield f"{ldm}.block.{layer}.{inside}", f"{diffusers}.resnets.{layer}.{inside}"

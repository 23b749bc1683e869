"""IP-Adapter files -> networks that let cross-attention see a picture, too (Ye et al. 2023,
https://arxiv.org/abs/2308.06721)."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

from pipelines.errors import ModelError
from pipelines.families.family import Family
from pipelines.models.image_encoder import ImageEncoder
from pipelines.models.network import built_of, fill
from pipelines.runtime.device import Device
from pipelines.runtime.unet_call import cross_attentions

TENSORS_MAX = 1000
"""Limit for an IP-Adapter's file. More tensors would only cost time."""
PROJECTION = "image_proj."
HEAD = 64
"""The width of an attention head in the plus form. The weights do not show this number."""
PLUS_NAMES = (
    (r"^layers\.(\d+)\.0\.norm1\.", r"layers.\1.ln0."),
    (r"^layers\.(\d+)\.0\.norm2\.", r"layers.\1.ln1."),
    (r"^layers\.(\d+)\.0\.to_out\.", r"layers.\1.attn.to_out.0."),
    (r"^layers\.(\d+)\.0\.(to_[qkv])\.", r"layers.\1.attn.\2."),
    (r"^layers\.(\d+)\.1\.0\.", r"layers.\1.ff.0."),
    (r"^layers\.(\d+)\.1\.1\.", r"layers.\1.ff.1.net.0.proj."),
    (r"^layers\.(\d+)\.1\.3\.", r"layers.\1.ff.1.net.2."),
)
"""The authors' names of the plus form's layers -> diffusers'."""


class IPAdapter(nn.Module):
    """An image prompt: the projection of a picture to tokens, and keys and values for each cross-attention."""

    def __init__(self, projection: nn.Module, attentions: list[Attention]) -> None:
        """Create layers for the UNet's cross-attentions, given in order."""
        super().__init__()
        self.projection = projection
        shapes = [(each.to_k.in_features, each.to_k.out_features) for each in attentions]
        self.to_k = nn.ModuleList(nn.Linear(*shape, bias=False) for shape in shapes)
        self.to_v = nn.ModuleList(nn.Linear(*shape, bias=False) for shape in shapes)

    def check_encoder(self, encoder: ImageEncoder) -> None:
        """Raise ModelError for an image encoder whose output has another width than the adapter's input."""
        config = encoder.network.config
        plus = isinstance(self.projection, IPAdapterPlusImageProjection)
        made = config.hidden_size if plus else config.projection_dim
        layer = self.projection.get_submodule("proj_in" if plus else "image_embeds")
        assert isinstance(layer, nn.Linear)
        if (wanted := layer.in_features) != made:
            raise ModelError(f"it was made for an image encoder of width {wanted}, but the one here has {made}.")

    def tokens(self, encoder: ImageEncoder, picture: Image.Image) -> Tensor:
        """Return tokens (2, n, width): those of no picture, for the negative prompt, and those of an RGB picture."""
        plus = isinstance(self.projection, IPAdapterPlusImageProjection)
        look = encoder.patches if plus else encoder.embedding
        tokens: Tensor = self.projection(torch.cat([look(None), look(picture)]))
        return tokens


def build_ip_adapter(
    path: Path, tensors: Mapping[str, Tensor], unet: UNet2DConditionModel, device: Device, family: Family
) -> IPAdapter:
    """Build the IP-Adapter from a file's tensors, which have their authors' names. Raises ModelError."""
    if len(tensors) > TENSORS_MAX:
        raise ModelError(f"{path}: holds {len(tensors)} tensors, but an IP-Adapter has at most 100.")
    attentions = cross_attentions(unet)
    with built_of(path, "IP-Adapter", tensors), torch.device("meta"):
        named = _projection_tensors(tensors)
        network = IPAdapter(_projection(named), attentions)
    for place in range(len(attentions)):
        for part in ("to_k", "to_v"):  # the files count all attentions, and every second one is a cross-attention
            theirs = f"ip_adapter.{2 * place + 1}.{part}_ip.weight"
            if theirs in tensors:
                named[f"{part}.{place}.weight"] = tensors[theirs]
    return fill(path, network, named, device).eval()


def _projection_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the projection's tensors by diffusers' names."""
    named = {}
    for name, tensor in tensors.items():
        if not name.startswith(PROJECTION):
            continue
        own = name.removeprefix(PROJECTION)
        if ".to_kv." in own:
            for half, part in zip(("to_k", "to_v"), tensor.chunk(2), strict=True):
                named[f"projection.{_spelled(own.replace('to_kv', half))}"] = part
        else:
            named[f"projection.{_spelled(own)}"] = tensor
    return named


def _spelled(name: str) -> str:
    for pattern, replacement in PLUS_NAMES:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"^proj\.", "image_embeds.", name)


def _projection(tensors: Mapping[str, Tensor]) -> nn.Module:
    """Create a network for the tensors' shapes. Raises KeyError if one is missing."""
    if "projection.latents" not in tensors:
        width = len(tensors["projection.norm.weight"])
        wide, embedding = tensors["projection.image_embeds.weight"].shape
        return ImageProjection(embedding, width, wide // width)
    _, queries, hidden = tensors["projection.latents"].shape
    inner = len(tensors["projection.layers.0.ff.1.net.0.proj.weight"])
    return IPAdapterPlusImageProjection(
        embed_dims=tensors["projection.proj_in.weight"].shape[1],
        output_dims=len(tensors["projection.proj_out.weight"]),
        hidden_dims=hidden,
        depth=len({name for name in tensors if name.endswith(".attn.to_q.weight")}),
        dim_head=HEAD,
        heads=len(tensors["projection.layers.0.attn.to_q.weight"]) // HEAD,
        num_queries=queries,
        ffn_ratio=inner / hidden,
    )

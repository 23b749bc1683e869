"""LoRA and its relatives: small files whose products are added to a model's weights, and taken away again.

W + up @ down * alpha / rank * multiplier (Hu et al. 2021, arXiv:2106.09685), in float32; LoHa and LoKr as in the
LyCORIS paper (Yeh et al. 2023, arXiv:2309.14859). Names are Kohya's, diffusers' or PEFT's; layers go by LDM's or
diffusers' names.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from pipelines.ask.networks import ExtraFile, LoraTag
from pipelines.errors import ModelError, in_one_line
from pipelines.families.family import TextTower
from pipelines.families.layouts import unet_layout
from pipelines.models.checkpoint import check_finite, check_plain, is_safetensors, kind_of, map_tensors

RANK_MAX = 4096
"""More would only cost time: no layer of Stable Diffusion 1.x has a larger one."""

STEP_MAX = 1 << 24
"""Values: a layer of 1280 to 1280 channels and 3 x 3 pixels has 14.7 million."""

Parts = Mapping[str, Tensor]
_SPELLINGS = (
    (re.compile(r"^base_model\.model\."), ""),
    (re.compile(r"\.processor\."), "."),
    (re.compile(r"\.to_(q|k|v|out)_lora\."), r".to_\1.lora."),
    (re.compile(r"\.to_out\.lora"), ".to_out.0.lora"),
    (re.compile(r"\.lora(?:_linear_layer)?\.(up|down)\."), r".lora_\1."),
    (re.compile(r"\.lora_A(?:\.default)?\."), ".lora_down."),
    (re.compile(r"\.lora_B(?:\.default)?\."), ".lora_up."),
)
"""Other programs' names -> Kohya's."""
_NAME = re.compile(r"(.+?)\.(lora_(?:up|down|mid)\.weight|alpha|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))")
UNET_PREFIXES = ("lora_unet_", "unet_", "")
"""What the names of the UNet's layers begin with, dots written as underscores."""
_OTHER_FAMILIES = re.compile(r"^(lora_te[123]_|text_encoder_[23]\.|(lora_)?transformer)")


@dataclass(frozen=True)
class LoraUse:
    """A LoRA with the multipliers of a prompt's tag."""

    file: ExtraFile
    tag: LoraTag


@dataclass(frozen=True)
class _Layer:
    """A module of the model that a LoRA may change."""

    module: nn.Module
    of_text: bool

    @property
    def weight(self) -> Tensor:
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight


class Adapters:
    """The LoRAs in the weights of one model.

    They are merged in place, so compiled networks and CUDA graphs keep working. The host's memory keeps the weights
    that are changed as they were; they are restored bit for bit before anything else is merged. However a prediction
    ends, the next one starts with exactly what it asks for; if that is the same set, nothing is done.
    """

    def __init__(self, unet: UNet2DConditionModel, text: nn.Module, tower: TextTower) -> None:
        """UNet layers go by diffusers' names and by LDM's, text layers by those of the family's text tower."""
        layout = unet_layout(unet.config.down_block_types)
        self._layers: dict[str, _Layer] = {}
        for name, module in _adaptable(unet):
            layer = _Layer(module, of_text=False)
            self._name(layer, UNET_PREFIXES, name)
            self._name(layer, UNET_PREFIXES, layout.to_ldm(name))
        for name, module in _adaptable(text):
            self._name(_Layer(module, of_text=True), tower.lora_prefixes, name)
        self._originals: list[tuple[_Layer, Tensor]] = []
        self._merged: tuple[LoraUse, ...] | None = ()

    def _name(self, layer: _Layer, prefixes: Sequence[str], name: str) -> None:
        """Let LoRA files call the layer by this name after any of the prefixes."""
        for prefix in prefixes:
            self._layers[prefix + name.replace(".", "_")] = layer

    def apply(self, uses: Sequence[LoraUse]) -> None:
        """Have exactly these in the weights.

        Raises ModelError, with the weights untouched, for a file that is not a LoRA of this model.
        """
        wanted = tuple(use for use in uses if use.tag.acts)
        if wanted == self._merged:
            return
        read = [(use.tag, read_lora(use.file, self._layers)) for use in wanted]
        self._merged = None  # until all is done, so that the next call undoes an interrupted one
        for layer, original in self._originals:
            layer.weight.copy_(original)
        self._originals.clear()
        for layer in dict.fromkeys(layer for _, found in read for layer in found):
            self._merge(layer, [(tag, found[layer]) for tag, found in read if layer in found])
        self._merged = wanted

    def _merge(self, layer: _Layer, added: list[tuple[LoraTag, Parts]]) -> None:
        self._originals.append((layer, layer.weight.to("cpu", copy=True)))
        merged = layer.weight.float()
        for tag, parts in added:
            there = {name: part if name == "alpha" else part.to(merged.device).float() for name, part in parts.items()}
            multiplier = tag.te if layer.of_text else tag.unet
            merged = merged + change(there, layer.weight.shape, tag.rank) * multiplier
        layer.weight.copy_(merged)


def _adaptable(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers that LoRAs may change, with their names."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield name, module


def read_lora(file: ExtraFile, layers: Mapping[str, _Layer]) -> dict[_Layer, Parts]:
    """What a file adds to which layers. Raises ModelError, which names the input or the file, and the reason."""
    with file.blamed():
        return _read(file.path, layers)


def _read(path: Path, layers: Mapping[str, _Layer]) -> dict[_Layer, Parts]:
    if not is_safetensors(path):
        raise ModelError(f"{path}: a pickle. LoRAs are read as .safetensors only: give that version of it.")
    tensors = map_tensors(path)
    check_plain(path, tensors)
    found: dict[_Layer, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(_spelled(name))
        layer = layers.get(match[1].replace(".", "_")) if match else None
        if match is None or layer is None:
            raise ModelError(f"{path}: {_what_else(name, tensors)}")
        if not tensor.is_floating_point():
            raise ModelError(f"{path}: {name} is {tensor.dtype}: a quantised file. Give it in fp16 or fp32.")
        found.setdefault(layer, {})[match[2]] = tensor
    if not found:
        raise ModelError(f"{path}: holds no tensors. Give a LoRA made for Stable Diffusion 1.x.")
    for layer, parts in found.items():
        _check_fits(path, layer, parts)
    check_finite(path, tensors)
    return dict(found)


def _spelled(name: str) -> str:
    for spelling, ours in _SPELLINGS:
        name = spelling.sub(ours, name)
    return name


def _what_else(name: str, names: Mapping[str, Tensor]) -> str:
    kind = kind_of(names)
    if kind and kind.what != "a LoRA":
        return f"{kind.what}, and no LoRA. Give a LoRA made for Stable Diffusion 1.x."
    if _OTHER_FAMILIES.match(name):
        return f"made for another family (SDXL, SD 3, Flux; it has {name}). Give one made for Stable Diffusion 1.x."
    return f"{name} is no part of a LoRA, LoHa or LoKr for Stable Diffusion 1.x that is known here. Give another form."


def _check_fits(path: Path, layer: _Layer, parts: Parts) -> None:
    """Do the sum on shapes alone: what does not fit is known before any memory is taken."""
    shapes = {name: torch.empty(part.shape, device="meta") for name, part in parts.items() if name != "alpha"}
    try:
        if parts.get("alpha", torch.ones(())).numel() != 1:
            raise ValueError("alpha is no number")
        change(shapes, layer.weight.shape, None)
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        told = ", ".join(f"{name} {tuple(part.shape)}" for name, part in parts.items())
        raise ModelError(
            f"{path}: {told} does not fit a weight of shape {tuple(layer.weight.shape)} ({in_one_line(error)}). "
            "It was made for another model, or is broken."
        ) from error


def change(parts: Parts, shape: torch.Size, rank: int | None) -> Tensor:
    """What the parts add to a weight of this shape at multiplier 1; of a LoRA only the first `rank` ranks."""
    method = next((method for name, method in _METHODS.items() if name in parts), None)
    if method is None:
        raise ValueError("parts are missing")
    product, own_rank = method(parts, rank)
    if product.shape[0] != shape[0] or product.numel() != shape.numel():
        raise ValueError(f"it makes {tuple(product.shape)}")
    if own_rank is not None and own_rank > RANK_MAX:
        raise ValueError(f"of rank {own_rank}; at most {RANK_MAX}")
    scale = float(parts["alpha"]) / own_rank if "alpha" in parts and own_rank else 1.0
    return product.reshape(shape) * scale


def _lora(parts: Parts, rank: int | None) -> tuple[Tensor, int]:
    up, down = parts["lora_up.weight"].flatten(1), parts["lora_down.weight"].flatten(1)
    if "lora_mid.weight" in parts:
        return _around_core(parts["lora_mid.weight"], up.T, down), len(down)
    return up[:, :rank] @ down[:rank], len(down)


def _loha(parts: Parts, rank: int | None) -> tuple[Tensor, int]:
    def factor(number: int) -> Tensor:
        a, b = parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"]
        core = parts.get(f"hada_t{number}")
        return a @ b if core is None else _around_core(core, a, b)

    return factor(1) * factor(2), len(parts["hada_w1_b"])


def _lokr(parts: Parts, rank: int | None) -> tuple[Tensor, int | None]:
    ranks = [len(parts[name]) for name in ("lokr_w2_b", "lokr_w1_b") if name in parts]

    def factor(name: str) -> Tensor:
        if name in parts:
            return parts[name]
        a, b, core = parts[f"{name}_a"], parts[f"{name}_b"], parts.get("lokr_t2")
        if core is not None and name == "lokr_w2":
            return _around_core(core, a, b)
        return a @ b.flatten(1)

    first, second = factor("lokr_w1"), factor("lokr_w2")
    return torch.kron(first[(...,) + (None,) * (second.dim() - 2)], second), next(iter(ranks), None)


def _around_core(core: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """core (i, j, k, l), first (i, p), second (j, r) -> (p, r, k, l).

    The step between is (j, k, l, p), and a small file can make it huge. Raises ValueError for one that is.
    """
    between = core.numel() // max(1, len(first)) * first.shape[1]
    if between > STEP_MAX:
        raise ValueError(f"its product takes a step of {between} values")
    return torch.einsum("ijkl,ip,jr->prkl", core, first, second)


_METHODS: Mapping[str, Callable[[Parts, int | None], tuple[Tensor, int | None]]] = {
    "lora_up.weight": _lora,
    "hada_w1_a": _loha,
    "lokr_w1": _lokr,
    "lokr_w1_a": _lokr,
}
"""Method by the part that shows it."""

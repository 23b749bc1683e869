"""LoRA and related methods: small files whose differences are added to a model's weights and removed again.

Tensors may have Kohya's, diffusers' or PEFT's names, and layers LDM's or diffusers'. The arithmetic is in `changes.py`.
As in WebUI, unknown tensors are skipped and reported.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from pipelines.ask.networks import ExtraFile, LoraTag
from pipelines.errors import ModelError, in_one_line
from pipelines.families.family import Family
from pipelines.families.fitting import check_made_for
from pipelines.families.layouts import unet_layout
from pipelines.models.changes import METHODS, PART, SCALARS, SIDES, Parts, bias_change, change, changes_weight
from pipelines.models.checkpoint import check_finite, check_plain, kind_of, map_tensors
from pipelines.models.embeddings import BUNDLED

_SPELLINGS = (
    (re.compile(r"(?:^|(?<=\.))base_model\.model\."), ""),
    (re.compile(r"\.processor\."), "."),
    (re.compile(r"\.to_(q|k|v|out)_lora\."), r".to_\1.lora."),
    (re.compile(r"\.to_out\.lora"), ".to_out.0.lora"),
    (re.compile(r"\.lora(?:_linear_layer)?\.(up|down)\."), r".lora_\1."),
    (re.compile(r"\.self_attn\.to_(q|k|v)\."), r".self_attn.\1_proj."),
    (re.compile(r"\.self_attn\.to_out\.0\."), ".self_attn.out_proj."),
    (re.compile(r"\.default\.weight$"), ".weight"),
    (re.compile(r"\.lora_A\."), ".lora_down."),
    (re.compile(r"\.lora_B\."), ".lora_up."),
    (re.compile(r"\.lora_magnitude_vector(?:\.weight)?$"), ".magnitude"),
)
"""Other programs' names -> Kohya's."""
_NAME = re.compile(rf"(.+?)\.({PART})")
UNET_PREFIXES = ("lora_unet_", "lycoris_", "unet_", "diffusion_model_", "model_diffusion_model_", "")
"""Prefixes of the UNet's layers, with dots written as underscores."""
_OTHER_FAMILIES = re.compile(r"^(lora_te3_|text_encoder_3\.|(lora_)?transformer)")
ATTENTION_LAYERS = 4
"""Layers of an attention: queries, keys, values and output."""
UNKNOWN = "are unknown and left out"
PARTIAL = "are left out, as in WebUI, because this text encoder's attentions change as a whole (q, k, v and out)"
LEFT_OVER_SHOWN = 3
"""How many names of tensors that are left out are reported."""


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
    joined: str = ""
    """The block whose attention it belongs to, if OpenCLIP stores that attention as one layer."""

    @property
    def weight(self) -> Tensor:
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        bias = self.module.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias


@dataclass(frozen=True)
class LoraContent:
    """The changes in a file, and what in it is not applied."""

    changes: Mapping[_Layer, Parts]
    left_over: str
    """What is not applied, as a sentence; empty if everything is."""


class Adapters:
    """The LoRAs in the weights of one model.

    They are merged in place, so that compiled networks and CUDA graphs keep working. The original values of changed
    weights are kept in the host's memory and restored bit for bit before anything else is merged. However a prediction
    ends, the next one starts with exactly the LoRAs that it needs; if they are the same, nothing is done.
    """

    def __init__(self, unet: UNet2DConditionModel, texts: Sequence[nn.Module], family: Family) -> None:
        """Collect the layers: the UNet's by diffusers' and LDM's names, text layers by those of the family's towers."""
        layout = unet_layout(unet.config.down_block_types)
        self._layers: dict[str, _Layer] = {}
        for name, module in _adaptable(unet):
            layer = _Layer(module, of_text=False)
            self._name(layer, UNET_PREFIXES, name)
            self._name(layer, UNET_PREFIXES, layout.to_ldm(name))
        for tower, text in zip(family.texts, texts, strict=True):
            for name, module in _adaptable(text):
                block, _, own = name.rpartition(".self_attn.")
                joined = block if tower.openclip and own else ""
                self._name(_Layer(module, of_text=True, joined=joined), tower.lora_prefixes, name)
        self._family = family
        self._originals: list[tuple[Tensor, Tensor]] = []
        self._merged: tuple[LoraUse, ...] | None = ()
        self.left_over: tuple[str, ...] = ()
        """Sentences about what is not applied of the merged files, one for each file."""

    def _name(self, layer: _Layer, prefixes: Sequence[str], name: str) -> None:
        """Let LoRA files call the layer by this name after any of the prefixes."""
        for prefix in prefixes:
            self._layers[prefix + name.replace(".", "_")] = layer

    def apply(self, uses: Sequence[LoraUse]) -> None:
        """Merge exactly these LoRAs into the weights.

        Raises ModelError, with the weights untouched, for a file that is not a LoRA of this model.
        """
        wanted = tuple(use for use in uses if use.tag.acts)
        if wanted == self._merged:
            return
        read = [(use.tag, read_lora(use.file, self._layers, self._family)) for use in wanted]
        self._merged = None  # until everything is done, so that the next call undoes an interrupted one
        for parameter, original in self._originals:
            parameter.copy_(original)
        self._originals.clear()
        for layer in dict.fromkeys(layer for _, content in read for layer in content.changes):
            self._merge(layer, [(tag, content.changes[layer]) for tag, content in read if layer in content.changes])
        self.left_over = tuple(dict.fromkeys(content.left_over for _, content in read if content.left_over))
        self._merged = wanted

    def _merge(self, layer: _Layer, added: list[tuple[LoraTag, Parts]]) -> None:
        """Change one layer. As in WebUI, each method sees the weight as the previous files have changed it."""
        weight = self._kept(layer.weight)
        bias = None if layer.bias is None else self._kept(layer.bias)
        for tag, parts in added:
            there = {name: part if name in SCALARS else part.to(weight) for name, part in parts.items()}
            multiplier = tag.te if layer.of_text else tag.unet
            if changes_weight(parts):
                weight = weight + change(there, weight, tag.rank) * multiplier
            more = bias_change(there)
            if more is not None and bias is not None:
                bias = bias + more.reshape(bias.shape) * multiplier
        layer.weight.copy_(weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)

    def _kept(self, parameter: Tensor) -> Tensor:
        """Return the parameter in float32, and keep a copy of it so that it can be restored."""
        self._originals.append((parameter, parameter.to("cpu", copy=True)))
        return parameter.float()


def _adaptable(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers that LoRAs and their relatives may change, with their names."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm) and module.weight is not None:
            yield name, module


def read_lora(file: ExtraFile, layers: Mapping[str, _Layer], family: Family) -> LoraContent:
    """Read a file's changes to the layers. Raises ModelError, which names the input or the file."""
    with file.blamed():
        return _read(file, layers, family)


def _read(file: ExtraFile, layers: Mapping[str, _Layer], family: Family) -> LoraContent:
    path, tensors = file.path, map_tensors(file.path)
    if not tensors:
        raise ModelError(f"{path}: holds no tensors. Give a LoRA made for {family.name}.")
    _check_family(path, tensors, family)
    check_plain(path, tensors)
    found, left = _sorted(tensors, layers)
    if not found and not any(name.startswith(BUNDLED) for name in tensors):
        raise ModelError(f"{path}: {_what_else(next(iter(tensors)), tensors, family)}")
    partial = [name for layer in _incomplete(found) for name in found.pop(layer).values()]
    changes = {layer: {part: tensors[name] for part, name in names.items()} for layer, names in found.items()}
    for layer, parts in changes.items():
        _check_fits(path, layer, parts)
    check_finite(path, {name: tensors[name] for names in found.values() for name in names.values()})
    return LoraContent(changes, _told(file, left, partial, len(tensors)))


def _sorted(names: Iterable[str], layers: Mapping[str, _Layer]) -> tuple[dict[_Layer, dict[str, str]], list[str]]:
    """Return the tensors' names by layer and part, and the names of those that are not used."""
    found: dict[_Layer, dict[str, str]] = {}
    left: list[str] = []
    for name in names:
        match = _NAME.fullmatch(_spelled(name))
        layer = layers.get(match[1].replace(".", "_")) if match else None
        if match and layer:
            found.setdefault(layer, {})[match[2]] = name
        elif not name.startswith(BUNDLED):
            left.append(name)
    for layer, parts in list(found.items()):
        if not _acts(layer, parts):
            left += found.pop(layer).values()
        for part in [part for part in METHODS if part in parts][1:]:  # only one method is applied
            left.append(parts.pop(part))
    return found, left


def _incomplete(found: Iterable[_Layer]) -> list[_Layer]:
    """Return layers of OpenCLIP attentions if the file does not change all four. WebUI leaves them out."""
    parts = Counter(layer.joined for layer in found if layer.joined)
    return [layer for layer in found if layer.joined and parts[layer.joined] < ATTENTION_LAYERS]


def _acts(layer: _Layer, parts: Mapping[str, str]) -> bool:
    """Return whether these parts change the layer, or would if the file were complete."""
    if "b_norm" in parts or "diff_b" in parts:
        return layer.bias is not None or len(parts) > 1
    return "on_input" in parts or any(name not in SIDES for name in parts)


def _told(file: ExtraFile, unknown: Sequence[str], partial: Sequence[str], count: int) -> str:
    """Return a sentence about the tensors of a file that are not applied; empty if all of its `count` are."""
    reasons = (UNKNOWN, unknown), (PARTIAL, partial)
    told = [f"{len(names)} of its {count} tensors {reason}: {_some(names)}" for reason, names in reasons if names]
    return f"{file.origin or file.path.name}: {'; '.join(told)}" if told else ""


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - LEFT_OVER_SHOWN} more" if len(names) > LEFT_OVER_SHOWN else ""
    return f"{', '.join(names[:LEFT_OVER_SHOWN])}{more}"


def _spelled(name: str) -> str:
    for spelling, ours in _SPELLINGS:
        name = spelling.sub(ours, name)
    return name


def _check_family(path: Path, tensors: Mapping[str, Tensor], family: Family) -> None:
    """Raise ModelError for a file whose names or shapes show that it was made for another family."""
    for name in tensors:
        if _OTHER_FAMILIES.match(name):
            raise ModelError(
                f"{path}: made for SD 3, Flux or the like (it has {name}), but the model here is {family.name}. "
                f"Give one made for {family.name}."
            )
    check_made_for(path, tensors, family)


def _what_else(name: str, names: Mapping[str, Tensor], family: Family) -> str:
    kind = kind_of(names)
    if kind and kind.what != "a LoRA":
        return f"{kind.what}, not a LoRA. Give a LoRA made for {family.name}."
    return (
        f"all its tensors are unknown ({name} and so on). LoRA, DoRA, LoHa, LoKr, GLoRA, IA3, OFT and full differences "
        f"are supported, for the layers of {family.name}. Give another kind of file."
    )


def _check_fits(path: Path, layer: _Layer, parts: Parts) -> None:
    """Do the arithmetic on shapes alone, to raise ModelError for a misfit before any memory is used."""
    for name, part in parts.items():
        if name not in SCALARS and not part.is_floating_point():
            raise ModelError(f"{path}: {name} is {part.dtype}: a quantised file. Give it in fp16 or fp32.")
    scalars = {name: part for name, part in parts.items() if name in SCALARS}
    shapes = {name: torch.empty(part.shape, device="meta") for name, part in parts.items() if name not in SCALARS}
    try:
        for name, scalar in scalars.items():
            if scalar.numel() != 1:
                raise ValueError(f"{name} is not a single number")
        if changes_weight(parts) or bias_change(shapes) is None:
            change({**shapes, **scalars}, torch.empty(layer.weight.shape, device="meta"), None)
        more = bias_change(shapes)
        if more is not None and layer.bias is not None:
            more.reshape(layer.bias.shape)
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        told = ", ".join(f"{name} {tuple(part.shape)}" for name, part in parts.items())
        raise ModelError(
            f"{path}: {told} does not fit a weight of shape {tuple(layer.weight.shape)} ({in_one_line(error)}). "
            "It was made for another model, or is broken."
        ) from error

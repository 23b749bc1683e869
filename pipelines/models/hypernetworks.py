"""Hypernetworks: small networks that change the inputs of attention's keys and values.

    k = to_k(h_k(context)), v = to_v(h_v(context)), each h(x) = x + network(x) * multiplier

A file has a pair of networks for each context width that it changes: in Stable Diffusion 1.x 768 for the prompt and
320, 640 and 1280 for self-attention. The format is that of WebUI's training (its pull requests 3086, 3199, 3414 and
3698): fully connected layers, each followed by an activation and perhaps a norm. Dropout is only used in training.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.ask.networks import ExtraFile
from pipelines.errors import ModelError
from pipelines.files.headers import Stored
from pipelines.models.checkpoint import check_finite, check_plain, content_of, is_safetensors, mapped

LAYERS_MAX = 64
"""Limit for one network. Those that people train have two to five layers."""
_LAYER = re.compile(r"linear\.?(\d{1,3})\.(weight|bias)")
"""`linear.0.weight`, or in the first files `linear1.weight`."""
_PAIR = 2

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: Mapping[str, Activation] = {
    "linear": lambda x: x,
    "swish": F.hardswish,  # WebUI's name for it
    "relu": F.relu,
    "leakyrelu": F.leaky_relu,
    "elu": F.elu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "celu": F.celu,
    "gelu": F.gelu,
    "hardshrink": F.hardshrink,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "relu6": F.relu6,
    "selu": F.selu,
    "silu": F.silu,
    "softplus": F.softplus,
    "softshrink": F.softshrink,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
}
"""Activations by their names in files, which are torch's in lower case. Files cannot use those with weights."""


@dataclass(frozen=True)
class HypernetworkUse:
    """A hypernetwork with the multiplier of a prompt's tag."""

    file: ExtraFile
    multiplier: float


@dataclass(frozen=True)
class Perceptron:
    """One of a file's networks: fully connected layers and norms, in their order."""

    layers: tuple[tuple[Tensor, Tensor | None], ...]
    """Weight and bias of each layer. The weight of a norm has one dimension."""
    activation: Activation
    activates_output: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Return the network's output (rows, tokens, width) for a context of the same shape."""
        dense_left = sum(weight.dim() == 2 for weight, _ in self.layers)
        for weight, bias in self.layers:
            if weight.dim() == 1:
                x = F.layer_norm(x, weight.shape, weight, bias)
                continue
            x = F.linear(x, weight, bias)
            dense_left -= 1
            x = self.activation(x) if dense_left or self.activates_output else x
        return x


Hypernetwork = Mapping[int, tuple[Perceptron, Perceptron]]
"""The networks for keys and for values, by context width."""


@contextmanager
def hypernetworks_in(
    unet: UNet2DConditionModel, uses: Sequence[HypernetworkUse], place: torch.device | None = None
) -> Iterator[None]:
    """Apply these to the UNet's attention, one after the other, while the context lasts.

    `place` is the device on which the UNet draws, if it may be elsewhere now. Raises ModelError for a file that is
    not a hypernetwork or changes nothing in this UNet.
    """
    with ExitStack() as hooks:
        for use in uses:
            found = False
            networks = read_hypernetwork(use.file, place or unet.device, unet.dtype)
            for layer, network in _changed_layers(unet, networks):
                hooks.callback(layer.register_forward_pre_hook(_changing(network, use.multiplier)).remove)
                found = True
            if not found:
                with use.file.blamed():
                    widths = ", ".join(map(str, networks))
                    raise ModelError(f"{use.file.path}: a hypernetwork for contexts of width {widths}. {_OTHER}")
        yield


_OTHER = "It was made for another family of models."


def _changed_layers(unet: UNet2DConditionModel, networks: Hypernetwork) -> Iterator[tuple[nn.Module, Perceptron]]:
    for attention in unet.modules():
        if isinstance(attention, Attention) and attention.to_k.in_features in networks:
            yield from zip((attention.to_k, attention.to_v), networks[attention.to_k.in_features], strict=True)


def _changing(network: Perceptron, multiplier: float) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    """Return a hook that changes a layer's input."""

    def change(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (context,) = inputs
        return (context.add(network(context), alpha=multiplier),)

    return change


@lru_cache(4)
def read_hypernetwork(file: ExtraFile, device: torch.device, dtype: torch.dtype) -> Hypernetwork:
    """Read a file's networks. Raises ModelError, which names the input or the file, and the reason."""
    with file.blamed():
        content = {} if is_safetensors(file.path) else content_of(file.path)
        if not is_hypernetwork(content):
            raise ModelError(f"{file.path}: not a hypernetwork. Give a .pt file from WebUI's hypernetwork training.")
        name = str(content.get("activation_func") or "linear").lower()
        if name not in ACTIVATIONS:
            raise ModelError(f"{file.path}: its activation is {name!r}. Known are {', '.join(ACTIVATIONS)}.")
        output = bool(content.get("activate_output", True))  # files older than this option do it
        networks = {}
        for width, pair in _pairs(content).items():
            layers = (_layers(file, width, state) for state in pair)
            key, value = (Perceptron(_on(device, dtype, each), ACTIVATIONS[name], output) for each in layers)
            networks[width] = key, value
        return networks


def is_hypernetwork(content: Any) -> bool:
    """Return whether the content of a pickle is a hypernetwork: pairs of networks with whole numbers as keys."""
    return isinstance(content, Mapping) and bool(_pairs(content))


def _pairs(content: Mapping[Any, Any]) -> dict[int, Sequence[Mapping[Any, Any]]]:
    found = {}
    for width, pair in content.items():
        of_networks = isinstance(pair, list | tuple) and all(isinstance(state, Mapping) for state in pair)
        if isinstance(width, int) and of_networks and len(pair) == _PAIR:
            found[width] = pair
    return found


Layers = list[tuple[Tensor, Tensor | None]]


def _layers(file: ExtraFile, width: int, state: Mapping[Any, Any]) -> Layers:
    """Return the weights and biases of one network, in the order of their numbers."""
    stored = {str(name): value for name, value in state.items() if isinstance(value, Stored)}
    tensors = mapped(file.path, stored)
    check_plain(file.path, tensors)
    check_finite(file.path, tensors)
    parts: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _LAYER.fullmatch(name)
        if match is None or not tensor.is_floating_point():
            raise ModelError(f"{file.path}: {name} ({tensor.dtype}) is not a known part of a hypernetwork.")
        parts.setdefault(int(match[1]), {})[match[2]] = tensor
    layers = [(part.get("weight", torch.empty(0)), part.get("bias")) for _, part in sorted(parts.items())]
    if not _fits(width, layers):
        shapes = ", ".join(str(tuple(weight.shape)) for weight, _ in layers) or "none"
        raise ModelError(f"{file.path}: its layers of the shapes {shapes} do not fit a context of width {width}.")
    return layers


def _fits(width: int, layers: Layers) -> bool:
    """Return whether the layers lead from this width back to it, with at least one fully connected layer."""
    size = width
    for weight, bias in layers:
        if weight.dim() not in (1, 2) or weight.shape[-1] != size:
            return False
        size = weight.shape[0]
        if bias is not None and bias.shape != (size,):
            return False
    return size == width and any(weight.dim() == 2 for weight, _ in layers) and len(layers) <= LAYERS_MAX


def _on(device: torch.device, dtype: torch.dtype, layers: Layers) -> tuple[tuple[Tensor, Tensor | None], ...]:
    """Return the layers on the UNet's device, in its dtype."""
    return tuple(
        (weight.to(device, dtype), None if bias is None else bias.to(device, dtype)) for weight, bias in layers
    )

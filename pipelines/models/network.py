"""Gives networks their weights: they are built on the meta device, get a file's tensors and move to the device."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn
from transformers.initialization import no_init_weights

from pipelines.errors import ModelError, in_one_line
from pipelines.models.checkpoint import check_finite, check_plain, is_safetensors, no_larger_than
from pipelines.runtime.device import Device
from pipelines.runtime.memory import drop_pages
from pipelines.runtime.offloading import from_file

Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def built_of(path: Path, part: str, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Build a network inside without initialising it. What diffusers and transformers raise for unknown names and
    shapes becomes a ModelError."""
    try:
        with no_larger_than(tensors.values()), no_init_weights():
            yield
    except ModelError:
        raise
    except KeyError as error:
        raise ModelError(f"{path}: its {part} lacks {error.args[0]}. The file is incomplete or malformed.") from error
    except Exception as error:  # there are a dozen kinds
        raise ModelError(f"{path}: its {part} has an unknown form ({in_one_line(error)}).") from error


def fill(
    path: Path, network: Network, tensors: Mapping[str, Tensor], device: Device, others: Iterable[Path] = ()
) -> Network:
    """Give the network its tensors and move it to the device. Every parameter must be there, with its shape.

    `others` are the other files if the weights are split into several. Raises ModelError, also for weights that are not
    finite in the device's dtype.
    """
    used = {name: tensors[name] for name in network.state_dict() if name in tensors}
    check_weights(path, used, others)
    return adopt(path, network, used, device, mapped=is_safetensors(path))


def check_weights(path: Path, tensors: Mapping[str, Tensor], others: Iterable[Path] = ()) -> None:
    """Raise ModelError for tensors of a file, or of several, that are not plain weights."""
    check_plain(path, tensors, others)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ModelError(f"{path}: {name} is {tensor.dtype}: a quantised file. Give it in fp16 or fp32.")


def adopt(path: Path, network: Network, tensors: Mapping[str, Tensor], device: Device, mapped: bool) -> Network:
    """Do the same as `fill` with tensors that were checked or computed. `mapped`: all come from a mapped file."""
    kind = type(network).__name__
    try:
        report = network.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        raise ModelError(f"{path}: {kind} does not fit: {in_one_line(error)}") from error
    if report.missing_keys:
        missing = f"{report.missing_keys[0]} and {len(report.missing_keys) - 1} more"
        raise ModelError(f"{path}: {kind} lacks {missing}. The file is incomplete or has another layout.")
    _move(network.requires_grad_(False), device, mapped)
    check_finite(path, network.state_dict())
    return network


def _move(network: nn.Module, device: Device, mapped: bool) -> None:
    """Move the weights to the device in its dtype, one by one. After each copy the file's pages are dropped, so that
    memory never holds both."""
    for weight in network.parameters():
        source = weight.data
        weight.data = source.to(device.place, device.dtype)
        if mapped and weight.data_ptr() != source.data_ptr():
            drop_pages(source)
            if weight.dtype == source.dtype:
                from_file(weight, source)
    nn.Module.to(network, device.place)  # buffers; diffusers' own `to` warns

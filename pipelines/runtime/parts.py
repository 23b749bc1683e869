"""Long operations on a CPU, done in parts, so that work can be stopped within a second whatever is drawn.

On two slow cores one attention over the 65,536 latents of a 2048 x 2048 picture takes a minute, and one convolution of
its decoder ten seconds. Rows of either do not depend on each other: computed in parts they are the same to the bit, in
the same time. On a GPU no operation takes long enough to matter.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pipelines.runtime.worker import stop_if_asked

SCORES = 50_000_000
"""The most scores in one part of an attention, for each of torch's threads: a third of a second on a slow core."""
QUERIES = 768
"""The fewest queries in one part of an attention: from here on torch's kernel works in blocks of the same size."""
PRODUCTS = 10_000_000_000
"""The most multiplications in one part of a convolution, for each of torch's threads: a third of a second too."""
SHORT_SECONDS = 0.25
"""After a call of a network that was shorter than this, the next call skips the look at every operation."""


class InParts(TorchFunctionMode):
    """A context in which every operation of torch first looks whether its work was told to stop, and long ones are
    done in parts."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        stop_if_asked()
        return IN_PARTS.get(func, func)(*args, **(kwargs or {}))


def in_parts_on(device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """What a worker's thread does all its work in, for this device."""
    return InParts if device.type == "cpu" else nullcontext


def at_once() -> AbstractContextManager[object]:
    """A context that leaves InParts for a short call of a network: it costs ten microseconds an operation."""
    return torch._C.DisableTorchFunction()


def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
    """Attention of (B, heads, n, d) head by head and some queries at a time."""
    most = SCORES * torch.get_num_threads()
    plain = query.dim() == 4 and not any(map(_is_set, (*args, *options.values())))
    if not plain or query.shape[:-1].numel() * key.shape[-2] <= most:
        return F.scaled_dot_product_attention(query, key, value, *args, **options)
    rows = max(QUERIES, most // key.shape[-2])
    result = torch.empty_like(query[..., :1]).expand(*query.shape[:-1], value.shape[-1]).contiguous()
    for image in range(len(query)):
        for head in range(query.shape[1]):
            one = slice(image, image + 1), slice(head, head + 1)
            for start, end in _parts(query.shape[2], rows):
                stop_if_asked()
                part = F.scaled_dot_product_attention(query[one][:, :, start:end], key[one], value[one])
                result[image, head, start:end] = part[0, 0]
    return result


def _is_set(option: object) -> bool:
    """Whether an option of the attention asks for anything: a mask, dropout, a causal order, a scale."""
    return isinstance(option, Tensor) or bool(option)


def _parts(length: int, most: int) -> list[tuple[int, int]]:
    """Starts and ends of even parts, none longer than `most` but where half of them would be too short."""
    count = max(1, length // most)
    starts = [length * number // count // 256 * 256 for number in range(count)]
    return list(zip(starts, [*starts[1:], length], strict=True))


Pair = int | tuple[int, int]


@dataclass(frozen=True)
class _How:
    """What torch.conv2d takes after its tensors, in its order."""

    stride: Pair = 1
    padding: Pair | str = 0
    dilation: Pair = 1
    groups: int = 1


def _convolution(image: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **options: Any) -> Tensor:
    """A convolution of (B, C, h, w), some rows of its result at a time."""
    how = _How(*args, **options)
    stride, padding, dilation, groups = how.stride, how.padding, how.dilation, how.groups
    if image.dim() != 4 or isinstance(padding, str):
        return torch.conv2d(image, weight, bias, stride, padding, dilation, groups)
    (step, _), (above, left), (apart, _) = _pair(stride), _pair(padding), _pair(dilation)
    reach = apart * (weight.shape[2] - 1) + 1
    height = (image.shape[2] + 2 * above - reach) // step + 1
    width = image.shape[3] // _pair(stride)[1]
    count = len(image) * height * width * weight.numel() // (PRODUCTS * torch.get_num_threads())
    if count < 2:
        return torch.conv2d(image, weight, bias, stride, padding, dilation, groups)
    rows = -(-height // count)
    parts = []
    for start in range(0, height, rows):
        stop_if_asked()
        top = start * step - above
        bottom = (min(start + rows, height) - 1) * step - above + reach
        seen = image[:, :, max(top, 0) : bottom]
        seen = F.pad(seen, (0, 0, max(-top, 0), max(bottom - image.shape[2], 0)))
        parts.append(torch.conv2d(seen, weight, bias, stride, (0, left), dilation, groups))
    return torch.cat(parts, 2)


def _pair(value: Pair | list[int]) -> tuple[int, int]:
    across, down = (value, value) if isinstance(value, int) else value
    return across, down


IN_PARTS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    F.scaled_dot_product_attention: attention,
    torch.conv2d: _convolution,
}

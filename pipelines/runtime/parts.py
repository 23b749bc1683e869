"""Splits long operations on a CPU into parts, so that work can always be stopped within a second.

On two slow cores one attention over the 65,536 latents of a 2048 x 2048 picture takes a minute, and one convolution of
its decoder takes ten seconds. Their rows do not depend on each other: computing them in parts gives the same bits in
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
"""The most scores in one part of an attention per thread of torch: a third of a second on a slow core."""
QUERIES = 768
"""The fewest queries in one part of an attention. From this number on, torch's kernel uses blocks of the same size."""
PRODUCTS = 10_000_000_000
"""The most multiplications in one part of a convolution per thread of torch: also a third of a second."""


class InParts(TorchFunctionMode):
    """A context in which every torch operation first checks whether the work must stop, and long operations are split
    into parts."""

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
    """Return the kind of context in which a worker's thread does all its work for this device."""
    return InParts if device.type == "cpu" else nullcontext


def at_once() -> AbstractContextManager[object]:
    """Return a context that turns off InParts for a short call of a network."""
    return torch._C.DisableTorchFunction()


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute attention of (B, heads, n, d) head by head, a number of queries at a time. With a mask, dropout, causal
    order or shared keys it is computed at once."""
    most = SCORES * torch.get_num_threads()
    plain = query.dim() == 4 and attn_mask is None and not (dropout_p or is_causal or enable_gqa)
    if not plain or query.shape[:-1].numel() * key.shape[-2] <= most:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    rows = max(QUERIES, most // key.shape[-2])
    result = torch.empty_like(query[..., :1]).expand(*query.shape[:-1], value.shape[-1]).contiguous()
    for image in range(len(query)):
        for head in range(query.shape[1]):
            one = slice(image, image + 1), slice(head, head + 1)
            for start, end in _parts(query.shape[2], rows):
                stop_if_asked()
                part = F.scaled_dot_product_attention(query[one][:, :, start:end], key[one], value[one], scale=scale)
                result[image, head, start:end] = part[0, 0]
    return result


def _parts(length: int, most: int) -> list[tuple[int, int]]:
    """Return starts and ends of about equal parts, from `most` to twice `most` long. Starts are multiples of 256."""
    count = max(1, length // most)
    starts = [length * number // count // 256 * 256 for number in range(count)]
    return list(zip(starts, [*starts[1:], length], strict=True))


Pair = int | tuple[int, int]


@dataclass(frozen=True)
class _How:
    """The arguments of torch.conv2d after its tensors, in order."""

    stride: Pair = 1
    padding: Pair | str = 0
    dilation: Pair = 1
    groups: int = 1


def _convolution(image: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **options: Any) -> Tensor:
    """Compute a convolution of (B, C, h, w), a number of result rows at a time."""
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

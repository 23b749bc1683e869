"""Attention for training on a CPU without units for bfloat16: the model's heads have only eight channels.

Torch's kernels are made for wide heads. With eight channels they take four fifths of a training step's time; this one
is several times as fast. It is compiled by g++ when it is first needed, as torch.compile's code is.
"""

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

WIDTH = 8
"""Channels of a head."""


@cache
def _compiled() -> ctypes.CDLL:
    folder = tempfile.mkdtemp(prefix="pastel-attention-")
    library, source = Path(folder) / "attention.so", Path(__file__).with_suffix(".cpp")
    options = ["-O3", "-march=native", "-ffast-math", "-fopenmp-simd", "-fPIC", "-shared"]
    subprocess.run(["g++", *options, str(source), "-o", str(library), "-lmvec", "-lm"], check=True)
    return ctypes.CDLL(str(library))


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _sizes(query: Tensor, key: Tensor) -> tuple[Any, ...]:
    batch, heads, count, width = query.shape
    return batch * heads, count, key.shape[2], ctypes.c_float(width**-0.5)


@torch.library.custom_op("pastel_tiny::attend", mutates_args=())
def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return what queries (B, H, N, 8) find in keys and values (B, H, M, 8), and each one's logarithm of its sum."""
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    output, logsum = torch.empty_like(query), query.new_empty(query.shape[:3])
    _compiled().attend(_at(query), _at(key), _at(value), *_sizes(query, key), _at(output), _at(logsum))
    return output, logsum


@torch.library.custom_op("pastel_tiny::attend_backward", mutates_args=())
def attend_backward(
    query: Tensor, key: Tensor, value: Tensor, output: Tensor, logsum: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values for the output's gradient `wanted`."""
    tensors = [each.contiguous() for each in (query, key, value, output, logsum, wanted)]
    gradients = [torch.empty_like(each) for each in tensors[:3]]
    _compiled().attend_backward(*map(_at, tensors), *_sizes(query, key), *map(_at, gradients))
    return gradients[0], gradients[1], gradients[2]


@attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query, memory_format=torch.contiguous_format), query.new_empty(query.shape[:3])


@attend_backward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, output: Tensor, logsum: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    one, two, three = (torch.empty_like(each, memory_format=torch.contiguous_format) for each in (query, key, value))
    return one, two, three


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, wanted: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return attend_backward(*ctx.saved_tensors, wanted)


attend.register_autograd(_backward, setup_context=_keep)


class NarrowAttention:
    """An attention processor for float32 on one core."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
    ) -> Tensor:
        """Attend from `hidden_states` to the caption, or to itself; SD 1.5 has no masks."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(given).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for layer, given in ((attn.to_q, hidden_states), (attn.to_k, source), (attn.to_v, source))
        )
        if query.shape[-1] == WIDTH:
            mixed = attend(query, key, value)[0]
        else:
            mixed = scaled_dot_product_attention(query, key, value)
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2))

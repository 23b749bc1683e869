"""How LoRA and related methods change a weight, as arithmetic on tensors.

Every method computes W' - W, the difference at multiplier 1; a prompt's multiplier scales it. Sources: LoRA (Hu et al.
2021, arXiv:2106.09685); LoHa, LoKr, GLoRA, IA3 and full differences as in LyCORIS (Yeh et al. 2023, arXiv:2309.14859);
OFT (Qiu et al. 2023, arXiv:2306.07280); DoRA (Liu et al. 2024, arXiv:2402.09353), which is applied on top of them.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

RANK_MAX = 4096
"""The highest rank. More would only cost time: no layer of Stable Diffusion 1.x can have a higher one."""
STEP_MAX = 1 << 24
"""The most values in an intermediate tensor. A 3 x 3 layer from 1280 to 1280 channels has 14.7 million."""

Parts = Mapping[str, Tensor]
"""A file's tensors for one layer, by the endings of their names."""
SCALARS = ("alpha", "scale", "on_input")
"""Parts that are a single number, of any dtype."""
BIAS = ("diff_b", "b_norm")
"""Parts that are added to the layer's bias."""
SIDES = ("weight", "rescale", *SCALARS)
"""Parts that have no effect alone."""
Method = Callable[[Parts, Tensor, int | None], tuple[Tensor, int | None]]
"""(parts, the weight, how many ranks to use) -> (W' - W before scaling, the rank that alpha is divided by)."""


def changes_weight(parts: Parts) -> bool:
    """Return whether these parts belong to a known method."""
    return any(name in parts for name in METHODS)


def change(parts: Parts, weight: Tensor, rank: int | None) -> Tensor:
    """Return W' - W at multiplier 1, in the weight's shape. For a LoRA, only the first `rank` ranks are used.

    Raises ValueError, KeyError, IndexError or RuntimeError for parts that do not fit the weight.
    """
    method = next((method for name, method in METHODS.items() if name in parts), None)
    if method is None:
        raise ValueError("parts are missing")
    product, own_rank = method(parts, weight, rank)
    if product.shape[0] != weight.shape[0] or product.numel() != weight.numel():
        raise ValueError(f"it makes {tuple(product.shape)}")
    if own_rank is not None and own_rank > RANK_MAX:
        raise ValueError(f"of rank {own_rank}; at most {RANK_MAX}")
    difference = product.reshape(weight.shape) * _scale(parts, own_rank)
    if "magnitude" in parts or "dora_scale" in parts:
        return _with_magnitudes(weight + difference, parts) - weight
    return difference


def bias_change(parts: Parts) -> Tensor | None:
    """Return the tensor that the parts add to the layer's bias; None if there is none."""
    return next((parts[name] for name in BIAS if name in parts), None)


def _scale(parts: Parts, rank: int | None) -> float:
    if "scale" in parts:
        return float(parts["scale"])
    return float(parts["alpha"]) / rank if "alpha" in parts and rank else 1.0


def _with_magnitudes(weight: Tensor, parts: Parts) -> Tensor:
    """Apply DoRA: each row or column of the changed weight keeps its direction and gets a trained length.

    PEFT's `magnitude` has one length for every output. LyCORIS' `dora_scale` has one for every input if its shape is
    (1, in, ...), or one for every output if it is (out, 1, ...).
    """
    lengths = parts.get("magnitude", parts.get("dora_scale"))
    assert lengths is not None
    of_inputs = "magnitude" not in parts and lengths.dim() > 1 and lengths.shape[0] == 1 and lengths.shape[1] > 1
    side = 1 if of_inputs else 0
    if lengths.numel() != weight.shape[side]:
        raise ValueError(f"{lengths.numel()} magnitudes for {weight.shape[side]} vectors")
    others = [dimension for dimension in range(weight.dim()) if dimension != side]
    norms = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    return weight * (lengths.reshape(norms.shape) / norms.clamp_min(torch.finfo(norms.dtype).eps))


def _lora(parts: Parts, weight: Tensor, rank: int | None) -> tuple[Tensor, int]:
    up, down = parts["lora_up.weight"].flatten(1), parts["lora_down.weight"].flatten(1)
    if "lora_mid.weight" in parts:
        return _around_core(parts["lora_mid.weight"], up.T, down), len(down)
    return up[:, :rank] @ down[:rank], len(down)


def _loha(parts: Parts, weight: Tensor, rank: int | None) -> tuple[Tensor, int]:
    def factor(number: int) -> Tensor:
        a, b = parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"]
        core = parts.get(f"hada_t{number}")
        return a @ b if core is None else _around_core(core, a, b)

    return factor(1) * factor(2), len(parts["hada_w1_b"])


def _lokr(parts: Parts, weight: Tensor, rank: int | None) -> tuple[Tensor, int | None]:
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
    """Multiply a core (i, j, k, l) by first (i, p) and second (j, r) to (p, r, k, l).

    The intermediate tensor is (j, k, l, p), which a small file can make huge. Raises ValueError in that case.
    """
    between = core.numel() // max(1, len(first)) * first.shape[1]
    if between > STEP_MAX:
        raise ValueError(f"its product needs an intermediate tensor of {between} values")
    return torch.einsum("ijkl,ip,jr->prkl", core, first, second)


def _glora(parts: Parts, weight: Tensor, rank: int | None) -> tuple[Tensor, int]:
    """Compute W A + B (Chavan et al. 2023, arXiv:2306.07967). A acts on the inputs."""
    inputs = weight.shape[1]
    a, _ = _product(parts["a1.weight"], parts["a2.weight"], (inputs, inputs))
    b, own_rank = _product(parts["b1.weight"], parts["b2.weight"], (len(weight), weight[0].numel()))
    return torch.einsum("oi...,ij->oj...", weight, a) + b.reshape(weight.shape), own_rank


def _product(first: Tensor, second: Tensor, sizes: tuple[int, int]) -> tuple[Tensor, int]:
    """Return the product that has these sizes, and its rank. Programs disagree on the order of the two factors."""
    for left, right in ((first.flatten(1), second.flatten(1)), (second.flatten(1), first.flatten(1))):
        if left.shape[1] == len(right) <= RANK_MAX and (len(left), right.shape[1]) == sizes:
            return left @ right, len(right)
    raise ValueError(f"its factors do not give {sizes[0]} x {sizes[1]}")


def _ia3(parts: Parts, weight: Tensor, rank: int | None) -> tuple[Tensor, None]:
    """Scale each input or output of the layer (Liu et al. 2022, arXiv:2205.05638)."""
    factors, others = parts["weight"].flatten(), (1,) * (weight.dim() - 2)
    of_inputs = bool(parts["on_input"])
    if len(factors) != weight.shape[1 if of_inputs else 0]:
        raise ValueError(f"{len(factors)} factors")
    return weight * factors.reshape((1, -1, *others) if of_inputs else (-1, 1, *others)), None


def _oft(parts: Parts, weight: Tensor, rank: int | None) -> tuple[Tensor, None]:
    """Rotate groups of outputs by orthogonal matrices, which are Cayley's transform of the trained ones."""
    blocks = parts["oft_blocks"]
    if blocks.dim() != 3:
        raise ValueError("its blocks are not OFT's, but BOFT's or another method's")
    count, size, _ = blocks.shape
    if count * size != len(weight):
        raise ValueError(f"{count} blocks of {size}")
    skew = blocks - blocks.transpose(1, 2)
    bound = float(parts.get("alpha", torch.zeros(()))) * len(weight)
    if bound > 0 and not skew.is_meta:
        skew = skew * min(1.0, bound / (float(skew.norm()) + 1e-8))
    identity = torch.eye(size, dtype=skew.dtype, device=skew.device)
    turned = torch.linalg.solve(identity - skew, identity + skew, left=False)
    outputs = weight.reshape(count, size, -1)
    whole = torch.einsum("knm,knp->kmp", turned, outputs).reshape(weight.shape)
    if "rescale" in parts:
        whole = whole * parts["rescale"].reshape(-1, *(1,) * (weight.dim() - 1))
    return whole - weight, None


def _full(name: str) -> Method:
    """Return the method that takes the difference from the file, under this name."""
    return lambda parts, weight, rank: (parts[name], None)


METHODS: Mapping[str, Method] = {
    "lora_up.weight": _lora,
    "hada_w1_a": _loha,
    "lokr_w1": _lokr,
    "lokr_w1_a": _lokr,
    "oft_blocks": _oft,
    "a1.weight": _glora,
    "on_input": _ia3,
    "diff": _full("diff"),
    "w_norm": _full("w_norm"),
}
"""Methods, by the part that identifies them."""
PART = (
    r"lora_(?:up|down|mid)\.weight|alpha|scale|dora_scale|magnitude|hada_(?:w[12]_[ab]|t[12])"
    r"|lokr_(?:w[12](?:_[ab])?|t2)|oft_blocks|rescale|[ab][12]\.weight|on_input|weight|diff|diff_b|w_norm|b_norm"
)
"""Pattern of the known parts."""

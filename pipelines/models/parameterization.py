"""Finds out how a checkpoint's UNet was trained: from its files, or by probing the UNet."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from pipelines.errors import ModelError
from pipelines.families.detection import Declaration, declared_in_configuration, declared_in_file
from pipelines.families.family import Family
from pipelines.families.noise_schedule import LAST_ALPHA
from pipelines.files.beside import read_beside
from pipelines.models.checkpoint import read_metadata

ALPHAS = "alphas_cumprod"
"""LDM's buffer of cumulative alphas, which most single files contain."""


def declared_by(path: Path, tensors: Mapping[str, Tensor], family: Family) -> Declaration:
    """Return what a single file and the configuration beside it declare. As in WebUI, the configuration wins.

    Raises ModelError for a configuration or a noise schedule that cannot be read.
    """
    declared = declared_in_file(tensors, read_metadata(path))
    if (configuration := read_beside(path)) is not None:
        declared = replace(declared, prediction=declared_in_configuration(configuration))
    if family.own_alphas and ALPHAS in tensors:
        declared = replace(declared, alphas=_alphas(path, tensors[ALPHAS], family.noise.alphas))
    return declared


def _alphas(path: Path, tensor: Tensor, usual: tuple[float, ...]) -> tuple[float, ...] | None:
    """Return the file's cumulative alphas in single precision. If the last one is 0 (zero terminal SNR), WebUI's last
    one replaces it. Return None for the family's `usual` ones in bfloat16, which is too coarse for them.
    """
    if tensor.shape == (len(usual),) and tensor.is_floating_point():
        *alphas, last = tensor.float().tolist()
        alphas.append(last or torch.tensor(LAST_ALPHA).item())
        if alphas[0] < 1 and all(a > b for a, b in zip(alphas, [*alphas[1:], 0.0], strict=True)):
            return tuple(alphas)
        if torch.equal(tensor, torch.tensor(usual).to(tensor.dtype)):
            return None
    raise ModelError(f"{path}: its {ALPHAS} must be {len(usual)} numbers that fall from 1 to 0. Remove it.")


@torch.inference_mode()
def probe(unet: UNet2DConditionModel) -> str:
    """Return what a UNet predicts, by diffusers' name, found in the same way as in WebUI.

    Given 0.5 everywhere at the last timestep, a UNet that predicts noise returns about the same, and one that predicts
    v returns about its negative.
    """
    weight = unet.conv_in.weight
    x = torch.full((1, unet.config.in_channels, 8, 8), 0.5, dtype=weight.dtype, device=weight.device)
    context = torch.full((1, 2, unet.config.cross_attention_dim), 0.5, dtype=weight.dtype, device=weight.device)
    output = unet(x, 999, encoder_hidden_states=context, return_dict=False)[0]
    return "v_prediction" if float((output.float() - 0.5).mean()) < -1 else "epsilon"

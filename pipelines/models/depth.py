"""MiDaS's DPT-hybrid estimates the depth of a picture (Ranftl et al. 2021, https://arxiv.org/abs/2103.13413).

Single files of Stable Diffusion 2 depth contain it with MiDaS's names, diffusers folders with transformers'. Pictures
are prepared as MiDaS does it: the side that needs the least change becomes 384 px, and both become multiples of 32.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.bit.configuration_bit import BitConfig
from transformers.models.dpt.configuration_dpt import DPTConfig
from transformers.models.dpt.modeling_dpt import DPTForDepthEstimation

from pipelines.models.build import HEAD_CHANNELS, count_of, shape_of
from pipelines.models.folders import from_subfolder
from pipelines.models.network import built_of, fill
from pipelines.runtime.device import Device

DEPTH_PREFIX = "depth_model.model."
SIDE, MULTIPLE, PATCH = 384, 32, 16
WHOLE = "scratch.output_conv.4.weight"
"""The last layer. A file that has it has the whole network."""
STAGES, LAYERS = 3, 4
"""Stages of the convolutional backbone, and layers of the part that reassembles the picture."""
BLOCK = "pretrained.model.patch_embed.backbone."
READOUT = ((2, 3), (3, 4))
"""Reassembling layers that get features of the transformer: transformers' number and MiDaS's."""
NAMES = (
    (r"pretrained\.model\.cls_token", "dpt.embeddings.cls_token"),
    (r"pretrained\.model\.pos_embed", "dpt.embeddings.position_embeddings"),
    (r"pretrained\.model\.patch_embed\.proj\.", "dpt.embeddings.projection."),
    (rf"{re.escape(BLOCK)}stem\.conv\.", "dpt.embeddings.backbone.bit.embedder.convolution."),
    (rf"{re.escape(BLOCK)}stem\.norm\.", "dpt.embeddings.backbone.bit.embedder.norm."),
    (
        rf"{re.escape(BLOCK)}stages\.(\d+)\.blocks\.(\d+)\.",
        r"dpt.embeddings.backbone.bit.encoder.stages.\1.layers.\2.",
    ),
    (r"pretrained\.model\.norm\.", "dpt.layernorm."),
    (r"pretrained\.model\.blocks\.(\d+)\.norm1\.", r"dpt.encoder.layer.\1.layernorm_before."),
    (r"pretrained\.model\.blocks\.(\d+)\.norm2\.", r"dpt.encoder.layer.\1.layernorm_after."),
    (r"pretrained\.model\.blocks\.(\d+)\.attn\.proj\.", r"dpt.encoder.layer.\1.attention.output.dense."),
    (r"pretrained\.model\.blocks\.(\d+)\.mlp\.fc1\.", r"dpt.encoder.layer.\1.intermediate.dense."),
    (r"pretrained\.model\.blocks\.(\d+)\.mlp\.fc2\.", r"dpt.encoder.layer.\1.output.dense."),
    (r"scratch\.output_conv\.", "head.head."),
    *(
        (rf"pretrained\.act_postprocess{theirs}\.0\.project\.0\.", f"neck.reassemble_stage.readout_projects.{ours}.0.")
        for ours, theirs in READOUT
    ),
    *(
        (rf"pretrained\.act_postprocess{theirs}\.3\.", f"neck.reassemble_stage.layers.{ours}.projection.")
        for ours, theirs in READOUT
    ),
    (r"pretrained\.act_postprocess4\.4\.", "neck.reassemble_stage.layers.3.resize."),
    *((rf"scratch\.layer{layer + 1}_rn\.", f"neck.convs.{layer}.") for layer in range(LAYERS)),
    *(
        (rf"scratch\.refinenet{LAYERS - layer}\.out_conv\.", f"neck.fusion_stage.layers.{layer}.projection.")
        for layer in range(LAYERS)
    ),
    *(
        (
            rf"scratch\.refinenet{LAYERS - layer}\.resConfUnit(\d)\.conv(\d)\.",
            rf"neck.fusion_stage.layers.{layer}.residual_layer\1.convolution\2.",
        )
        for layer in range(LAYERS)
    ),
)
"""MiDaS's names -> transformers'."""
JOINED = re.compile(r"pretrained\.model\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)")
"""Queries, keys and values, which MiDaS stores in one tensor."""


class DepthEstimator:
    """DPT-hybrid on its device, in float32. Its weights are normalised in every call, which needs that precision."""

    def __init__(self, network: DPTForDepthEstimation) -> None:
        self.network = network

    @torch.inference_mode()
    def depth(self, picture: Image.Image) -> Tensor:
        """Return the inverse depth of an RGB picture (larger is nearer), (1, 1, h, w) in float32, of any range."""
        import cv2  # it takes half a second, which start-up can save

        pixels = np.asarray(picture).astype(np.float32) / 255
        small = cv2.resize(pixels, prepared_size(*picture.size), interpolation=cv2.INTER_CUBIC)
        shown = torch.from_numpy((small - 0.5) / 0.5).permute(2, 0, 1)[None].to(self.network.device)
        return self._of(shown)[None]

    def _of(self, shown: Tensor) -> Tensor:
        """Return the network's output (1, h, w). Its own `forward` does the same, but only for squares."""
        height, width = shown.shape[2:]
        network = self.network
        network.dpt.embeddings.image_size = height, width  # it can handle any size, but only accepts the one set here
        outputs = network.dpt(shown, output_hidden_states=True)
        taken = network.config.backbone_out_indices[2:]
        states = [*outputs.intermediate_activations, *(outputs.hidden_states[layer + 1] for layer in taken)]
        depth: Tensor = network.head(network.neck(states, height // PATCH, width // PATCH))
        return depth


def prepared_size(width: int, height: int) -> tuple[int, int]:
    """Return the (width, height) that MiDaS resizes a picture to."""
    scale = min(SIDE / width, SIDE / height, key=lambda each: abs(1 - each))
    wide, high = (max(MULTIPLE, round(scale * side / MULTIPLE) * MULTIPLE) for side in (width, height))
    return wide, high


def build_depth_estimator(path: Path, tensors: Mapping[str, Tensor], device: Device) -> DepthEstimator | None:
    """Build the estimator from a single file's tensors. Return None if the file has none, or only part of one.

    Raises ModelError.
    """
    own = {name.removeprefix(DEPTH_PREFIX): each for name, each in tensors.items() if name.startswith(DEPTH_PREFIX)}
    if WHOLE not in own:
        return None
    named = by_transformers_names(own)
    with built_of(path, "depth estimator", own), torch.device("meta"):
        network = DPTForDepthEstimation(depth_config(path, own))
    return DepthEstimator(fill(path, network, named, replace(device, dtype=torch.float32)).eval())


def depth_estimator_of_folder(folder: Path, device: Device) -> DepthEstimator:
    """Load the estimator from a folder in transformers' format. Raises ModelError."""
    network = from_subfolder(DPTForDepthEstimation, folder, replace(device, dtype=torch.float32))
    return DepthEstimator(network.eval())


def by_transformers_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return MiDaS's tensors by transformers' names. Those without such a name (MiDaS's classifier) are left out."""
    named = {}
    for name, tensor in tensors.items():
        if match := JOINED.fullmatch(name):
            prefix = f"dpt.encoder.layer.{match[1]}.attention.attention."
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                named[f"{prefix}{part}.{match[2]}"] = third
            continue
        pattern = next((each for each in NAMES if re.match(each[0], name)), None)
        if pattern:
            named[re.sub(*pattern, name)] = tensor
    return named


def depth_config(path: Path, tensors: Mapping[str, Tensor]) -> DPTConfig:
    """Return the configuration of DPT-hybrid with the sizes of MiDaS's tensors. Raises ModelError."""
    width = shape_of(path, tensors, "pretrained.model.cls_token", 3)[2]
    stages = [f"{BLOCK}stages.{stage}.blocks." for stage in range(STAGES)]
    widths = [shape_of(path, tensors, f"{stage}0.conv3.weight", 4)[0] for stage in stages]
    necks = [shape_of(path, tensors, f"scratch.layer{layer}_rn.weight", 4)[1] for layer in range(1, LAYERS + 1)]
    layers = count_of(tensors, "pretrained.model.blocks.")
    backbone = BitConfig(
        embedding_size=shape_of(path, tensors, f"{BLOCK}stem.conv.weight", 4)[0],
        hidden_sizes=widths,
        depths=[count_of(tensors, stage) for stage in stages],
        layer_type="bottleneck",
        global_padding="same",
        embedding_dynamic_padding=True,
        out_features=[f"stage{stage + 1}" for stage in range(STAGES)],
    )
    return DPTConfig(
        is_hybrid=True,
        backbone_config=backbone,
        backbone_featmap_shape=[1, widths[-1], SIDE // PATCH, SIDE // PATCH],
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // HEAD_CHANNELS),
        intermediate_size=shape_of(path, tensors, "pretrained.model.blocks.0.mlp.fc1.weight", 2)[0],
        layer_norm_eps=1e-6,
        image_size=SIDE,
        patch_size=PATCH,
        backbone_out_indices=[(part + 1) * layers // LAYERS - 1 for part in range(LAYERS)],
        neck_hidden_sizes=necks,
        neck_ignore_stages=[0, 1],
        readout_type="project",
        reassemble_factors=[1, 1, 1, 0.5],
        fusion_hidden_size=shape_of(path, tensors, "scratch.layer1_rn.weight", 4)[0],
    )

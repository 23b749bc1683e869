"""What was trained -> the file that other programs read: Kohya's LoRA, an embedding, or a whole checkpoint."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipelines.families.detection import SPEC_PREDICTION, V_MARKER, ZERO_SNR_MARKER
from pipelines.families.noise_schedule import LAST_ALPHA
from pipelines.families.prediction import VPrediction
from pipelines.families.sd1 import SD1
from pipelines.families.sd2 import SD2
from pipelines.families.sdxl import SDXL
from pipelines.models.embeddings import BUNDLED
from pipelines.models.export import checkpoint_weights
from pipelines.models.model import Model
from pipelines.models.parameterization import ALPHAS
from pipelines.training.learner import Learner
from pipelines.training.settings import Course
from pipelines.training.wishes import INVERSION, LORA, PIVOTAL

BASE_VERSIONS: Mapping[str, str] = {SD1.name: "sd_v1", SD2.name: "sd_v2", SDXL.name: "sdxl_base_v1-0"}
"""Families by Kohya's names, which WebUI shows."""
PARAMETER = "string_to_param.*"
"""The name of an embedding's vectors in WebUI's own files."""


def save(learner: Learner, model: Model, course: Course, metadata: Mapping[str, str], path: Path) -> None:
    """Write what was trained, in half precision. The file replaces another only when it is complete."""
    if course.task == LORA:
        tensors: dict[str, Tensor] = lora_tensors(learner, course)
    elif course.task == PIVOTAL:
        tensors = lora_tensors(learner, course) | bundled(learner, model, course)
    elif course.task == INVERSION:
        tensors = embedding_tensors(learner, model, course)
    else:
        learner.store_rows()
        tensors = checkpoint_tensors(model)
    _write(tensors, metadata, path)


def save_word(learner: Learner, model: Model, course: Course, path: Path) -> None:
    """Write the word of pivotal tuning by itself, as an embedding."""
    _write(embedding_tensors(learner, model, course), {}, path)


def _write(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    half = {
        name: tensor.detach().to("cpu", torch.float16 if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in tensors.items()
    }
    written = path.with_suffix(".part")
    save_file(half, written, dict(metadata))
    written.replace(path)


def lora_tensors(learner: Learner, course: Course) -> dict[str, Tensor]:
    """Return a LoRA by Kohya's names, each layer with its true alpha."""
    tensors: dict[str, Tensor] = {}
    for name, down, up in learner.lora():
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(course.alpha)
    return tensors


def embedding_tensors(learner: Learner, model: Model, course: Course) -> dict[str, Tensor]:
    """Return an embedding: a single tensor, whose name is the word that diffusers will know it by; for SDXL one for
    each text encoder."""
    return _vectors(learner, model, course.name)


def bundled(learner: Learner, model: Model, course: Course) -> dict[str, Tensor]:
    """Return the word's vectors as WebUI finds them inside a LoRA's file."""
    vectors = _vectors(learner, model, PARAMETER)
    return {f"{BUNDLED}{course.name}.{name}": each for name, each in vectors.items()}


def _vectors(learner: Learner, model: Model, alone: str) -> dict[str, Tensor]:
    """Return a word's vectors by the encoders' names; `alone` is the name in families with one encoder."""
    names = [tower.spec.embedding or alone for tower in model.text.towers]
    return dict(zip(names, learner.vectors, strict=True))


def checkpoint_tensors(model: Model) -> dict[str, Tensor]:
    """Return a whole checkpoint, which declares how its UNet was trained where its family's default differs."""
    texts = [tower.network for tower in model.text.towers]
    tensors = checkpoint_weights(model.family, model.unet.network, model.vae.network, texts)
    if isinstance(model.prediction, VPrediction):
        tensors[V_MARKER] = torch.zeros(0)
    if model.noise.alphas[-1] <= torch.tensor(LAST_ALPHA).item():
        tensors[ZERO_SNR_MARKER] = torch.zeros(0)
    if model.family.own_alphas and model.noise.alphas != model.family.noise.alphas:
        tensors[ALPHAS] = torch.tensor(model.noise.alphas)
    return tensors


def metadata_of(
    course: Course, model: Model, captions: Sequence[str], sizes: Sequence[tuple[int, int]]
) -> dict[str, str]:
    """Return the metadata that WebUI shows for a LoRA, by Kohya's names, and ModelSpec's.

    `captions` and `sizes` are those of the pictures.
    """
    identity, v = model.identity, isinstance(model.prediction, VPrediction)
    tags = Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip())
    buckets = Counter(sizes)
    told: dict[str, object] = {
        "ss_output_name": course.name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": course.rank,
        "ss_network_alpha": course.alpha,
        "ss_base_model_version": BASE_VERSIONS[model.family.name],
        "ss_v2": model.family is SD2,
        "ss_sd_model_name": identity.name,
        "ss_new_sd_model_hash": identity.sha256,
        "ss_resolution": f"({course.resolution}, {course.resolution})",
        "ss_num_train_images": len(captions),
        "ss_tag_frequency": json.dumps({f"1_{course.name}": tags}),
        "ss_dataset_dirs": json.dumps({f"1_{course.name}": {"n_repeats": 1, "img_count": len(captions)}}),
        "ss_bucket_info": json.dumps(
            {"buckets": {str(k): {"resolution": size, "count": n} for k, (size, n) in enumerate(buckets.items())}}
        ),
        "ss_enable_bucket": True,
        "ss_clip_skip": course.clip_skip,
        "ss_max_train_steps": course.steps,
        "ss_batch_size_per_device": course.batch_size,
        "ss_gradient_accumulation_steps": course.gradient_accumulation,
        "ss_learning_rate": course.learning_rate,
        "ss_unet_lr": course.learning_rate,
        "ss_text_encoder_lr": course.text_learning_rate or None,
        "ss_lr_scheduler": course.schedule,
        "ss_lr_warmup_steps": course.warmup_steps,
        "ss_optimizer": "torch.optim.adamw.AdamW",
        "ss_min_snr_gamma": course.min_snr_gamma or None,
        "ss_noise_offset": course.noise_offset or None,
        "ss_prior_loss_weight": course.prior_weight,
        "ss_seed": course.seed,
        "modelspec.title": course.name,
        "modelspec.trigger_phrase": course.token,
        SPEC_PREDICTION: "v" if v else "epsilon",
    }
    return {name: str(value) for name, value in told.items()}

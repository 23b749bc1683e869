"""The safety checker, with a small one of the same structure: a verdict per picture, nothing blackened."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import save_file
from transformers.models.clip.configuration_clip import CLIPConfig

from pipelines.errors import ModelError
from pipelines.models.safety import SafetyChecker, load_safety_checker
from pipelines.runtime.device import Device

CPU = Device(torch.device("cpu"), torch.float32)
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 16,
}
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)


def checker(folder: Path, similarity_allowed: float, special_near: bool = False) -> SafetyChecker:
    """A checker, saved and loaded, whose first concept is PIXELS themselves."""
    torch.manual_seed(0)
    network = StableDiffusionSafetyChecker(CLIPConfig(vision_config=VISION, projection_dim=16))
    image = SafetyChecker(network).prepared(PIXELS)
    with torch.no_grad():
        own = network.visual_projection(network.vision_model(image).pooler_output)[0]
        network.concept_embeds[0] = own
        network.concept_embeds_weights[:] = 2.0  # out of reach
        network.concept_embeds_weights[0] = similarity_allowed
        network.special_care_embeds[0] = own
        network.special_care_embeds_weights[:] = 0.5 if special_near else 2.0
    # Published files have one more level of names than transformers' present model.
    tensors = {
        name.replace("vision_model.", "vision_model.vision_model.", 1): t for name, t in network.state_dict().items()
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    network.config.save_pretrained(folder)
    loaded = load_safety_checker(folder, CPU)
    assert loaded is not None
    return loaded


def test_a_picture_near_a_concept_is_flagged_with_its_score(tmp_path: Path) -> None:
    verdict = checker(tmp_path, similarity_allowed=0.9).check(PIXELS)
    assert verdict.flagged
    assert verdict.score == pytest.approx(0.1, abs=1e-3)


def test_a_picture_within_the_thresholds_passes(tmp_path: Path) -> None:
    assert not checker(tmp_path, similarity_allowed=1.005).check(PIXELS).flagged


def test_special_care_makes_it_stricter(tmp_path: Path) -> None:
    assert checker(tmp_path, similarity_allowed=1.005, special_near=True).check(PIXELS).flagged


def test_without_a_folder_there_is_no_checker_and_a_broken_one_is_named(tmp_path: Path) -> None:
    assert load_safety_checker(None, CPU) is None
    with pytest.raises(ModelError, match="not a safety checker's folder"):
        load_safety_checker(tmp_path, CPU)

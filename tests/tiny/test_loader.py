"""Checkpoints in every form that people have them in, and named errors for files that are something else."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import load_file, save_file

from pipelines import loader
from pipelines.errors import ModelError
from pipelines.highres import Picture, render
from pipelines.loaded_model import Model
from pipelines.loader import load
from pipelines.model import ModelFiles
from pipelines.plan import make_plan
from pipelines.request import GenerationRequest
from tests.alike import alike
from weights_script.resolve import ResolvedModel

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def files(embedded: ResolvedModel) -> ModelFiles:
    return embedded.files


@pytest.fixture(scope="session")
def tensors(files: ModelFiles) -> Tensors:
    return load_file(files.checkpoint)


def picture(networks: Model) -> np.ndarray:
    request = GenerationRequest(
        prompt="a pink sun over the sea", width=64, height=64, seed=3, num_inference_steps=2, hires=None
    )
    (pixels,) = (e.pixels for e in render(networks, request, make_plan(request)) if isinstance(e, Picture))
    return pixels


def assert_same(found: Model, expected: Model) -> None:
    """The same weights to the last bit. The pictures may differ by rounding: tensors of a mapped file are aligned in
    another way than those in allocated memory, and kernels for aligned memory add up in another order."""
    for one, other in (
        (found.unet.network, expected.unet.network),
        (found.vae.network, expected.vae.network),
        (found.text.model, expected.text.model),
    ):
        weights, wanted = one.state_dict(), other.state_dict()
        assert weights.keys() == wanted.keys()
        assert [name for name, tensor in weights.items() if not torch.equal(tensor, wanted[name])] == []
    assert alike(picture(found), picture(expected))


def test_a_diffusers_folder_draws_the_same_picture(networks: Model, files: ModelFiles, tmp_path: Path) -> None:
    networks.unet.network.save_pretrained(tmp_path / "unet")
    networks.vae.network.save_pretrained(tmp_path / "vae")
    networks.text.model.save_pretrained(tmp_path / "text_encoder")
    DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    assert_same(load(replace(files, checkpoint=tmp_path, vae=None)), networks)


def test_a_pickled_checkpoint_draws_the_same_picture(
    networks: Model, files: ModelFiles, tensors: Tensors, tmp_path: Path
) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": tensors, "global_step": 7}, path)
    assert_same(load(replace(files, checkpoint=path)), networks)


def test_text_encoder_names_without_text_model(
    networks: Model, files: ModelFiles, tensors: Tensors, tmp_path: Path
) -> None:
    """Merged checkpoints of this kind are often published so."""
    path = tmp_path / "model.safetensors"
    save_file({name.replace("transformer.text_model.", "transformer."): t for name, t in tensors.items()}, path)
    assert_same(load(replace(files, checkpoint=path)), networks)


def test_the_better_vae_is_the_one_that_decodes(networks: Model, files: ModelFiles) -> None:
    assert files.vae is not None
    stock = load(replace(files, vae=None))
    better = load_file(files.vae)["decoder.conv_out.weight"].float()
    assert torch.equal(networks.vae.network.decoder.conv_out.weight, better)
    assert not torch.equal(stock.vae.network.decoder.conv_out.weight, better)
    assert not alike(picture(stock), picture(networks))
    assert (stock.identity.vae_name, networks.identity.vae_name) == ("", files.vae.name)


def test_a_vae_that_was_not_applied_is_an_error(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = load(replace(files, vae=None)).vae.network
    monkeypatch.setattr(loader, "load_vae", lambda *_: stock)
    with pytest.raises(ModelError, match="is not the one in use"):
        load(files)


def test_a_vae_folder(networks: Model, files: ModelFiles, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a diffusers folder"):
        load(replace(files, vae=tmp_path))
    networks.vae.network.save_pretrained(tmp_path)
    folder = load(replace(files, vae=tmp_path))
    assert_same(folder, networks)
    assert folder.identity.vae_sha256


def test_folders_of_other_families(networks: Model, files: ModelFiles, tmp_path: Path) -> None:
    networks.unet.network.save_pretrained(tmp_path / "unet")
    networks.vae.network.save_pretrained(tmp_path / "vae")
    networks.text.model.save_pretrained(tmp_path / "text_encoder")
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ModelError, match=r"predicts v_prediction instead of noise \(SD 2\.x\)"):
        load(replace(files, checkpoint=tmp_path))


def test_an_inpainting_checkpoint_is_shown_a_mask_and_what_is_around_it(
    networks: Model, files: ModelFiles, tensors: Tensors, tmp_path: Path
) -> None:
    path, name = tmp_path / "inpainting.safetensors", "model.diffusion_model.input_blocks.0.0.weight"
    more = torch.zeros(len(tensors[name]), 5, 3, 3)
    save_file({**tensors, name: torch.cat([tensors[name], more], dim=1)}, path)
    inpainting = load(replace(files, checkpoint=path))
    assert alike(picture(inpainting), picture(networks)), "blind to what is new"

    with mock.patch.object(inpainting.unet.network, "forward", wraps=inpainting.unet.network.forward) as unet:
        picture(inpainting)
    mask, grey = unet.call_args.args[0][:, 4], unet.call_args.args[0][:, 5:]
    assert bool((mask == 1).all()), "without a mask all is masked"
    assert torch.equal(grey[0], grey[1])

    save_file({**tensors, name: torch.cat([tensors[name], more + 0.01], dim=1)}, path)
    assert not alike(picture(load(replace(files, checkpoint=path))), picture(networks))


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_vae_file_may_have_the_checkpoints_names(files: ModelFiles, tmp_path: Path, prefix: str) -> None:
    assert files.vae is not None
    path = tmp_path / "vae.safetensors"
    save_file({prefix + name: tensor for name, tensor in load_file(files.vae).items()}, path)
    load(replace(files, vae=path))


def test_a_checkpoint_without_a_vae_needs_one(files: ModelFiles, tensors: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({name: t for name, t in tensors.items() if not name.startswith("first_stage_model.")}, path)
    load(replace(files, checkpoint=path))
    with pytest.raises(ModelError, match="holds no VAE"):
        load(replace(files, checkpoint=path, vae=None))


def test_missing_and_cut_files(files: ModelFiles, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load(replace(files, checkpoint=tmp_path / "none.safetensors"))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(files.checkpoint.read_bytes()[:100_000])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load(replace(files, checkpoint=cut))
    with pytest.raises(ModelError, match="not a diffusers folder"):
        load(replace(files, checkpoint=tmp_path))

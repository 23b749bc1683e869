"""Checkpoints in every common form load, and files of other kinds give named errors."""

import copy
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file, save_file

from pipelines.ask.identity import ModelFiles
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest
from pipelines.drawing.phases import PassResult, Picture, render
from pipelines.errors import ModelError
from pipelines.families.prediction import PREDICTIONS
from pipelines.families.sd1 import SD1
from pipelines.models import loader
from pipelines.models.checkpoint import NUMBER_FORMATS
from pipelines.models.loader import load, load_vae
from pipelines.models.model import Model
from pipelines.models.unet import WideHeads
from pipelines.runtime.device import Device
from pipelines.runtime.unet_call import UNet, UNetCall
from tests.alike import alike
from tests.folders import save
from weights_script.convert import convert
from weights_script.resolve import ResolvedModel

Tensors = dict[str, torch.Tensor]
CPU = Device(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def files(embedded: ResolvedModel) -> ModelFiles:
    return embedded.files


@pytest.fixture(scope="session")
def tensors(files: ModelFiles) -> Tensors:
    return load_file(files.checkpoint)


def picture(networks: Model, **fields: object) -> np.ndarray:
    small = {"prompt": "a pink sun over the sea", "width": 64, "height": 64, "seed": 3, "num_inference_steps": 3}
    request = GenerationRequest(**{**small, "hires": None, **fields})  # type: ignore[arg-type]
    (pixels,) = (e.pixels for e in render(networks, request, make_plan(request)) if isinstance(e, Picture))
    return pixels


@pytest.fixture(scope="module")
def drawn(networks: Model) -> np.ndarray:
    """The picture of the embedded model, with which many others are compared."""
    return picture(networks)


def assert_same(found: Model, expected: Model, drawn: np.ndarray) -> None:
    """The same weights to the last bit. The pictures may differ by rounding: tensors of a mapped file are aligned in
    another way than those in allocated memory, and kernels for aligned memory add up in another order."""
    for one, other in (
        (found.unet.network, expected.unet.network),
        (found.vae.network, expected.vae.network),
        (found.text.towers[0].model, expected.text.towers[0].model),
    ):
        weights, wanted = one.state_dict(), other.state_dict()
        assert weights.keys() == wanted.keys()
        assert [name for name, tensor in weights.items() if not torch.equal(tensor, wanted[name])] == []
    assert alike(picture(found), drawn)


def test_narrow_heads_compute_what_diffusers_does(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU they are filled up with zeros, in self-attention and towards the prompt. The tolerance is ten times what
    rounding was seen to change. The control scales scores for 16 channels, as torch would by itself."""
    unet, seeded = load(files, CPU).unet.network, torch.Generator().manual_seed(4)
    given = torch.randn(2, 4, 8, 8, generator=seeded), torch.tensor(500), torch.randn(2, 77, 64, generator=seeded)
    with torch.inference_mode():
        ours = unet(*given)[0]
        assert {type(each) for each in unet.attn_processors.values()} == {WideHeads}
        plain = torch.nn.functional.scaled_dot_product_attention
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *given, scale: plain(*given))
            wrong = unet(*given)[0]
        unet.set_attn_processor(AttnProcessor2_0())
        theirs = unet(*given)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert not torch.allclose(wrong, theirs, atol=1e-2)


def test_a_diffusers_folder_draws_the_same_picture(
    networks: Model, drawn: np.ndarray, files: ModelFiles, tmp_path: Path
) -> None:
    folder = load(replace(files, checkpoint=save(networks, tmp_path), vae=None))
    assert_same(folder, networks, drawn)


def test_a_pickled_checkpoint_draws_the_same_picture(
    networks: Model, drawn: np.ndarray, files: ModelFiles, tensors: Tensors, tmp_path: Path
) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": tensors, "global_step": 7}, path)
    assert_same(load(replace(files, checkpoint=path)), networks, drawn)


def test_text_encoder_names_without_text_model(
    networks: Model, drawn: np.ndarray, files: ModelFiles, tensors: Tensors, tmp_path: Path
) -> None:
    """Merged checkpoints of this kind are often published so."""
    path = tmp_path / "model.safetensors"
    save_file({name.replace("transformer.text_model.", "transformer."): t for name, t in tensors.items()}, path)
    assert_same(load(replace(files, checkpoint=path)), networks, drawn)


def test_the_better_vae_is_the_one_that_decodes(networks: Model, drawn: np.ndarray, files: ModelFiles) -> None:
    assert files.vae is not None
    stock = load(replace(files, vae=None))
    better = load_file(files.vae)["decoder.conv_out.weight"].float()
    assert torch.equal(networks.vae.network.decoder.conv_out.weight, better)
    assert not torch.equal(stock.vae.network.decoder.conv_out.weight, better)
    assert not alike(picture(stock), drawn)
    assert (stock.identity.vae_name, networks.identity.vae_name) == ("", files.vae.name)


def test_a_vae_that_was_not_applied_is_an_error(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = load(replace(files, vae=None)).vae.network
    monkeypatch.setattr(loader, "load_vae", lambda *_: stock)
    with pytest.raises(ModelError, match="is not the one in use"):
        load(files)


def test_a_vae_folder(networks: Model, drawn: np.ndarray, files: ModelFiles, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a diffusers folder"):
        load(replace(files, vae=tmp_path))
    networks.vae.network.save_pretrained(tmp_path)
    folder = load(replace(files, vae=tmp_path))
    assert_same(folder, networks, drawn)
    assert folder.identity.vae_sha256


def test_folders_of_other_families(networks: Model, files: ModelFiles, tmp_path: Path) -> None:
    folder = save(networks, tmp_path)
    for part, change, told in (("scheduler", {"prediction_type": "sample"}, "its UNet predicts 'sample'"),):
        path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        was = path.read_text()
        path.write_text(json.dumps(json.loads(was) | change))
        with pytest.raises(ModelError, match=told):
            load(replace(files, checkpoint=folder))
        path.write_text(was)


class AsV(UNet):
    """A network of noise prediction whose output is turned into v."""

    def __call__(self, call: UNetCall) -> torch.Tensor:
        t = float(call.time)
        logs = SD1.noise.log_sigmas
        low = min(int(t), len(logs) - 2)
        sigma = math.exp(logs[low] + (t - low) * (logs[low + 1] - logs[low]))
        alpha = 1 / (sigma**2 + 1)
        return (super().__call__(call) - (1 - alpha) ** 0.5 * call.images) / alpha**0.5


@pytest.mark.parametrize(
    ("form", "sampler"), [("folder", "DPM++ 2M"), ("metadata", "Euler"), ("tensor", "DDIM"), ("tensor", "PLMS")]
)
def test_a_file_that_declares_v_prediction_is_drawn_so(
    networks: Model, files: ModelFiles, tensors: Tensors, tmp_path: Path, form: str, sampler: str
) -> None:
    """With a network whose noise is turned into v it draws the picture of the noise."""
    path = tmp_path / "v.safetensors"
    if form == "folder":
        path = save(networks, tmp_path / "folder", prediction_type="v_prediction")
    elif form == "tensor":
        save_file({**tensors, "v_pred": torch.zeros(0)}, path)
    else:
        save_file(tensors, path, {"format": "pt", "modelspec.prediction_type": "v"})
    declared = load(replace(files, checkpoint=path))
    assert declared.prediction == PREDICTIONS["v_prediction"]
    assert declared.noise == SD1.noise
    wanted = picture(networks, sampler=sampler, guidance_rescale=0.3)
    found = picture(replace(declared, unet=AsV(declared.unet.network)), sampler=sampler, guidance_rescale=0.3)
    assert np.abs(found.astype(int) - wanted).max() <= 3
    as_noise = picture(declared, sampler=sampler, guidance_rescale=0.3)
    assert np.abs(as_noise.astype(int) - wanted).max() > 30


def test_zero_terminal_snr_is_declared_too(files: ModelFiles, tensors: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    save_file({**tensors, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, path)
    declared = load(replace(files, checkpoint=path))
    assert declared.noise == SD1.noise.zero_terminal_snr()
    request = GenerationRequest(prompt="a sun", width=64, height=64, seed=3, num_inference_steps=2, hires=None)
    (drawn,) = (e for e in render(declared, request, make_plan(request)) if isinstance(e, PassResult))
    assert drawn.sigmas[0] == pytest.approx(4518.7637)


def test_an_inpainting_checkpoint_is_shown_a_mask_and_what_is_around_it(
    drawn: np.ndarray, files: ModelFiles, tensors: Tensors, tmp_path: Path
) -> None:
    path, name = tmp_path / "inpainting.safetensors", "model.diffusion_model.input_blocks.0.0.weight"
    more = torch.zeros(len(tensors[name]), 5, 3, 3)
    save_file({**tensors, name: torch.cat([tensors[name], more], dim=1)}, path)
    inpainting = load(replace(files, checkpoint=path))
    assert alike(picture(inpainting), drawn), "blind to what is new"

    with mock.patch.object(inpainting.unet.network, "forward", wraps=inpainting.unet.network.forward) as unet:
        picture(inpainting)
    mask, grey = unet.call_args.args[0][:, 4], unet.call_args.args[0][:, 5:]
    assert bool((mask == 1).all()), "without a mask all is masked"
    assert torch.equal(grey[0], grey[1])

    save_file({**tensors, name: torch.cat([tensors[name], more + 0.01], dim=1)}, path)
    assert not alike(picture(load(replace(files, checkpoint=path))), drawn)


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


def same_vae(found: AutoencoderKL, expected: AutoencoderKL) -> bool:
    wanted = expected.state_dict()
    return all(torch.equal(tensor, wanted[name]) for name, tensor in found.state_dict().items())


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.mark.parametrize("names", ["of today", "until 2023"])
def test_a_vae_file_may_have_diffusers_names(networks: Model, tmp_path: Path, names: str) -> None:
    tensors = networks.vae.network.state_dict()
    if names != "of today":
        tensors = {re.sub("to_[qkv]|to_out.0", lambda each: OLD[each[0]], name): t for name, t in tensors.items()}
        assert any("query" in name for name in tensors)
    save_file(tensors, tmp_path / "vae.safetensors")
    assert same_vae(load_vae(tmp_path / "vae.safetensors", CPU), networks.vae.network)


@pytest.mark.parametrize("kind", [kind for kind in NUMBER_FORMATS.values() if kind.is_floating_point], ids=str)
def test_every_number_format_of_a_vae_is_read_and_checked(files: ModelFiles, tmp_path: Path, kind: torch.dtype) -> None:
    assert files.vae is not None
    tensors = {name: tensor.to(kind) for name, tensor in load_file(files.vae).items()}
    name, path = "decoder.conv_in.weight", tmp_path / "vae.safetensors"
    save_file(tensors, path)
    assert torch.equal(load_vae(path, CPU).decoder.conv_in.weight, tensors[name].float())
    save_file(tensors | {name: torch.full(tensors[name].shape, float("nan")).to(kind)}, path)
    with pytest.raises(ModelError, match="NaN or infinite"):
        load_vae(path, CPU)


def test_a_folder_of_fp16_variants_and_parts(
    networks: Model, drawn: np.ndarray, files: ModelFiles, tmp_path: Path
) -> None:
    half = [copy.deepcopy(network).half() for network in (networks.unet.network, networks.vae.network)]
    half[0].save_pretrained(tmp_path / "unet", variant="fp16", max_shard_size="4MB")
    half[1].save_pretrained(tmp_path / "vae", variant="fp16")
    copy.deepcopy(networks.text.towers[0].model).half().save_pretrained(tmp_path / "text_encoder", variant="fp16")
    assert (
        len(list((tmp_path / "unet").glob("*-of-*.fp16.safetensors")) + list((tmp_path / "unet").glob("*fp16-0*"))) > 1
    )
    found, wanted = load(replace(files, checkpoint=tmp_path, vae=None)), half[0].state_dict()
    assert all(torch.equal(tensor, wanted[name].float()) for name, tensor in found.unet.network.state_dict().items())
    assert alike(picture(found), drawn), "its weights were half precision before"


def test_a_folder_without_a_vae_needs_one(networks: Model, files: ModelFiles, tmp_path: Path) -> None:
    folder = save(networks, tmp_path)
    shutil.move(folder / "vae", tmp_path / "elsewhere")
    for vae in (files.vae, tmp_path / "elsewhere"):
        assert same_vae(load(replace(files, checkpoint=folder, vae=vae)).vae.network, networks.vae.network)
    with pytest.raises(ModelError, match=r"holds no VAE\. Name one"):
        load(replace(files, checkpoint=folder, vae=None))


POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


@pytest.mark.parametrize("kind", [torch.int64, torch.float16, torch.float32, torch.bfloat16])
def test_whole_positions_are_no_news(
    files: ModelFiles, tensors: Tensors, tmp_path: Path, kind: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(tensors | {POSITIONS: torch.arange(77)[None].to(kind)}, tmp_path / "a.safetensors")
    positions = load(replace(files, checkpoint=tmp_path / "a.safetensors")).text.towers[0].model.embeddings.position_ids
    assert positions.tolist() == [list(range(77))]
    assert "position_ids" not in caplog.text


def test_broken_positions_draw_webuis_picture_and_are_told(
    networks: Model,
    drawn: np.ndarray,
    files: ModelFiles,
    tensors: Tensors,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """WebUI copies them into whole numbers, so 2.98 is the position 2."""
    told = torch.arange(77.0)[None]
    told[0, 3], told[0, 5] = 2.98, 60
    path, made = tmp_path / "broken.safetensors", tmp_path / "made.safetensors"
    save_file(tensors | {POSITIONS: told}, path)
    broken = load(replace(files, checkpoint=path))
    expected = [2 if at == 3 else 60 if at == 5 else at for at in range(77)]
    assert broken.text.towers[0].model.embeddings.position_ids.tolist() == [expected]
    assert "broken (3 is 2.98, 5 is 60). Pictures are drawn with them, as in WebUI" in caplog.text
    with mock.patch.object(networks.text.towers[0].model.embeddings, "position_ids", torch.tensor([expected])):
        wanted = picture(networks)
    assert alike(picture(broken), wanted)
    assert not alike(wanted, drawn)
    convert(path, made)
    assert load_file(made)[POSITIONS].tolist() == [expected], "a converted file draws the same"


@pytest.mark.parametrize("told", [torch.full((1, 77), float("nan")), torch.arange(77) + 1, torch.arange(50)], ids=str)
def test_positions_that_webui_cannot_draw_with_are_mended_and_told(
    files: ModelFiles, tensors: Tensors, tmp_path: Path, told: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(tensors | {POSITIONS: told}, tmp_path / "a.safetensors")
    found = load(replace(files, checkpoint=tmp_path / "a.safetensors"))
    assert found.text.towers[0].model.embeddings.position_ids.tolist() == [list(range(77))]
    assert "a.safetensors: its text encoder's position_ids are unusable; 0 to 76 are used." in caplog.text


def test_missing_and_cut_files(files: ModelFiles, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load(replace(files, checkpoint=tmp_path / "none.safetensors"))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(files.checkpoint.read_bytes()[:100_000])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load(replace(files, checkpoint=cut))
    with pytest.raises(ModelError, match="not a diffusers folder"):
        load(replace(files, checkpoint=tmp_path))

"""`python -m pipelines`: pictures and latents from infotext files, and one clear line for what it cannot do."""

import sys
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipelines import __main__ as command
from pipelines.images.files import read_parameters
from pipelines.models.loader import load, sha256_of
from pipelines.models.model import Model
from tests.adapters import kohya, write
from tests.alike import alike
from weights_script.resolve import ResolvedModel

BLOCK = "a pink sun over the sea\nSteps: 3, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x64, RNG: NV"
HIRES = f"{BLOCK}, Denoising strength: 0.6, Hires upscale: 2, Hires upscaler: Latent"


loaded = cache(load)
"""The model is loaded once for all of the tests."""


def run(monkeypatch: pytest.MonkeyPatch, embedded: ResolvedModel, *words: object) -> int:
    arguments = ["pipelines", embedded.files.checkpoint, "--vae", embedded.files.vae, *words]
    monkeypatch.setattr(sys, "argv", [str(word) for word in arguments])
    monkeypatch.setattr(command, "load", loaded)
    return command.main()


def test_pictures_and_latents(
    monkeypatch: pytest.MonkeyPatch, embedded: ResolvedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = tmp_path / "sun.txt"
    block.write_text(HIRES)
    words = ("--infotext", block, "-o", tmp_path / "out", "--num-outputs", 2, "--keep-latents")
    assert run(monkeypatch, embedded, *words) == 0
    made = capsys.readouterr().out.split()
    assert [Path(path).name for path in made] == ["sun-0.png", "sun-1.png", "sun.safetensors"]
    with Image.open(made[1]) as picture:
        assert picture.size == (128, 128)
        assert "Seed: 6," in picture.info["parameters"]
    tensors = load_file(made[2])
    assert tensors["0_txt2img_noise"].shape == (2, 4, 8, 8)
    assert tensors["1_hires_latent"].shape == (2, 4, 16, 16)
    assert {"0_txt2img_sigmas", "0_txt2img_cond", "0_txt2img_uncond", "1_hires_init"} <= tensors.keys()


def test_a_picture_drawn_from_what_is_in_a_picture_is_the_same(
    monkeypatch: pytest.MonkeyPatch, embedded: ResolvedModel, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(BLOCK)
    assert run(monkeypatch, embedded, "--infotext", tmp_path / "a.txt", "-o", tmp_path) == 0
    with Image.open(tmp_path / "a-0.png") as first:
        (tmp_path / "b.txt").write_text(first.info["parameters"])
        expected = np.asarray(first)
    assert run(monkeypatch, embedded, "--infotext", tmp_path / "b.txt", "-o", tmp_path) == 0
    with Image.open(tmp_path / "b-0.png") as second:
        assert np.array_equal(np.asarray(second), expected)


def test_several_models(
    monkeypatch: pytest.MonkeyPatch, embedded: ResolvedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A block is drawn by the model that it names, with its refiner; a broken file stops neither."""
    tensors = load_file(embedded.files.checkpoint)
    tensors["model.diffusion_model.out.2.weight"] *= 0.5
    save_file(tensors, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    digits = sha256_of(tmp_path / "other.safetensors")[:10]
    refined = f"{BLOCK}, Refiner: other [{digits}], Refiner switch at: 0.4"
    texts = {"first": BLOCK, "second": f"{BLOCK}, Model hash: {digits}", "refined": refined}
    texts["lost"] = refined.replace("other", "broken").replace(digits, "0123456789")
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    words = ("--model", f"{tmp_path / 'broken.safetensors'}, {tmp_path / 'other.safetensors'}", "-o", tmp_path)
    assert run(monkeypatch, embedded, *words, "--infotext", *(tmp_path / f"{name}.txt" for name in texts)) == 1
    told = capsys.readouterr().err
    assert "made with the refiner broken [0123456789]; it cannot be used: " in told
    made = [read_parameters(tmp_path / f"{name}-0.png") for name in ("first", "second", "refined")]
    assert [f"Model hash: {digits}, Model: other" in text for text in made] == [False, True, False]
    assert f"Refiner: other [{digits}], Refiner switch at: 0.4" in made[2]
    pixels = [np.asarray(Image.open(tmp_path / f"{name}-0.png")) for name in ("first", "second", "refined")]
    assert not any(alike(one, other) for one, other in combinations(pixels, 2))


def test_the_noise_source_can_be_chosen(
    monkeypatch: pytest.MonkeyPatch, embedded: ResolvedModel, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(BLOCK)
    for source in ("NV", "CPU"):
        folder = tmp_path / source
        words = ("--infotext", tmp_path / "a.txt", "-o", folder, "--rng", source)
        assert run(monkeypatch, embedded, *words) == 0
    pixels = [np.asarray(Image.open(tmp_path / source / "a-0.png")) for source in ("NV", "CPU")]
    assert not alike(*pixels)


def test_one_block_that_cannot_be_drawn_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, embedded: ResolvedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.txt").write_text(BLOCK.replace("a pink", "<lora:x:1> a pink"))
    (tmp_path / "good.txt").write_text(BLOCK)
    words = ("--infotext", tmp_path / "bad.txt", tmp_path / "good.txt", tmp_path / "none.txt", "-o", tmp_path)
    assert run(monkeypatch, embedded, *words) == 1
    told = capsys.readouterr()
    assert told.out.split() == [str(tmp_path / "good-0.png")]
    assert "error: " in told.err
    assert "the picture would be different: <lora:x:1>" in told.err
    assert "none.txt" in told.err
    assert run(monkeypatch, embedded, "--infotext", tmp_path / "bad.txt", "-o", tmp_path, "--no-strict") == 0


def test_a_missing_checkpoint_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["pipelines", "/none.safetensors", "--infotext", "x", "-o", "y"])
    assert command.main() == 1
    assert capsys.readouterr().err == (
        "error: /none.safetensors: no such file. Give the path of a .safetensors or .ckpt checkpoint.\n"
    )


def test_an_upscaler_that_is_not_here_is_told_with_its_name(
    monkeypatch: pytest.MonkeyPatch, embedded: ResolvedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = tmp_path / "a.txt"
    block.write_text(HIRES.replace("upscaler: Latent", "upscaler: 4x-UltraSharp"))
    assert run(monkeypatch, embedded, "--infotext", block, "-o", tmp_path) == 1
    assert "the hires upscaler 4x-UltraSharp is not available" in capsys.readouterr().err
    (tmp_path / "4x-UltraSharp.pth").write_bytes(b"none")
    words = ("--infotext", block, "-o", tmp_path, "--upscaler", tmp_path / "4x-UltraSharp.pth")
    assert run(monkeypatch, embedded, *words) == 1
    assert "4x-UltraSharp.pth: " in capsys.readouterr().err


def test_loras_and_embeddings_are_found_in_their_folders(
    monkeypatch: pytest.MonkeyPatch, embedded: ResolvedModel, networks: Model, tmp_path: Path
) -> None:
    loras, embeddings = tmp_path / "loras", tmp_path / "embeddings"
    loras.mkdir(), embeddings.mkdir()
    write(loras / "some.safetensors", kohya(networks.unet.network, networks.text.towers[0].model))
    width = networks.text.towers[0].model.config.hidden_size
    write(embeddings / "zeta.safetensors", {"emb_params": torch.ones(2, width)})
    (tmp_path / "plain.txt").write_text(BLOCK)
    (tmp_path / "with.txt").write_text(BLOCK.replace("a pink", "zeta <lora:some:2> a pink"))
    words = ("--infotext", tmp_path / "plain.txt", tmp_path / "with.txt", "-o", tmp_path)
    assert run(monkeypatch, embedded, *words, "--lora-dir", loras, "--embeddings-dir", embeddings) == 0
    plain, changed = (Image.open(tmp_path / f"{name}-0.png") for name in ("plain", "with"))
    assert not alike(np.asarray(plain), np.asarray(changed))
    assert 'Lora hashes: "some: ' in changed.info["parameters"]
    assert 'TI hashes: "zeta: ' in changed.info["parameters"]


def test_a_picture_serves_as_its_generation_data(
    monkeypatch: pytest.MonkeyPatch, embedded: ResolvedModel, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(BLOCK)
    assert run(monkeypatch, embedded, "--infotext", tmp_path / "a.txt", "-o", tmp_path) == 0
    assert run(monkeypatch, embedded, "--infotext", tmp_path / "a-0.png", "-o", tmp_path) == 0
    first, second = (np.asarray(Image.open(tmp_path / name)) for name in ("a-0.png", "a-0-0.png"))
    assert np.array_equal(first, second)

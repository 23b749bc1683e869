"""Broken, mistaken or harmful weight files give a named error, quickly and without much memory."""

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.ask.identity import ModelFiles
from pipelines.ask.networks import ExtraFile
from pipelines.errors import ModelError
from pipelines.models.embeddings import read_embedding
from pipelines.models.loader import load, load_vae
from pipelines.models.model import Model
from pipelines.runtime.device import Device
from pipelines.upscalers.esrgan import load_esrgan
from script.schema import ROOT
from tests import attacks
from tests.folders import save
from tests.growth import rounds
from weights_script.convert import convert
from weights_script.resolve import ResolvedModel, resolve

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
TOKENS = f"{TEXT}embeddings.token_embedding.weight"
FIRST = f"{UNET}input_blocks.0.0.weight"
Tensors = dict[str, torch.Tensor]
ESRGAN = ROOT / "tests" / "data" / "upscalers" / "4x-tiny.safetensors"
CPU = Device(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def files(embedded: ResolvedModel) -> ModelFiles:
    return replace(embedded.files, vae=None)


@pytest.fixture(scope="session")
def tensors(files: ModelFiles) -> Tensors:
    return load_file(files.checkpoint)


def refused(path: Path, files: ModelFiles, said: str) -> None:
    """By every way that the file could be used."""
    for use in (lambda: load(replace(files, checkpoint=path)), lambda: convert(path, path.with_name("x.safetensors"))):
        with pytest.raises(ModelError, match=said):
            use()
    with pytest.raises(ModelError):
        load_vae(path, CPU)
    with pytest.raises(ModelError, match="not an upscaler"):
        load_esrgan(path, CPU.place, CPU.dtype)


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(dtype: str = "F32", shape: tuple[int, ...] = (2,), offsets: tuple[int, int] = (0, 8)) -> dict[str, object]:
    return {f"{UNET}x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


WHOLE = safetensors(one(), bytes(8))
BROKEN = {
    "empty": (b"", "an empty file"),
    "cut in its length": (WHOLE[:5], "cut off after its first bytes"),
    "cut after its length": (WHOLE[:8], "cut off after its first bytes"),
    "cut in its header": (WHOLE[:40], "not a whole safetensors"),
    "cut after its header": (WHOLE[:-8], "not a whole safetensors"),
    "cut in its data": (WHOLE[:-1], "not a whole safetensors"),
    "longer than told": (WHOLE + b"x", "not a whole safetensors"),
    "a header of 2^63 bytes": (safetensors(b"{}", length=2**63), "not a whole safetensors"),
    "a header beyond the file": (safetensors(b"{}", length=10**7), "not a whole safetensors"),
    "no JSON": (safetensors(b"{x}"), "not a whole safetensors"),
    "deep JSON": (safetensors(b'{"a":' * 100_000), "not a whole safetensors"),
    "99 MB of spaces": (safetensors(b"{" + b" " * 99_000_000 + b"}"), "at most 16777216 are read"),
    "16 MB of spaces": (safetensors(b"{" + b" " * 16_000_000 + b"}"), "holds no UNet"),
    "overlapping": (safetensors(one() | {"b": one(offsets=(4, 12))[f"{UNET}x"]}, bytes(12)), "not a whole safetensors"),
    "backwards": (safetensors(one(offsets=(8, 0)), bytes(8)), "not a whole safetensors"),
    "a shape of 10^12": (safetensors(one(shape=(10**6, 10**6)), bytes(8)), "not a whole safetensors"),
    "a shape of 2^80": (safetensors(one(shape=(2**40, 2**40)), bytes(8)), "not a whole safetensors"),
    "an unknown type": (safetensors(one("X"), bytes(8)), "not a whole safetensors"),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(40), "a GGUF file"),
    "a web page": (b"\n<!DOCTYPE html><html>", "a web page"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "a cut zip": (b"PK\x03\x04" + bytes(40), "cannot be read as plain weights"),
    "two bytes of a pickle": (b"\x80\x02", "cannot be read as plain weights"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file(files: ModelFiles, tmp_path: Path, name: str) -> None:
    """Whatever its name's ending is: files are known by their content."""
    content, said = BROKEN[name]
    for ending in ("safetensors", "ckpt"):
        path = tmp_path / f"a.{ending}"
        path.write_bytes(content)
        refused(path, files, said)


OTHERS = {
    "a Stable Diffusion 3 checkpoint": f"{UNET}joint_blocks.0.context_block.attn.qkv.weight",
    "a Flux checkpoint": "double_blocks.0.img_attn.qkv.weight",
    "a quantised file": f"{UNET}middle_block.1.proj_in.weight.absmax",
    "a LoRA": "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
    "a LoRA.": "unet.mid_block.attentions.0.proj_in.lora_A.weight",
    "a ControlNet": "control_model.input_hint_block.0.weight",
    "a ControlNet.": "controlnet_cond_embedding.conv_in.weight",
    "a textual inversion embedding": "emb_params",
    "a UNet in diffusers' layout": "down_blocks.0.resnets.0.conv1.weight",
    "an upscaler": "model.1.sub.0.RDB1.conv1.0.weight",
    "a VAE": "decoder.conv_in.weight",
    "holds no text encoder": FIRST,
    "holds no UNet": f"{TEXT}final_layer_norm.weight",
}


@pytest.mark.parametrize("said", OTHERS)
def test_another_kind_of_file_is_named(files: ModelFiles, tmp_path: Path, said: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({OTHERS[said]: torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=said):
        load(replace(files, checkpoint=path))


def test_what_is_nested_in_a_pickle_is_named(files: ModelFiles, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for said, content in (
        ("a textual inversion embedding", {"string_to_param": {"*": torch.zeros(1, 8)}, "name": "a"}),
        ("an upscaler", {"params_ema": {"conv_first.weight": torch.zeros(1)}}),
    ):
        torch.save(content, path)
        with pytest.raises(ModelError, match=said):
            load(replace(files, checkpoint=path))


def test_a_checkpoint_is_no_upscaler_and_an_upscaler_no_vae(files: ModelFiles, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="it is a Stable Diffusion checkpoint"):
        load_esrgan(files.checkpoint, CPU.place, CPU.dtype)
    with pytest.raises(ModelError, match=r"holds no VAE decoder .* It is an upscaler"):
        load_vae(ESRGAN, CPU)


MIDDLE = f"{UNET}middle_block.0.in_layers.2.weight"
ALTERED: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor | None], str]] = {
    "one is missing": (MIDDLE, lambda _: None, "lacks mid_block"),
    "the first is missing": (FIRST, lambda _: None, f"lacks {FIRST}"),
    "the tokens are missing": (TOKENS, lambda _: None, "lacks embeddings.token_embedding"),
    "another shape": (MIDDLE, lambda _: torch.zeros(3, 3), "does not fit.*mid_block"),
    "a number for a matrix": (TOKENS, lambda _: torch.tensor(1.0), "has the shape"),
    "an empty matrix": (TOKENS, lambda old: torch.zeros(0, old.shape[1]), "has the shape"),
    "another text encoder": (TOKENS, lambda _: torch.zeros(9, 768), "another text encoder"),
    "depth": (FIRST, lambda old: torch.zeros(old.shape[0], 5, 3, 3), "depth to image.*5 channels"),
    "pix2pix": (FIRST, lambda old: torch.zeros(old.shape[0], 8, 3, 3), "InstructPix2Pix.*8 channels"),
    "8 bits": (MIDDLE, lambda old: old.to(torch.int8), "quantised"),
    "NaN in the UNet": (MIDDLE, lambda old: old.clone().fill_(float("nan")), "mid_block.*NaN or infinite"),
    "one infinity in the VAE": (
        f"{VAE}decoder.conv_out.bias",
        lambda old: torch.cat([old[:-1], torch.tensor([float("-inf")], dtype=old.dtype)]),
        "conv_out.bias has values that are NaN or infinite",
    ),
    "NaN in the text encoder": (TOKENS, lambda old: torch.full_like(old, float("nan")), "token_embedding.*NaN"),
}


@pytest.mark.parametrize("name", ALTERED)
def test_a_checkpoint_with_one_tensor_altered(files: ModelFiles, tensors: Tensors, tmp_path: Path, name: str) -> None:
    altered, alter, said = ALTERED[name]
    made = alter(tensors[altered])
    path = tmp_path / "a.safetensors"
    save_file({key: value for key, value in (tensors | {altered: made}).items() if value is not None}, path)
    with pytest.raises(ModelError, match=said):
        load(replace(files, checkpoint=path))


def test_extra_tensors_and_sums_that_overflow_do_no_harm(files: ModelFiles, tensors: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    large = torch.full_like(tensors[MIDDLE], 3e38, dtype=torch.float32)
    save_file(tensors | {f"{UNET}☃": torch.zeros(2, dtype=torch.int8), "x": torch.ones(2), MIDDLE: large}, path)
    load(replace(files, checkpoint=path))


class Call:
    """Unpickling it would call the function."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_a_pickle_that_runs_code_does_not(files: ModelFiles, tmp_path: Path, form: str) -> None:
    proof, path = tmp_path / "ran", tmp_path / "evil.safetensors"
    for call in (
        Call(os.system, f"touch {proof}"),
        Call(eval, f"open({str(proof)!r}, 'w')"),
        Call(getattr, Call(__import__, "os"), "system"),
        Call(Path.touch, proof),
    ):
        if form == "plain":
            path.write_bytes(pickle.dumps({"state_dict": {FIRST: call}}, protocol=2))
        else:
            torch.save({"state_dict": {FIRST: call}}, path, _use_new_zipfile_serialization=form == "zip")
        refused(path, files, "nothing in it was run")
    assert not proof.exists()


def test_a_legacy_pickle_is_read(files: ModelFiles, tensors: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": tensors}, path, _use_new_zipfile_serialization=False)
    load(replace(files, checkpoint=path))


@pytest.mark.parametrize("name", ["expanded", "sparse", "meta", "quantised"])
def test_tensors_that_would_outgrow_their_file(files: ModelFiles, tensors: Tensors, tmp_path: Path, name: str) -> None:
    shape = tensors[MIDDLE].shape
    made = {
        "expanded": lambda: torch.zeros(1).expand(100_000, 100_000),
        "sparse": lambda: torch.zeros(shape).to_sparse(),
        "meta": lambda: torch.empty(shape, device="meta"),
        "quantised": lambda: torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.qint8),
    }[name]()
    path = tmp_path / "a.ckpt"
    torch.save(tensors | {MIDDLE: made}, path)
    assert made.is_sparse or made.is_meta or made.is_quantized or made.nbytes > path.stat().st_size
    for use in (lambda: load(replace(files, checkpoint=path)), lambda: convert(path, tmp_path / "x.safetensors")):
        with pytest.raises(ModelError, match=r"asks for torch._utils._rebuild|larger than the file"):
            use()


def memory(key: str) -> int:
    """Bytes that this process has (VmRSS), or had at most since `peak_from_here` (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def peak_from_here() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def refusal_of(use: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as refusal:
        use()
    return str(refusal.value)


def refusal_in_a_thread(use: Callable[[], object]) -> str:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(refusal_of, use).result()


CHEAP = 200
"""Millions of rounds of a loop, which take about five seconds on a slow core. The costliest refusal takes a second
there; before these files were looked at first, they took 8 s to minutes."""


@pytest.mark.parametrize("name", attacks.WEIGHTS)
def test_an_attack_by_weights_costs_next_to_nothing(files: ModelFiles, tmp_path: Path, name: str) -> None:
    """As an embedding and as a checkpoint, in a thread, whose stack is small."""
    path = tmp_path / "a.pt"
    path.write_bytes(attacks.WEIGHTS[name]())
    uses = (
        lambda: read_embedding(ExtraFile.at(path, "embedding_file"), 768),
        lambda: load(replace(files, checkpoint=path)),
    )
    before = peak_from_here()
    said: list[str] = []
    assert rounds(lambda: said.extend(map(refusal_in_a_thread, uses))) < CHEAP
    assert max(map(len, said)) < 2000
    assert memory("VmHWM") - before < 2 * path.stat().st_size + (100 << 20)


def packed(path: Path, script: bytes, times: int = 1) -> Path:
    """A zip in torch's form, but deflated, whose pickle is `script` again and again."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as member:
            for _ in range(times):
                member.write(script)
        archive.writestr("archive/version", "3\n")
    return path


def test_bombs_take_neither_memory_nor_time(files: ModelFiles, tmp_path: Path) -> None:
    """Each is small and would take gigabytes: as a packed pickle, in one call, or by the sizes that it names."""
    packed(tmp_path / "packed.ckpt", b"N0" * (1 << 23), 16)
    packed(tmp_path / "array.ckpt", b"\x80\x02cbuiltins\nbytearray\n(\x8a\x05\0\0\0\0\x01tR.")  # 4 GB of zeros
    (tmp_path / "legacy.ckpt").write_bytes(b"\x80\x02cbuiltins\nbytearray\n(\x8a\x05\0\0\0\0\x01tR.")
    weights = load_file(ESRGAN)
    save_file(weights | {"model.0.weight": torch.zeros(20_000, 3, 1, 1)}, tmp_path / "wide.safetensors")
    layers = {f"{TEXT}encoder.layers.{k}.mlp.fc1.weight": torch.zeros(1, 1) for k in range(5000)}
    save_file(layers | {FIRST: torch.zeros(1, 4, 1, 1)}, tmp_path / "deep.safetensors")
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 5
    load_esrgan(ESRGAN, CPU.place, CPU.dtype)  # the first brings spandrel
    for path in paths:
        for use in (
            partial(load_esrgan, path, CPU.place, CPU.dtype),
            partial(load, replace(files, checkpoint=path)),
        ):
            before = peak_from_here()
            assert rounds(partial(refusal_of, use)) < CHEAP, path.name
            assert memory("VmHWM") - before < 100 << 20, path.name


def test_what_is_no_file(files: ModelFiles, tmp_path: Path) -> None:
    """A pipe is not waited for, a device not read, and a folder no network."""
    os.mkfifo(tmp_path / "pipe.ckpt")
    (tmp_path / "loop.ckpt").symlink_to(tmp_path / "loop.ckpt")
    (tmp_path / "device.ckpt").symlink_to("/dev/zero")
    for path, said in (
        (tmp_path / "pipe.ckpt", "a folder or a device"),
        (tmp_path / "device.ckpt", "a folder or a device"),
        (tmp_path / "loop.ckpt", "no such file"),
        (tmp_path / "none\n☃.ckpt", "no such file"),
        (tmp_path / ("x" * 300), "cannot be read"),
    ):
        refused(path, files, said)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError, match="not a diffusers folder"):
        load(replace(files, checkpoint=tmp_path / "folder"))
    for value in (str(tmp_path / ("x" * 300)), "~nobody-of-this-name/a.ckpt", "a\0b"):
        with pytest.raises(ModelError, match="COG_WEIGHTS="):
            resolve(value, None)


@pytest.fixture(scope="module")
def folder(networks: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(networks, tmp_path_factory.mktemp("diffusers"))


CONFIGS = {
    "nothing": "",
    "a list": "[1]",
    "a string, which the libraries take for a name on the hub": '"a"',
    "deep": "[" * 100_000,
    "wide": {"block_out_channels": [6400] * 4, "hidden_size": 6400, "intermediate_size": 100_000},
    "wider than memory": {"block_out_channels": [10**6] * 4, "hidden_size": 10**6},
    "endless": {"layers_per_block": 10**9, "num_hidden_layers": 10**9},
    "below zero": {"block_out_channels": [-64], "hidden_size": -1},
    "of other types": {"block_out_channels": "x", "hidden_size": {}},
}


@pytest.mark.parametrize("part", ["unet", "vae"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_diffusers_folder_with_a_hostile_configuration(files: ModelFiles, folder: Path, part: str, name: str) -> None:
    path = folder / part / "config.json"
    was, change = path.read_text(), CONFIGS[name]
    path.write_text(change if isinstance(change, str) else json.dumps(json.loads(was) | change))
    try:
        with pytest.raises(ModelError, match=f"{part}: not a diffusers folder that can be read"):
            load(replace(files, checkpoint=folder)) if part == "unet" else load_vae(folder / part, CPU)
    finally:
        path.write_text(was)


def test_a_diffusers_folder_never_draws_with_random_weights(files: ModelFiles, folder: Path) -> None:
    """transformers fills what is missing with random numbers and warns."""
    path = folder / "text_encoder" / "model.safetensors"
    was = load_file(path)
    gone = next(name for name in was if "fc1.weight" in name)
    save_file({name: value for name, value in was.items() if name != gone}, path, {"format": "pt"})
    try:
        with pytest.raises(ModelError, match=r"text_encoder: .* lacks .*fc1\.weight"):
            load(replace(files, checkpoint=folder))
    finally:
        save_file(was, path, {"format": "pt"})

"""Checkpoints become fp16 safetensors of the tensors needed for drawing, tensor by tensor, from safe files only."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.errors import ModelError
from pipelines.families.detection import Declaration, declared_in_file
from pipelines.families.layouts import VAE_PREFIX
from pipelines.models.checkpoint import NUMBER_FORMATS, map_tensors, read_metadata
from pipelines.runtime.memory import trim_heap
from weights_script import convert as converting
from weights_script.convert import EMA_PREFIX, convert
from weights_script.resolve import ResolvedModel

UNET = "model.diffusion_model."
WEIGHT = f"{UNET}input_blocks.0.0.weight"


@pytest.fixture
def tensors(embedded: ResolvedModel) -> dict[str, Tensor]:
    """The embedded checkpoint in float32, with what training leaves in such files."""
    found = {name: value.float() for name, value in load_file(embedded.files.checkpoint).items()}
    return found | {"optimizer.state": torch.zeros(1000), "betas": torch.zeros(10)}


def test_half_the_size_and_only_what_draws(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    made = load_file(tmp_path / "b.safetensors")
    assert made.keys() == tensors.keys() - {"optimizer.state", "betas"}
    assert {value.dtype for value in made.values()} == {torch.float16}
    assert all(torch.equal(value, tensors[name].half()) for name, value in made.items())
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_precision_can_be_kept(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": tensors}, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors", half=False)
    made = load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(value, tensors[name]) for name, value in made.items())


def raw(tensor: Tensor) -> bytes:
    return bytes(tensor.flatten().view(torch.uint8).tolist())


def test_every_kind_of_number_is_written_as_it_is(tmp_path: Path) -> None:
    kinds = NUMBER_FORMATS.values()
    tensors = {f"{UNET}{kind}": torch.ones(3, 2).to(kind) for kind in kinds} | {f"{UNET}scalar": torch.tensor(2.5)}
    save_file(tensors, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", half=False)
    made = load_file(tmp_path / "b.safetensors")
    assert {name: value.dtype for name, value in made.items()} == {name: value.dtype for name, value in tensors.items()}
    assert all(raw(value) == raw(made[name]) for name, value in tensors.items())
    convert(tmp_path / "a.safetensors", tmp_path / "c.safetensors")
    half = {name for name, value in load_file(tmp_path / "c.safetensors").items() if value.dtype == torch.float16}
    assert half == {name for name, value in tensors.items() if value.is_floating_point()}


def test_a_checkpoint_with_what_trainers_keep_in_it(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    kept = {"callbacks": {"path": tmp_path, "score": np.float64(0.5)}, "hyper_parameters": Namespace(a=1)}
    torch.save({"state_dict": tensors} | kept, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    assert torch.equal(load_file(tmp_path / "b.safetensors")[WEIGHT], tensors[WEIGHT].half())


def test_another_vae_takes_the_place_of_its_own(
    tensors: dict[str, Tensor], embedded: ResolvedModel, tmp_path: Path
) -> None:
    assert embedded.files.vae is not None
    save_file(tensors, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", vae=embedded.files.vae)
    made, better = load_file(tmp_path / "b.safetensors"), load_file(embedded.files.vae)
    assert {name.removeprefix(VAE_PREFIX) for name in made if name.startswith(VAE_PREFIX)} == better.keys()
    assert torch.equal(made[f"{VAE_PREFIX}decoder.conv_out.weight"], better["decoder.conv_out.weight"])


def test_the_moving_average_is_found_without_its_dots(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    averaged = {
        EMA_PREFIX + name.removeprefix("model.").replace(".", ""): value * 2
        for name, value in tensors.items()
        if name.startswith(UNET)
    }
    save_file(tensors | averaged, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "plain.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "ema.safetensors", ema=True)
    plain, ema = load_file(tmp_path / "plain.safetensors"), load_file(tmp_path / "ema.safetensors")
    assert plain.keys() == ema.keys()
    assert torch.equal(plain[WEIGHT], tensors[WEIGHT].half())
    assert torch.equal(ema[WEIGHT], (tensors[WEIGHT] * 2).half())


def test_what_the_file_declares_of_itself_is_kept(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """Without it the model would be drawn as a noise prediction."""
    metadata = {"modelspec.prediction_type": "v", "modelspec.title": "x"}
    save_file(tensors | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, tmp_path / "a.safetensors", metadata)
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    made = tmp_path / "b.safetensors"
    declared = declared_in_file(map_tensors(made), {})
    assert declared == Declaration("v_prediction", zero_terminal_snr=True)
    assert read_metadata(made) == {"format": "pt", "modelspec.prediction_type": "v"}


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({WEIGHT: torch.full((1,), 1e6)}, {}, "too large for fp16"),
        ({WEIGHT: torch.tensor([float("nan")])}, {"half": False}, "not finite"),
        ({}, {"ema": True}, "no moving average"),
        ({}, {"vae": Path("nowhere.safetensors")}, "no such file"),
    ],
)
def test_what_cannot_be_written_is_named_and_leaves_nothing(
    tensors: dict[str, Tensor], tmp_path: Path, change: dict[str, Tensor], options: dict[str, object], said: str
) -> None:
    save_file(tensors | change, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"from before")
    with pytest.raises(ModelError, match=said):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **options)  # type: ignore[arg-type]
    assert (tmp_path / "b.safetensors").read_bytes() == b"from before"
    assert not list(tmp_path.glob("*.part"))


def test_the_target_is_safetensors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must end in \.safetensors"):
        convert(tmp_path / "a.safetensors", tmp_path / "out.ckpt")


def anonymous() -> int:
    """Megabytes of this process that are no pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_memory_holds_a_tensor_and_not_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """64 tensors of 1 MB: 64 MB go through, 32 MB are written, and the process hardly grows."""
    tensors = {f"{UNET}{k}": torch.zeros(1 << 18) for k in range(64)}
    (save_file if name.endswith(".safetensors") else torch.save)(tensors, tmp_path / name)
    del tensors
    seen: list[int] = []

    def watched(*arguments: Any) -> Iterator[Tensor]:
        for tensor in write(*arguments):
            seen.append(anonymous())
            yield tensor

    write = converting.finished_tensors
    monkeypatch.setattr(converting, "finished_tensors", watched)
    trim_heap()  # what was freed before could otherwise be taken again, and nothing would grow
    before = anonymous()
    convert(tmp_path / name, tmp_path / "b.safetensors")
    assert len(seen) == 64
    assert max(seen) - before < 16

"""Which models the host has memory for, before any is loaded."""

from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

from pipelines.ask.identity import ModelFiles
from pipelines.families.layouts import UNET_PREFIX, VAE_PREFIX
from pipelines.models.room import copied_bytes, without_room
from pipelines.runtime.device import Device

CPU, GPU = Device(torch.device("cpu"), torch.float32), Device(torch.device("cuda"), torch.float16)


def files_of(path: Path, better: Path | None = None, **dtypes: torch.dtype) -> ModelFiles:
    """A checkpoint whose parts have 1000 values of these types."""
    prefixes = {"unet": UNET_PREFIX, "vae": VAE_PREFIX, "averaged": "model_ema."}
    save_file({f"{prefixes[part]}weight": torch.ones(1000).to(dtype) for part, dtype in dtypes.items()}, path)
    return ModelFiles(name=path.stem, checkpoint=path, vae=better)


def test_copies_are_of_weights_in_another_precision(tmp_path: Path) -> None:
    vae = tmp_path / "vae.safetensors"
    save_file({"decoder.weight": torch.ones(10).half()}, vae)
    half, single = torch.float16, torch.float32
    for name, dtypes, own_vae, copied in (
        ("half", {"unet": half, "vae": half}, None, 8000),
        ("single", {"unet": single, "vae": single}, None, 0),
        ("mixed", {"unet": single, "vae": half}, None, 4000),
        ("averaged", {"unet": half, "averaged": half}, None, 4000),
        ("whole", {"unet": torch.int64}, None, 0),
        ("better", {"unet": half, "vae": half}, vae, 4040),
    ):
        assert copied_bytes(files_of(tmp_path / f"{name}.safetensors", own_vae, **dtypes), CPU) == copied, name


def test_those_of_a_folder_and_of_a_broken_file(tmp_path: Path) -> None:
    for name in ("unet", "vae", "text_encoder", "safety_checker"):
        (tmp_path / "whole" / name).mkdir(parents=True)
        save_file({"weight": torch.ones(100).half()}, tmp_path / "whole" / name / "model.safetensors")
    assert copied_bytes(ModelFiles(name="whole", checkpoint=tmp_path / "whole", vae=None), CPU) == 1200
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{ not a header ")
    for name in ("broken.safetensors", "lost", "x" * 300):
        assert copied_bytes(ModelFiles(name="x", checkpoint=tmp_path / name, vae=None), CPU) is None


@pytest.mark.parametrize(
    ("kinds", "room", "refused"),
    [
        ("hhh", None, ""),
        ("hhh", 12000, ""),
        ("hhh", 11999, "3"),
        ("hhh", 4000, "23"),
        ("hsh", 4000, "3"),  # one in single precision takes nothing
        ("hsh", 3999, "13"),
    ],
)
def test_models_are_refused_that_do_not_fit_beside_earlier_ones(
    tmp_path: Path, kinds: str, room: int | None, refused: str
) -> None:
    dtypes = {"h": torch.float16, "s": torch.float32}
    models = {
        str(number): files_of(tmp_path / f"{number}.safetensors", unet=dtypes[kind])
        for number, kind in enumerate(kinds, 1)
    }
    with mock.patch("pipelines.models.room.host_room", return_value=room):
        assert "".join(without_room(models, CPU)) == refused
        assert without_room(models, GPU) == {}


def test_the_reason_says_what_can_be_loaded(tmp_path: Path) -> None:
    models = {"lost": ModelFiles(name="lost", checkpoint=tmp_path / "lost", vae=None)}
    models |= {name: files_of(tmp_path / f"{name}.safetensors", unet=torch.float16) for name in ("a", "b")}
    with mock.patch("pipelines.models.room.host_room", return_value=5000):
        (reason,) = without_room(models, CPU).values()
    assert reason.endswith(
        "b.safetensors: its copy in float32 takes 0.0 GB of memory, but 0.0 of 0.0 GB are left. "
        "Only a can be loaded here."
    )
    with mock.patch("pipelines.models.room.host_room", return_value=5):
        assert all(each.endswith("Give the container more memory.") for each in without_room(models, CPU).values())

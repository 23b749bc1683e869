"""The device policy for GPUs that this machine does not have."""

from pathlib import Path
from unittest import mock

import pytest
import torch

from pipelines.errors import DeviceError
from pipelines.runtime import device
from pipelines.runtime.device import Device, best_device


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    capability = mock.Mock(return_value=(7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    return capability


def test_a_gpu_takes_half_precision_and_compiles(gpu: mock.Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PASTEL_COMPILE", raising=False)
    assert best_device() == Device(torch.device("cuda"), torch.float16, compiled=True)
    monkeypatch.setenv("PASTEL_COMPILE", "0")
    assert best_device() == Device(torch.device("cuda"), torch.float16)


def test_a_gpu_that_torch_has_no_kernels_for_is_named(gpu: mock.Mock) -> None:
    gpu.return_value = (7, 0)
    with pytest.raises(DeviceError, match=r"Tesla V100 has CUDA capability 7\.0; torch needs 7\.5\. Use a newer GPU"):
        best_device()


@pytest.mark.parametrize(("hidden", "built_for"), [(False, "13.0"), (True, "13.0"), (False, None)])
def test_a_gpu_whose_driver_is_too_old_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hidden: bool, built_for: str | None
) -> None:
    """Nobody wants a GPU's price at a CPU's speed; who hides it wants the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(device, "DRIVER", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    if hidden or not built_for:
        assert best_device().place.type == "cpu"
    else:
        with pytest.raises(DeviceError, match=r"torch for CUDA 13\.0 cannot use it. Most likely its driver is too old"):
            best_device()


@pytest.mark.parametrize(
    ("quota", "environment", "threads"),
    [(None, {}, 8), (1.5, {}, 2), (0.5, {}, 1), (8, {}, 8), (64, {}, 8), (2, {"OMP_NUM_THREADS": "8"}, 8)],
)
def test_no_more_threads_start_than_the_container_may_run(
    quota: float | None, environment: dict[str, str], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    set_to = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: set_to[-1])
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(device, "host_processors", lambda: quota)
    device.limit_threads()
    assert set_to[-1] == threads

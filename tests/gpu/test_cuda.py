"""On an NVIDIA GPU: the same picture as on the CPU, by the numbers that half precision allows."""

import numpy as np
import pytest
import torch

from pipelines.device import Device, best_device
from pipelines.highres import Finished, Picture, render
from pipelines.loader import Networks, load
from pipelines.noise import Noise
from pipelines.plan import make_plan
from pipelines.request import GenerationRequest, HiresSettings
from weights_script.resolve import resolve

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

REQUEST = GenerationRequest(
    prompt="a pink sun over the sea", width=128, height=128, seed=5, num_inference_steps=10, hires=HiresSettings()
)


def draw(device: Device) -> np.ndarray:
    networks: Networks = load(resolve(None, None).files, device)
    (picture,) = (e.pixels for e in render(networks, REQUEST, make_plan(REQUEST)) if isinstance(e, Picture))
    return picture.astype(float)


def test_half_precision_draws_the_picture_of_the_cpu() -> None:
    expected = draw(Device(torch.device("cpu"), torch.float32))
    error = np.square(draw(best_device()) - expected).mean()
    assert 10 * np.log10(255**2 / error) > 40


def test_nv_noise_is_what_the_gpu_draws() -> None:
    seeds, shape = (1, 2**32 - 1), (4, 64, 64)
    nv, gpu = (Noise(seeds, shape, source=source, device=torch.device("cuda")) for source in ("NV", "GPU"))
    for _ in range(3):
        assert torch.allclose(nv.draw(), gpu.draw(), atol=1e-6)


def test_phases_are_timed_on_the_device() -> None:
    networks = load(resolve(None, None).files)
    (finished,) = (e for e in render(networks, REQUEST, make_plan(REQUEST)) if isinstance(e, Finished))
    assert finished.seconds["refine"] > finished.seconds["upscale"] >= 0

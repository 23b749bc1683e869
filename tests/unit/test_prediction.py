"""The meaning of a UNet's output, by the definitions of noise and v."""

import pytest
import torch

from pipelines.families.prediction import PREDICTIONS
from pipelines.families.sd1 import SD1

PICTURE, NOISE = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
LEVELS = (*(SD1.noise.sigmas[t] for t in (0, 300, 700, 999)), SD1.noise.zero_terminal_snr().sigmas[-1])


def output_of(kind: str, sigma: float) -> torch.Tensor:
    """What a perfect network would say of the picture under this much noise."""
    alpha = 1 / (sigma**2 + 1)
    outputs = {"epsilon": NOISE, "v_prediction": alpha**0.5 * NOISE - (1 - alpha) ** 0.5 * PICTURE}
    return outputs[kind]


@pytest.mark.parametrize("sigma", LEVELS)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_perfect_output_gives_the_picture_and_the_noise(kind: str, sigma: float) -> None:
    prediction, output, alpha = PREDICTIONS[kind], output_of(kind, sigma), 1 / (sigma**2 + 1)
    exploding = PICTURE + sigma * NOISE
    preserving = alpha**0.5 * PICTURE + (1 - alpha) ** 0.5 * NOISE
    # Four to eight ulps of values of up to 4, which are 2.4e-7 to 4.8e-7 each: of the picture, and sigma times as much
    # where it is a small part of the sum. The control is the output for another picture.
    tolerance = 2e-6 * max(1, sigma)
    assert torch.allclose(prediction.denoised(exploding, sigma, output), PICTURE, atol=tolerance)
    assert torch.allclose(prediction.noise(preserving, alpha, output), NOISE, atol=2e-6)
    assert not torch.allclose(prediction.denoised(exploding, sigma, output.flip(0)), PICTURE, atol=10 * tolerance)


@pytest.mark.parametrize("sigma", LEVELS)
def test_v_is_what_webui_computes(sigma: float) -> None:
    x, v = PICTURE + sigma * NOISE, torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    expected = x / (sigma**2 + 1) - sigma / (sigma**2 + 1) ** 0.5 * v
    # Four ulps of values of up to 4, which are 2.4e-7 each. The control has v the wrong way round.
    assert torch.allclose(PREDICTIONS["v_prediction"].denoised(x, sigma, v), expected, atol=1e-6)
    assert not torch.allclose(PREDICTIONS["v_prediction"].denoised(x, sigma, -v), expected, atol=1e-3)


@pytest.mark.parametrize("sigma", LEVELS[:-1])
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_output_of_denoised_latents_gives_them_again(kind: str, sigma: float) -> None:
    x, prediction = PICTURE + sigma * NOISE, PREDICTIONS[kind]
    output = prediction.output(x, sigma, PICTURE)
    # Ten ulps of x, whose values are up to 4 x sigma, or 60 at the highest level: 4e-6 each, half of them at a time.
    # The control is the output of other latents.
    assert torch.allclose(prediction.denoised(x, sigma, output), PICTURE, atol=2e-5)
    assert not torch.allclose(prediction.denoised(x, sigma, output.flip(0)), PICTURE, atol=1e-3)

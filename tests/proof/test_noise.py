"""The Brownian motion of SDE samplers compared with torchsde's own, as k-diffusion draws it."""

import pytest
import torch

from pipelines.ask.request import NoiseSettings
from pipelines.sampling.noise import Noise
from tests.proof.k_diffusion import sampling

SEEDS, SHAPE, LOW, HIGH = [11, 2**32 + 7], (4, 8, 8), 0.0291675, 14.614643

pytestmark = pytest.mark.filterwarnings("ignore:Should have t[ab]")  # torchsde rounds the times of its tree, to 1e-6


@pytest.mark.parametrize("steps", [(HIGH, 9.1), (9.1, 5.25), (5.25, 5.249), (0.5, LOW), (0.05, 0.03), (14.6, 0.03)])
def test_sde_noise_is_torchsdes(steps: tuple[float, float]) -> None:
    """A step divides the difference of two float32 positions on the path by its length. Positions are sums of some
    twenty draws, up to 16, where an ulp is 9.5e-7; they agree to four ulps on any instruction set."""
    sigmas = torch.tensor(steps)
    sigma, sigma_next = sigmas.tolist()
    theirs = sampling.BrownianTreeNoiseSampler(torch.zeros(2, *SHAPE), LOW, HIGH, seed=SEEDS)
    ours = Noise(SEEDS, SHAPE, device=torch.device("cpu"), span=(LOW, HIGH), settings=NoiseSettings(source="CPU"))
    tolerance = 4e-6 * max(1, (sigma - sigma_next) ** -0.5)
    torch.testing.assert_close(ours.brownian(sigma, sigma_next), theirs(*sigmas), atol=tolerance, rtol=0)


def test_noise_of_another_step_is_not_taken_for_it() -> None:
    noise = Noise(SEEDS, SHAPE, device=torch.device("cpu"), span=(LOW, HIGH), settings=NoiseSettings(source="CPU"))
    assert (noise.brownian(9.1, 5.25) - noise.brownian(9.1, 5.2501)).abs().max() > 1e-4

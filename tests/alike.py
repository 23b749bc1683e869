"""Tolerances for pictures that different code computed."""

import numpy as np
from numpy.typing import NDArray

EQUAL, LARGEST_STEP = 0.99, 1
"""The promise for pictures against WebUI's: 99 % of the 8-bit values are equal, and none is off by more than 1.

Instruction sets, memory alignment and batch sizes choose among kernels that add up in different orders. The latents
differ by up to 1e-4 then, which is 0.01 of an 8-bit level: now and then a value that lies so close to the next level is
truncated to it.
"""


def alike(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> bool:
    """Whether two pictures (H, W, 3) are the same but for rounding."""
    if found.shape != expected.shape:
        return False
    difference = np.abs(found.astype(int) - expected.astype(int))
    return bool((difference == 0).mean() >= EQUAL and difference.max() <= LARGEST_STEP)

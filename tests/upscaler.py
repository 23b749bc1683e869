"""A network of ESRGAN's form (RRDBNet, 4 times) with small random weights, made where a test needs one."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from pipelines.esrgan import torchvision_or_a_stand_in


def write_upscaler(path: Path) -> Path:
    """Write one as safetensors."""
    with torchvision_or_a_stand_in():
        from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet

    torch.manual_seed(1)
    network = RRDBNet(in_nc=3, out_nc=3, num_filters=8, num_blocks=1, scale=4, plus=False)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    return path

"""The families of checkpoints in their real layouts, recognised by their tensors."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import safe_open

from pipelines.families.detection import sign_of
from script.parity import REFERENCE
from script.webui_facts import families_of
from tests.proof.reference import require

FAMILIES = families_of(REFERENCE)


@pytest.mark.parametrize(
    ("file", "family"),
    [
        (FAMILIES / "tiny_sd21_v.safetensors", "Stable Diffusion 2.x"),
        (FAMILIES / "tiny_sdxl.safetensors", "SDXL"),
        (FAMILIES / "tiny_sdxl_refiner.safetensors", "SDXL refiner"),
        (REFERENCE / "tiny_sd15.safetensors", None),
    ],
    ids=lambda value: getattr(value, "stem", ""),
)
def test_files_of_the_real_layouts(file: Path, family: str | None) -> None:
    require(file.name, folder=file.parent)
    with safe_open(file, framework="pt") as opened:
        found = {name: SimpleNamespace(shape=opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    sign = sign_of(found)
    assert (sign.family if sign else None) == family

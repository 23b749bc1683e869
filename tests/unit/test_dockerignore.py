"""What .dockerignore lets into the image, by Docker's rules: the last pattern that fits a path or its parent wins."""

import re
from pathlib import PurePosixPath

import pytest

from script.schema import ROOT
from tests.unit.test_cog_yaml import CONFIG
from weights_script.extras import OWN_FOLDERS
from weights_script.shelf import FETCHED

WEIGHTS = "weights"
"""Where the container keeps weights; only there when somebody chose to bake some."""


def expression(pattern: str) -> re.Pattern[str]:
    """Docker's wildcards: `**` is any number of folders, `*` and `?` stay inside one."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    wildcards = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(wildcards.get(part, re.escape(part)) for part in parts))


def in_the_image(path: str) -> bool:
    lines = [line.strip() for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()]
    candidates = [path, *map(str, PurePosixPath(path).parents)]
    kept = True
    for line in lines:
        pattern = line.removeprefix("!")
        if line and not line.startswith("#") and any(map(expression(pattern).fullmatch, candidates)):
            kept = line.startswith("!")
    return kept


@pytest.mark.parametrize(
    "path",
    [
        *("predict.py", "train.py", "pipelines/__init__.py", "weights_script/manifest.toml"),
        *(".cog/openapi_schema.json", "LICENSE"),
    ],
)
def test_the_image_holds_what_predictions_and_trainings_need(path: str) -> None:
    assert (ROOT / path).exists()
    assert in_the_image(path)


@pytest.mark.parametrize("name", ["pastelmix.safetensors", "weights.lock.json", *OWN_FOLDERS])
def test_the_image_holds_weights_that_somebody_chose(name: str) -> None:
    assert f"PASTEL_CACHE={WEIGHTS}" in CONFIG["environment"]
    assert in_the_image(f"{WEIGHTS}/{name}")


@pytest.mark.parametrize(
    "path",
    [
        f"{WEIGHTS}/{FETCHED}/urls/0123456789abcdef/somebodys.safetensors",
        f"{WEIGHTS}/{FETCHED}/weights.lock.json",
        f"{WEIGHTS}/pastelmix.safetensors.part",
        f"{WEIGHTS}/folder/unet.safetensors.part.json",
        f"{WEIGHTS}/folder/.unet.safetensors.lock",
        f"{WEIGHTS}/.weights.lock.json.lock",
        "pipelines/__pycache__/plan.cpython-311.pyc",
        ".venv/bin/python",
        "outputs/1.png",
        "tests/data/judge.safetensors",
        ".git/config",
    ],
)
def test_the_image_holds_nothing_else(path: str) -> None:
    assert not in_the_image(path)

"""cog.yaml and the pinned requirements: Cog's schema, and the rules that the schema lacks."""

import json
import re
import shlex
from fnmatch import fnmatch

import jsonschema
import pytest
import yaml

from script.cog_server import AS_IN_THE_IMAGE, server_environment
from script.lock import BY_COG, LOCK, read_entries
from script.schema import ROOT

CONFIG = yaml.safe_load((ROOT / "cog.yaml").read_text(encoding="utf-8"))
REQUIREMENT_FILES = sorted(path.name for path in ROOT.glob("requirements*.txt"))

RESERVED = [
    *("PATH", "LD_LIBRARY_PATH", "LIBRARY_PATH", "PYTHONPATH", "PYTHONUNBUFFERED", "VIRTUAL_ENV"),
    *("HF_ENDPOINT", "HF_HUB_ENABLE_HF_TRANSFER", "R8_*", "REPLICATE_*", "CUDA_*", "NVIDIA_*", "NV_*", "PGET_*"),
    "KUBERNETES_*",
]
"""Names that Cog refuses in `environment`."""


def pins(name: str) -> dict[str, str]:
    """Package -> version; fails on a line that is not exactly `package==version`."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    found = [re.fullmatch(r"([A-Za-z0-9_.-]+)==([0-9][A-Za-z0-9.]*)", line) or line for line in lines if line]
    loose = [line for line in found if isinstance(line, str)]
    assert loose == [], f"{name}: not pinned with =="
    return {match[1].lower().replace("_", "-"): match[2] for match in found}


def test_valid_against_the_schema_of_cog() -> None:
    schema = json.loads((ROOT / "tests" / "data" / "cog_config_schema_v1.0.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(schema).validate(CONFIG)


def test_container_has_what_the_project_needs() -> None:
    build = CONFIG["build"]
    assert build["gpu"] is True
    assert all(isinstance(build[key], str) for key in ("cuda", "python_version", "sdk_version")), "quote versions"
    assert CONFIG["predict"] == "predict.py:Predictor"
    assert CONFIG["train"] == "train.py:train"


def test_the_run_command_replaces_what_cog_installs_and_adds_the_upscalers_by_hash() -> None:
    """Cog copies the command into the Dockerfile as it is; docs/container.md says why it has this form."""
    (command,) = CONFIG["build"]["run"]
    assert "\n" not in command, "Cog takes single lines only"
    listed, installer = command.split(" | ")
    requirements = dict(re.findall(r"^(\S+) --hash=sha256:(\S+)$", "\n".join(shlex.split(listed)[2:]), re.MULTILINE))
    by_cog = {name: pins("requirements.txt")[name] for name in BY_COG}
    expected = {f"{name}=={version}" for name, version in (by_cog | pins("requirements-upscalers.txt")).items()}
    assert set(requirements) == expected
    entries = read_entries(LOCK.read_text(encoding="utf-8"))
    unknown = [pin for pin, digest in requirements.items() if digest not in entries[pin.partition("==")[0]]]
    assert unknown == [], "take the hash of the Linux wheel from requirements.lock"
    words = installer.split()
    assert words[:3] == ["uv", "pip", "install"], "pip is not on PATH in the image, and uv is"
    assert words[-2:] == ["-r", "-"]
    assert {"--break-system-packages", "--no-deps", "--reinstall", "--require-hashes"} <= set(words)


def test_files_that_are_referred_to_exist() -> None:
    assert (ROOT / CONFIG["build"]["python_requirements"]).is_file()
    for key, kind in (("predict", "class"), ("train", "def")):
        path, _, name = CONFIG[key].partition(":")
        assert re.search(rf"^{kind} {name}\b", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)


def test_a_server_of_ours_has_the_images_settings_unless_ours_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert server_environment({}, 1)["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert server_environment({}, 1)["OMP_WAIT_POLICY"] == "ACTIVE"
    assert {f"{name}={value}" for name, value in AS_IN_THE_IMAGE.items()} <= set(CONFIG["environment"])


@pytest.mark.parametrize("variable", CONFIG["environment"])
def test_environment_uses_no_name_that_cog_reserves(variable: str) -> None:
    name = variable.partition("=")[0]
    assert not [pattern for pattern in RESERVED if fnmatch(name, pattern)]


def test_the_container_names_its_model_and_its_safety_checker() -> None:
    from weights_script.manifest import load_manifest

    environment = dict(variable.split("=", 1) for variable in CONFIG["environment"])
    entries = load_manifest()
    assert entries[environment["PASTEL_MODEL"]].kind == "model"
    assert entries[environment["PASTEL_SAFETY_CHECKER"]].kind == "safety-checker"


@pytest.mark.parametrize("name", REQUIREMENT_FILES)
def test_every_requirement_is_pinned(name: str) -> None:
    assert pins(name)


def test_no_package_has_two_versions() -> None:
    merged: dict[str, str] = {}
    for name in REQUIREMENT_FILES:
        for package, version in pins(name).items():
            assert merged.setdefault(package, version) == version, package


def test_the_sdk_is_the_one_that_the_container_installs() -> None:
    assert pins("requirements.txt")["cog"] == CONFIG["build"]["sdk_version"]
    assert pins("requirements.txt")["coglet"] == CONFIG["build"]["sdk_version"]


@pytest.mark.parametrize("package", ["torch", "numpy", "pillow", "diffusers", "transformers", "safetensors"])
def test_tests_run_on_the_versions_of_the_container(package: str) -> None:
    from importlib.metadata import version

    assert version(package).partition("+")[0] == pins("requirements.txt")[package]

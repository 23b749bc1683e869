"""Which model is loaded: the given, named or embedded one, and never another one silently."""

import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipelines.ask.catalog import LATENT_NETWORK, NETWORK_UPSCALERS
from pipelines.ask.request import HiresSettings
from pipelines.errors import ModelError
from weights_script import manifest
from weights_script.manifest import Entry
from weights_script.resolve import file_names, labelled, resolve, resolvers, upscaler_file


@pytest.fixture(autouse=True)
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A project folder with embedded files, an empty cache, and no network."""
    for name in ("PASTEL_VAE", "PASTEL_PREDICTION", "PASTEL_SAFETY_CHECKER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PASTEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(manifest, "HERE", tmp_path)
    for entry in manifest.load_manifest().values():
        if entry.embedded:
            entry.embedded.parent.mkdir(exist_ok=True)
            entry.embedded.write_bytes(b"weights")
    return tmp_path


def test_nothing_named_is_the_embedded_model_and_says_so(project: Path) -> None:
    model = resolve(None, None)
    assert model.files.name == "pastel-tiny"
    assert model.files.checkpoint == project / "embedded/pastel-tiny.safetensors"
    assert model.files.vae == project / "embedded/pastel-tiny-better.vae.safetensors"
    assert (model.settings["width"], model.settings["height"]) == (160, 160)
    assert "a pink sun" in model.settings["prompt"]
    assert "the embedded default" in model.description
    assert "safety checker: off" in model.description
    assert resolve("", "") == model


def test_a_given_path_comes_before_a_named_model(project: Path) -> None:
    given = project / "my-mix.safetensors"
    given.write_bytes(b"weights")
    model = resolve(str(given), "pastel-mix")
    assert (model.files.name, model.files.checkpoint, model.files.vae) == ("my-mix", given, None)
    assert model.settings == {}, "what its family takes, once that is known"
    assert "COG_WEIGHTS" in model.description


def test_a_given_folder(project: Path) -> None:
    (project / "my.mix-v1.5").mkdir()
    assert resolve(str(project / "my.mix-v1.5"), None).files.name == "my.mix-v1.5"


def test_a_known_file_name_brings_its_own_settings(project: Path) -> None:
    given = project / "pastelmix-better-vae-fp16.safetensors"
    given.write_bytes(b"weights")
    model = resolve(str(given), None)
    own = manifest.load_manifest()["pastel-mix"].settings
    assert model.settings == {"width": 448, "height": 640, **own}
    assert "its own settings: clip_skip 2;" in model.description


def test_a_model_fetched_before_is_used(project: Path) -> None:
    from weights_script.ledger import Ledger

    entry = manifest.load_manifest()["pastel-mix"]
    path = project / "cache" / "pastel-mix" / entry.file
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(entry.size)
    Ledger(project / "cache").add(f"pastel-mix/{entry.file}", entry.sha256, "test")
    model = resolve(None, "pastel-mix")
    assert (model.files.checkpoint, model.files.sha256) == (path, entry.sha256)
    assert (model.settings["width"], model.settings["height"]) == (448, 640)


@pytest.mark.parametrize(
    ("weights", "model", "says"),
    [
        ("/nowhere/at/all.safetensors", None, "COG_WEIGHTS=/nowhere/at/all.safetensors: no such file"),
        ("s3://bucket/file", None, "COG_WEIGHTS: s3://bucket/file: not an http or https URL"),
        ("http://127.0.0.1:9/x.safetensors", None, "COG_WEIGHTS: http://127.0.0.1:9/x.safetensors: not here"),
        (None, "pastel-max", "PASTEL_MODEL=pastel-max: not a model of the manifest. Known are pastel-tiny"),
        (None, "vae-ft-mse", "PASTEL_MODEL=vae-ft-mse: not a model"),
        (None, "pastel-mix", "PASTEL_MODEL=pastel-mix: pastel-mix cannot be fetched. Tried JamesFlare"),
    ],
)
def test_what_cannot_be_had_is_an_error_of_one_line(weights: str | None, model: str | None, says: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(weights, model)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_a_missing_embedded_file_is_named(project: Path) -> None:
    (project / "embedded/pastel-tiny.safetensors").unlink()
    with pytest.raises(ModelError, match=r"pastel-tiny\.safetensors is missing"):
        resolve(None, None)


def test_another_vae_by_path_or_name(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = project / "mine.vae.safetensors"
    mine.write_bytes(b"weights")
    monkeypatch.setenv("PASTEL_VAE", str(mine))
    assert resolve(None, None).files.vae == mine
    monkeypatch.setenv("PASTEL_VAE", "pastel-tiny-better-vae")
    assert resolve(str(mine), None).files.vae == project / "embedded/pastel-tiny-better.vae.safetensors"
    monkeypatch.setenv("PASTEL_VAE", "pastel-tiny")
    with pytest.raises(ModelError, match="PASTEL_VAE=pastel-tiny: not a vae"):
        resolve(None, None)
    monkeypatch.setenv("PASTEL_VAE", "/nowhere.safetensors")
    with pytest.raises(ModelError, match=r"PASTEL_VAE=/nowhere\.safetensors: no such file"):
        resolve(None, None)


def test_a_safety_checker_only_if_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = project / "mine.safetensors"
    mine.write_bytes(b"weights")
    for off in ("", "off"):
        monkeypatch.setenv("PASTEL_SAFETY_CHECKER", off)
        assert resolve(str(mine), None).safety_checker is None
        assert "safety checker: off" in resolve(str(mine), None).description
    monkeypatch.setenv("PASTEL_SAFETY_CHECKER", "safety-checker")
    with pytest.raises(ModelError, match=r"PASTEL_SAFETY_CHECKER: safety-checker cannot be fetched.*or to off"):
        resolve(str(mine), None)
    monkeypatch.setenv("PASTEL_SAFETY_CHECKER", "on")
    with pytest.raises(ModelError, match="PASTEL_SAFETY_CHECKER=on: not a safety-checker of the manifest"):
        resolve(str(mine), None)


def test_setup_says_what_a_safety_checker_costs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = project / "checker"
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(608_018_440)
    monkeypatch.setenv("PASTEL_SAFETY_CHECKER", str(folder))
    model = resolve(None, None)
    assert model.safety_checker == folder
    assert f"safety checker: {folder}, 608 MB (PASTEL_SAFETY_CHECKER=off leaves it out)" in model.description


def test_the_embedded_model_fetches_no_safety_checker(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The container's own settings name one for the models that it is made for."""
    monkeypatch.setenv("PASTEL_SAFETY_CHECKER", "safety-checker")
    model = resolve(None, "pastel-tiny")
    assert model.safety_checker is None
    assert "safety checker: off, as the embedded model draws simple scenes alone" in model.description


def test_a_url_is_fetched_and_its_hash_known(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    def download(url: str, target: Path, *_: object, **__: object) -> str:
        save_file({"x": np.zeros(1)}, target)
        return "ab" * 32

    monkeypatch.setattr("weights_script.fetch.download", download)
    model = resolve("https://example.org/my-mix.safetensors", None)
    assert (model.files.name, model.files.sha256) == ("my-mix", "ab" * 32)


def test_the_embedded_model_needs_no_heavy_import(project: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from weights_script import manifest
from weights_script.resolve import resolve
manifest.HERE = Path({str(project)!r})
resolve(None, None)
heavy = {{"torch", "huggingface_hub", "httpx", "requests", "filelock", "urllib.request"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)


def test_a_licence_that_forbids_selling_is_told_before_the_fetch(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    with mock.patch("weights_script.fetch.ensure", side_effect=lambda *_: told.append(caplog.text) or project):
        resolve(None, "noobai-xl-v")
    assert "Licence of noobai-xl-v: Not for commercial use: NoobAI's terms forbid" in told[0]


# --- several models


def test_a_list_of_models(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, vae = project / "my-mix.v2.safetensors", project / "mine.vae.safetensors"
    for path in (mine, vae):
        path.write_bytes(b"weights")
    monkeypatch.setenv("PASTEL_VAE", f", {vae}")
    monkeypatch.setenv("PASTEL_PREDICTION", " ,v_prediction")
    found = resolvers(None, f"pastel-tiny, {mine},,https://example.org/far.ckpt?token=x , pastel-tiny")
    assert list(found) == ["pastel-tiny", "my-mix.v2", "far", "pastel-tiny-2"]
    first, second = (found[name]().files for name in ("pastel-tiny", "my-mix.v2"))
    assert (first.vae, first.prediction) == (project / "embedded/pastel-tiny-better.vae.safetensors", "")
    assert (second.name, second.checkpoint) == ("my-mix.v2", mine)
    assert (second.vae, second.prediction) == (vae, "v_prediction")
    assert found["pastel-tiny"]().settings["width"] == 160
    with pytest.raises(ModelError, match=r"^PASTEL_MODEL: https://example\.org/far\.ckpt: not here"):
        found["far"]()


def test_labels_differ_in_more_than_case() -> None:
    assert list(labelled(["/a/x.ckpt", "/b/X.safetensors", "/c/y.ckpt"])) == ["x", "X-2", "y"]


def test_the_file_of_an_entry_that_is_not_here_has_a_name() -> None:
    assert file_names(["sdxl-refiner", "my-mix"]) == {"sdxl-refiner": "sd_xl_refiner_1.0.safetensors"}


def test_a_setting_for_more_models_than_there_are(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASTEL_VAE", "a,b,c")
    with pytest.raises(ModelError, match=r"^PASTEL_VAE: names 3, but PASTEL_MODEL names 2 models\. Give one"):
        resolvers(None, "pastel-tiny,pastel-mix")


@pytest.mark.parametrize(
    ("weights", "models", "label"),
    [
        (None, None, "pastel-tiny"),
        (None, " pastel-mix, ", "pastel-mix"),
        ("/x/my.mix.safetensors", "pastel-mix,sd-1.5", "my.mix"),
        (None, "/x/a-folder.v1", "a-folder.v1"),
        (None, "counterfeit-2.5", "counterfeit-2.5"),
    ],
)
def test_one_model_is_called_by_its_entry_or_file(weights: str | None, models: str | None, label: str) -> None:
    assert list(resolvers(weights, models)) == [label]


# --- upscalers


def test_an_upscaler_that_needs_no_weights() -> None:
    assert upscaler_file(None) is None
    assert upscaler_file(HiresSettings(upscaler="Lanczos")) is None


def test_an_upscaler_of_ones_own() -> None:
    path = Path("/x/4x-UltraSharp.pth")
    assert upscaler_file(HiresSettings(upscaler="4x-UltraSharp", upscaler_file=path)) == path


@pytest.mark.parametrize("name", [*NETWORK_UPSCALERS, LATENT_NETWORK])
def test_every_network_of_the_catalog_is_in_the_manifest(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ensure(entry: Entry, cache: Path) -> Path:
        asked.append(entry.title)
        return cache / entry.file

    monkeypatch.setattr("weights_script.fetch.ensure", ensure)
    found = upscaler_file(HiresSettings(upscaler=name))
    assert found is not None
    assert asked == [name]

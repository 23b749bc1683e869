"""The cookbook's requests for fetched models are ones that those models take. The others are drawn elsewhere."""

import json
import re
import shlex

import pytest

from pipelines.ask.inputs import Inputs
from pipelines.infotext.asked import Pictures, read_data, request_from, settle
from script.client import read_inputs
from script.compatibility import inputs as schema_inputs
from script.schema import ROOT
from tests.unit.sized import Sized
from weights_script.manifest import load_manifest

SECTION = (ROOT / "docs" / "cookbook.md").read_text(encoding="utf-8").split("\n## ")[2]
REQUESTS = {
    name: shlex.split(re.sub(r"^    ", "", block, flags=re.M).replace("\\\n", " "))
    for name, block in re.findall(r"\*\*(.+?)\.\*\*(?:.+\n)+\n((?:    .+\n)+)", SECTION)
}
FILES = ("image", "control_images", "mask")


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_one_that_its_model_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (setting, command, *words) = REQUESTS[name]
    assert (command, *words[::2]) == ("script/predict", *["-i"] * (len(words) // 2))
    models = setting.removeprefix("PASTEL_MODEL=").split(",")
    manifest = load_manifest()
    assert manifest.keys() >= set(models)
    inputs = read_inputs(words[1::2], schema_inputs(json.loads((ROOT / ".cog/openapi_schema.json").read_bytes())))
    entry = manifest[str(inputs.get("model", models[0]))]
    own = {"width": entry.width, "height": entry.height, **entry.settings}
    data = read_data(str(inputs.pop("generation_data", "")))
    pictures = Pictures(image=Sized((512, 512)) if "image" in inputs else None)
    form = Inputs(**{key: value for key, value in inputs.items() if key not in FILES})
    request = request_from(settle(form, data, own, pictures), pictures)
    assert (request.image is not None) == ("image" in inputs)
    for key, value in form.filled_in().items():
        if key != "model":
            assert value in (request.values.get(key), request.values.get(f"hires_{key}")), key
    named = {str(data.values[key]) for key in ("refiner", "hires_checkpoint") if key in data.values}
    assert named <= set(models)


def test_every_command_is_checked_and_every_family_is_in_the_manifest() -> None:
    assert len(REQUESTS) == SECTION.count("PASTEL_MODEL=") > 8
    families = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| family \|.+\n((?:\|.+\n)+)", families, flags=re.M)
    names = {name for row in table.splitlines() for name in re.findall(r"`([\w.-]+)`", row.split("|")[2])}
    assert "sdxl-refiner" in names
    assert names <= load_manifest().keys()

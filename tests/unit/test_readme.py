"""The README's requests for other families are ones that their models take. The cookbook's are drawn elsewhere."""

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

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.split("\n## Use another family of models\n")[1].split("\n## ")[0]
REQUESTS = {
    name: shlex.split(re.sub(r"^    ", "", block, flags=re.M).replace("\\\n", " "))
    for name, block in re.findall(r"\*\*(.+?)\.\*\*.*\n\n((?:    .+\n)+)", SECTION)
}
FILES = ("image", "control_images", "mask")


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_one_that_its_model_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (setting, command, *words) = REQUESTS[name]
    assert (command, *words[::2]) == ("script/predict", *["-i"] * (len(words) // 2))
    entry = load_manifest()[setting.removeprefix("PASTEL_MODEL=")]
    own = {"width": entry.width, "height": entry.height, **entry.settings}
    inputs = read_inputs(words[1::2], schema_inputs(json.loads((ROOT / ".cog/openapi_schema.json").read_bytes())))
    data = read_data(str(inputs.pop("generation_data", "")))
    pictures = Pictures(image=Sized((512, 512)) if "image" in inputs else None)
    form = Inputs(**{key: value for key, value in inputs.items() if key not in FILES})
    request = request_from(settle(form, data, own, pictures), pictures)
    assert (request.image is not None) == ("image" in inputs)
    for key, value in form.filled_in().items():
        assert request.values[key] == value


def test_every_family_of_the_table_is_in_the_manifest() -> None:
    (names,) = re.findall(r"^\| manifest's names \|(.+)$", SECTION, flags=re.M)
    assert set(re.findall(r"`([\w.-]+)`", names)) <= load_manifest().keys()
    assert len(REQUESTS) == SECTION.count("PASTEL_MODEL=")

"""deploy/: Knative's own schema, and what this container needs of it."""

import json

import jsonschema
import yaml

from script.schema import ROOT

SERVICE = yaml.safe_load((ROOT / "deploy" / "knative.yaml").read_text(encoding="utf-8"))
SPEC = SERVICE["spec"]["template"]["spec"]


def test_valid_against_the_schema_of_knative() -> None:
    schema = json.loads((ROOT / "tests" / "data" / "knative_service_schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(SERVICE)


def test_a_copy_gets_one_request_at_a_time() -> None:
    assert SPEC["containerConcurrency"] == 1
    assert SPEC["containers"][0]["ports"] == [{"containerPort": 5000}]


def test_every_setting_is_one_of_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8") + (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert [entry["name"] for entry in SPEC["containers"][0]["env"] if f"`{entry['name']}" not in text] == []


def test_mounts_have_volumes() -> None:
    mounted = {mount["name"]: mount["mountPath"] for mount in SPEC["containers"][0]["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in SPEC["volumes"]}
    cache = next(entry["value"] for entry in SPEC["containers"][0]["env"] if entry["name"] == "PASTEL_CACHE")
    assert cache in mounted.values()

"""The manifests in deploy/ fit the schemas of Knative and Istio, and give this container what it needs."""

import ipaddress
import json
from importlib.util import find_spec

import jsonschema
import pytest
import yaml

from script.schema import ROOT

SERVICE = yaml.safe_load((ROOT / "deploy" / "knative.yaml").read_text(encoding="utf-8"))
SPEC = SERVICE["spec"]["template"]["spec"]
ROUTE = yaml.safe_load((ROOT / "deploy" / "knative-route.yaml").read_text(encoding="utf-8"))
POLICY = yaml.safe_load((ROOT / "deploy" / "network-policy.yaml").read_text(encoding="utf-8"))


SCHEMAS = {"knative_service_schema.json": SERVICE, "istio_virtual_service_schema.json": ROUTE}


@pytest.mark.parametrize("name", SCHEMAS)
def test_valid_against_the_schema(name: str) -> None:
    """The control: the schema refuses a field that it does not know."""
    validator = jsonschema.Draft202012Validator(json.loads((ROOT / "tests" / "data" / name).read_text("utf-8")))
    validator.validate(SCHEMAS[name])
    assert not validator.is_valid(SCHEMAS[name] | {"spec": SCHEMAS[name]["spec"] | {"retry": 3}})


def test_the_route_asks_the_service_again_after_a_409_and_not_for_ever() -> None:
    """Nothing else is sent again: a request that failed in another way may have drawn already."""
    (rule,) = ROUTE["spec"]["http"]
    assert rule["rewrite"]["authority"].split(".")[0] == SERVICE["metadata"]["name"]
    assert rule["retries"]["retryOn"] == "retriable-4xx"
    assert 1 < rule["retries"]["attempts"] <= 10
    assert "perTryTimeout" not in rule["retries"], "a picture that is being drawn would be asked for twice"
    assert rule["timeout"] == f"{SPEC['timeoutSeconds']}s"
    assert rule["match"] == [{"uri": {"prefix": "/predictions"}}], "which keeps /shutdown inside"


def test_a_copy_gets_one_request_at_a_time() -> None:
    assert SPEC["containerConcurrency"] == 1
    assert SPEC["containers"][0]["ports"] == [{"containerPort": 5000}]


def test_every_setting_is_in_the_documents() -> None:
    text = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("weights.md", "serving.md"))
    assert [entry["name"] for entry in SPEC["containers"][0]["env"] if f"`{entry['name']}" not in text] == []


def test_mounts_have_volumes() -> None:
    mounted = {mount["name"]: mount["mountPath"] for mount in SPEC["containers"][0]["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in SPEC["volumes"]}
    cache = next(entry["value"] for entry in SPEC["containers"][0]["env"] if entry["name"] == "PASTEL_CACHE")
    assert cache in mounted.values()


def test_the_liveness_probe_reads_the_health_checks_body() -> None:
    """What it runs is told apart by its exit code in tests/unit/test_watchdog.py."""
    probe = SPEC["containers"][0]["livenessProbe"]
    *python, module = probe["exec"]["command"]
    assert python == ["python", "-m"]
    assert find_spec(module)
    assert probe["timeoutSeconds"] > 15, "which the module waits for an answer"


def reachable(address: str) -> bool:
    """Whether the policy lets the container open a connection to the address."""
    blocks = [place["ipBlock"] for rule in POLICY["spec"]["egress"] for place in rule["to"] if "ipBlock" in place]
    at = ipaddress.ip_address(address)
    return any(
        at in ipaddress.ip_network(block["cidr"])
        and not any(at in ipaddress.ip_network(part) for part in block["except"])
        for block in blocks
    )


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::ffff:10.1.2.3",
        "64:ff9b::a00:1",
        "fd00:ec2::254",
        "fe80::1",
        "2002:a00:1::",
    ],
)
def test_the_network_policy_keeps_the_container_out_of_the_network_it_runs_in(address: str) -> None:
    assert not reachable(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111"])
def test_the_network_policy_leaves_the_internet_and_dns_open(address: str) -> None:
    assert reachable(address)
    names, internet = POLICY["spec"]["egress"]
    assert {entry["port"] for entry in names["ports"]} == {53}
    assert {entry["port"] for entry in internet["ports"]} == {80, 443}


def test_the_network_policy_is_of_the_service() -> None:
    assert POLICY["spec"]["policyTypes"] == ["Egress"]
    assert POLICY["spec"]["podSelector"]["matchLabels"] == {"serving.knative.dev/service": SERVICE["metadata"]["name"]}

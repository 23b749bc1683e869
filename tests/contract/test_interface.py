"""What a client sees before it draws anything."""

import json

from script.cog_server import CogServer
from script.schema import COMMITTED


def test_health(server: CogServer) -> None:
    reply = server.request("GET", "/health-check")
    assert (reply.status, reply.body["status"]) == (200, "READY")
    assert reply.body["setup"]["status"] == "succeeded"


def test_setup_says_which_model_it_made_ready(server: CogServer) -> None:
    logs = server.request("GET", "/health-check").body["setup"]["logs"]
    assert "embedded default" in logs


def test_the_committed_schema_is_served(server: CogServer) -> None:
    reply = server.request("GET", "/openapi.json")
    assert reply.body == json.loads(COMMITTED.read_text(encoding="utf-8"))

"""What a client sees before it draws anything."""

import json

from script.cog_server import CogServer
from script.schema import COMMITTED
from tests.contract.pictures import DRAFT, draw, parameters, picture
from weights_script.manifest import load_manifest


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


def test_the_old_name_of_highres_fix_still_works(server: CogServer) -> None:
    """It is deprecated, and goes with the next version."""
    silent = {name: value for name, value in DRAFT.items() if name != "highres_fix"}
    (draft,) = draw(server, silent | {"hires": False})["output"]
    (enlarged,) = draw(server, silent | {"hires": True, "hires_steps": 2})["output"]
    assert (picture(draft).size, picture(enlarged).size) == ((64, 64), (128, 128))


def test_an_empty_form_draws_what_the_model_is_for(server: CogServer) -> None:
    own = load_manifest()["pastel-tiny"].settings
    (uri,) = draw(server, {"num_inference_steps": 2, "hires_steps": 2, "prompt": ""})["output"]
    text = parameters(picture(uri))
    assert text.startswith(f"{own['prompt']}\nNegative prompt: {own['negative_prompt']}\n")
    assert f"CFG scale: {own['guidance_scale']}, " in text
    assert picture(uri).size == (320, 320)


def test_a_space_leaves_the_models_negative_prompt_out(server: CogServer) -> None:
    (uri,) = draw(server, DRAFT | {"prompt": "a boat", "negative_prompt": " "})["output"]
    assert parameters(picture(uri)).startswith("a boat\nSteps: 2, ")

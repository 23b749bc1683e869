"""Dynamic prompts over HTTP."""

from script.cog_server import CogServer, reasons
from tests.contract.pictures import DRAFT, ask, draw, parameters, picture

TEMPLATE = {"prompt": "a {pink|green} sun over the __place__"}


def told(output: list[str]) -> list[str]:
    return [parameters(picture(uri)).partition("\n")[0] for uri in output]


def test_a_picture_tells_the_prompt_that_was_picked_and_its_block_brings_it_back(server: CogServer) -> None:
    inputs = DRAFT | TEMPLATE | {"generation_data": "Wildcard place: sea | {dark|light} forest", "num_outputs": 2}
    done = draw(server, inputs)
    first, second = told(done["output"])
    assert first == second
    assert not set(first) & set("{_")
    assert f"Prompt: {first}\n" in done["logs"]
    again = draw(server, {"generation_data": parameters(picture(done["output"][0])), "num_outputs": 2})
    assert again["output"] == done["output"]


def test_braces_stay_as_they_are_unless_asked_for(server: CogServer) -> None:
    assert told(draw(server, DRAFT | TEMPLATE)["output"]) == [TEMPLATE["prompt"]]
    reply = ask(server, DRAFT | TEMPLATE | {"generation_data": "Dynamic prompts: True"})
    assert reply.body["status"] == "failed"
    assert "prompt='__place__': there is no such wildcard" in " ".join(reasons(reply.body))

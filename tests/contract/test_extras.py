"""An uploaded LoRA changes its own picture and no other."""

import re
from pathlib import Path

import pytest
import torch

from pipelines.models.model import Model
from script.client import data_uri
from script.cog_server import CogServer, reasons
from script.schema import ROOT
from tests.adapters import kohya, write
from tests.contract.pictures import DRAFT, ESRGAN, HIRES, ask, draw, parameters, picture
from weights_script.resolve import resolve


@pytest.fixture(scope="module")
def lora(networks: Model, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random LoRA of the embedded model, as a data URI."""
    path = tmp_path_factory.mktemp("lora") / "some.safetensors"
    return data_uri(write(path, kohya(networks.unet.network, networks.text.towers[0].model)).path)


def test_a_lora_is_there_for_its_prediction_alone(server: CogServer, lora: str) -> None:
    (before,) = draw(server, DRAFT | {"prompt": "a boat"})["output"]
    (changed,) = draw(server, DRAFT | {"prompt": "a boat <lora:mine:2>", "files": [lora]})["output"]
    (after,) = draw(server, DRAFT | {"prompt": "a boat"})["output"]
    assert after == before != changed
    text = parameters(picture(changed))
    assert 'Lora hashes: "mine: ' in text
    again = draw(server, {"generation_data": text, "files": [lora]})
    assert again["output"] == [changed]
    assert again["metrics"]["not_honoured"] == []


def test_what_is_left_over_in_a_lora_is_told(server: CogServer, networks: Model, tmp_path: Path) -> None:
    tensors = kohya(networks.unet.network, networks.text.towers[0].model) | {
        "lora_unet_nowhere.lora_up.weight": torch.ones(2)
    }
    file = data_uri(write(tmp_path / "more.safetensors", tensors).path)
    told = r"files='[^']*': 1 of its 10 tensors are unknown and left out: lora_unet_nowhere\.lora_up\.weight"
    done = draw(server, DRAFT | {"prompt": "a boat <lora:mine:2>", "files": [file]})
    (left,) = done["metrics"]["not_honoured"]
    assert re.fullmatch(told, left)
    assert f"Not honoured: {left}" in done["logs"]
    block = parameters(picture(done["output"][0]))
    again = draw(server, {"generation_data": f"{block}, ToMe: x, Strict: False", "files": [file]})
    assert any(re.fullmatch(told, each) for each in again["metrics"]["not_honoured"])
    assert len(again["metrics"]["not_honoured"]) == 2, "beside what the block asks for"


def test_an_embedding_of_ones_own_is_called_by_the_name_it_is_given(server: CogServer) -> None:
    file = data_uri(ROOT / "tests" / "data" / "embeddings" / "afterglow.safetensors")
    sea = DRAFT | {"prompt": "the sea under a mine sky"}
    (before,) = draw(server, sea)["output"]
    done = draw(server, sea | {"files": [file], "generation_data": "File names: mine"})
    (changed,) = done["output"]
    assert changed != before
    assert 'TI hashes: "mine: ' in parameters(picture(changed))
    assert "does nothing" not in done["logs"]
    unsaid = draw(server, sea | {"files": [file], "generation_data": "File names: yours"})
    assert unsaid["output"] == [before]
    assert "No prompt contains yours, so files=" in unsaid["logs"]


def test_several_files_of_several_kinds_act_at_once(server: CogServer) -> None:
    folder = ROOT / "tests" / "data"
    sent = folder / "loras" / "snowman.safetensors", folder / "embeddings" / "afterglow.safetensors", ESRGAN
    inputs = HIRES | {
        "prompt": "a snowman under a glow sky <lora:ice:1>",
        "files": [data_uri(path) for path in sent],
        "generation_data": "File names: ice, glow, sharp",
    }
    (made,) = draw(server, inputs)["output"]
    text = parameters(picture(made))
    for told in ("Hires upscaler: sharp,", 'Lora hashes: "ice: ', 'TI hashes: "glow: '):
        assert told in text


def test_one_that_is_not_here_is_named(server: CogServer) -> None:
    reply = ask(server, DRAFT | {"prompt": "a boat <lora:nobodys:1>"})
    assert reply.body["status"] == "failed"
    assert "<lora:nobodys:1>': there is no LoRA of this name; available: snowman" in " ".join(reasons(reply.body))
    assert "Plan:" not in reply.body["logs"]


def test_a_file_that_is_no_lora_is_refused_and_disturbs_nothing(server: CogServer) -> None:
    (before,) = draw(server, DRAFT | {"prompt": "a boat"})["output"]
    vocabulary = resolve(None, None).files.tokenizer / "vocab.json"
    reply = ask(server, DRAFT | {"prompt": "a boat <lora:mine:1>", "files": [data_uri(vocabulary)]})
    assert reply.body["status"] == "failed"
    told = " ".join(reasons(reply.body))
    assert re.search(r"files='[^/']*': neither safetensors nor a pickle", told), told
    assert draw(server, DRAFT | {"prompt": "a boat"})["output"] == [before]

"""Harmful files sent to the real server: each is refused quickly and leaves the server as it was."""

import base64
import time

import psutil
import pytest
from safetensors.torch import save

from pipelines.upscalers.esrgan import import_spandrel
from script.cog_server import CogServer, reasons
from script.hostile import workers
from tests import attacks
from tests.contract.pictures import DRAFT, ask, assert_ready_soon, draw

GUARD_SECONDS = 180
"""A guard against hangs. What a refusal costs is compared in tests/tiny."""
CANCEL_SECONDS = 20
"""Less than the 30 s after which a process that decodes is given up, and a hundred times what a cancel takes."""
SENT: dict[str, attacks.Make] = {
    "a deep tuple as a key": attacks.WEIGHTS["a deep tuple as a key"],
    "texts encoded in a chain": attacks.WEIGHTS["texts encoded in a chain"],
    "many names for one dict": attacks.WEIGHTS["many names for one dict"],
    "a name of 9 million characters in a pickle": attacks.WEIGHTS["a name of 9 million characters in a pickle"],
    "250,000 empty tensors": lambda: attacks.empty_tensors(250_000),  # its header is no longer than it may be
    "a header of lists, shorter": attacks.WEIGHTS["a header of lists, shorter"],
    "a zip of many members": attacks.WEIGHTS["a zip of many members"],
}
"""Attacks that ended the worker, or kept it, before; tests/tiny tries all."""


def uri(content: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"


def told(server: CogServer, inputs: dict[str, object]) -> str:
    """Why these inputs are refused."""
    reply = ask(server, DRAFT | inputs)
    assert reply.status == 200, reply
    assert reply.body["status"] == "failed", reply
    (reason,) = reasons(reply.body)
    assert len(reason) < 3000
    assert reply.body["metrics"]["predict_time"] < GUARD_SECONDS
    return reason


def memory(server: CogServer) -> int:
    """Bytes of the worker and of what it started."""
    (worker,) = map(psutil.Process, workers(server))
    return sum(process.memory_info().rss for process in (worker, *worker.children(recursive=True)))


@pytest.mark.parametrize("name", SENT)
def test_an_attack_by_weights_is_refused(server: CogServer, name: str) -> None:
    content, before = SENT[name](), workers(server)
    attack = {"prompt": "a mine sky", "files": [uri(content)], "generation_data": "File names: mine"}
    assert "files=" in told(server, attack)
    assert workers(server) == before


@pytest.mark.parametrize("name", [name for name in attacks.PICTURES if name != attacks.SLOW])
def test_an_attack_by_a_picture_is_refused(server: CogServer, name: str) -> None:
    before = workers(server)
    assert "image=" in told(server, {"image": uri(attacks.PICTURES[name]())})
    assert workers(server) == before


def test_an_upscaler_that_enlarges_32_times_is_refused(server: CogServer) -> None:
    import_spandrel()
    from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet

    network = RRDBNet(in_nc=3, out_nc=3, num_filters=8, num_blocks=1, scale=32)
    before = workers(server)
    attack = {"highres_fix": "On", "files": [uri(save(network.state_dict()))]}
    assert "files='file.bin': " in (said := told(server, attack))
    assert "enlarges 32 times; at most 8 times" in said
    assert workers(server) == before


def decoding(server: CogServer) -> psutil.Process:
    """The process that decodes a picture: the helper's child."""
    end = time.monotonic() + GUARD_SECONDS
    while time.monotonic() < end:
        (worker,) = map(psutil.Process, workers(server))
        for helper in worker.children():
            for child in helper.children():
                return child
        time.sleep(0.01)
    raise AssertionError("nothing is decoded")


def test_a_cancel_ends_the_decoding_of_a_picture(server: CogServer) -> None:
    """The process that decodes is stopped first, so that a cancel that waits for it would wait for its deadline."""
    assert server.start("slow-picture", DRAFT | {"image": uri(attacks.PICTURES[attacks.SLOW]())}).status == 202
    decoding(server).suspend()
    assert server.cancel("slow-picture").status == 200
    assert_ready_soon(server, CANCEL_SECONDS)


def test_a_helper_that_is_killed_comes_back(server: CogServer) -> None:
    picture = draw(server, DRAFT)["output"][0]
    (worker,) = map(psutil.Process, workers(server))
    helpers = [child for child in worker.children() if "pipelines.runtime.isolation" in child.cmdline()]
    assert helpers != []
    for helper in helpers:  # and not the watchdog
        helper.kill()
    drawn = draw(server, DRAFT | {"image": picture, "denoising_strength": 0.5})
    assert len(drawn["output"]) == 1


def test_what_was_sent_leaves_nothing_behind(server: CogServer) -> None:
    """The last of these tests: the picture, the worker and its memory are those of before."""
    (before,) = draw(server, DRAFT)["output"]
    held = memory(server)
    for content in (SENT["250,000 empty tensors"](), attacks.WEIGHTS["a header of texts"]()):
        told(server, {"prompt": "a mine sky", "files": [uri(content)], "generation_data": "File names: mine"})
    told(server, {"image": uri(attacks.PICTURES["pixels that are not there"]())})
    assert draw(server, DRAFT)["output"] == [before]
    assert memory(server) < held + (100 << 20)

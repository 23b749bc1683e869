"""The benchmarks run at their smallest size, and the programs that they compare do the same work."""

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import flops
from bench.composition import composition
from bench.full_size import meta_networks
from bench.peers import fused
from pipelines.ask.identity import ModelFiles
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest, HiresSettings
from pipelines.drawing.phases import Picture, render
from pipelines.models.loader import load
from pipelines.models.model import Model
from tests.sdxl import networks as sdxl_networks
from tests.sdxl import single_file

REQUEST = GenerationRequest(prompt="a pink sun", width=64, height=64, seed=1, num_inference_steps=2)


def run(name: str, *options: str) -> Any:
    module = import_module(f"bench.{name}")
    parser = argparse.ArgumentParser()
    module.options(parser)
    return module.run(parser.parse_args(options))


@pytest.mark.parametrize(
    ("name", "options", "tables"),
    [
        ("overhead", ("--size", "8", "--rounds", "2"), 1),
        ("step", ("--embedded", "--sizes", "64", "128", "--rounds", "1"), 2),
        ("peer_sdcpp", ("--model", "embedded", "--size", "64", "--steps", "2", "--rounds", "1"), 1),
        ("e2e", ("--size", "64", "--steps", "1", "--rounds", "1", "--outputs", "2"), 2),
    ],
)
def test_a_comparison_runs(
    name: str,
    options: tuple[str, ...],
    tables: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("bench.composition.UPSCALER_STEPS", 1)  # all of them are counted below
    run(name, *options)
    assert capsys.readouterr().out.count("1.00x") >= tables


def test_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.shapes.STEPS", 1)
    found = run("shapes", "--sizes", "64", "72", "--steps", "1", "2", "--rounds", "1", "--predictions", "4")
    assert len(found["peaks"]) == 4
    assert found["peaks"] == sorted(found["peaks"])
    work = found["steps"]["TFLOP"]
    assert 1 < work[2] / work[1] < 2, "steps double, text and decoding stay"


def test_a_picture_of_full_size_costs_what_was_published() -> None:
    request = GenerationRequest(prompt="", width=512, height=512, seed=1, hires=HiresSettings(scale=2))
    networks = meta_networks()
    ours = flops.of_plan(networks, make_plan(request))
    assert sum(ours.values()) / 1e12 == pytest.approx(229.6, abs=0.1)
    step = flops.of_unet(networks["unet"], 64, 64)
    assert step.attention / step.total == pytest.approx(0.16, abs=0.01)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_peers_draw_pictures_of_our_size_in_as_many_steps(networks: Model, tmp_path: Path, family: str) -> None:
    calls, programs = list[int](), [(fused, 2 + 2), (composition, 2 + 20 + 2)]
    if family == "sdxl":
        path = single_file(tmp_path / "small.safetensors", sdxl_networks())
        networks, programs = load(ModelFiles(name="small", checkpoint=path, vae=None)), programs[:1]

    def count(*_: Any) -> None:
        calls.append(1)

    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *_: count() if type(module).__name__ == "UNet2DConditionModel" else None
    )
    try:
        (ours,) = (event for event in render(networks, REQUEST, make_plan(REQUEST)) if isinstance(event, Picture))
        assert len(calls) == 2 + 2
        for program, expected in programs:
            calls.clear()
            (picture,) = program(networks, REQUEST)()
            assert np.asarray(picture).shape == ours.pixels.shape
            assert len(calls) == expected
    finally:
        hook.remove()

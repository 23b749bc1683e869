"""Upscaling networks, read by the real spandrel, with or without torchvision installed."""

import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from pastel_tiny.dataset import TEST_SEED, halve
from pastel_tiny.measure import detail
from pastel_tiny.render import render as paint
from pastel_tiny.scenes import scene
from pipelines.ask.plan import UpscalePlan, make_plan
from pipelines.ask.request import GenerationRequest, HiresSettings
from pipelines.drawing.phases import Beside, Picture, render
from pipelines.errors import ModelError
from pipelines.models.checkpoint import NUMBER_FORMATS
from pipelines.models.model import Model
from pipelines.upscalers.enlarging import Enlargement, enlarge
from pipelines.upscalers.esrgan import OVERLAP, TILE, NetworkUpscaler, Trials, load_esrgan
from pipelines.upscalers.interpolation import upscale_pixels
from script.schema import ROOT
from weights_script.resolve import ResolvedModel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights() -> Path:
    """Of `pastel_tiny.esrgan`, for scenes of the embedded model's kind."""
    return ROOT / "tests" / "data" / "upscalers" / "4x-tiny.safetensors"


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


class Nearest:
    """What a descriptor is to us: a network that repeats every pixel twice."""

    device, dtype = CPU, torch.float32

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        self.seen.append(batch)
        return F.interpolate(batch, scale_factor=2, mode="nearest")


def test_the_weights_tell_the_network(weights: Path) -> None:
    upscaler = load_esrgan(weights, CPU, torch.float32)
    assert upscaler.scale == 4
    assert upscaler.enlarge(noise(40, 24)).size == (160, 96)


@pytest.mark.parametrize("size", [(128, 128), (192, 200), (193, 100), (500, 380)])
def test_tiles_leave_no_seam_where_the_network_sees_only_pixels(size: tuple[int, int]) -> None:
    picture = noise(*size)
    made = NetworkUpscaler(Nearest(), 2).enlarge(picture)
    assert np.array_equal(np.asarray(made), np.asarray(picture).repeat(2, 0).repeat(2, 1))


def test_tiles_are_of_webuis_size_and_channel_order() -> None:
    network = Nearest()
    NetworkUpscaler(network, 2).enlarge(Image.new("RGB", (300, 192), (255, 0, 51)))
    assert [tuple(batch.shape) for batch in network.seen] == [(1, 3, TILE, TILE)] * 2
    assert network.seen[0][0, :, 9, 9].tolist() == pytest.approx([0.2, 0, 1])


def test_a_tile_fades_in_over_its_neighbour() -> None:
    """Tiles of 0 and 255 in turn: the seam rises evenly over the overlap."""

    class Flat(Nearest):
        def __call__(self, batch: torch.Tensor) -> torch.Tensor:
            self.seen.append(batch)
            return torch.full((1, 3, 2 * TILE, 2 * TILE), float(len(self.seen) - 1))

    row = np.asarray(NetworkUpscaler(Flat(), 2).enlarge(Image.new("RGB", (2 * TILE - OVERLAP, TILE))))[5, :, 0]
    begin, fade = 2 * (TILE - OVERLAP), 2 * OVERLAP
    assert set(row[:begin]) == {0}
    assert row[begin : begin + fade].tolist() == pytest.approx([k * 255 // fade for k in range(fade)], abs=1)
    assert set(row[begin + fade :]) == {255}


@pytest.mark.parametrize(("wanted", "calls"), [((256, 256), 1), ((512, 512), 2), ((2048, 2048), 3)])
def test_a_network_runs_until_the_size_is_covered_but_three_times_at_most(wanted: tuple[int, int], calls: int) -> None:
    network = Nearest()
    plan = UpscalePlan(upscaler="x", width=wanted[0], height=wanted[1])
    picture = upscale_pixels(np.asarray(noise(128, 128)), plan, NetworkUpscaler(network, 2))
    assert picture.shape == (wanted[1], wanted[0], 3)
    tiles = {1: 1, 2: 1 + 4, 3: 1 + 4 + 9}
    assert len(network.seen) == tiles[calls]


def test_it_draws_what_was_painted_larger(weights: Path) -> None:
    """Scenes that it never saw: nearer to them than any resize, and as sharp as they are, which no resize is."""
    upscaler = load_esrgan(weights, CPU, torch.float32)
    painted = np.stack([paint(scene(TEST_SEED + 900 + k), 512, 512) for k in range(2)])
    small = [Image.fromarray(picture) for picture in halve(halve(painted))]
    resizes = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS
    made = [np.stack([np.asarray(each.resize((512, 512), resize)) for each in small]) for resize in resizes]
    by_network = np.stack([np.asarray(upscaler.enlarge(each)) for each in small])

    def off(pictures: np.ndarray) -> float:
        return float(np.abs(pictures.astype(int) - painted).mean())

    assert off(by_network) < 0.9 * min(map(off, made))
    assert detail(by_network) > 1.05 * max(map(detail, made))
    assert detail(by_network) < detail(painted)


def test_a_picture_through_highres_fix(networks: Model, weights: Path) -> None:
    hires = HiresSettings(scale=1.5, upscaler="4x-tiny", upscaler_file=weights, steps=2, denoising_strength=0.3)
    request = GenerationRequest(prompt="a", width=64, height=128, seed=1, num_inference_steps=2, hires=hires)
    upscaler = load_esrgan(weights, CPU, torch.float32)
    (made,) = (
        e
        for e in render(networks, request, make_plan(request), beside=Beside(upscaler=upscaler))
        if isinstance(e, Picture)
    )
    assert made.pixels.shape == (192, 96, 3)


@pytest.mark.parametrize("ending", ["", ".bin", ".zip"])
def test_a_file_is_known_by_its_content(weights: Path, tmp_path: Path, ending: str) -> None:
    """Cog names uploads by their media type."""
    upload = tmp_path / f"tmpj7499_b2file{ending}"
    upload.write_bytes(weights.read_bytes())
    assert load_esrgan(upload, CPU, torch.float32).scale == 4
    torch.save(load_file(weights), upload)
    assert load_esrgan(upload, CPU, torch.float32).scale == 4


Tensors = dict[str, torch.Tensor]
WRAPPED: dict[str, Callable[[Tensors], Any]] = {
    "params": lambda t: {"params": t},
    "the average of two": lambda t: {"params": {name: each * 0 for name, each in t.items()}, "params_ema": t},
    "generator": lambda t: {"generator": t, "discriminator": {"a": torch.ones(2)}, "step": torch.ones(())},
    "in two": lambda t: {"model": {"state_dict": t}, "epoch": 5},
    "a trainer's": lambda t: {"state_dict": {"generator": t}, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "a name of nobody": lambda t: {"my_network": t, "psnr": 30.5},
    "a module": lambda t: OrderedDict({f"module.{name}": each for name, each in t.items()}),
    "names": lambda t: {f"generator.{name}": each for name, each in t.items()},
    "both": lambda t: {"net_g": {f"module.{name}": each for name, each in t.items()}},
}


@pytest.mark.parametrize("form", WRAPPED)
def test_what_trainers_put_around_a_network_is_taken_off(weights: Path, tmp_path: Path, form: str) -> None:
    tensors, path = load_file(weights), tmp_path / "a.pth"
    torch.save(WRAPPED[form](tensors), path)
    expected, found = (load_esrgan(each, CPU, torch.float32).descriptor.model.state_dict() for each in (weights, path))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    if form == "names":
        save_file(WRAPPED[form](tensors), tmp_path / "a.safetensors")
        assert load_esrgan(tmp_path / "a.safetensors", CPU, torch.float32).scale == 4


@pytest.mark.parametrize("content", [{}, {"a": {}}, {"a": {"b": 1}, "c": {"d": 2}}, {"generator": {"generator": 1}}])
def test_a_file_in_which_no_network_is_found_is_named(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"a\.pth: not an upscaler that can be read \(it holds no tensors"):
        load_esrgan(tmp_path / "a.pth", CPU, torch.float32)


@pytest.mark.parametrize("kind", [kind for kind in NUMBER_FORMATS.values() if kind.is_floating_point], ids=str)
def test_every_number_format_is_read_and_checked(weights: Path, tmp_path: Path, kind: torch.dtype) -> None:
    tensors = {name: each.to(kind) for name, each in load_file(weights).items()}
    save_file(tensors, tmp_path / "a.safetensors")
    found = load_esrgan(tmp_path / "a.safetensors", CPU, torch.float32).descriptor.model.state_dict()
    assert all(torch.equal(found[name], each.float()) for name, each in tensors.items() if name in found)
    first = next(iter(tensors))
    save_file(tensors | {first: torch.full(tensors[first].shape, float("nan")).to(kind)}, tmp_path / "b.safetensors")
    with pytest.raises(ModelError, match="NaN or infinite"):
        load_esrgan(tmp_path / "b.safetensors", CPU, torch.float32)


def of_scale_1() -> Tensors:
    """A small compact network (SRVGG) that leaves the size; with these weights it adds a tenth to every value."""
    tensors = {"body.0.weight": torch.zeros(8, 3, 3, 3), "body.0.bias": torch.zeros(8), "body.1.weight": torch.ones(8)}
    tensors |= {"body.2.weight": torch.zeros(8, 8, 3, 3), "body.2.bias": torch.zeros(8), "body.3.weight": torch.ones(8)}
    return tensors | {"body.4.weight": torch.zeros(3, 8, 3, 3), "body.4.bias": torch.full((3,), 0.1)}


def test_a_network_that_leaves_the_size_runs_once(tmp_path: Path) -> None:
    save_file(of_scale_1(), tmp_path / "1x.safetensors")
    Trials().check(tmp_path / "1x.safetensors")
    network = load_esrgan(tmp_path / "1x.safetensors", CPU, torch.float32)
    assert network.scale == 1
    image = Image.new("RGB", (64, 72), (0, 100, 200))
    for factor in (1, 2):
        by = HiresSettings(upscaler="1x", upscaler_file=tmp_path / "1x.safetensors", scale=factor)
        made = enlarge(Enlargement(image=image, by=by), network)
        assert made.shape == (72 * factor, 64 * factor, 3)
        assert np.unique(made.reshape(-1, 3), axis=0).tolist() == [[26, 126, 226]]


def test_at_factor_1_extras_run_the_network_once_and_the_highres_fix_does_not() -> None:
    """As WebUI's do: the one for what it does to a picture, the other only to enlarge."""
    picture, plan = np.asarray(noise(128, 128)), UpscalePlan(upscaler="x", width=128, height=128)
    network = Nearest()
    made = upscale_pixels(picture, plan, NetworkUpscaler(network, 2), alone=True)
    assert len(network.seen) == 1
    twice = Image.fromarray(picture).resize((256, 256), Image.Resampling.NEAREST)
    assert np.array_equal(made, np.asarray(twice.resize((128, 128), Image.Resampling.LANCZOS)))
    assert np.array_equal(upscale_pixels(picture, plan, NetworkUpscaler(network, 2)), picture)
    smaller = UpscalePlan(upscaler="x", width=64, height=64)
    upscale_pixels(picture, smaller, NetworkUpscaler(network, 2), alone=True)
    assert len(network.seen) == 1, "nor below it"


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "not an upscaler"), (b"<html>", "not an upscaler"), (b"\x80\x02c", "not an upscaler")]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    for ending in ("pth", "safetensors", "txt"):
        path = tmp_path / f"4x-Broken.{ending}"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=f"4x-Broken.{ending}: {said}"):
            load_esrgan(path, CPU, torch.float32)


def test_a_checkpoint_is_no_upscaler(embedded: ResolvedModel) -> None:
    with pytest.raises(ModelError, match=r"pastel-tiny.safetensors: "):
        load_esrgan(embedded.files.checkpoint, CPU, torch.float32)


def test_a_pickle_that_runs_code_does_not_run(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "evil.pth"
    torch.save({"x": Evil()}, path, pickle_module=pickle)
    with pytest.raises(ModelError, match=r"evil\.pth"):
        load_esrgan(path, CPU, torch.float32)
    assert not (tmp_path / "ran").exists()


def test_what_is_missing_is_named(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ModelError, match=r"4x-tiny\.safetensors: .*spandrel.*another hires_upscaler"):
        load_esrgan(weights, CPU, torch.float32)


def test_no_stand_in_stays_behind(weights: Path) -> None:
    """Other libraries look for torchvision, too, and must find the real one or none."""
    code = (
        "import sys, torch; from pathlib import Path; from pipelines.upscalers.esrgan import load_esrgan\n"
        f"load_esrgan(Path({str(weights)!r}), torch.device('cpu'), torch.float32)\n"
        "module = sys.modules.get('torchvision'); assert module is None or module.__spec__, module"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=500)

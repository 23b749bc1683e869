"""The memory estimate matches what the networks take, and work that does not fit at once is done with less."""

import re
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.full_size import meta_networks
from pipelines.ask.plan import HighresPlan, make_plan
from pipelines.ask.request import ControlSettings, GenerationRequest, HiresSettings
from pipelines.drawing.phases import Picture, render
from pipelines.errors import OutOfMemory
from pipelines.models import vae
from pipelines.models.checkpoint import map_tensors
from pipelines.models.model import Model
from pipelines.models.network import fill
from pipelines.runtime import memory
from pipelines.runtime.device import Device
from pipelines.runtime.memory import Footprint
from pipelines.runtime.offloading import Weights
from pipelines.runtime.unet_call import Condition, UNet, UNetCall
from pipelines.sampling.control import ControlNetUnit, Controls
from tests.alike import alike

SHORT = torch.OutOfMemoryError("CUDA out of memory")


def request(**fields: Any) -> GenerationRequest:
    small = {"prompt": "a pink sun", "width": 128, "height": 64, "seed": 7, "num_inference_steps": 2}
    return GenerationRequest(**{**small, "hires": HiresSettings(steps=1), **fields})


def pictures(networks: Model, asked: GenerationRequest) -> list[np.ndarray]:
    return [event.pixels for event in render(networks, asked, make_plan(asked)) if isinstance(event, Picture)]


class FusedAttention(TorchFunctionMode):
    """On the meta device torch would write out the matrix that fused attention never holds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


class Peak(TorchDispatchMode):
    """The most bytes that tensors held at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.holders: Counter[int] = Counter()
        self.sizes: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)):
            storage = tensor.untyped_storage()
            self.sizes[storage._cdata] = storage.nbytes()
            self.holders[storage._cdata] += 1
            weakref.finalize(tensor, self.release, storage._cdata)
        self.most = max(self.most, sum(self.sizes.values()))
        return result

    def release(self, storage: int) -> None:
        self.holders[storage] -= 1
        if not self.holders[storage]:
            del self.holders[storage], self.sizes[storage]


def peak(work: Callable[[], object]) -> int:
    with torch.inference_mode(), FusedAttention(), Peak() as counted:
        work()
    return counted.most


def on_meta(networks: Model) -> dict[str, Any]:
    with torch.device("meta"):
        parts = {"unet": networks.unet.network, "vae": networks.vae.network}
        return {name: type(part).from_config(part.config) for name, part in parts.items()}


@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        ("sd15", torch.float16),
        ("sd15", torch.float32),
        ("embedded", torch.float16),
        ("embedded", torch.float32),
        ("sdxl", torch.float16),
        ("sdxl-refiner", torch.float16),
    ],
)
def test_the_footprint_is_what_the_networks_hold(networks: Model, model: str, dtype: torch.dtype) -> None:
    """The footprint is a whole number of equal tensors: 26 or 16 for the UNet, where 5 % is one of them, and some 5
    or 3 for the decoder, where 1 % is what does not grow with the picture. The controls count two and one more."""
    parts = on_meta(networks) if model == "embedded" else meta_networks(model)
    unet, decoder = (parts[name].to(dtype) for name in ("unet", "vae"))
    footprint = Footprint.of(unet, decoder)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    width, vector = unet.config.cross_attention_dim, unet.config.projection_class_embeddings_input_dim
    call = empty(2, 4, 64, 96), torch.empty((), device="meta"), empty(2, 77, width)
    drawing = peak(lambda: unet(*call, class_labels=empty(2, vector) if vector else None))
    decoding = peak(lambda: decoder.decode(empty(1, 4, 64, 96)))
    assert footprint.unet * 64 * 96 * 2 == pytest.approx(drawing, rel=0.05)
    assert footprint.unet * 64 * 96 * 2 * 28 / 26 != pytest.approx(drawing, rel=0.05)
    assert footprint.vae * 512 * 768 == pytest.approx(decoding, rel=0.01)
    assert footprint.vae * 512 * 768 * 6 / 5 != pytest.approx(decoding, rel=0.01)
    assert peak(lambda: decoder.encode(empty(1, 3, 512, 768))) <= decoding * 1.02, "encoding takes no more"


def test_the_footprint_under_controls_is_what_they_and_the_unet_hold() -> None:
    """Two of them, one after the other; what they add stays until the UNet is done. Of 32 equal tensors 5 % is one and
    a half. The control leaves out what ControlNets add, which is six."""
    unet = meta_networks()["unet"].to(torch.float16)
    with torch.device("meta"):
        controls = [ControlNetModel.from_unet(unet, load_weights_from_unet=False).half() for _ in range(2)]
    footprint = Footprint.of(unet, meta_networks()["vae"]).under_controls()

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=torch.float16)

    networks = [(control, ControlSettings(model="x")) for control in controls]
    shown, time, contexts = empty(1, 3, 512, 768), torch.empty((), device="meta"), empty(2, 77, 768)
    units = [ControlNetUnit(settings, range(1), control, shown) for control, settings in networks]
    call = UNetCall(empty(2, 4, 64, 96), time, Condition(contexts))

    def drawn() -> object:
        return UNet(unet)(Controls(units).guide(call, 0, 1))

    assert footprint.unet * 64 * 96 * 2 == pytest.approx(held := peak(drawn), rel=0.05)
    assert footprint.unet * 26 / 32 * 64 * 96 * 2 != pytest.approx(held, rel=0.05)


def test_a_batch_that_does_not_fit_goes_row_by_row_to_the_same_picture(
    networks: Model, caplog: pytest.LogCaptureFixture
) -> None:
    draw, tried = networks.unet.network.forward, Counter[int]()

    def little_room(images: Tensor, *args: Any, **kwargs: Any) -> Any:
        tried[len(images)] += 1
        if len(images) > 1:
            raise SHORT
        return draw(images, *args, **kwargs)

    asked = request(num_outputs=2, hires=None)
    wanted = pictures(networks, asked)
    with mock.patch.object(networks.unet.network, "forward", little_room):
        drawn = pictures(networks, asked)
    assert tried == {4: 1, 1: 2 * 4}, "the batch is tried once, then no more"
    assert caplog.messages == ["Out of memory: the rest of this pass computes one row of the batch at a time."]
    assert all(map(alike, drawn, wanted))
    assert not alike(*wanted)


def test_a_picture_that_cannot_be_decoded_at_once_is_decoded_in_tiles(
    networks: Model, caplog: pytest.LogCaptureFixture
) -> None:
    decode = networks.vae.network.decoder.forward

    def little_room(latents: Tensor) -> Tensor:
        if latents.shape[-1] > 16:
            raise SHORT
        return decode(latents)

    latent = torch.randn(4, 16, 24, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), mock.patch.object(vae, "TILE", 128):
        whole = networks.vae.decode(latent)
        with mock.patch.object(networks.vae.network.decoder, "forward", little_room):
            tiled = networks.vae.decode(latent)
    assert caplog.messages == ["Out of memory: the VAE works in tiles of 128 px, whose seams may show."]
    assert tiled.shape == whole.shape == (128, 192, 3)
    assert np.abs(tiled.astype(int) - whole).mean() < 8, "the same picture, but for its norms' statistics"
    assert not networks.vae.network.use_tiling, "the next picture is decoded as a whole again"


def test_what_does_not_fit_even_so_is_an_error_that_tells_a_size_that_fits(networks: Model) -> None:
    room = mock.patch.object(memory, "room_left", return_value=networks.footprint.unet * 16 * 16 * 3)
    short = mock.patch.object(networks.unet.network, "forward", side_effect=SHORT)
    with room, short, pytest.raises(OutOfMemory, match=r"No memory left for 1 x 128x128, .*\. hires_scale=1.7 fits\."):
        pictures(networks, request(width=128, height=128))
    assert pictures(networks, request()), "the next prediction finds everything as it was"


def plan(**fields: Any) -> HighresPlan:
    return make_plan(request(**fields))


@pytest.mark.parametrize(
    ("fields", "latent_pixels", "advice"),
    [
        ({"width": 512, "height": 512}, 100 * 100, "hires_scale=1.55 fits."),
        ({"width": 512, "height": 512}, 65 * 65, "highres_fix=Off fits."),
        ({"width": 512, "height": 768}, 64 * 64, "width=384 and height=576 fit, with highres_fix=Off."),
        ({"width": 512, "height": 768, "hires": None}, 64 * 64, "width=384 and height=576 fit."),
        ({"width": 512, "height": 512}, 200 * 200, "hires_scale=1.75 fits."),  # by our count it did fit already
        ({"width": 64, "height": 64, "hires": None}, 1, "width=64 and height=64 fit."),
    ],
)
def test_advice(fields: dict[str, Any], latent_pixels: int, advice: str) -> None:
    footprint = Footprint(unet=1000, controls=0, vae=100)
    assert memory.what_fits(plan(**fields), footprint, latent_pixels * 1000) == advice


def test_advice_where_nobody_knows_the_room() -> None:
    advice = memory.what_fits(plan(), Footprint(unet=1, controls=0, vae=1), None)
    assert advice == "Use a smaller hires_scale or size than 256x128, or num_outputs=1."


def test_other_errors_are_not_taken_for_missing_memory(networks: Model) -> None:
    with (
        mock.patch.object(networks.unet.network, "forward", side_effect=RuntimeError("shapes differ")),
        pytest.raises(RuntimeError, match="shapes differ"),
    ):
        pictures(networks, request())


def file_pages() -> int:
    """Bytes of mapped files that this process holds in memory."""
    found = re.search(r"RssFile:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def test_weights_on_a_device_know_the_file_that_has_them(tmp_path: Path) -> None:
    """In its precision: others would have to be copied before they leave. Copies in memory stand for the device's."""
    file, to = tmp_path / "weights.safetensors", torch.Tensor.to
    save_file({"weight": torch.ones(4, 4, dtype=torch.float16), "bias": torch.ones(4)}, file)

    def copied(tensor: Tensor, *args: Any) -> Tensor:
        return to(tensor, *args, copy=True)

    for dtype, unmapped in ((torch.float16, 4 * 2), (torch.float32, 4 * 4 * 4)):
        with torch.device("meta"):
            network = nn.Linear(4, 4)
        with mock.patch.object(torch.Tensor, "to", copied):
            fill(file, network, map_tensors(file), Device(torch.device("cpu"), dtype))
        assert Weights([network], torch.device("cpu")).unmapped == unmapped


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_mapped_file_leaves_memory_where_its_weights_were_copied(tmp_path: Path, dtype: torch.dtype) -> None:
    file, size = tmp_path / "weights.safetensors", 64 << 20
    save_file({f"{k}.weight": torch.full((1024, size // 8 // 2048), k, dtype=torch.float16) for k in range(8)}, file)
    with torch.device("meta"):
        network = nn.Sequential(*(nn.Linear(size // 8 // 2048, 1024, bias=False) for _ in range(8)))
    before = file_pages()
    fill(file, network, map_tensors(file), Device(torch.device("cpu"), dtype))
    held = file_pages() - before
    assert held > 0.9 * size if dtype == torch.float16 else held < 0.3 * size
    assert [float(weight.mean()) for weight in network.parameters()] == list(range(8))

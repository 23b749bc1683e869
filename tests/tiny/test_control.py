"""ControlNet on the embedded model matches diffusers' networks, and acts only where and when it should."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from pastel_tiny.captions import caption
from pastel_tiny.dataset import SHAPES, SIDE, TEST_SEED, halve
from pastel_tiny.render import render as painted
from pastel_tiny.scenes import scene
from pipelines.ask.networks import ExtraFile, Extras, in_folders
from pipelines.ask.plan import PassPlan, make_plan
from pipelines.ask.request import ControlSettings, GenerationRequest, HiresSettings, ImageSettings, MaskSettings
from pipelines.drawing import drawing
from pipelines.drawing.phases import Picture, render
from pipelines.errors import ModelError
from pipelines.families.sd1 import SD1
from pipelines.images.preprocess import canny
from pipelines.models.controls import ControlNetworks, load_control
from pipelines.models.model import Model
from pipelines.runtime.unet_call import UNetCall
from pipelines.sampling.control import Controls, controls_of
from pipelines.sampling.denoiser import Guidance, GuidedDenoiser, Stage
from pipelines.sampling.prompts import PromptEncoder
from script.schema import ROOT
from tests.controls import by_ldm_names, random_control, write
from tests.passes import latents
from tests.tiny.test_highres import steps_alone

SHOWN = Image.effect_noise((128, 64), 60).convert("RGB")
UNIT = ControlSettings(model="some", picture=SHOWN, preprocessor="none")


@pytest.fixture(scope="module")
def file(networks: Model, tmp_path_factory: pytest.TempPathFactory) -> ExtraFile:
    return write(tmp_path_factory.mktemp("control") / "some.safetensors", random_control(networks.unet.network))


@pytest.fixture(scope="module")
def network(networks: Model, file: ExtraFile) -> Any:
    """What the file holds."""
    return load_control(file.path, networks.unet.network, networks.device, SD1)


@pytest.fixture(autouse=True)
def none_left(networks: Model) -> Iterator[None]:
    yield
    networks.controls.load_only([])


def asked(file: ExtraFile, *controls: ControlSettings, **fields: Any) -> GenerationRequest:
    small = {"prompt": "a boat", "width": 128, "height": 64, "seed": 1, "num_inference_steps": 2, "sampler": "Euler"}
    return GenerationRequest(
        **{**small, "hires": None, "controls": controls, "extras": Extras(controls={"some": file}), **fields}
    )


def draw(networks: Model, request: GenerationRequest) -> NDArray[np.uint8]:
    (pixels,) = (e.pixels for e in render(networks, request, make_plan(request)) if isinstance(e, Picture))
    return pixels


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["balanced", "prompt", "control"])
@pytest.mark.parametrize(
    ("prompt", "rows"), [("a boat", 2), ("a boat AND a sun", 3), ("a BREAK boat", 2), ("a boat AND a sun", 1)]
)
def test_a_step_is_what_diffusers_networks_make_of_it(
    networks: Model, file: ExtraFile, network: Any, mode: str, prompt: str, rows: int
) -> None:
    """Each row by itself, and the guidance by hand. Rows of another batch go through other kernels: a UNet's noise is
    off by 5e-6 then, which sigma and the guidance multiply by 3 x (2 x 5 + 1). The control draws without ControlNet."""
    control = replace(UNIT, mode=mode, weight=0.7)
    request = asked(file, control)
    with torch.inference_mode():
        prompts = PromptEncoder(networks.text, 1, "Original", False).encode(prompt, "night", 4)
        controls = controls_of(make_plan(request).first, request.controls, [network], None, networks.device)
        x, sigma = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(0)) * 3, 3.0
        found = GuidedDenoiser([Stage(networks, prompts)], Guidance(5.0), rows, controls=controls)(x, sigma)
        without = GuidedDenoiser([Stage(networks, prompts)], Guidance(5.0), rows)(x, sigma)

        positive, negative = (condition.tokens for condition in prompts.at(0))
        shown = torch.from_numpy(np.asarray(SHOWN).copy()).permute(2, 0, 1)[None] / 255
        time, scaled = torch.tensor(networks.noise.t_of(sigma)), x * (sigma**2 + 1) ** -0.5
        noises = []
        for number, context in enumerate([*positive, *negative]):
            down, mid = network(scaled, time, context[None], shown, 0.7, return_dict=False)
            soft = [1.0 if mode == "balanced" else 0.825 ** (12 - place) for place in range(13)]
            if mode == "control" and number == len(positive):
                soft = [0.0] * 13
            added = [part * share for part, share in zip((*down, mid), soft, strict=True)]
            options = {"down_block_additional_residuals": added[:-1], "mid_block_additional_residual": added[-1]}
            noises.append(networks.unet.network(scaled, time, context[None], **options).sample)
        *conditional, unconditional = noises
        guided = unconditional + sum(5.0 * (part - unconditional) for part in conditional)
    assert torch.allclose(found, x - sigma * guided, atol=2e-4)
    assert not torch.allclose(found, without, atol=2e-2)


def test_units_add_up(networks: Model, file: ExtraFile) -> None:
    """A sum of two parts is rounded once more: an ulp of what is added, 1e-6, which guided steps enlarge up to a
    thousand times where they start from noise of 14."""
    (whole,) = latents(networks, asked(file, replace(UNIT, weight=1)))
    (halves,) = latents(networks, asked(file, replace(UNIT, weight=0.75), replace(UNIT, weight=0.25)))
    (half,) = latents(networks, asked(file, replace(UNIT, weight=0.5)))
    assert torch.allclose(whole, halves, atol=1e-3)
    assert not torch.allclose(whole, half, atol=0.1)


def test_a_checkpoint_for_inpainting_is_led_by_the_latents_alone(networks: Model, file: ExtraFile) -> None:
    """Of nine channels, five of which have no weight in this UNet. A sum with more zeros may be added up in another
    order: two runs of WebUI differ by as much (docs/parity.md). The control draws without the ControlNet."""
    unet = copy.deepcopy(networks.unet.network)
    unet.register_to_config(in_channels=9)
    unet.conv_in.weight.data = torch.nn.functional.pad(unet.conv_in.weight.data, (0, 0, 0, 0, 0, 5))
    (expected,) = latents(networks, asked(file, UNIT))
    (found,) = latents(replace(networks, unet=type(networks.unet)(unet)), asked(file, UNIT))
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, latents(networks, asked(file))[0], atol=1e-2)


def test_without_weight_the_picture_is_bit_for_bit_the_one_without(networks: Model, file: ExtraFile) -> None:
    hires = HiresSettings(steps=1)
    without = latents(networks, asked(file, hires=hires))
    with_none = latents(networks, asked(file, replace(UNIT, weight=0), hires=hires))
    with_it = latents(networks, asked(file, UNIT, hires=hires))
    assert all(map(torch.equal, without, with_none))
    assert not any(map(torch.equal, without, with_it))


@pytest.mark.parametrize(
    ("preprocessor", "mode", "modes"),
    [
        ("canny", "balanced", ["balanced", "prompt"]),
        ("canny", "control", ["control", "control"]),
        ("lineart", "balanced", ["balanced", "balanced"]),
    ],
)
def test_canny_is_soft_in_the_hires_pass(
    networks: Model,
    file: ExtraFile,
    monkeypatch: pytest.MonkeyPatch,
    preprocessor: str,
    mode: str,
    modes: list[str],
) -> None:
    """A rule of WebUI's extension, for this preprocessor alone."""
    seen = []

    def spy(part: PassPlan, settings: Sequence[ControlSettings], *rest: Any) -> Controls | None:
        seen.extend(settings)
        return controls_of(part, settings, *rest)

    monkeypatch.setattr(drawing, "controls_of", spy)
    with steps_alone(networks):
        unit = replace(UNIT, preprocessor=preprocessor, mode=mode)
        latents(networks, asked(file, unit, hires=HiresSettings(steps=1)))
    assert [control.mode for control in seen] == modes


@pytest.mark.parametrize("sampler", ["Euler", "DPM++ SDE", "DDIM"])
def test_it_acts_between_start_and_end_in_both_passes(networks: Model, file: ExtraFile, sampler: str) -> None:
    control = replace(UNIT, start=0.25, end=0.5)
    request = asked(file, control, sampler=sampler, num_inference_steps=9, hires=HiresSettings(steps=5))
    plan, steps = make_plan(request), list[int]()
    whole = Controls.guide

    def noted(self: Controls, call: UNetCall, step: int, rows: int) -> Any:
        made = whole(self, call, step, rows)
        if made.guided:
            steps.append(step)
        return made

    with mock.patch.object(Controls, "guide", noted), steps_alone(networks):
        latents(networks, request)
    assert plan.hires is not None
    wanted = [*plan.first.steps_under(control), *plan.hires.steps_under(control)]
    assert [step for step, before in zip(steps, [None, *steps], strict=False) if step != before] == wanted
    assert len(wanted) == 3


def test_a_map_has_the_size_of_its_pass(networks: Model, file: ExtraFile) -> None:
    sizes: list[tuple[int, ...]] = []
    whole = ControlNetworks.__getitem__

    def seen(self: ControlNetworks, wanted: ExtraFile) -> Any:
        return mock.Mock(wraps=whole(self, wanted), class_embedding=None, side_effect=remember)

    def remember(images: Tensor, time: Tensor, contexts: Tensor, shown: Tensor, **_: Any) -> Any:
        sizes.append(tuple(shown.shape[2:]))
        return mock.DEFAULT  # the network's own result

    with mock.patch.object(ControlNetworks, "__getitem__", seen):
        latents(networks, asked(file, UNIT, num_inference_steps=1, hires=HiresSettings(steps=1, scale=1.5)))
    assert sizes == [(64, 128), (96, 192)]


def test_rows_that_do_not_fit_go_one_by_one_to_the_same_picture(networks: Model, file: ExtraFile) -> None:
    """One row goes through other kernels than four: 5e-6 of a UNet's noise, multiplied by the first step from 14.6 to
    about 2 with its guidance of 7. The control draws without the ControlNet."""
    forward, most = networks.unet.network.forward, 1

    def little_room(images: Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(images, *args, **kwargs)

    request = asked(file, replace(UNIT, mode="control"), prompt="a boat AND a sun", num_outputs=2)
    wanted = latents(networks, request)
    with mock.patch.object(networks.unet.network, "forward", little_room):
        found = latents(networks, request)
    assert torch.allclose(found[0], wanted[0], atol=1e-3)
    assert not torch.allclose(found[0], latents(networks, replace(request, controls=()))[0], atol=0.1)


def test_the_smallest_picture(networks: Model, file: ExtraFile) -> None:
    """A group of the deepest level is a single value there."""
    assert draw(networks, asked(file, UNIT, width=64, num_inference_steps=1, prompt="a BREAK b")).shape == (64, 64, 3)


def test_a_lora_changes_what_is_controlled_and_goes_again(networks: Model, file: ExtraFile) -> None:
    extras = replace(in_folders(ROOT / "tests" / "data" / "loras", None), controls={"some": file})
    (before,) = latents(networks, asked(file, UNIT))
    (changed,) = latents(networks, asked(file, UNIT, prompt="a boat <lora:snowman:1>", extras=extras))
    assert not torch.allclose(changed, before, atol=0.1)
    (after,) = latents(networks, asked(file, UNIT))
    assert torch.equal(after, before)


# --- the one that was trained -----------------------------------------------------------------------------------------


def edges(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return canny(np.ascontiguousarray(picture), 100, 200)[..., 0] > 0


def astray(picture: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> float:
    """The mean way from an edge of the picture to the nearest one of what it should follow, in pixels. Noise, which has
    edges where there should be none, is farther off than a picture that follows nothing."""
    away = cv2.distanceTransform((~edges(wanted)).astype(np.uint8), cv2.DIST_L2, 5)
    return float(away[edges(picture)].mean())


def test_a_trained_one_makes_pictures_follow_the_edges_of_unseen_scenes(networks: Model) -> None:
    """The prompts tell what is there, and only the map where."""
    extras = in_folders(None, None, ROOT / "tests" / "data" / "controlnets")
    free, led = [], []
    for seed in range(TEST_SEED, TEST_SEED + 4):
        shown = halve(painted(scene(seed), *SHAPES[0])[None])[0]
        control = ControlSettings(model="canny-tiny", picture=Image.fromarray(shown))
        request = GenerationRequest(
            prompt=caption(scene(seed), random.Random(0))[0],
            width=SIDE,
            height=SIDE,
            seed=seed % 1000,
            num_inference_steps=6,
            guidance_scale=3,
            schedule_type="Exponential",
            hires=None,
            extras=extras,
        )
        for found, controls in ((free, ()), (led, (control,))):
            found.append(astray(draw(networks, replace(request, controls=controls)), shown))
    assert np.mean(led) < 0.6 * np.mean(free)
    assert all(with_it < without for with_it, without in zip(led, free, strict=True))


# --- pictures ---------------------------------------------------------------------------------------------------------


def shown_to(networks: Model, request: GenerationRequest) -> list[Tensor]:
    """The maps (3, H, W) of the first pass."""
    maps: list[Tensor] = []
    whole = controls_of

    def noted(*arguments: Any) -> Any:
        made = whole(*arguments)
        maps.extend(unit.shown[0] for unit in made.units)
        return made

    with mock.patch("pipelines.drawing.drawing.controls_of", noted), steps_alone(networks):
        latents(networks, request)
    return maps


def test_without_a_picture_of_its_own_it_sees_the_image(networks: Model, file: ExtraFile) -> None:
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    request = asked(file, replace(UNIT, picture=None), width=64, image=ImageSettings(picture=image))
    (shown,) = shown_to(networks, request)
    assert torch.equal((shown * 255).round().byte(), torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1))


def test_inpainting_is_shown_the_image_and_what_of_it_is_masked(networks: Model, file: ExtraFile) -> None:
    image, mask = Image.new("RGB", (64, 64), "white"), Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    settings = ImageSettings(picture=image, mask=MaskSettings(picture=mask, blur=(0, 0)))
    request = asked(file, replace(UNIT, picture=None, preprocessor="inpaint"), width=64, image=settings)
    (shown,) = shown_to(networks, request)
    assert (shown[:, :, :32] == -1).all()
    assert (shown[:, :, 32:] == 1).all()


def test_where_only_the_masked_part_is_drawn_its_part_of_the_map_is_shown(networks: Model, file: ExtraFile) -> None:
    image, mask, control = Image.new("RGB", (128, 128)), Image.new("L", (128, 128)), Image.new("RGB", (256, 256))
    mask.paste(255, (64, 64, 128, 128))
    control.paste("white", (128, 128, 256, 256))
    only = MaskSettings(picture=mask, blur=(0, 0), area="Only masked", padding=0)
    request = asked(file, replace(UNIT, picture=control), width=64, image=ImageSettings(picture=image, mask=only))
    (shown,) = shown_to(networks, request)
    assert shown[:, 2:, 2:].min() > 0.99


# --- files ------------------------------------------------------------------------------------------------------------


def assert_same_network(networks: Model, one: Path, other: Path) -> None:
    wanted, found = (load_control(f, networks.unet.network, networks.device, SD1).state_dict() for f in (one, other))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


@pytest.mark.parametrize("prefix", ["control_model.", ""])
def test_a_file_by_its_authors_names_is_the_same_network(
    networks: Model, file: ExtraFile, tmp_path: Path, prefix: str
) -> None:
    theirs = write(tmp_path / "ldm.safetensors", by_ldm_names(random_control(networks.unet.network), prefix))
    assert_same_network(networks, file.path, theirs.path)


Tensors = dict[str, Tensor]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t | {"controlnet_mid_block.weight": torch.zeros(8, 8, 1, 1)}, "ControlNetModel does not fit"),
        (lambda t: {n: v for n, v in t.items() if n != "conv_in.weight"}, "lacks conv_in.weight"),
        (lambda t: t | {"conv_in.weight": torch.full_like(t["conv_in.weight"], torch.nan)}, "NaN or infinite"),
        (lambda t: t | {"difference": torch.zeros(1)}, "only differences to another model"),
        (lambda t: {"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, "a LoRA, not a ControlNet"),
        (
            lambda t: t | {f"input_blocks.{k}.x": torch.zeros(1) for k in range(9000)},
            "holds 9.* tensors, but a ControlNet",
        ),
        (lambda t: {"x": torch.zeros(2)}, "not a ControlNet. Give one that was made for Stable Diffusion 1.x"),
    ],
)
def test_other_files_are_refused_before_anything_is_drawn(
    networks: Model, tmp_path: Path, change: Callable[[Tensors], Tensors], words: str
) -> None:
    broken = write(tmp_path / "broken.safetensors", change(random_control(networks.unet.network)))
    broken = replace(broken, origin="control_file='broken'")
    told = f"^control_file='broken': .*{words}"
    with mock.patch.object(networks.unet.network, "forward") as drawn, pytest.raises(ModelError, match=told):
        draw(networks, asked(broken, UNIT))
    assert not drawn.called


def test_a_pickle_is_the_same_network(networks: Model, file: ExtraFile, tmp_path: Path) -> None:
    torch.save({"state_dict": load_file(file.path)}, tmp_path / "control.pth")
    assert_same_network(networks, file.path, tmp_path / "control.pth")


def test_it_is_kept_for_the_next_prediction_that_asks_for_it_and_no_longer(networks: Model, file: ExtraFile) -> None:
    latents(networks, asked(file, UNIT))
    loaded = networks.controls[file]
    under = networks.footprint.unet
    latents(networks, asked(file, UNIT))
    assert networks.controls[file] is loaded
    latents(networks, asked(file))
    assert not networks.controls.networks
    assert networks.footprint.unet < under, "what is held under controls"

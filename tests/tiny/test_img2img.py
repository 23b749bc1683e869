"""Passes from a picture and under a mask, on the embedded model."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipelines import __main__ as command
from pipelines.ask.catalog import MASKED_CONTENTS, RESIZE_MODES, SAMPLERS
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest, HiresSettings, ImageSettings, MaskSettings
from pipelines.drawing.drawing import Given
from pipelines.drawing.phases import BASE, PassResult, Picture, Step, render
from pipelines.errors import InvalidInput
from pipelines.families.layouts import UNET_PREFIX
from pipelines.models.loader import load
from pipelines.models.model import Model
from tests import films
from tests.alike import alike
from tests.passes import latents
from tests.tiny.test_command import BLOCK, run
from tests.tiny.test_highres import steps_alone
from weights_script.resolve import ResolvedModel


def ramp(width: int, height: int) -> Image.Image:
    """A picture that is smooth, so that the VAE keeps it, and different everywhere."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8))


def half_masked(width: int, height: int) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(255, (0, 0, width // 2, height))
    return mask


PICTURE, MASK = ramp(64, 64), half_masked(64, 64)


def request(hires: HiresSettings | None = None, **image: Any) -> GenerationRequest:
    return GenerationRequest(
        prompt="a pink sun over the sea",
        width=64,
        height=64,
        seed=7,
        num_inference_steps=4,
        sampler="Euler a",
        image=ImageSettings(**{"picture": PICTURE, **image}),
        hires=hires,
    )


def drawn(networks: Model, asked: GenerationRequest, **options: Any) -> list[np.ndarray]:
    events = render(networks, asked, make_plan(asked), **options)
    return [event.pixels for event in events if isinstance(event, Picture)]


def apart(pixels: np.ndarray, picture: Image.Image = PICTURE) -> float:
    return float(np.abs(pixels.astype(int) - np.asarray(picture)).mean())


def test_the_less_strength_the_nearer_the_picture(networks: Model) -> None:
    differences = [apart(drawn(networks, request(denoising_strength=strength))[0]) for strength in (0, 0.5, 1)]
    assert differences[0] < 20, "no more than the VAE loses of a picture so small"
    assert differences == sorted(differences)
    assert differences[2] > 1.5 * differences[0]


@pytest.mark.parametrize("content", MASKED_CONTENTS)
def test_what_is_not_masked_comes_back_exactly(networks: Model, content: str) -> None:
    (pixels,) = drawn(networks, request(mask=MaskSettings(picture=MASK, content=content)))
    assert np.array_equal(pixels[:, 44:], np.asarray(PICTURE)[:, 44:])
    assert np.abs(pixels[:, :20].astype(int) - np.asarray(PICTURE)[:, :20]).mean() > 5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_only_under_the_mask(networks: Model, sampler: str) -> None:
    asked = replace(request(mask=MaskSettings(picture=MASK)), sampler=sampler)
    plan = make_plan(asked)
    with steps_alone(networks):
        events = list(render(networks, asked, plan))
    done = max(event.number for event in events if isinstance(event, Step))
    assert done == plan.first.steps if plan.first.steps is not None else done > 0
    (result,) = (event for event in events if isinstance(event, PassResult))
    assert result.start is not None
    assert torch.equal(result.latents[..., 4:], result.start[..., 4:])
    assert not torch.equal(result.latents[..., :4], result.start[..., :4])
    assert torch.isfinite(result.latents).all()


def test_an_image_of_a_batch_is_the_one_of_its_seed_alone(networks: Model) -> None:
    asked = request(mask=MaskSettings(picture=MASK, content="latent noise"))
    batch = drawn(networks, replace(asked, num_outputs=2))
    alone = drawn(networks, replace(asked, seed=8))
    assert alike(batch[1], alone[0])
    assert not alike(*batch)


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_a_picture_of_any_size_is_drawn_at_the_size_asked_for(networks: Model, mode: str) -> None:
    (pixels,) = drawn(networks, request(picture=ramp(101, 75), resize_mode=mode))
    assert pixels.shape == (64, 64, 3)


def test_highres_fix_after_a_picture_and_after_only_a_part_of_one(networks: Model) -> None:
    hires = HiresSettings(scale=1.5, steps=2)
    for upscaler in ("Latent", "Lanczos"):
        (pixels,) = drawn(networks, request(replace(hires, upscaler=upscaler)))
        assert pixels.shape == (96, 96, 3)
    part = MaskSettings(picture=half_masked(120, 80), area="Only masked", padding=8)
    draft, upscaled, pixels = drawn(networks, request(hires, picture=ramp(120, 80), mask=part), show_phases=True)
    for each in (draft, upscaled, pixels):
        assert np.array_equal(each[:, 75:], np.asarray(ramp(120, 80))[:, 75:])
    assert not np.array_equal(draft, pixels)


def test_outpainting_keeps_the_picture(networks: Model) -> None:
    asked = replace(request(outpaint=(0, 16, 48, 0), mask=MaskSettings(blur=(0, 0))), width=112, height=80)
    (pixels,) = drawn(networks, asked)
    assert pixels.shape == (80, 112, 3)
    assert np.array_equal(pixels[16:, :64], np.asarray(PICTURE))


def test_prompt_editing_counts_the_steps_asked_for(networks: Model) -> None:
    """At half strength 4 of 6 steps run. Editing at 0.6 is after the fourth step of 6, but after the third of 4."""
    asked = replace(request(denoising_strength=0.5), num_inference_steps=6)
    late, early = (replace(asked, prompt=f"[{asked.prompt}:a green hill:{share}]") for share in (0.6, 0.4))
    (plain,), (same,), (other,) = (drawn(networks, each) for each in (asked, late, early))
    assert alike(plain, same), "but for rounding: both texts of the edited prompt are encoded at once"
    assert not alike(plain, other)


def test_latents_that_are_given_take_the_place_of_the_encoded_picture(networks: Model) -> None:
    asked = request()
    events = list(render(networks, asked, make_plan(asked)))
    (expected,) = (event for event in events if isinstance(event, PassResult))
    (pixels,) = (event.pixels for event in events if isinstance(event, Picture))
    assert expected.start is not None
    white = replace(asked, image=ImageSettings(picture=Image.new("RGB", (64, 64), "white")))
    (other,) = drawn(networks, white, given=Given(latents=expected.start))
    assert alike(other, pixels)
    assert not alike(other, drawn(networks, white)[0])
    with pytest.raises(InvalidInput, match=r"init_latent=\(1, 4, 9, 8\)"):
        drawn(networks, asked, given=Given(latents=torch.zeros(1, 4, 9, 8)))


def test_an_empty_mask_is_told_before_anything_is_drawn(networks: Model) -> None:
    asked = request(mask=MaskSettings(picture=Image.new("L", (64, 64))))
    events: Iterator[object] = render(networks, asked, make_plan(asked))
    with pytest.raises(InvalidInput, match="nothing would be drawn"):
        next(events)


def test_the_command_draws_from_pictures_and_from_the_latents_that_it_kept(
    monkeypatch: pytest.MonkeyPatch,
    embedded: ResolvedModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    block, init, mask, kept = (tmp_path / name for name in ("a.txt", "init.png", "mask.png", "out/a.safetensors"))
    block.write_text(f"{BLOCK}, Denoising strength: 0.7, Mask blur: 2, Masked content: fill")
    PICTURE.save(init)
    MASK.save(mask)
    words = ("--infotext", block, "--init", init, "--mask", mask)
    assert run(monkeypatch, embedded, *words, "-o", tmp_path / "out", "--keep-latents") == 0
    tensors = load_file(kept)
    names = ("init", "noise", "sigmas", "latent", "latent_mask", "latent_blended")
    assert {f"0_img2img_{name}" for name in names} <= tensors.keys()
    assert run(monkeypatch, embedded, *words, "-o", tmp_path / "again", "--init-latent", kept) == 0
    first, again = (np.asarray(Image.open(tmp_path / folder / "a-0.png")) for folder in ("out", "again"))
    assert alike(first, again), "but for rounding: latents from a file lie in memory in another way"

    assert run(monkeypatch, embedded, "--infotext", block, "-o", tmp_path) == 1
    assert run(monkeypatch, embedded, *words[:4], "-o", tmp_path) == 1
    two = tmp_path / "two.safetensors"
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, two)
    assert run(monkeypatch, embedded, *words, "-o", tmp_path, "--init-latent", two) == 1
    told = capsys.readouterr().err
    for part in ("made from another picture", "made with a mask", "holds 2 tensors, none of which is called"):
        assert part in told
    assert command.PASS_NAMES[BASE, False] == "0_img2img"


# --- checkpoints for inpainting ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inpainting(embedded: ResolvedModel, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The embedded model with five channels more, as a file: it makes a little of the mask and of what is around."""
    tensors = load_file(embedded.files.checkpoint)
    first = f"{UNET_PREFIX}input_blocks.0.0.weight"
    more = torch.randn(len(tensors[first]), 5, 3, 3, generator=torch.Generator().manual_seed(0)) / 20
    tensors[first] = torch.cat([tensors[first], more.half()], dim=1)
    path = tmp_path_factory.mktemp("inpainting") / "inpainting.safetensors"
    save_file(tensors, path)
    return load(replace(embedded.files, checkpoint=path))


def seen_beside_latents(networks: Model, asked: GenerationRequest) -> list[torch.Tensor]:
    """What the UNet is shown of mask and picture, (rows, 5, h, w) at every call."""
    seen: list[torch.Tensor] = []
    hook = networks.unet.network.register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[0][:, 4:].clone())
    )
    try:
        latents(networks, asked)
    finally:
        hook.remove()
    return seen


def encoded(networks: Model, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return networks.vae.encode(pixels, torch.zeros(4, pixels.shape[1] // 8, pixels.shape[2] // 8))


def test_a_checkpoint_for_inpainting_sees_the_mask_and_what_is_around_it(inpainting: Model) -> None:
    """The mask first, then the latents of the picture, grey where it is masked; WebUI and diffusers do the same."""
    assert inpainting.unet.network.config.in_channels == 9
    calls = seen_beside_latents(inpainting, request(mask=MaskSettings(picture=MASK, blur=(0, 0))))
    grey = torch.from_numpy(np.asarray(PICTURE).copy()).permute(2, 0, 1) / 255
    grey[:, :, :32] = 0.5
    mask = torch.zeros(1, 8, 8)
    mask[:, :, :4] = 1
    expected = torch.cat([mask, encoded(inpainting, grey)])
    assert len(calls) > 1
    # as the promise has it for WebUI's VAE: another batch, other sums
    assert all(torch.allclose(row, expected, atol=1e-4) for call in calls for row in call)
    assert not torch.allclose(calls[0][0], torch.cat([mask, encoded(inpainting, grey.flip(-1))]), atol=1e-2)


def test_a_film_of_a_checkpoint_for_inpainting(inpainting: Model) -> None:
    """Every frame is shown the mask and what is around it, and keeps that."""
    image = ImageSettings(picture=PICTURE, denoising_strength=1, mask=MaskSettings(picture=MASK, blur=(0, 0)))
    ends = films.request("a sun", image=image), films.request("a moon", image=image)
    found = films.frames_of(inpainting, films.film_of(4, *ends))
    assert np.array_equal(found[0], films.alone(inpainting, ends[0]))
    assert np.array_equal(found[3], films.alone(inpainting, ends[1]))
    (second,) = films.frames_of(inpainting, films.film_of(4, *ends, frame=2)).values()
    assert alike(second, found[2])
    assert 0 < films.distance(found[1], found[2]) < films.distance(found[0], found[3])
    kept = np.asarray(MASK.resize((64, 64))) == 0
    assert np.array_equal(found[1][kept], found[0][kept])


@pytest.mark.parametrize("image", [None, ImageSettings(picture=PICTURE)])
def test_without_a_mask_it_is_told_to_draw_everything_in_both_passes(
    inpainting: Model, image: ImageSettings | None
) -> None:
    asked = replace(request(HiresSettings(steps=1)), image=image)
    calls = seen_beside_latents(inpainting, asked)
    for side in (64, 128):
        nothing = torch.cat(
            [torch.ones(1, side // 8, side // 8), encoded(inpainting, torch.full((3, side, side), 0.5))]
        )
        rows = [row for call in calls for row in call if row.shape == nothing.shape]
        assert rows
        assert all(torch.allclose(row, nothing, atol=1e-4) for row in rows)


def test_what_is_around_the_mask_changes_what_it_draws(inpainting: Model) -> None:
    """By the channels alone: from noise, with a mask over all but a corner that the comparison leaves out."""
    mask = Image.new("L", (64, 64), 255)
    mask.paste(0, (48, 48, 64, 64))
    pictures = PICTURE, Image.eval(PICTURE, lambda value: 255 - value)
    settings = [
        ImageSettings(
            picture=each, denoising_strength=1, mask=MaskSettings(picture=mask, content="latent nothing", blur=(0, 0))
        )
        for each in pictures
    ]
    first, second = (drawn(inpainting, replace(request(), image=each))[0] for each in settings)
    assert not alike(first[:32, :32], second[:32, :32])

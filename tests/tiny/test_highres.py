"""The three phases on the embedded model."""

import copy
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from pipelines.ask import catalog
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest, HiresSettings
from pipelines.drawing import phases as highres
from pipelines.drawing.phases import (
    BASE,
    DRAFT,
    FINAL,
    REFINE,
    UPSCALED,
    Event,
    Finished,
    PassResult,
    Picture,
    Step,
    render,
)
from pipelines.errors import NonFiniteError
from pipelines.models.model import Model
from pipelines.models.vae import VAE
from tests.alike import alike
from tests.passes import latents


def request(**fields: object) -> GenerationRequest:
    defaults: dict[str, object] = {
        "prompt": "a pink sun over the sea",
        "width": 64,
        "height": 64,
        "seed": 7,
        "num_inference_steps": 3,
        "hires": HiresSettings(steps=2, scale=1.5),
    }
    return GenerationRequest(**{**defaults, **fields})  # type: ignore[arg-type]


def events(networks: Model, asked: GenerationRequest, *, show_phases: bool = False) -> Iterator[Event]:
    return render(networks, asked, make_plan(asked), show_phases=show_phases)


@contextmanager
def steps_alone(networks: Model) -> Iterator[None]:
    """Where only steps are counted: a UNet that takes no time."""
    with mock.patch.object(networks.unet.network, "forward", lambda images, *_, **__: (images * 0.1,)):
        yield


def pictures(networks: Model, asked: GenerationRequest) -> list[np.ndarray]:
    return [event.pixels for event in events(networks, asked) if isinstance(event, Picture)]


def test_phases_run_in_order_and_exactly_the_planned_steps(networks: Model) -> None:
    with steps_alone(networks):
        seen = list(events(networks, request(), show_phases=True))
    kinds = [
        (event.phase if isinstance(event, (Step, PassResult)) else event.kind)
        for event in seen
        if not isinstance(event, Finished)
    ]
    assert kinds == [BASE] * 5 + [DRAFT, UPSCALED] + [REFINE] * 4 + [FINAL]  # begin, steps, result
    finished = seen[-1]
    assert isinstance(finished, Finished)
    assert list(finished.seconds) == ["base", "upscale", "refine", "decode"]


@pytest.mark.parametrize("sampler", catalog.SAMPLERS)
def test_every_sampler_runs_the_steps_that_the_plan_says_in_both_passes(networks: Model, sampler: str) -> None:
    asked = request(sampler=sampler, width=64, height=64, num_inference_steps=6, hires=HiresSettings(steps=5, scale=1))
    plan = make_plan(asked)
    with steps_alone(networks):
        done = {event.phase: event.number for event in render(networks, asked, plan) if isinstance(event, Step)}
    assert plan.hires is not None
    for phase, planned in ((BASE, plan.first.steps), (REFINE, plan.hires.steps)):
        assert done[phase] == planned if planned is not None else done[phase] > 0


@pytest.mark.parametrize("schedule_type", catalog.SCHEDULE_TYPES)
def test_every_schedule_runs_the_steps_that_the_plan_says(networks: Model, schedule_type: str) -> None:
    hires = HiresSettings(steps=3, scale=1, denoising_strength=0.35)
    asked = request(
        schedule_type=schedule_type, sampler="Euler", width=64, height=64, num_inference_steps=6, hires=hires
    )
    plan = make_plan(asked)
    with steps_alone(networks):
        done = {event.phase: event.number for event in render(networks, asked, plan) if isinstance(event, Step)}
    assert plan.hires is not None
    assert done == {BASE: plan.first.steps, REFINE: plan.hires.steps}


def test_the_unet_runs_once_a_step_for_both_halves_of_guidance(networks: Model) -> None:
    with mock.patch.object(networks.unet.network, "forward", wraps=networks.unet.network.forward) as unet:
        latents(networks, request())
    assert unet.call_count == 3 + 2
    assert {call.args[0].shape[0] for call in unet.call_args_list} == {2}


def test_the_prompt_is_encoded_once_for_both_passes(networks: Model) -> None:
    encoder = networks.text.towers[0].model
    with mock.patch.object(encoder, "forward", wraps=encoder.forward) as text, steps_alone(networks):
        latents(networks, request())
    assert text.call_count == 2  # positive and negative


def test_latents_stay_latents(networks: Model) -> None:
    with (
        mock.patch.object(networks.vae, "begin", wraps=networks.vae.begin) as decode,
        mock.patch.object(networks.vae, "encode", wraps=networks.vae.encode) as encode,
        steps_alone(networks),
    ):
        list(events(networks, request()))
        assert (decode.call_count, encode.call_count) == (1, 0)
        list(events(networks, request(hires=HiresSettings(steps=2, scale=1.5, upscaler="Lanczos"))))
        assert (decode.call_count, encode.call_count) == (3, 1)


def test_sizes(networks: Model) -> None:
    asked = request(width=64, height=128, hires=HiresSettings(steps=2, scale=1.5))
    seen = list(events(networks, asked))
    (picture,) = (event for event in seen if isinstance(event, Picture))
    assert picture.pixels.shape == (192, 96, 3)
    first, second = (event for event in seen if isinstance(event, PassResult))
    assert first.latents.shape == (1, 4, 16, 8)
    assert second.latents.shape == (1, 4, 24, 12)


def test_an_image_of_a_batch_is_the_one_of_its_seed_alone(networks: Model) -> None:
    batch = pictures(networks, request(num_outputs=2, sampler="Euler a"))
    (alone,) = pictures(networks, request(seed=8, sampler="Euler a"))
    assert not alike(*batch)
    assert alike(batch[1], alone)


@pytest.fixture(scope="module")
def base(networks: Model) -> np.ndarray:
    """What is drawn as usual."""
    return pictures(networks, request())[0]


def test_the_same_request_gives_the_same_picture(networks: Model, base: np.ndarray) -> None:
    """To the last bit: within a process it is the same code on memory that is aligned in the same way."""
    assert np.array_equal(pictures(networks, request())[0], base)


def test_prompt_seed_and_negative_prompt_matter(networks: Model, base: np.ndarray) -> None:
    for change in ({"prompt": "a green hill, yellow sky"}, {"seed": 8}, {"negative_prompt": "pink, sea"}):
        (other,) = pictures(networks, request(**change))
        assert np.abs(base.astype(int) - other.astype(int)).mean() > 1, change


def test_without_hires_there_is_one_pass_and_one_picture(networks: Model) -> None:
    seen = list(events(networks, request(hires=None), show_phases=True))
    assert [event.kind for event in seen if isinstance(event, Picture)] == [FINAL]
    assert {event.phase for event in seen if isinstance(event, Step)} == {BASE}


def test_sizes_that_are_no_multiple_of_64_draw(networks: Model) -> None:
    (picture,) = pictures(networks, request(width=72, height=136, hires=None))
    assert picture.shape == (136, 72, 3)


def test_inference_mode_does_not_leak_into_the_caller(networks: Model) -> None:
    stream = events(networks, request())
    next(stream)
    assert not torch.is_inference_mode_enabled()
    stream.close()
    assert not torch.is_inference_mode_enabled()


def test_a_closed_stream_leaves_nothing_behind(networks: Model, base: np.ndarray) -> None:
    """What cancelling does: the next prediction is the same as if it had been the first."""
    stream = events(networks, request(seed=99))
    for _ in range(3):
        next(stream)
    stream.close()
    (picture,) = pictures(networks, request())
    assert np.array_equal(picture, base)


def test_a_picture_that_is_not_finite_is_an_error_and_no_black_picture(networks: Model) -> None:
    broken = SimpleNamespace(latents=torch.full((1, 4, 8, 8), torch.nan))
    with (
        mock.patch.object(highres, "_sample", side_effect=lambda *_: _return((broken, networks))),
        pytest.raises(NonFiniteError),
    ):
        list(events(networks, request(hires=None)))


def test_what_the_phases_applied_goes_before_what_is_around_them() -> None:
    """Also if an error is thrown into them."""
    ended = []

    def within(name: str, events: Generator[Event]) -> Generator[Event]:
        try:
            yield from events
        finally:
            ended.append(name)

    steps: Generator[Event] = (Step(BASE, number, 2) for number in (1, 2))
    drawing = within("around", highres._told(within("phases", steps)))
    next(drawing)
    with pytest.raises(KeyboardInterrupt):
        drawing.throw(KeyboardInterrupt)
    assert ended == ["phases", "around"]


def _return(value: object) -> Iterator[Event]:
    yield Step(BASE, 1, 1)
    return value


def test_a_half_precision_overflow_is_decoded_again_in_float32(networks: Model) -> None:
    """A far too loud first layer is infinite in float16; in float32 the norms after it even it out."""
    network = copy.deepcopy(networks.vae.network)
    loud = network.decoder.conv_in.weight.data
    loud.mul_(5e4 / loud.abs().max())
    latent = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = VAE(network, networks.vae.scale).decode(latent)
        half = network.to(torch.float16)
        assert not torch.isfinite(half.decode(latent[None].half() / networks.vae.scale).sample).all()
        picture = VAE(half, networks.vae.scale).decode(latent)
    assert half.dtype == torch.float16
    assert np.abs(picture.astype(int) - expected.astype(int)).mean() < 3


def test_the_smallest_picture_with_prompts_of_different_lengths(networks: Model) -> None:
    """Then the two go through the UNet one by one, and a group of its deepest level is a single value."""
    asked = request(prompt="a sun BREAK the sea", width=64, height=64, hires=None)
    assert [found.shape for found in latents(networks, asked)] == [(1, 4, 8, 8)]

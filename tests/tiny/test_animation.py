"""Films of the embedded model: ends, frames drawn again alone, motion, and the files of films."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pastel_tiny.motion import drawn, steps
from pipelines.animation.frames import Frame, draw_film
from pipelines.animation.inbetween import Interpolator, load_interpolator, with_computed
from pipelines.animation.video import FilmFile, write_film
from pipelines.ask.animation import AnimationSettings
from pipelines.ask.film import make_film
from pipelines.ask.networks import ExtraFile, Extras
from pipelines.ask.request import HiresSettings, ImageSettings
from pipelines.drawing.phases import Step
from pipelines.errors import ModelError, OutputError
from pipelines.images.files import exif_with
from pipelines.models.model import Model
from pipelines.runtime.device import Device
from pipelines.runtime.threads import ThreadedUNet
from pipelines.runtime.unet_call import UNetCall
from script.schema import ROOT
from tests.alike import alike
from tests.films import again, alone, distance, film_of, frames_of, request

CPU = Device(torch.device("cpu"), torch.float32)
TEXT = "parameters, with a comma\nSteps: 4, Seed: 5"


def test_a_film_begins_and_ends_with_the_pictures_of_its_prompts(networks: Model) -> None:
    """Seeds, guidance, AND parts and editing schedules differ, and the sampler draws noise of its own."""
    start = request("a yellow sun [over:under:0.5] the sea", sampler="DPM++ 2M SDE")
    end = replace(request("a pink moon AND a boat:0.5", sampler="DPM++ 2M SDE"), seed=9, guidance_scale=3)
    text = f"0: {start.prompt}\n4: {end.prompt}, seed=9, guidance=3"
    film = make_film([replace(start, animation=AnimationSettings(text=text)), start, end])
    found = frames_of(networks, film)
    assert list(found) == [0, 1, 2, 3, 4]
    assert np.array_equal(found[0], alone(networks, start))
    assert np.array_equal(found[4], alone(networks, end))
    assert alike(again(networks, film, 3), found[3])
    assert not alike(found[2], found[3])


@pytest.mark.parametrize("sampler", ["DDIM", "UniPC", "LCM"])
def test_films_of_every_kind_of_sampler(networks: Model, sampler: str) -> None:
    """What a sampler draws on the way moves to the last seed's. No frame depends on those drawn together with it."""
    start = request("a yellow sun over the sea", sampler=sampler)
    end = replace(request("a pink moon over the sea", sampler=sampler), seed=9)
    text = f"0: {start.prompt}\n4: {end.prompt}, seed=9"
    film = make_film([replace(start, animation=AnimationSettings(text=text)), start, end])
    found = frames_of(networks, film)
    assert np.array_equal(found[0], alone(networks, start))
    assert np.array_equal(found[4], alone(networks, end))
    assert alike(again(networks, film, 3), found[3])
    assert not alike(found[2], found[3])
    assert distance(found[3], found[4]) < distance(found[0], found[4])


def test_neighbours_are_nearer_than_frames_that_are_further_apart(networks: Model) -> None:
    film = film_of(12, request("a yellow sun over the sea"), request("a moon"))
    shown = {each.place: each.pixels for each in draw_film(networks, film) if isinstance(each, Frame)}
    found = [shown[place] for place in sorted(shown)]
    apart = [distance(a, b) for a, b in pairwise(found)]
    assert len(found) == 12
    assert max(apart) <= 3 * float(np.median(apart))
    assert all(distance(found[k], found[k + 1]) < distance(found[k], found[11 if k < 6 else 0]) for k in range(1, 10))
    between = next(place for place in sorted(shown) if place % 1)
    assert alike(again(networks, film, between), shown[between])


def test_a_longer_prompt_comes_without_a_jump(networks: Model) -> None:
    """It has a chunk more. The frames next to each end have both chunks, and are still next to it."""
    long = ", ".join(["a pink moon over the sea"] * 20)
    ends = (request(each, num_inference_steps=2) for each in ("a sun", long))
    apart = [distance(a, b) for a, b in pairwise(frames_of(networks, film_of(8, *ends)).values())]
    assert max(apart) <= 3 * float(np.median(apart))


@pytest.mark.parametrize("first", ["a hill", "a hill <lora:snowman:1:1:1>"], ids=["none", "another rank"])
def test_loras_come_and_go(networks: Model, first: str) -> None:
    file = ExtraFile.at(ROOT / "tests" / "data" / "loras" / "snowman.safetensors")
    extras = Extras(loras={"snowman": file})
    plain, full = request(first, extras=extras), request("a hill <lora:snowman:1>", extras=extras)
    found = frames_of(networks, film_of(3, plain, full))
    try:
        assert np.array_equal(found[0], alone(networks, plain))
        assert np.array_equal(found[2], alone(networks, full))
        assert distance(found[0], found[1]) < distance(found[0], found[2])
        assert distance(found[1], found[2]) < distance(found[0], found[2])
        assert alike(again(networks, film_of(3, plain, full), 1), found[1])
    finally:
        networks.adapters.apply([])


def test_a_picture_can_be_the_first_key_frame_and_the_highres_fix_follows(networks: Model) -> None:
    picture = Image.effect_noise((64, 64), 60).convert("RGB")
    image = ImageSettings(picture=picture, denoising_strength=0.0)
    hires = HiresSettings(steps=2, upscaler="Lanczos", scale=1.5)
    start, end = (request("a sun", image=replace(image, denoising_strength=k), hires=hires) for k in (0.0, 1.0))
    film = film_of(3, start, replace(end, seed=8), common_beginning=0.5)
    found = frames_of(networks, film)
    assert {each.shape for each in found.values()} == {(96, 96, 3)}
    assert np.array_equal(found[0], alone(networks, start))
    assert np.array_equal(found[2], alone(networks, replace(end, seed=8)))


def test_a_blended_beginning_divides_a_jump_and_computes_less(networks: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    start, end = (request(text, seed=1, num_inference_steps=6) for text in ("a yellow sun over the sea", "a moon"))
    plain, rows, jumps = ThreadedUNet.__call__, [0], dict[float, float]()

    def counted(unet: ThreadedUNet, call: UNetCall) -> Tensor:
        rows[0] += len(call.images)
        return plain(unet, call)

    monkeypatch.setattr(ThreadedUNet, "__call__", counted)
    for share, calls in ((0.0, 6), (0.5, 3)):
        film, rows[0] = film_of(12, start, end, blended_beginning=share), 0
        jumps[share] = max(steps(drawn(networks, film)))
        assert rows[0] == 2 * (2 * 6 + 10 * calls)
    assert jumps[0.5] < 0.75 * jumps[0]


def test_a_blended_beginning_keeps_what_both_key_frames_share(networks: Model) -> None:
    """Then it is what the frames would have computed themselves."""
    for sampler in ("DPM++ 2M", "DDIM", "Euler a"):
        start = request("a yellow sun over the sea", sampler=sampler)
        found = frames_of(networks, film_of(3, start, start, blended_beginning=0.5))
        assert all(alike(each, found[0]) for each in found.values())


def test_a_frame_alone_begins_no_key_frame_that_it_does_not_need(networks: Model) -> None:
    ends = request("a sun"), request("a moon")
    for share, passes in ((0, 1), (0.5, 3)):
        film = film_of(3, *ends, blended_beginning=share, frame=1)
        steps_told = [event.number for event in draw_film(networks, film) if isinstance(event, Step)]
        assert steps_told == [0, 1] * (passes - 1) + [0, 1, 2, 3, 4]


def test_a_common_beginning_brings_neighbours_together(networks: Model) -> None:
    ends, middle = (request("a yellow sun over the sea"), request("a pink moon over the sea")), dict[float, float]()
    for share in (0, 0.75):
        frames = frames_of(networks, film_of(6, *ends, blended_beginning=0, common_beginning=share))
        middle[share] = distance(frames[2], frames[3])
    assert middle[0.75] < middle[0]


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Frames of an odd size, each of one colour."""
    folder = tmp_path_factory.mktemp("frames")
    paths = [folder / f"{number}.png" for number in range(7)]
    for number, path in enumerate(paths):
        Image.new("RGB", (49, 35), (40 * number, 255 - 30 * number, 90)).save(path)
    return paths


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "h264"), ("webm", "vp9")])
def test_a_video(pictures: Sequence[Path], tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"film.{suffix}"
    write_film(pictures, path, FilmFile(suffix, 12, 95, TEXT))
    with av.open(path) as film:
        stream = film.streams.video[0]
        told = {key.lower(): value for key, value in film.metadata.items()}
        shown = [frame.to_ndarray(format="rgb24") for frame in film.decode(stream)]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == (codec, "yuv420p")
        assert stream.average_rate == Fraction(12)
    assert told["comment"] == TEXT
    assert [each.shape for each in shown] == [(36, 50, 3)] * 7
    for number, each in enumerate(shown):
        assert np.abs(each.mean((0, 1)) - (40 * number, 255 - 30 * number, 90)).max() < 4
    content = path.read_bytes()
    assert suffix != "mp4" or content.index(b"moov") < content.index(b"mdat")


SHOWN = {"gif": [80, 90, 80, 80, 90, 80, 80], "webp": [83, 84, 83, 83, 84, 83, 83]}
"""Milliseconds of each frame at 12 frames per second."""


@pytest.mark.parametrize(("suffix", "shown"), SHOWN.items())
def test_a_moving_picture(pictures: Sequence[Path], tmp_path: Path, suffix: str, shown: list[int]) -> None:
    path = tmp_path / f"film.{suffix}"
    write_film(pictures, path, FilmFile(suffix, 12, 95, TEXT))
    with Image.open(path) as film:
        found = []
        for number in range(film.n_frames):  # type: ignore[attr-defined]
            film.seek(number)
            film.load()
            found.append(film.info["duration"])
            colour = np.asarray(film.convert("RGB")).mean((0, 1))
            assert np.abs(colour - (40 * number, 255 - 30 * number, 90)).max() < 4
        assert found == shown
        assert suffix != "gif" or film.info["comment"] == TEXT.encode()
        assert suffix != "webp" or film.getexif().tobytes() == exif_with(TEXT).tobytes()


def test_a_film_that_cannot_be_written_leaves_no_file(pictures: Sequence[Path], tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with pytest.raises(OutputError):
        write_film([*pictures, tmp_path / "gone.png"], path, FilmFile("mp4", 12, 95, ""))
    assert not path.exists()


# --- frames in between ------------------------------------------------------------------------------------------------


class StandIn(nn.Module):
    """FILM's interface, with weights that tell where they come from: what it makes is no mixture of both pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x0: Tensor, x1: Tensor, batch_dt: Tensor) -> Tensor:
        assert x0.shape[2] % 64 == 0
        assert x0.shape[3] % 64 == 0
        return (x0 * self.scale).flip(1) + 0 * x1 * batch_dt


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film_net.pt"
    torch.jit.script(StandIn().half()).save(path)
    return path


def load_stand_in(path: Path) -> Interpolator:
    return load_interpolator(path, hashlib.sha256(path.read_bytes()).hexdigest(), CPU)


def test_frames_between_come_from_the_network(stand_in: Path, pictures: Sequence[Path], tmp_path: Path) -> None:
    def save(pixels: NDArray[np.uint8], number: int) -> Path:
        Image.fromarray(pixels).save(path := tmp_path / f"{number}.png")
        return path

    found = with_computed(pictures[:3], load_stand_in(stand_in), 3, False, save)
    assert [path in pictures for path in found] == [True, False, False, False] * 2 + [True]
    first = np.asarray(Image.open(pictures[1])).astype(int)
    middle = np.asarray(Image.open(found[6])).astype(int)
    assert middle.shape == first.shape
    assert np.abs(middle - first[:, :, ::-1] / 2).max() <= 1
    assert len(with_computed(pictures[:3], load_stand_in(stand_in), 1, True, save)) == 6


def test_only_the_file_of_the_manifest_is_loaded(stand_in: Path, tmp_path: Path) -> None:
    other = tmp_path / "film_net.pt"
    other.write_bytes(stand_in.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="not the file that the manifest names"):
        load_interpolator(other, hashlib.sha256(stand_in.read_bytes()).hexdigest(), CPU)

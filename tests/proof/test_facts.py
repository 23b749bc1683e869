"""WebUI's own numbers and texts (`tests/data/webui`): noise levels, noise, prompts, infotexts, mask blurs."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.ask.catalog import SAMPLERS
from pipelines.ask.identity import TOKENIZER
from pipelines.ask.prompt import chunks, parse_attention, schedule
from pipelines.ask.request import NoiseSettings
from pipelines.families.noise_schedule import NoiseSchedule
from pipelines.families.sd1 import SD1
from pipelines.images.masks import blur
from pipelines.infotext.reading import read
from pipelines.infotext.syntax import parse, quote, split, unquote, write
from pipelines.models.text import load_tokenizer
from pipelines.sampling.noise import Noise
from pipelines.sampling.schedules import sigmas
from script.webui_facts import sample
from tests.proof.reference import facts

CASES = facts("cases.json")
SIGMAS, LEVELS, KERNELS = facts("sigmas.json"), facts("levels.json"), facts("blur_kernels.json")
AT = (0, 1, 100, 250, 499, 500, 750, 900, 990, 997, 998, 999)
"""The timesteps of which LEVELS tells sigmas and alphas."""
ATTENTION, SCHEDULES = facts("attention.json"), facts("schedules.json")
CHUNKS, TOKENS = facts("chunks.json"), facts("tokens.json")
OPENCLIP = {"clip_l": False, "clip_g": True}
"""Whether a text encoder is OpenCLIP's, by its name in the tables."""
BLOCKS, QUOTES = facts("blocks.json"), facts("quotes.json")


@pytest.mark.parametrize("name", SIGMAS)
def test_noise_levels(name: str) -> None:
    """To the promised 1e-6: float32 has ulps of 1.2e-7, and the powers of two processors differ by some of them."""
    schedule_type, steps = name.split("|")
    levels = sigmas(SD1.noise, schedule_type, int(steps), SAMPLERS["Euler"])
    assert levels == pytest.approx(SIGMAS[name], rel=1e-6)
    assert [level * 1.00001 for level in levels] != pytest.approx(SIGMAS[name], rel=1e-6)


@pytest.mark.parametrize("name", LEVELS)
def test_the_model_and_zero_terminal_snr(name: str) -> None:
    """To the promised 1e-6, as above; the other schedule's levels are farther off than that."""
    kind = name.removeprefix("ztsnr|")
    schedules = [SD1.noise, SD1.noise.zero_terminal_snr()]
    found, control = (_levels(noise, kind) for noise in (schedules if kind == name else schedules[::-1]))
    assert found == pytest.approx(LEVELS[name], rel=1e-6)
    if not kind.startswith("Align Your Steps"):  # which keeps its own levels
        assert control != pytest.approx(LEVELS[name], rel=1e-6)


def _levels(noise: NoiseSchedule, kind: str) -> list[float]:
    if kind == "model":
        return [noise.sigmas[t] for t in AT]
    if kind == "alphas_cumprod":
        return [noise.alphas[t] for t in AT]
    schedule_type, steps = kind.split("|")
    return sigmas(noise, schedule_type, int(steps), SAMPLERS["Euler"])


@pytest.mark.parametrize("name", CASES)
def test_noise(name: str) -> None:
    """To 4e-6: torch's CPU generator approximates log and sine in ways that differ by 2.2e-6 among instruction sets."""
    case = CASES[name]
    params = case["params"]
    for expected in case["noise"]:
        noise = Noise(
            case["seeds"],
            tuple(expected["shape"]),
            device=torch.device("cpu"),
            variation_seeds=[params.get("subseed", 0)] * len(case["seeds"]),
            settings=NoiseSettings(
                source=case["options"]["randn_source"], variation_strength=params.get("subseed_strength", 0)
            ),
        )
        for image, samples in zip(noise.initial(), expected["samples"], strict=True):
            assert sample(image) == pytest.approx(samples, abs=4e-6)


# --- prompts


@pytest.mark.parametrize("text", ATTENTION)
def test_attention(text: str) -> None:
    assert parse_attention(text) == [tuple(piece) for piece in ATTENTION[text]]


@pytest.mark.parametrize("text", SCHEDULES)
def test_editing_over_ten_steps(text: str) -> None:
    assert schedule(text, 10) == [tuple(entry) for entry in SCHEDULES[text]]


@pytest.fixture(scope="module")
def tokenize() -> Callable[[str], list[int]]:
    return load_tokenizer(TOKENIZER, openclip=False)


@pytest.mark.parametrize("text", CHUNKS)
def test_chunks(text: str, tokenize: Callable[[str], list[int]]) -> None:
    made = chunks(parse_attention(text), tokenize)
    assert [[list(chunk.tokens), list(chunk.weights)] for chunk in made] == CHUNKS[text]


@pytest.mark.parametrize("text", TOKENS)
@pytest.mark.parametrize("tower", OPENCLIP)
def test_tokens(text: str, tower: str) -> None:
    tokenize = load_tokenizer(TOKENIZER, OPENCLIP[tower])
    assert [list(chunk.tokens) for chunk in chunks(parse_attention(text), tokenize)] == TOKENS[text][tower]


# --- infotexts


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_read(name: str) -> None:
    row = BLOCKS[name]
    assert parse(row["input"], **row["options"]) == row["output"]


@pytest.mark.parametrize("value", QUOTES)
def test_values_are_quoted(value: str) -> None:
    row = QUOTES[value]
    assert (quote(value), unquote(row["quoted"])) == (row["quoted"], row["back"])


@pytest.mark.parametrize("name", CASES)
def test_infotexts_are_written_again_to_the_letter(name: str) -> None:
    case = CASES[name]
    for text in case["infotexts"]:
        block = split(text)
        assert write(block.prompt, block.negative_prompt, block.fields) == text
        assert math.isclose(read(text).values["guidance_scale"] or 0, case["params"]["cfg_scale"])
        assert read(text).hires == case["params"].get("enable_hr", False)


# --- masks


@pytest.mark.parametrize("sigma", KERNELS)
def test_kernels_of_mask_blurs(sigma: str) -> None:
    """A single white pixel is blurred to the weights: 255 of 256 parts of each are rounded to the weight."""
    kernel = KERNELS[sigma]
    row = np.zeros((1, 2 * len(kernel) + 1), np.uint8)
    row[0, len(kernel)] = 255
    found = np.asarray(blur(Image.fromarray(row), int(sigma), 0))[0]
    start = len(kernel) - len(kernel) // 2
    assert found[start : start + len(kernel)].tolist() == kernel
    assert sum(kernel) == 256
    assert found.sum() == 256

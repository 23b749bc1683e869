"""script/grid: axes, their cells, and the sheet. tests/contract/test_grid.py draws one."""

from typing import Any

import pytest
from PIL import Image

from script.client import Failure
from script.grid import cells, check_cell, laid_out, read_axis, starting_from
from script.sheet import FAILED_PAPER, GAP, SMALLEST, sheet

FIELDS: dict[str, dict[str, Any]] = {
    "prompt": {"type": "string", "default": "a sun", "maxLength": 40},
    "negative_prompt": {"type": "string", "default": ""},
    "seed": {"type": "integer"},
    "guidance_scale": {"type": "number", "default": 7, "minimum": 1, "maximum": 30},
    "sampler": {
        "type": "string",
        "default": "DPM++ 2M",
        "enum": ["Euler a", "DPM++ 2M"],
        "allOf": [{"$ref": "#/x"}],
    },
    "show_phases": {"type": "boolean"},
    "hires_scale": {"type": "number", "default": 2},
    "generation_data": {"type": "string", "default": ""},
    "num_outputs": {"type": "integer", "default": 1},
}
BLOCK = "a sun\nSteps: 20, Sampler: Euler a, CFG scale: 12, Seed: 3, Size: 64x64"


def test_values_take_the_types_of_the_schema() -> None:
    assert read_axis("--x", "guidance_scale=1.1, 8", FIELDS).values == [1.1, 8.0]
    assert read_axis("--x", "sampler=Euler a,DPM++ 2M", FIELDS).values == ["Euler a", "DPM++ 2M"]
    assert read_axis("--x", "show_phases=true,false", FIELDS).values == [True, False]


def test_a_quoted_value_holds_commas_and_a_value_of_text_may_be_empty() -> None:
    assert read_axis("--x", 'prompt="a sun, red",a moon', FIELDS).values == ["a sun, red", "a moon"]
    assert read_axis("--x", "negative_prompt=,bad", FIELDS).values == ["", "bad"]


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("guidance_scale=8,0.5", "guidance_scale=0.5: 0.5 is less than the minimum of 1"),
        ("sampler=Euler b", "sampler=Euler b: 'Euler b' is not one of"),
        ("seed=5,x", "seed=x: not of type integer"),
        ("sead=5", "write INPUT=VALUE"),
        ("seed", "write INPUT=VALUE"),
        ("seed=", "there is no value"),
        ('prompt="a', "cannot be read"),
        ("sampler~=Euler,DPM", "no text to search in"),
        ("prompt~=,moon", "there is no value"),
    ],
)
def test_what_is_wrong_names_axis_value_and_rule(assignment: str, told: str) -> None:
    with pytest.raises(Failure, match=r"^--y ") as failure:
        read_axis("--y", assignment, FIELDS)
    assert told in str(failure.value)


def test_every_combination_is_a_cell_columns_fastest() -> None:
    axes = [read_axis("--x", "guidance_scale=5,7", FIELDS), read_axis("--y", "seed=1,2,3", FIELDS)]
    wanted = list(cells(axes, {"highres_fix": "Off"}))
    assert [(inputs["guidance_scale"], inputs["seed"]) for _, inputs in wanted] == [
        (scale, seed) for seed in (1, 2, 3) for scale in (5, 7)
    ]
    assert wanted[1][0] == "guidance_scale: 7, seed: 1"
    assert all(inputs["highres_fix"] == "Off" for _, inputs in wanted)


def test_search_and_replace_reaches_what_another_axis_set() -> None:
    axes = [read_axis("--x", "prompt~=sun,moon", FIELDS), read_axis("--y", "prompt=a sun,the sun", FIELDS)]
    assert [inputs["prompt"] for _, inputs in cells(axes, {})] == ["a sun", "a moon", "the sun", "the moon"]
    assert axes[0].captions() == ["sun", "moon"]


def test_search_and_replace_starts_from_the_default_and_must_find() -> None:
    axes = [read_axis("--x", "prompt~=sun,moon", FIELDS)]
    inputs = starting_from({"seed": 1}, axes, FIELDS)
    assert [made["prompt"] for _, made in cells(axes, inputs)] == ["a sun", "a moon"]
    with pytest.raises(Failure, match="does not contain that, it is 'a star'"):
        list(cells(axes, {"prompt": "a star"}))


def test_all_cells_share_a_seed_unless_it_is_an_axis() -> None:
    axes = [read_axis("--x", "guidance_scale=5,7", FIELDS)]
    seeds = {inputs["seed"] for _, inputs in cells(axes, starting_from({}, axes, FIELDS))}
    assert len(seeds) == 1
    axes = [read_axis("--x", "seed=5,7", FIELDS)]
    assert [inputs["seed"] for _, inputs in cells(axes, starting_from({}, axes, FIELDS))] == [5, 7]


def test_generation_data_keeps_its_seed() -> None:
    axes = [read_axis("--x", "guidance_scale=5,8", FIELDS)]
    assert "seed" not in starting_from({"generation_data": BLOCK}, axes, FIELDS)
    assert "seed" in starting_from({"generation_data": BLOCK.replace("Seed: 3, ", "")}, axes, FIELDS)


def test_a_random_seed_of_generation_data_is_one_for_all_cells() -> None:
    """So is -1 on the form."""
    axes = [read_axis("--x", "guidance_scale=5,8", FIELDS)]
    for inputs in ({"generation_data": BLOCK.replace("Seed: 3", "Seed: -1")}, {"seed": -1}):
        (_, first), (_, second) = cells(axes, starting_from(inputs, axes, FIELDS))
        assert first["seed"] == second["seed"] >= 0


def test_a_value_wins_over_generation_data_whatever_it_is() -> None:
    """Its own default is a value, too: an input that is empty has none."""
    axes = [read_axis("--x", "guidance_scale=5,7", FIELDS)]
    wanted = cells(axes, starting_from({"generation_data": BLOCK}, axes, FIELDS))
    assert [inputs["guidance_scale"] for _, inputs in wanted] == [5, 7]


def test_search_and_replace_reaches_into_generation_data() -> None:
    axes = [read_axis("--x", "generation_data~=CFG scale: 12,CFG scale: 7", FIELDS)]
    (_, first), (_, second) = cells(axes, {"generation_data": BLOCK})
    assert (first["generation_data"], second["generation_data"]) == (BLOCK, BLOCK.replace("12", "7"))


def test_a_cell_of_several_pictures_is_refused() -> None:
    with pytest.raises(Failure, match=r"^num_outputs=2: a cell shows one picture"):
        check_cell({"num_outputs": 2})


def test_the_sheet_has_every_picture_at_its_place() -> None:
    axes = [read_axis(option, "seed=1,2", FIELDS) for option in ("--x", "--y", "--z")]
    colours = [(30 * number, 0, 255) for number in range(8)]
    made = laid_out(axes, [Image.new("RGB", (200, 180), colour) for colour in colours])
    left, block = made.width - 2 * (200 + GAP), made.height // 2
    places = [
        (left + x * (200 + GAP), (z + 1) * block - (2 - y) * (180 + GAP))
        for z in range(2)
        for y in range(2)
        for x in range(2)
    ]
    seen = [made.crop((x, y, x + 200, y + 180)).getcolors() for x, y in places]
    assert seen == [[(200 * 180, colour)] for colour in colours]


@pytest.mark.parametrize("reason", ["no memory " * 200, "generation_data='FreeU:", "https://example.com/" + "a" * 900])
def test_a_cell_without_a_picture_says_why_within_its_bounds(reason: str) -> None:
    picture = Image.new("RGB", (64, 64), "blue")
    made = sheet([[[reason, picture]]], [""], [""], ["", ""])
    assert made.size == (GAP + 2 * (SMALLEST + GAP), 2 * GAP + SMALLEST + GAP)
    failed = made.crop((GAP, 2 * GAP, GAP + SMALLEST, 2 * GAP + SMALLEST))
    assert f"#{bytes(failed.getpixel((0, 0))).hex()}" == FAILED_PAPER
    assert len(failed.getcolors(SMALLEST**2) or []) > 2  # there are letters
    assert made.crop((GAP + SMALLEST, 0, GAP + SMALLEST + GAP, made.height)).getcolors() == [
        (GAP * made.height, (255, 255, 255))
    ]

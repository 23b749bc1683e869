"""The form, drawn from the committed schema and used in a real browser."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from script.browser import SCREEN, Page, browser, opened, opened_form
from script.client import data_uri, with_file_names
from script.cog_server import CogServer
from script.compatibility import inputs
from script.form_server import form_for
from script.schema import COMMITTED, ROOT
from tests.conftest import NOT_IN_A_BROWSER
from tests.contract.pictures import DRAFT, draw

FIELDS = inputs(json.loads(COMMITTED.read_text(encoding="utf-8")))
SHOWN = {name: field for name, field in FIELDS.items() if not field.get("deprecated")}
IMAGE = ROOT / "docs" / "pictures" / "default.webp"
LORA = ROOT / "tests" / "data" / "loras" / "snowman.safetensors"
EMBEDDING = ROOT / "tests" / "data" / "embeddings" / "afterglow.safetensors"
BLOCK = "a sun\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64"


@pytest.fixture(scope="module")
def in_a_browser() -> None:
    """A machine that runs the whole suite for everybody must have one."""
    if browser() is None and os.environ.get("CI") == "true":
        pytest.fail("install chromium: the form must be tested in a browser")
    if browser() is None:
        pytest.skip(NOT_IN_A_BROWSER)


@pytest.fixture(scope="module")
def page(in_a_browser: None) -> Iterator[Page]:
    """One browser for all tests of the form alone."""
    with opened_form() as page:
        yield page


@pytest.fixture
def form(page: Page) -> Page:
    """The form with nothing filled in."""
    page.run("document.getElementById('form').reset()")
    page.run("document.querySelectorAll('input[type=number]').forEach(each => each.dispatchEvent(new Event('input')))")
    return page


def sent(form: Page) -> dict[str, Any]:
    """The inputs of the request that the form would send."""
    body: dict[str, Any] = form.run("request()")
    return body["input"]


def test_every_input_is_shown_in_order_with_its_description(form: Page) -> None:
    shown = form.run(
        "[...document.querySelectorAll('.input')].map(each => ["
        "each.querySelector('label').textContent, each.querySelector('.about').textContent,"
        "each.querySelector('label').control.id, each.querySelector('label').control.offsetHeight > 10])"
    )
    assert shown == [[name, field["description"], name, True] for name, field in SHOWN.items()]


def test_the_form_fits_on_two_screens(form: Page) -> None:
    width, height = form.run("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert width <= SCREEN[0]
    assert SCREEN[1] / 2 < height <= 2 * SCREEN[1], "at least it is drawn"


def test_every_description_fits_on_a_line(form: Page) -> None:
    heights = form.run("[...document.querySelectorAll('.about')].map(each => [each.id, each.offsetHeight])")
    assert [name for name, height in heights if height > 24] == []


def test_an_empty_form_says_nothing(form: Page) -> None:
    assert sent(form) == {}


def a_value(name: str, field: dict[str, Any]) -> Any:
    """A valid value that is not the default."""
    if "enum" in field:
        return next(choice for choice in reversed(field["enum"]) if choice != field.get("default"))
    if field["type"] == "boolean":
        return not field["default"]
    if field["type"] in ("integer", "number"):
        return field["maximum"] if field["type"] == "integer" else field["minimum"] + 0.25
    return f"some text: {name},\nand a line" if field.get("maxLength", 1000) >= 1000 else "right 64, top 32"


def fill(form: Page, name: str, value: Any) -> None:
    if isinstance(value, bool):
        form.run(f"document.getElementById({json.dumps(name)}).click()")
    elif "enum" in FIELDS[name]:
        form.run(
            f"{{const it = document.getElementById({json.dumps(name)}); it.value = {json.dumps(value)};"
            "it.dispatchEvent(new Event('input', { bubbles: true }))}"
        )
    else:
        form.type(name, str(value))


def test_every_input_is_sent_as_it_was_filled_in(form: Page) -> None:
    pictures = {"image": [IMAGE], "mask": [IMAGE], "control_images": [IMAGE, IMAGE]}
    wanted = {name: a_value(name, field) for name, field in SHOWN.items() if name not in (*pictures, "files")}
    for name, value in wanted.items():
        fill(form, name, value)
    for name, paths in pictures.items():
        form.choose_files(name, paths)
        uris = list(map(data_uri, paths))
        wanted[name] = uris if FIELDS[name]["type"] == "array" else uris[0]
    found = sent(form)
    assert found == wanted
    assert found.keys() == SHOWN.keys() - {"files"}
    for name, value in found.items():
        rules = {key: rule for key, rule in FIELDS[name].items() if key != "allOf"}
        Draft202012Validator(rules).validate(value)
    shown = json.loads(form.run("show().then(() => document.getElementById('request').textContent)"))
    assert shown["input"]["prompt"] == wanted["prompt"]


@pytest.mark.parametrize("said", ["", "ENSD: 31337, RNG: CPU", "Wildcard a: b | c", BLOCK])
def test_files_are_sent_with_their_names_as_by_the_command(form: Page, said: str) -> None:
    form.choose_files("files", [LORA, EMBEDDING])
    form.type("generation_data", said)
    command = with_file_names({"generation_data": said} if said else {}, ["snowman", "afterglow"])
    assert sent(form) == {**command, "files": [data_uri(LORA), data_uri(EMBEDDING)]}


@pytest.mark.parametrize("name", [name for name, field in SHOWN.items() if "minimum" in field])
def test_a_slider_moves_its_number_and_is_moved_by_it(form: Page, name: str) -> None:
    field = SHOWN[name]
    bar = f"document.getElementById({json.dumps(name)}).parentElement.querySelector('[type=range]')"
    assert form.run(f"{bar}.parentElement.classList.contains('empty')") == (field["default"] is None)
    form.run(f"{bar}.focus()")
    for kind in ("keyDown", "keyUp"):
        form.call("Input.dispatchKeyEvent", type=kind, key="End", code="End", windowsVirtualKeyCode=35)
    assert sent(form) == ({name: field["maximum"]} if field["maximum"] != field["default"] else {})
    form.type(name, str(field["minimum"]))
    assert form.run(f"Number({bar}.value)") == field["minimum"]
    form.type(name, "")
    assert sent(form) == {}


def test_a_number_out_of_its_range_is_marked(form: Page) -> None:
    for value, valid in (("63", False), ("64", True), ("2049", False), ("64.5", False)):
        form.type("width", value)
        assert form.run("document.getElementById('width').checkValidity()") == valid, value


@pytest.mark.parametrize(("kind", "element"), [("image/webp", "IMG"), ("video/mp4", "VIDEO")])
def test_what_was_drawn_is_shown_and_can_be_saved(form: Page, kind: str, element: str) -> None:
    """Like the server's event; what the page does with a real one is tested below."""
    form.run(f"at('pictures').replaceChildren(); ON.output({{ chunk: 'data:{kind};base64,AAAA' }})")
    shown = form.run("[...at('pictures').children].map(each => [each.download, each.firstChild.tagName])")
    assert shown == [[f"picture-1.{kind.partition('/')[2]}", element]]


DONE = "new Promise(done => {{ const look = () => at('draw').disabled ? setTimeout(look, 20) : done({0}); look(); }})"
"""The value of an expression when the page has drawn."""


def test_a_picture_is_drawn_by_clicking(in_a_browser: None, server: CogServer) -> None:
    """The same as without the form. Then a request that cannot be drawn, whose reason the page shows."""
    with form_for(server) as address, opened(address) as page:
        for name, value in DRAFT.items():
            fill(page, name, value)
        page.type("prompt", "a red boat")
        page.click("draw")
        pictures = page.run(DONE.format("[...document.images].map(each => [each.src, each.naturalWidth])"))
        told = page.run("at('told').textContent")
        assert pictures == [[draw(server, DRAFT | {"prompt": "a red boat"})["output"][0], DRAFT["width"]]], told
        assert told.endswith(f"Seed {DRAFT['seed']}. Click a picture to save it.")
        page.type("prompt", "<lora:nothing:1>")
        page.click("draw")
        assert page.run(DONE.format("at('told').textContent")).startswith("prompt='<lora:nothing:1>': there is no LoRA")
        assert page.run("document.images.length") == 0

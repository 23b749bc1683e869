"""LoRAs and embeddings by name: tags, folders, hashes, input lines, and the parts of a block that they satisfy."""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from pipelines.ask.identity import ModelIdentity
from pipelines.ask.inputs import OFF, ON, Inputs
from pipelines.ask.networks import LORAS_MAX, NO_EXTRAS, ExtraFile, Extras, LoraTag, in_folders, lora_tags
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest, HiresSettings, Settings
from pipelines.errors import InvalidInput, ModelError
from pipelines.infotext.asked import NO_DATA, Asked, read_data, request_from, settle, with_networks
from pipelines.infotext.obstacle import Obstacle
from pipelines.infotext.obstacles import drop_unsupported, obstacles
from pipelines.infotext.writing import of_picture
from tests.growth import grows_linearly
from weights_script import room, shelf
from weights_script.extras import Library
from weights_script.lines import read_lines
from weights_script.web import Denied

BODY = b"tensors"


def write(path: Path, **metadata: str) -> Path:
    """A safetensors file of one tensor."""
    body = {"dtype": "U8", "shape": [len(BODY)], "data_offsets": [0, len(BODY)]}
    header = json.dumps({"__metadata__": metadata, "body": body}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header + BODY)
    return path


@pytest.mark.parametrize(
    ("prompt", "tag"),
    [
        ("<lora:x>", LoraTag("x", 1, 1)),
        ("a <lora:x:0.5> b", LoraTag("x", 0.5, 0.5)),
        ("<lyco:x:0.5:-1>", LoraTag("x", 0.5, -1)),
        ("<lora:x:0.5:0.7:8>", LoraTag("x", 0.5, 0.7, 8)),
        ("<lora:x:0.5:0.7:0>", LoraTag("x", 0.5, 0.7, 0)),
        ("<lora:x:te=0.5>", LoraTag("x", 0.5, 0.5)),
        ("<lora:x:unet=0.5:dyn=4>", LoraTag("x", 1, 0.5, 4)),
        ("<lora:x:0.2:te=0.5:unet=0.7>", LoraTag("x", 0.5, 0.7)),
    ],
)
def test_tags(prompt: str, tag: LoraTag) -> None:
    assert lora_tags(prompt) == [tag]
    assert lora_tags(str(tag)) == [tag]


@pytest.mark.parametrize("prompt", ["<hypernet:x:1>", "lora:x:1", "< lora:x:1>", ""])
def test_what_is_no_lora_tag(prompt: str) -> None:
    assert lora_tags(prompt) == []


@pytest.mark.parametrize("args", ["x:y", "x:1:nan", "x:1e9", "x:te=", "x:1:1:1.5", "x:dyn=-1"])
def test_a_tag_that_says_no_numbers_is_shown(args: str) -> None:
    if args == "x:te=":
        assert lora_tags(f"<lora:{args}>") == [LoraTag("x", 1, 1)]
        return
    with pytest.raises(InvalidInput, match=f"hires_prompt='<lora:{args}>': multipliers must be numbers"):
        lora_tags(f"<lora:{args}>", "hires_prompt")


def test_a_colon_in_a_name_is_told() -> None:
    with pytest.raises(InvalidInput, match=r"has no colon: call the file my_style, and write <lora:my_style:1>"):
        lora_tags("<lora:my:style:0.8>")
    with pytest.raises(InvalidInput, match=r"loras='my:style': a name in tags must not contain .* Call it my_style"):
        list(read_lines("loras", "my:style = owner/repository : 0.8"))


def test_too_many() -> None:
    with pytest.raises(InvalidInput, match="at most 16 LoRAs"):
        lora_tags("<lora:x:1>" * (LORAS_MAX + 1))


def test_folders_and_names(tmp_path: Path) -> None:
    write(tmp_path / "loras" / "deep" / "file.safetensors", ss_output_name="trained")
    write(tmp_path / "loras" / "other.safetensors", ss_output_name="file")
    (tmp_path / "loras" / "old.pt").write_bytes(b"pickle")
    (tmp_path / "loras" / "cut.safetensors").write_bytes(b"\xff" * 9)
    (tmp_path / "embeddings").mkdir()
    (tmp_path / "embeddings" / "old.pt").write_bytes(b"pickle")
    found = in_folders(tmp_path / "loras", tmp_path / "embeddings")
    assert {name: file.path.name for name, file in found.loras.items()} == {
        "file": "file.safetensors",
        "trained": "file.safetensors",
        "other": "other.safetensors",
        "cut": "cut.safetensors",
        "old": "old.pt",
    }
    assert found.loras["old"].tensors_sha256 == hashlib.sha256(b"pickle").hexdigest(), "it has no header to leave out"
    assert list(found.embeddings) == ["old"]
    assert found.embeddings["old"].sha256 == hashlib.sha256(b"pickle").hexdigest()
    assert found.loras["file"].tensors_sha256 == found.loras["other"].tensors_sha256 == hashlib.sha256(BODY).hexdigest()
    assert found.loras["cut"].tensors_sha256 == hashlib.sha256(b"\xff" * 9).hexdigest()
    assert in_folders(None, tmp_path / "none") == Extras()


def test_a_file_that_is_written_over_is_another_one(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors")
    before = ExtraFile.at(path)
    first = before.sha256
    write(path, title="another")
    assert ExtraFile.at(path) != before
    assert ExtraFile.at(path).sha256 != first


PLAIN = "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64"
MODEL = ModelIdentity(name="m", sha256="0" * 64)
OWN = {"width": 64, "height": 64}
"""A model's own settings."""


def asked(text: str) -> Asked:
    """What generation data alone asks for."""
    return settle(Inputs(), read_data(text), OWN)


def told(text: str, extras: Extras = NO_EXTRAS) -> list[Obstacle]:
    return obstacles(asked(text), MODEL, extras=extras)


@pytest.fixture
def here(tmp_path: Path) -> Extras:
    """One LoRA called x, one embedding called e."""
    write(tmp_path / "loras" / "x.safetensors")
    write(tmp_path / "embeddings" / "e.safetensors")
    return in_folders(tmp_path / "loras", tmp_path / "embeddings")


def test_a_lora_that_is_not_here_is_refused_with_those_that_are(here: Extras) -> None:
    request = GenerationRequest(prompt="<lora:x:1> <lora:y:0>", width=64, height=64, seed=1, extras=here)
    with pytest.raises(InvalidInput, match="prompt='<lora:y:1>': there is no LoRA of this name; available: x"):
        replace(request, prompt="<lora:y:1>")
    with pytest.raises(InvalidInput, match="hires_prompt='<lora:y:1>'"):
        replace(request, hires=HiresSettings(prompt="<lora:y:1>"))
    assert replace(request, negative_prompt="<lora:y:1>")


def test_hashes_are_written_and_read_back(here: Extras) -> None:
    hires = HiresSettings(prompt="b <lora:x:2>")
    request = GenerationRequest(
        prompt="a <lora:x:1>", width=64, height=64, seed=1, sampler="Euler", hires=hires, extras=here
    )
    digits, other = here.loras["x"].tensors_sha256[:12], here.embeddings["e"].sha256
    text = of_picture(request, make_plan(request), MODEL, 0, [("e", other), ("e", other)])
    assert f'Lora hashes: "x: {digits}", TI hashes: "e: {other[:12]}, e: {other[:12]}", Version' in text
    assert told(text, here) == []
    assert request_from(asked(text), extras=here) == request
    assert [each.other_picture for each in told(text)] == [True] * 3


def test_names_with_a_comma_are_known_again(tmp_path: Path) -> None:
    """Infotexts leave it out, as it would end the name."""
    write(tmp_path / "loras" / "x, v2.safetensors")
    write(tmp_path / "embeddings" / "e, v2.safetensors")
    here = in_folders(tmp_path / "loras", tmp_path / "embeddings")
    request = GenerationRequest(prompt="a <lora:x, v2:1>", width=64, height=64, seed=1, hires=None, extras=here)
    digest = here.embeddings["e, v2"].sha256
    text = of_picture(request, make_plan(request), MODEL, 0, [("e, v2", digest)])
    assert 'Lora hashes: "x v2: ' in text
    assert told(text, here) == []
    (other,) = told(text.replace(digest[:12], "0" * 12), here)
    assert "a different embedding e v2" in other.text


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ('Lora hashes: "x: 0123456789ab"', ["made with a different LoRA x (0123456789ab) than this one"]),
        ('TI hashes: "e: 0123456789ab"', ["made with a different embedding e (0123456789ab) than this one"]),
        (f'Lora hashes: "x: {hashlib.sha256(BODY).hexdigest()[:10]}"', []),
    ],
)
def test_a_file_of_another_hash_is_told(here: Extras, end: str, words: list[str]) -> None:
    assert [each.text for each in told(f"a <lora:x:1>\n{PLAIN}, {end}", here)] == words


def test_without_strict_the_tags_of_what_is_missing_go(here: Extras) -> None:
    data = asked(f"a <lora:x:1> <lora:y:1> <lyco:z:2>\n{PLAIN}")
    found = obstacles(data, MODEL, extras=here)
    assert len(found) == 2
    assert request_from(drop_unsupported(data, found, strict=False), extras=here).prompt.rstrip() == "a <lora:x:1>"


# --- what a request brings along


def load(inputs: Inputs, prompt: str = "", hires_prompt: str = "") -> tuple[Extras, Settings]:
    """What the inputs bring to these prompts."""
    own = {**OWN, "prompt": prompt, "hires_prompt": hires_prompt}
    found = settle(replace(inputs, highres_fix=ON if hires_prompt else OFF), NO_DATA, own)
    fetched = Library().load_only(found.wanted, inputs)
    return fetched.extras, with_networks(found, fetched).settings


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: Extras) -> Path:
    """A cache folder with the LoRA x and the embedding e."""
    monkeypatch.setenv("PASTEL_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    return tmp_path


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("text", "prompt", "expected"),
    [
        ("x", "a", "a <lora:x:1>"),
        ("x", "a <lora:x:0.5>", "a <lora:x:0.5>"),
        ("x:0.8", "a <lora:x:0.5>", "a <lora:x:0.5>"),
        (" x : 0.8 ", "a", "a <lora:x:0.8>"),
        ("x:0.8:-0.3\n", "a", "a <lora:x:-0.3:0.8>"),
        ("mine = x:2", "a", "a <lora:mine:2>"),
        ("", "a", "a"),
    ],
)
def test_a_line_is_a_tag_of_the_prompt(text: str, prompt: str, expected: str) -> None:
    extras, made = load(Inputs(loras=text), prompt, hires_prompt="b")
    assert made.prompt == expected
    assert lora_tags(made.prompt) == lora_tags(made.prompts["hires_prompt"]) or prompt != "a"
    assert all(tag.name in extras.loras for tag in lora_tags(made.prompt))


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("y", "nothing of this name is here.*Known names are x"),
        ("http://huggingface.co/a/b/resolve/main/c.safetensors", "must be an https address of"),
        ("https://example.com/c.safetensors", "must be an https address of"),
        ("https://huggingface.co.example.com/c.safetensors", "must be an https address of"),
        ("https://user@example.com:1@huggingface.co.evil/c", "must be an https address of"),
        ("https://[huggingface.co/a", "must be an https address of"),
        ("https://huggingface.co:notaport/a/b/resolve/main/c.safetensors", "must be an https address of"),
        ("file:///etc/passwd", "must be an https address of|nothing of this name"),
        ("../../etc/passwd", "nothing of this name"),
        ("a/b/../../../c", "nothing of this name"),
    ],
)
def test_other_places_are_refused(line: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=f"(?s)loras=.*({words})"):
        load(Inputs(loras=line))


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("line", "address"),
    [
        ("a/b/deep/c.safetensors", "https://huggingface.co/a/b/resolve/main/deep/c.safetensors"),
        (
            "https://huggingface.co/a/b/blob/v2/c%20d.safetensors?download=true",
            "https://huggingface.co/a/b/resolve/v2/c%20d.safetensors",
        ),
        (
            "https://civitai.com/models/12/a-name?modelVersionId=34",
            "https://civitai.com/api/download/models/34",
        ),
        ("https://civitai.com/api/download/models/34", "https://civitai.com/api/download/models/34"),
        (
            "https://civitai.com/models/12?modelVersionId=34&token=a%26b",
            "https://civitai.com/api/download/models/34?token=a%26b",
        ),
        ("https://civitai.com/api/download/models/34?token=ab", "https://civitai.com/api/download/models/34?token=ab"),
        ("https://x.replicate.delivery/y/c.safetensors", "https://x.replicate.delivery/y/c.safetensors"),
        ("www.civitai.com/models/12?modelVersionId=34", "https://civitai.com/api/download/models/34"),
        ("x.replicate.delivery/y/c.safetensors", "https://x.replicate.delivery/y/c.safetensors"),
        ("huggingface.co/a/b/blob/main/c.safetensors", "https://huggingface.co/a/b/resolve/main/c.safetensors"),
        ("https://www.huggingface.co/a/b/blob/main/c.bin", "https://huggingface.co/a/b/resolve/main/c.bin"),
    ],
)
def test_links_are_turned_into_their_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, address: str
) -> None:
    fetched: list[str] = []

    def fetch(url: str, cache: Path, *_: object, **__: object) -> Path:
        fetched.append(url)
        return write(tmp_path / "34.safetensors", ss_output_name="a, name")

    monkeypatch.setattr(shelf, "fetch_url", fetch)
    extras, made = load(Inputs(loras=f"{line}:0.5"), "a")
    assert fetched == [address]
    assert made.prompt == "a <lora:a_ name:0.5>"
    assert "a_ name" in extras.loras


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("line", "listing", "address"),
    [
        (
            "civitai.com/models/12?token=secret",
            "https://civitai.com/api/v1/models/12?token=secret",
            "https://civitai.com/api/download/models/34?token=secret",
        ),
        (
            "huggingface.co/a/b",
            "https://huggingface.co/api/models/a/b/revision/main",
            "https://huggingface.co/a/b/resolve/main/c.safetensors",
        ),
    ],
)
def test_a_page_is_asked_for_its_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, listing: str, address: str
) -> None:
    opened: list[str] = []

    def read_text(url: str, **_: object) -> str:
        opened.append(url)
        return json.dumps({"modelVersions": [{"id": 34}, {"id": 5}], "siblings": [{"rfilename": "c.safetensors"}]})

    def fail(url: str, *_: object, **__: object) -> Path:
        opened.append(url)
        raise Denied("HTTP 401: gone, private or gated")

    monkeypatch.setattr(shelf, "read_text", read_text)
    monkeypatch.setattr(shelf, "fetch_url", fail)
    with pytest.raises(ModelError, match="HTTP 401") as caught:
        load(Inputs(loras=line))
    assert opened == [listing, address]
    assert "secret" not in str(caught.value)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("field", "line", "words"),
    [
        (
            "loras",
            "nobody/nothing/a.safetensors",
            "loras='nobody/nothing/a.safetensors': HTTP 401: gone. "
            "Name one that is open to everybody, or send the file in files.",
        ),
        (
            "controls",
            "a/b/c.safetensors",
            "controls='a/b/c.safetensors': HTTP 401: gone. "
            "Name one that is open to everybody, or send the file in files.",
        ),
        (
            "controls",
            "https://civitai.com/models/1?modelVersionId=2&token=secret: 0.5",
            "controls='https://civitai.com/models/1': HTTP 401: gone. Check the link; for a file that CivitAI gives to "
            "members only put ?token= and your API key at its end.",
        ),
    ],
)
def test_what_is_not_given_to_us_is_told_with_what_helps(
    monkeypatch: pytest.MonkeyPatch, field: str, line: str, words: str
) -> None:
    monkeypatch.setattr(shelf, "fetch_url", Mock(side_effect=Denied("HTTP 401: gone")))
    with pytest.raises(ModelError) as caught:
        load(replace(Inputs(), **{field: line}))
    assert str(caught.value) == words


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("field", "key"), [("loras", "token=secret"), ("controls", "token=secret: 1, of=2")])
def test_a_line_that_is_refused_is_shown_without_its_key(field: str, key: str) -> None:
    with pytest.raises(InvalidInput, match=f"{field}='https://example.com/a") as caught:
        load(replace(Inputs(), **{field: f"https://example.com/a?{key}"}))
    assert "secret" not in str(caught.value)


@pytest.mark.usefixtures("cache")
def test_what_cannot_be_had_names_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Path:
        raise ModelError("gone")

    monkeypatch.setattr(shelf, "fetch_url", fail)
    with pytest.raises(ModelError, match=r"^loras='a/b/c\.pt': gone"):
        load(Inputs(loras="a/b/c.pt"))


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("prompt", "name", "expected"),
    [
        ("a <lora:mine:0.5>", "mine", "a <lora:mine:0.5>"),
        ("a", "some", "a <lora:some:1>"),
        ("a <lora:y:1> <lora:z:1>", "some", "a <lora:y:1> <lora:z:1> <lora:some:1>"),
    ],
)
@pytest.mark.parametrize("weight", ["", ":0.8"])
def test_one_line_without_a_name_is_what_the_prompt_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompt: str, name: str, expected: str, weight: str
) -> None:
    """What the prompt says of it counts, and not the line's weight."""
    fetched = write(tmp_path / "some.safetensors")
    monkeypatch.setattr(shelf, "fetch_url", lambda *_, **__: fetched)
    extras, made = load(Inputs(loras=f"a/b/some.safetensors{weight}"), prompt)
    assert extras.loras[name].path == fetched
    assert made.prompt == expected.replace("some:1", f"some{weight or ':1'}")


@pytest.mark.parametrize(
    ("lines", "added"),
    [
        ("a/b/some.safetensors\na/b/other.safetensors", ["some", "other"]),
        ("named = a/b/some.safetensors", ["named"]),
        ("x", ["x"]),
    ],
)
def test_other_lines_keep_their_names(
    monkeypatch: pytest.MonkeyPatch, cache: Path, lines: str, added: list[str]
) -> None:
    monkeypatch.setattr(shelf, "fetch_url", lambda url, *_, **__: write(cache / url.rpartition("/")[2]))
    _, made = load(Inputs(loras=lines), "a <lora:mine:0.5>")
    assert made.prompt == " ".join(["a <lora:mine:0.5>", *(f"<lora:{name}:1>" for name in added)])


def test_the_cache_forgets_what_was_not_used_for_longest(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    fetched = [write(cache / "fetched" / "urls" / str(age) / "a.safetensors") for age in range(3)]
    new = cache / "fetched" / "urls" / "new" / "a.safetensors"
    size = fetched[0].stat().st_size
    for age, path in enumerate(fetched):
        os.utime(path.parent, (1000 - age, 1000 - age))
    monkeypatch.setattr(room, "ROOM", 2 * size)
    monkeypatch.setattr(shelf, "LARGEST", size)
    monkeypatch.setattr(shelf, "fetch_url", lambda *_, **__: write(new))
    load(Inputs(loras="a/b/c.safetensors"))
    assert [path.exists() for path in (*fetched, new)] == [True, False, False, True]


def test_a_fetched_file_is_the_same_for_the_next_request(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """By what it is known decides whether its hash, its merged weights and its network are kept."""
    fetched = write(cache / "fetched" / "urls" / "0" / "a.safetensors")
    os.utime(fetched, (1000, 1000))
    monkeypatch.setattr(shelf, "fetch_url", lambda *_, **__: fetched)
    inputs = Inputs(loras="a/b/c.safetensors", controls="a/b/c.safetensors", seed=1)
    assert load(inputs) == load(inputs)


@pytest.mark.parametrize("piece", [" ", "1", ": 1", "a="])
def test_a_line_is_read_in_proportion_to_its_length(piece: str) -> None:
    """One pattern for the whole line took minutes."""

    def read(size: int) -> None:
        with suppress(InvalidInput):
            list(read_lines("loras", f"a:{piece * (size // len(piece))}x"))

    assert grows_linearly(read, 50_000)

"""Archives of training pictures: what is used and how, and what is left out and why."""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from pipelines.errors import InvalidInput
from pipelines.training import pictures
from pipelines.training.pictures import Example, Examples, Opened, bucket, captioned, opened
from tests.unit.test_archives import zipped

SEEDS = iter(range(10_000))


def read_examples(path: Path, resolution: int, folder: Path) -> Examples:
    return Opened(path, folder).examples(resolution)


def picture(size: tuple[int, int] = (128, 128), form: str = "PNG", **options: object) -> bytes:
    """A picture unlike the others."""
    rng = np.random.default_rng(next(SEEDS))
    image = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize(size)
    stream = io.BytesIO()
    image.save(stream, form, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def test_a_strangers_archive(tmp_path: Path) -> None:
    """Phone orientation, one broken, one HEIC, a __MACOSX folder, nested folders, captions in both forms."""
    turned = Image.Exif()
    turned[0x0112] = 6
    pillow_heif.register_heif_opener()
    first = picture()
    files = {
        "my cat/1.png": first,
        "copy.txt": b"a copy",
        "my cat/2.jpg": picture((192, 128), "JPEG", exif=turned),
        "my cat/3.heic": picture((144, 144), "HEIF"),
        "my cat/3.txt": b"a photo of TOK\n asleep",
        "4.png": b"\x89PNG broken",
        "copy.png": first,
        "deep/er/5.webp": picture(form="WEBP"),
        "deep/metadata.jsonl": json.dumps({"file_name": "er/5.webp", "text": "outside"}).encode(),
        "__MACOSX/my cat/._1.png": b"\0\5\x16\7",
        "my cat/._1.png": b"\0\5\x16\7",
        "notes.txt": b"remember milk",
        "small.png": picture((40, 40)),
    }
    found = read_examples(zipped(tmp_path / "a", files), 128, tmp_path)
    assert {each.name: each.caption for each in found.pictures} == {
        "copy.png": "a copy",
        "deep/er/5.webp": "outside",
        "my cat/2.jpg": "",
        "my cat/3.heic": "a photo of TOK asleep",
    }
    told = {look.name: look for look in found.looks}
    assert sorted(told) == sorted(
        name for name in files if "._" not in name and name not in ("copy.txt", "my cat/3.txt", "deep/metadata.jsonl")
    )
    assert {name for name, look in told.items() if look.used} == {
        "copy.png",
        "deep/er/5.webp",
        "my cat/2.jpg",
        "my cat/3.heic",
    }
    assert told["my cat/1.png"].told == "the same picture as copy.png"
    assert "a PNG that is cut or broken" in told["4.png"].told
    assert told["small.png"].told == "too small: 40x40 would be enlarged 3.2 times"
    assert told["notes.txt"].told == "no picture has its name"
    assert told["my cat/2.jpg"].told.startswith("128x192 as 112x160")
    (upright,) = [each for each in found.pictures if each.name == "my cat/2.jpg"]
    assert upright.pixels().shape == (160, 112, 3)
    assert upright.original == (128, 192)
    assert found.report().count("left out") == 4


def test_an_empty_text_file_hides_no_caption_of_a_listing(tmp_path: Path) -> None:
    listing = b'{"file_name": "a.png", "text": "TOK by the sea"}'
    files = {"a.png": picture((128, 128)), "a.txt": b"\xef\xbb\xbf \n", "metadata.jsonl": listing}
    found = read_examples(zipped(tmp_path / "z", files), 128, tmp_path)
    assert [each.caption for each in found.pictures] == ["TOK by the sea"]
    assert [str(look) for look in found.looks if not look.used] == ["a.txt: left out, empty"]


def test_the_result_of_a_training_is_no_archive_of_pictures(tmp_path: Path) -> None:
    files = {"training.json": b"{}", "state.safetensors": b"", "loss.png": picture((640, 320))}
    with pytest.raises(InvalidInput, match=r"^input_images='z': is the result of a training\. Send it as resume"):
        read_examples(zipped(tmp_path / "z", files), 128, tmp_path)


def test_the_same_pixels_in_another_file_are_the_same_picture(tmp_path: Path) -> None:
    image = Image.new("RGB", (128, 128), "red")
    streams = {name: io.BytesIO() for name in ("a.png", "b.bmp")}
    for name, stream in streams.items():
        image.save(stream, name[2:].upper())
    found = read_examples(
        zipped(tmp_path / "z", {name: stream.getvalue() for name, stream in streams.items()}), 128, tmp_path
    )
    assert [look.told for look in found.looks if not look.used] == ["the same picture as a.png"]
    assert "There is only 1 picture. " in found.report()


def test_transparent_parts_are_white_and_16_bits_become_8(tmp_path: Path) -> None:
    clear, deep = io.BytesIO(), io.BytesIO()
    Image.new("RGBA", (128, 128), (255, 0, 0, 0)).save(clear, "PNG")
    Image.fromarray(np.full((128, 128), 257 * 100, np.uint16)).save(deep, "PNG")
    files = {"clear.png": clear.getvalue(), "deep.png": deep.getvalue()}
    found = {each.name: each.pixels() for each in read_examples(zipped(tmp_path / "a", files), 128, tmp_path).pictures}
    assert (found["clear.png"] == 255).all()
    assert (found["deep.png"] == 100).all()


@pytest.mark.parametrize(
    ("own", "resolution", "size"),
    [
        ((1000, 1000), 512, (512, 512)),
        ((4032, 3024), 512, (576, 448)),
        ((3024, 4032), 512, (448, 576)),
        ((5000, 500), 512, (704, 384)),
        ((1920, 1080), 1024, (1344, 768)),
        ((200, 150), 128, (144, 112)),
    ],
)
def test_buckets_keep_the_shape(own: tuple[int, int], resolution: int, size: tuple[int, int]) -> None:
    assert bucket(own, resolution) == size


def test_the_middle_of_a_long_picture_is_used(tmp_path: Path) -> None:
    pixels = np.zeros((128, 640, 3), np.uint8)
    pixels[:, 320:] = 255
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    found = read_examples(zipped(tmp_path / "a", {"a.png": stream.getvalue()}), 128, tmp_path)
    (example,) = found.pictures
    width, height = example.size
    assert example.corner == ((round(640 * height / 128) - width) // 2, 0)
    middle = example.pixels()[height // 2]
    assert (middle[: width // 2 - 4] == 0).all()
    assert (middle[width // 2 + 4 :] == 255).all()
    assert "of its width cropped evenly" in found.looks[0].told


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "it is empty"),
        ({"a.png": b"no"}, "a.png: left out, cannot be read as a picture"),
        ({"../a.png": b"no"}, "leads out of the archive"),
    ],
)
def test_without_pictures_nothing_is_trained(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    with pytest.raises(InvalidInput, match="no picture that can be used") as refused:
        read_examples(zipped(tmp_path / "tmp12345678set.zip", files), 128, tmp_path)
    assert said in str(refused.value)


def test_another_file_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(picture())
    with pytest.raises(InvalidInput, match="neither a ZIP nor a TAR archive"):
        read_examples(tmp_path / "a", 128, tmp_path)


def test_an_archive_is_unpacked_once_and_read_again_only_for_another_resolution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = Counter[str]()
    for name in ("unpack", "read"):
        plain = getattr(pictures, name)
        monkeypatch.setattr(pictures, name, lambda *args, n=name, f=plain: (count.update([n]), f(*args))[1])
    path = zipped(tmp_path / "a", {"a.png": picture()})
    with opened(path, 128) as archive:
        assert archive.examples(128).pictures[0].size == (128, 128)
        assert count == {"unpack": 1, "read": 1}
    with opened(path, None) as archive:  # looked at before anybody knows the model
        (found,) = archive.examples(96).pictures
        assert found.pixels().shape == (96, 96, 3)
        assert count == {"unpack": 2, "read": 3}
        folder = found.file.parent
    assert not folder.exists()


def test_only_so_many_pictures_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "PICTURES_MAX", 2)
    found = read_examples(zipped(tmp_path / "a", {f"{k}.png": picture() for k in range(3)}), 128, tmp_path)
    assert [look.told for look in found.looks if not look.used] == ["at most 2 pictures are used"]


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        "{",
        '{"text": "no name"}',
        "3",
        '{"file_name": "a.png", "prompt": "TOK"}',
        '{"file_name": "a.png", "text": ["TOK"]}',
    ],
)
def test_a_listing_that_cannot_be_read_is_reported(tmp_path: Path, line: str) -> None:
    files = {"a.png": picture(), "metadata.jsonl": line.encode()}
    found = read_examples(zipped(tmp_path / "a", files), 128, tmp_path)
    assert [look.name for look in found.looks if not look.used] == ["metadata.jsonl"]


def test_every_line_of_a_listing_is_used_or_reported(tmp_path: Path) -> None:
    lines = [
        {"file_name": "gone.png", "text": "nowhere"},
        {"file": "a.png"},
        {"file_name": "a.png", "text": None, "caption": "TOK at night"},
        {"file_name": "b.png", "text": None},
        {"file_name": "../c.png", "text": "beside"},
        {"file_name": "broken.png", "text": "a picture that is reported already"},
        *({"file_name": f"{number}.png", "text": "nowhere"} for number in range(5)),
    ]
    listing = "\n".join(map(json.dumps, lines)).encode()
    files = {"in/a.png": picture(), "in/b.png": picture(), "in/broken.png": b"x", "c.png": picture()}
    found = read_examples(zipped(tmp_path / "a", {**files, "in/metadata.jsonl": listing}), 128, tmp_path)
    assert {each.name: each.caption for each in found.pictures} == {
        "in/a.png": "TOK at night",
        "in/b.png": "",
        "c.png": "",
    }
    assert [look.told for look in found.looks if "metadata" in look.name] == [
        'but only lines that are not like {"file_name": "a.jpg", "text": "a caption"}: line 2',
        "but only captions of pictures that are not here: gone.png (line 1), ../c.png (line 5), 0.png (line 7), "
        "1.png (line 8), 2.png (line 9) and 2 more",
    ]


def test_every_caption_is_used_or_reported(tmp_path: Path) -> None:
    """Also with the picture's whole name, which goes before what two pictures share, and beside a listing."""
    first = picture()
    listing = "\n".join(json.dumps({"file_name": f"{name}.png", "text": "listed"}) for name in "ab")
    files = {
        "a.png": picture(),
        "b.png": picture(),
        "b.png.txt": b"of the png",
        "b.txt": b"of both",
        "b.webp": picture(form="WEBP"),
        "c.png": picture(),
        "c.png.txt": b"whole",
        "c.txt": b"stem",
        "d.png": first,
        "e.png": first,
        "e.txt": b"of the copy",
        "metadata.jsonl": listing.encode(),
    }
    found = read_examples(zipped(tmp_path / "a", files), 128, tmp_path)
    assert {each.name: each.caption for each in found.pictures} == {
        "a.png": "listed",
        "b.png": "of the png",
        "b.webp": "of both",
        "c.png": "whole",
        "d.png": "",
    }
    assert [str(look) for look in found.looks if not look.used] == [
        "c.txt: left out, c.png has a caption of its own",
        "e.png: left out, the same picture as d.png; its caption is not used",
        "metadata.jsonl: left out, but only captions of pictures that have a text file: b.png (line 2)",
    ]


def test_of_two_lines_for_a_picture_the_first_counts(tmp_path: Path) -> None:
    """A line ends only at a line feed: a caption may have U+2028."""
    lines = [{"file_name": "caf\u00e9.png", "text": text} for text in ("TOK\u2028one", "TOK two")]
    listing = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode()
    found = read_examples(
        zipped(tmp_path / "a", {"cafe\u0301.png": picture(), "metadata.jsonl": listing}), 128, tmp_path
    )
    assert [each.caption for each in found.pictures] == ["TOK one"]
    assert "an earlier line describes: caf\u00e9.png (line 2)" in found.report()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("caf\u00e9 TOK".encode("utf-8-sig"), ""),
        ("caf\u00e9 TOK".encode("utf-16"), ""),
        (b"\xfe\xff" + "caf\u00e9 TOK".encode("utf-16-be"), ""),
        ("caf\u00e9 TOK".encode("cp1252"), "is not in UTF-8"),
    ],
)
def test_captions_come_from_any_editor(tmp_path: Path, content: bytes, told: str) -> None:
    found = read_examples(zipped(tmp_path / "a", {"a.png": picture(), "a.txt": content}), 128, tmp_path)
    assert [each.caption for each in found.pictures] == ["caf\u00e9 TOK"]
    assert ("UTF-8" in found.report()) == bool(told)


@pytest.mark.parametrize(
    ("caption", "prefix", "whole"),
    [
        ("", "", "a photo of TOK"),
        ("", "a photo of TOK, ", "a photo of TOK"),
        ("in a car", "", "a photo of TOK, in a car"),
        ("in a car", "a photo of TOK, ", "a photo of TOK, in a car"),
        ("a tok in a car", "a photo of TOK, ", "a tok in a car"),
        ("a token in a car", "", "a photo of TOK, a token in a car"),
    ],
)
def test_every_caption_has_the_token(caption: str, prefix: str, whole: str) -> None:
    example = Example(name="a", caption=caption, file=Path(), original=(1, 1), size=(1, 1), corner=(0, 0))
    assert captioned(example, prefix, "TOK") == whole

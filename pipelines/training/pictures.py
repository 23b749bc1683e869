"""An archive of pictures and captions -> pictures that are ready to be trained on, and a report on every file.

Everything is looked at before anything is trained. Pictures are read one at a time, cut to the size that they are
trained at, and kept in files, so that memory does not grow with their number.
"""

import codecs
import hashlib
import json
import math
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from pipelines.ask.inputs import size_like
from pipelines.ask.networks import name_of_upload
from pipelines.ask.prompt import has_word
from pipelines.ask.sizes import Size, scaled_size
from pipelines.errors import InvalidInput, shown_name
from pipelines.files.archives import Limits, Unpacked, unpack
from pipelines.images.reading import Pixels, flat, read
from pipelines.training.result import SETTINGS, STATE

FIELD = "input_images"
PICTURES_MAX = 1000
"""More need hours, and are seldom one subject."""
LIMITS = Limits(entries=5000, file=300_000_000, total=8_000_000_000)
CAPTION_MAX = 2000
"""Limit for the characters of a caption."""
TEXT_MAX = 64 * 1024
LISTING_MAX = 16 << 20
"""Limits for the bytes of a caption's file, and of metadata.jsonl."""
LISTING = "metadata.jsonl"
SHOWN = 5
"""How many of a listing's lines the report names."""
ASPECT_MAX = 2.0
"""Longer pictures are cropped to this ratio of their sides."""
ENLARGED_MAX = 2.0
"""Pictures that would be enlarged more are refused: what they lack in detail would be learned."""
RESOLUTION_MIN = 64
"""Pictures that are too small for this one are too small for all."""
FEW, MANY = 3, 100
"""Fewer pictures than this are learned by heart, and more than this are seldom needed for one subject."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One picture for training."""

    name: str
    """Its name in the archive."""
    caption: str
    """The caption in the archive; empty if there is none."""
    file: Path
    """Its pixels, uint8 (height, width, 3), in numpy's format."""
    original: Size
    """The size of the whole picture, upright."""
    size: Size
    """The size that it is trained at."""
    corner: tuple[int, int]
    """Left and top of the part that is used, in pixels of the scaled picture."""

    def pixels(self) -> Pixels:
        """Read its pixels."""
        found: Pixels = np.load(self.file, allow_pickle=False)
        return found


@dataclass(frozen=True)
class Look:
    """What a file of the archive turned out to be."""

    name: str
    used: bool
    told: str

    def __str__(self) -> str:
        return f"{self.name}: {'used' if self.used else 'left out'}, {self.told}"


@dataclass(frozen=True)
class Examples:
    """The pictures of an archive, and what is to be said about its files."""

    pictures: tuple[Example, ...]
    looks: tuple[Look, ...]
    remarks: tuple[str, ...]

    def report(self, remarks: Iterable[str] = ()) -> str:
        """Return a line for every file, and before them what is to be said about all, and about the training."""
        return "".join(f"{line}\n" for line in (*remarks, *self.remarks, *map(str, self.looks)))


class Opened:
    """An archive of pictures that was unpacked."""

    def __init__(self, path: Path, folder: Path) -> None:
        """Unpack an archive into the folder. Raises InvalidInput if it cannot be read."""
        self._name = name_of_upload(path.name)
        try:
            self._unpacked = unpack(path, folder, LIMITS)
        except (OSError, ValueError) as error:
            fix = "Send a ZIP or a TAR with three or more pictures, at best with a caption beside each (a.jpg, a.txt)."
            raise InvalidInput(FIELD, self._name, f"cannot be unpacked: {error}", fix) from error
        if {SETTINGS, STATE} <= self._unpacked.files.keys():
            fix = "Send it as resume, and here the pictures that it was trained with."
            raise InvalidInput(FIELD, self._name, "is the result of a training", fix)
        self.examples = lru_cache(1)(self._examples)

    def _examples(self, resolution: int) -> Examples:
        """Read the pictures. `resolution` is the side of a square with as many pixels as each is trained at.

        Examples that were read for another resolution are lost. Raises InvalidInput if no picture can be used.
        """
        reader = _Reader(self._unpacked, resolution)
        pictures = tuple(reader.pictures())
        looks = tuple(sorted(reader.looks, key=lambda look: look.name))
        if not pictures:
            told = "; ".join(map(str, looks[:5])) or "it is empty"
            raise InvalidInput(FIELD, self._name, f"has no picture that can be used ({told})", "Send others.")
        return Examples(pictures, looks, tuple(_remarks(len(pictures))))


@contextmanager
def opened(path: Path, resolution: int | None) -> Iterator[Opened]:
    """Unpack an archive and look at its pictures, which takes seconds, before the model's weights are fetched.

    Without a resolution, which a model decides then, they are looked at as if they were trained at the smallest. Raises
    InvalidInput if the archive cannot be read or has no picture that can be used.
    """
    with tempfile.TemporaryDirectory(prefix="pastel-pictures-", ignore_cleanup_errors=True) as folder:
        archive = Opened(path, Path(folder))
        archive.examples(max(resolution or 0, RESOLUTION_MIN))
        yield archive


def _remarks(count: int) -> Iterator[str]:
    if count < FEW:
        told = "is only 1 picture" if count == 1 else f"are only {count} pictures"
        yield f"There {told}. With {FEW} to 20 the result is less of a copy."
    if count > MANY:
        yield f"There are {count} pictures. For one subject 5 to 20 good ones are usually better."


class _Reader:
    """Reads the files of an archive one after another."""

    def __init__(self, unpacked: Unpacked, resolution: int) -> None:
        self._files, self._resolution = unpacked.files, resolution
        self._seen: dict[str, str] = {}
        self._texts = [name for name in self._files if name.lower().endswith((".txt", ".caption"))]
        others = self._files.keys() - set(self._texts)
        self._names = sorted(name for name in others if PurePosixPath(name).name != LISTING)
        told = {text for text in self._texts if _text(self._files[text], TEXT_MAX)[0].strip()}
        found = {name: [text for text in _caption_names(name) if text in told] for name in self._names}
        self._beside = {name: texts[0] for name, texts in found.items() if texts}
        """The text files with captions that are not empty, by the names of their pictures."""
        self._known = {*self._names, *unpacked.left_out}
        """Pictures that captions may be of, also those that could not be unpacked."""
        self.looks = [Look(shown_name(name), False, why) for name, why in unpacked.left_out.items()]

    def pictures(self) -> Iterator[Example]:
        """Yield the pictures that can be used."""
        for name in self._names:
            if sum(look.used for look in self.looks) == PICTURES_MAX:
                self._leave(name, f"at most {PICTURES_MAX} pictures are used")
                continue
            try:
                yield self._picture(name)
            except InvalidInput as error:
                self._leave(name, error.rule)
        self._listings.keys()  # reports what is of no use in them
        of_pictures = {text: name for name in self._names for text in _caption_names(name)}
        for text in self._texts:
            if text not in of_pictures:
                self._leave(text, "no picture has its name")
            elif text not in self._beside.values() and of_pictures[text] in self._beside:
                self._leave(text, f"{shown_name(of_pictures[text])} has a caption of its own")
            elif text not in self._beside.values():
                self._leave(text, "empty")

    def _leave(self, name: str, why: str) -> None:
        self.looks.append(Look(shown_name(name), False, why))

    def _picture(self, name: str) -> Example:
        """Read one picture. Raises InvalidInput for one that is not used."""
        path = self._files[name]
        with path.open("rb") as stream:
            self._check_new(name, hashlib.file_digest(stream, "sha256").hexdigest())
        image = flat(read(path, FIELD))
        self._check_new(name, hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest())
        size = bucket(image.size, self._resolution)
        covering = scaled_size(image.size, size, cover=True)
        enlarged = covering[0] / image.size[0]
        told = "{}x{}".format(*image.size)
        if enlarged > ENLARGED_MAX:
            raise InvalidInput(FIELD, name, f"too small: {told} would be enlarged {enlarged:.1f} times", "")
        corner = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
        cut = image.resize(covering, Image.Resampling.LANCZOS).crop((*corner, corner[0] + size[0], corner[1] + size[1]))
        file = path.with_suffix(".npy")
        np.save(file, np.asarray(cut))
        caption, remark = self._caption(name)
        self.looks.append(Look(shown_name(name), True, _told(image.size, covering, size) + remark))
        return Example(name=name, caption=caption, file=file, original=image.size, size=size, corner=corner)

    def _check_new(self, name: str, digest: str) -> None:
        first = self._seen.setdefault(digest, name)
        if first != name:
            caption = "; its caption is not used" if self._caption(name)[0] else ""
            raise InvalidInput(FIELD, name, f"the same picture as {shown_name(first)}{caption}", "")

    def _caption(self, name: str) -> tuple[str, str]:
        """Return the caption of a picture: of the text file beside it, or else of a listing; and a remark on it."""
        beside = self._beside.get(name)
        text, remark = _text(self._files[beside], TEXT_MAX) if beside else (self._listings.get(name, ""), "")
        text = " ".join(text.split())
        remark += f"; its caption is cut to {CAPTION_MAX} characters" if len(text) > CAPTION_MAX else ""
        return text[:CAPTION_MAX], remark

    @cached_property
    def _listings(self) -> Mapping[str, str]:
        """The captions in metadata.jsonl files, by the names of pictures, which are relative to the file."""
        listings = {name: path for name, path in self._files.items() if PurePosixPath(name).name == LISTING}
        return {picture: text for name, path in listings.items() for picture, text in self._listing(name, path)}

    def _listing(self, name: str, path: Path) -> Iterator[tuple[str, str]]:
        """Yield the pictures and captions of one listing, and report the lines that are of no use."""
        unlike, nowhere, again, twice = [], [], [], []
        told = set[str]()
        # Other marks that splitlines() splits at, such as U+2028, may stand in a caption.
        for number, line in enumerate(_text(path, LISTING_MAX)[0].split("\n"), 1):
            if not line.strip():
                continue
            try:
                named, text = _named_and_told(json.loads(line))
            except (ValueError, LookupError, TypeError, RecursionError):
                unlike.append(f"line {number}")
                continue
            picture = unicodedata.normalize("NFC", str(PurePosixPath(name).parent / named))
            if picture in self._beside:
                again.append(f"{shown_name(named)} (line {number})")
            elif picture in told:
                twice.append(f"{shown_name(named)} (line {number})")
            elif picture in self._known:
                told.add(picture)
                yield picture, text
            else:
                nowhere.append(f"{shown_name(named)} (line {number})")
        for lines, why in (
            (unlike, 'lines that are not like {"file_name": "a.jpg", "text": "a caption"}'),
            (nowhere, "captions of pictures that are not here"),
            (again, "captions of pictures that have a text file"),
            (twice, "captions of pictures that an earlier line describes"),
        ):
            if lines:
                self._leave(name, f"but only {why}: {_some(lines)}")


def bucket(own: Size, resolution: int) -> Size:
    """Return the size to train a picture at: near its shape, with about resolution x resolution pixels."""
    width, height = own
    shape = min(width, round(height * ASPECT_MAX)), min(height, round(width * ASPECT_MAX))
    return size_like((max(1, shape[0]), max(1, shape[1])), (resolution, resolution))


def _told(own: Size, covering: Size, size: Size) -> str:
    """Say how a picture was brought to its size."""
    scale = covering[0] / own[0]
    enlarged = f", enlarged {scale:.1f} times, so it may come out soft" if scale > 1.05 else ""
    lost = 1 - math.prod(size) / math.prod(covering)
    side = "width" if covering[0] > size[0] else "height"
    cropped = f", {lost:.0%} of its {side} cropped evenly" if lost >= 0.005 else ""
    return "{}x{} as {}x{}".format(*own, *size) + enlarged + cropped


def _some(things: Sequence[str]) -> str:
    """Name the first few of many things."""
    more = f" and {len(things) - SHOWN} more" if len(things) > SHOWN else ""
    return ", ".join(things[:SHOWN]) + more


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _caption_names(name: str) -> tuple[str, ...]:
    """Return the names that a picture's caption may have: `a.jpg.txt`, which is of no other picture, or `a.txt`."""
    return tuple(f"{stem}{ending}" for stem in (name, _stem(name)) for ending in (".txt", ".TXT", ".caption"))


def _named_and_told(row: Any) -> tuple[str, str]:
    """Return the picture and the caption of a line of a listing. Raises LookupError or TypeError for another line."""
    named, texts = row["file_name"], [row[key] for key in ("text", "caption") if key in row]
    if not texts:
        raise KeyError("text")
    text = next(filter(None, texts), "")
    if not isinstance(named, str) or not isinstance(text, str):
        raise TypeError
    return named, text


def _text(path: Path, most: int) -> tuple[str, str]:
    """Return the text of a file, in UTF-8 or with UTF-16's mark; otherwise as Windows writes it, and a remark."""
    with path.open("rb") as stream:
        content = stream.read(most)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace"), ""
    try:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(content), ""  # its last character may be cut
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace"), "; its caption is not in UTF-8 and is read as Windows-1252"


def captioned(example: Example, prefix: str, token: str) -> str:
    """Return the caption to train a picture with. One that does not have the token gets the prefix, "a photo of
    TOK" if it is empty."""
    prefix, text = prefix.strip() or f"a photo of {token}", example.caption
    if not text:
        return prefix.rstrip(" ,")
    if has_word(text, token):
        return text
    return f"{prefix}{'' if prefix.endswith(',') else ','} {text}"

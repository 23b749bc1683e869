"""The result of a training: a folder, and the TAR archive that is made of it."""

import csv
import json
import shutil
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from pipelines.errors import InvalidInput, PastelError, shown_name
from pipelines.images.reading import Pixels

SETTINGS, STATE, REPORT = "training.json", "state.safetensors", "report.txt"
WORD = "word.safetensors"
"""Pivotal tuning's word by itself, for programs that do not look for it inside the LoRA."""
CAPTIONS, PREVIEWS = "captions", "previews"
SMOOTHED = 0.95
"""How much of the curve's last value the drawn line keeps at each step: single losses jump with the noise level."""
PART_MAX = 200
"""Limit for the bytes of a file's or folder's name."""
CURVE = (640, 320)
FORMAT = 1
"""The version of this layout."""


def fresh(folder: Path) -> None:
    """Make an empty folder. What an earlier training left there is deleted. Raises InvalidInput if it is others'."""
    if (folder / REPORT).exists():
        shutil.rmtree(folder)
    elif folder.exists() and any(folder.iterdir()):
        rule = "is needed for the result, and has other files"
        raise InvalidInput("output", str(folder), rule, "Name another folder.")
    folder.mkdir(parents=True, exist_ok=True)


def write_settings(folder: Path, told: Mapping[str, Any]) -> None:
    """Write training.json."""
    (folder / SETTINGS).write_text(json.dumps({"format": FORMAT, **told}, indent=1, ensure_ascii=False), "utf-8")


def write_captions(folder: Path, captions: Iterable[tuple[str, str]]) -> None:
    """Write the caption of every picture as it was trained, where an archive has it: that of `cat/a.jpg` in
    `cat/a.jpg.txt`. Somebody may correct them, put them beside the pictures and send both again."""
    for name, caption in captions:
        *folders, last = map(_part, name.split("/"))
        target = folder.joinpath(CAPTIONS, *folders, f"{last}.txt")
        with suppress(FileExistsError, NotADirectoryError, IsADirectoryError):  # pictures `a` and `a.txt/b`: the first
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(caption, "utf-8")


def _part(name: str) -> str:
    """Return a part of a stranger's path in a form that stays in its folder, and that file systems take."""
    part = shown_name(name).encode()[:PART_MAX].decode(errors="ignore")
    return part if part.strip(". ") else "_"


def write_preview(folder: Path, name: str, pixels: Pixels) -> None:
    """Write a preview as PNG."""
    (folder / PREVIEWS).mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / PREVIEWS / f"{name}.png", compress_level=1)


def write_losses(folder: Path, losses: Sequence[float]) -> None:
    """Write the loss of every step as loss.csv, and drawn as loss.png."""
    with (folder / "loss.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("step", "loss"))
        writer.writerows((number, f"{loss:.6f}") for number, loss in enumerate(losses, 1))
    _curve(losses).save(folder / "loss.png")


def smooth(losses: Sequence[float]) -> list[float]:
    """Return the running mean of the losses: at first of all so far, later mostly of the last 20."""
    found: list[float] = []
    for number, loss in enumerate(losses):
        kept = min(SMOOTHED, number / (number + 1))
        found.append(loss if not found else kept * found[-1] + (1 - kept) * loss)
    return found


def _curve(losses: Sequence[float]) -> Image.Image:
    """Draw the losses: every step as a dot, and their running mean as a line."""
    width, height = CURVE
    image = Image.new("RGB", CURVE, "white")
    draw = ImageDraw.Draw(image)
    top = max(losses) or 1.0
    margin = 24

    def at(number: int, loss: float) -> tuple[float, float]:
        across = margin + (width - 2 * margin) * number / max(1, len(losses) - 1)
        return across, height - margin - (height - 2 * margin) * loss / top

    draw.line([(margin, margin), (margin, height - margin), (width - margin, height - margin)], fill="grey")
    draw.text((margin, 6), f"loss, up to {top:.3g}", fill="black")
    draw.text((width - margin, height - 18), f"step {len(losses)}", fill="black", anchor="ra")
    for number, loss in enumerate(losses):
        x, y = at(number, loss)
        draw.point([(x, y), (x + 1, y)], fill="lightblue")
    draw.line([at(number, loss) for number, loss in enumerate(smooth(losses))], fill="navy", width=2)
    return image


def pack(folder: Path, archive: Path) -> Path:
    """Write the folder's files into a TAR, which replaces another only when it is complete."""
    written = archive.with_suffix(".part")
    with tarfile.open(written, "w") as tar:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".part":
                tar.add(path, path.relative_to(folder).as_posix(), filter=_anonymous)
    written.replace(archive)
    return archive


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out who made the file."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


class NothingTrained(PastelError):
    """A training ended before its first step was done."""

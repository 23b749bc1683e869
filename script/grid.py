"""X/Y/Z plot: draw one picture for every combination of values through a Cog server, onto one labelled sheet.

An axis is any input and its values: sampler="Euler a,DPM++ 2M". Put a value that contains a comma in quotes:
'prompt="a sun, red",a moon'. With ~= text is searched and replaced: prompt~=sun,moon draws the prompt as it is, and
then with moon in place of sun. Without --url, a server is started on this machine, as script/predict does.
"""

import argparse
import csv
import json
import secrets
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from pipelines.errors import InvalidInput
from pipelines.infotext.asked import RANDOM, read_data
from script.client import (
    SETUP_SECONDS,
    Failure,
    read_inputs,
    read_value,
    save,
    show_log,
)
from script.cog_server import BUSY, POLL_SECONDS, CogClient, CogServer, Refused, ServerError
from script.compatibility import inputs as schema_inputs
from script.schema import COMMITTED
from script.sheet import Cell, sheet

Json = dict[str, Any]
Item = TypeVar("Item")

SEEDS = 2**32


@dataclass(frozen=True)
class Axis:
    """An input and the values that it takes, one per step."""

    name: str
    texts: Sequence[str]
    values: Sequence[Any]
    """The texts as JSON values."""
    replaces: bool = False
    """Whether each text replaces the first text inside the input's own value."""

    def captions(self) -> list[str]:
        return list(self.texts) if self.replaces else [f"{self.name}: {text}" for text in self.texts]

    def applied(self, inputs: Json, number: int) -> Json:
        """Return the inputs at one step. Raises Failure."""
        if not self.replaces:
            return inputs | {self.name: self.values[number]}
        searched, text = self.texts[0], str(inputs[self.name])
        if searched not in text:
            fix = f"write -i {self.name}=TEXT with a text that does"
            raise Failure(f"{self.name}~={searched}: {self.name} does not contain that, it is {text!r}; {fix}")
        return inputs | {self.name: text.replace(searched, self.texts[number])}


def read_axis(option: str, assignment: str, fields: dict[str, Json]) -> Axis:
    """Parse `name=value,value` or `name~=text,text`. Raises Failure."""
    name, equals, listed = assignment.partition("=")
    name, replaces = name.removesuffix("~"), name.endswith("~")
    if not equals or name not in fields:
        raise Failure(f"{option} {assignment}: write INPUT=VALUE,VALUE; script/predict --list shows the inputs")
    if replaces and (fields[name]["type"] != "string" or fields[name].keys() & {"enum", "format"}):
        raise Failure(f"{option} {assignment}: {name} is no text to search in; write {name}=VALUE,VALUE")
    try:
        (texts,) = csv.reader([listed], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        raise Failure(f"{option} {assignment}: the values cannot be read ({error})") from error
    if not texts or (replaces and not texts[0]):
        raise Failure(f"{option} {assignment}: there is no value")
    try:
        return Axis(name, texts, [read_value(name, text, fields[name]) for text in texts], replaces)
    except Failure as error:
        raise Failure(f"{option} {error}") from error


def cells(axes: Sequence[Axis], inputs: Json) -> Iterator[tuple[str, Json]]:
    """Yield a description and the inputs of each cell; the first axis changes fastest. Raises Failure."""
    for position in product(*(range(len(axis.texts)) for axis in reversed(axes))):
        steps = list(zip(axes, reversed(position), strict=True))
        made = inputs
        for axis, number in sorted(steps, key=lambda step: step[0].replaces):  # replace in values of other axes
            made = axis.applied(made, number)
        yield ", ".join(axis.captions()[number] for axis, number in steps), made


def starting_from(inputs: Json, axes: Sequence[Axis], fields: dict[str, Json]) -> Json:
    """Return the inputs of all cells: one seed for all, and the default of searched inputs. Raises InvalidInput."""
    set_by_axes = {axis.name: axis.values[0] for axis in axes if not axis.replaces}
    inputs = inputs | set_by_axes
    if "seed" in fields and _seed_of(inputs) == RANDOM:
        inputs["seed"] = secrets.randbelow(SEEDS)
        print(f"Every picture has seed {inputs['seed']}.", file=sys.stderr)
    return {axis.name: fields[axis.name].get("default", "") for axis in axes if axis.replaces} | inputs


def _seed_of(inputs: Json) -> int:
    """Return the seed from the inputs or their generation data; -1 if there is none. Raises InvalidInput."""
    said: int = read_data(inputs.get("generation_data", "")).values.get("seed", RANDOM)
    return inputs.get("seed", said)


def check_cell(inputs: Json) -> None:
    """Check that a cell has one picture. Raises Failure."""
    if (count := inputs.get("num_outputs", 1)) > 1:
        raise Failure(f"num_outputs={count}: a cell shows one picture; write seed=VALUE,VALUE for an axis of several")


@contextmanager
def server_at(url: str | None) -> Iterator[CogClient]:
    """Yield the server at the URL, or start our own."""
    if url:
        yield CogClient(url)
        return
    print("Starting the Cog server. Imports and the model take about ten seconds ...", file=sys.stderr)
    with CogServer({}, show_log) as server:
        server.wait_until_ready(SETUP_SECONDS)
        yield server


def schema_of(url: str | None) -> Json:
    """Return the schema that the URL serves, or the committed one, which our own server uses."""
    if not url:
        committed: Json = json.loads(COMMITTED.read_text(encoding="utf-8"))
        return committed
    try:
        reply = CogClient(url).request("GET", "/openapi.json")
    except (OSError, HTTPException) as error:
        raise Failure(f"--url {url}: no server answers there ({error})") from error
    if not isinstance(reply.body, dict) or "components" not in reply.body:
        raise Failure(f"--url {url}: the server there is not a Cog server, or is still loading its model")
    return reply.body


def draw(server: CogClient, inputs: Json, folder: Path) -> Path:
    """Draw one prediction, save its files and return the path of the last one.

    Raises Failure, Refused, OSError or HTTPException.
    """
    path = None
    for name, data in server.events(uuid.uuid4().hex, inputs):
        if name == "output":
            path = save(data["chunk"], folder)
        elif name == "completed" and data["status"] != "succeeded":
            raise Failure(data.get("error") or data["status"])
    if path is None:
        raise Failure("the server closed the connection before there was a picture")
    return path


def drawn(server: CogClient, inputs: Json, folder: Path) -> Cell:
    """Return the picture, or the reason why there is none. Wait for a server that is busy."""
    while True:
        try:
            with Image.open(draw(server, inputs, folder)) as image:
                return image.convert("RGB")
        except Refused as refusal:
            if refusal.status != BUSY:
                return str(refusal)
            time.sleep(POLL_SECONDS)
        except (Failure, OSError, HTTPException) as error:
            return str(error)


def draw_all(url: str | None, wanted: Sequence[tuple[str, Json]], folder: Path) -> list[Cell]:
    """Return every cell in order, and report each one as it is done."""
    done: list[Cell] = []
    with server_at(url) as server:
        for number, (words, inputs) in enumerate(wanted, 1):
            started = time.monotonic()
            cell = drawn(server, inputs, folder)
            told = f"failed: {cell}" if isinstance(cell, str) else f"{time.monotonic() - started:.1f} s"
            print(f"{number}/{len(wanted)} {words}: {told}", file=sys.stderr)
            done.append(cell)
    return done


def laid_out(axes: Sequence[Axis], done: Sequence[Cell]) -> Image.Image:
    """Return the sheet with the cells in the order of `cells`."""
    columns, rows, titles = [*(axis.captions() for axis in axes), *[[""]] * (3 - len(axes))]
    return sheet(parts(parts(done, len(columns)), len(rows)), titles, rows, columns)


def parts(items: Sequence[Item], length: int) -> list[Sequence[Item]]:
    return [items[start : start + length] for start in range(0, len(items), length)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="script/grid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--x", required=True, metavar="INPUT=VALUES", help="the columns")
    parser.add_argument("--y", metavar="INPUT=VALUES", help="the rows")
    parser.add_argument("--z", metavar="INPUT=VALUES", help="grids below each other")
    parser.add_argument(
        *("-i", "--input"), action="append", default=[], metavar="NAME=VALUE", help="one input; @FILE sends a file"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("grid.png"), metavar="FILE", help="default: grid.png")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="also keep the single pictures, as 1.png and so on")
    parser.add_argument("--url", help="draw on a running server, such as http://localhost:5000")
    options = parser.parse_args()
    if options.z and not options.y:
        parser.error("--z needs --y")
    if options.output.suffix.lower() not in Image.registered_extensions():
        parser.error(f"-o {options.output}: end it with .png, .webp or .jpg")
    return options


def plot(options: argparse.Namespace) -> bool:
    """Draw and save the sheet. Return whether every cell has its picture.

    Raises Failure, InvalidInput, ServerError or Refused.
    """
    fields = schema_inputs(schema_of(options.url))
    named = {"--x": options.x, "--y": options.y, "--z": options.z}
    axes = [read_axis(option, text, fields) for option, text in named.items() if text]
    inputs = starting_from(read_inputs(options.input, fields), axes, fields)
    wanted = list(cells(axes, inputs))
    for _, made in wanted:
        check_cell(made)
    with tempfile.TemporaryDirectory(prefix="grid-") as scratch:
        done = draw_all(options.url, wanted, options.keep or Path(scratch))
    laid_out(axes, done).save(options.output)
    print(options.output)
    return not any(isinstance(cell, str) for cell in done)


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return 0 if plot(options) else 1
    except (Failure, InvalidInput, ServerError, Refused, OSError) as error:
        print(f"script/grid: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("script/grid: cancelled", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

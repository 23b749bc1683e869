"""Draw pictures on this machine: start the real Cog server, send one prediction and save the result.

The model is the small embedded one unless COG_WEIGHTS=PATH or PASTEL_MODEL=NAME is set.
"""

import argparse
import base64
import json
import mimetypes
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from pipelines.ask.networks import plain_name
from pipelines.infotext.reading import holds_settings
from script.cog_server import CogServer, Event, Refused, ServerError
from script.compatibility import inputs as schema_inputs
from script.schema import COMMITTED

Json = dict[str, Any]

SUFFIXES = {
    "image/png": ".png",
    "image/webp": ".webp",
    "image/jpeg": ".jpg",
    "image/gif": ".gif",
    "video/mp4": ".mp4",
    "video/webm": ".webm",
}
SETUP_SECONDS = 3600
"""The time limit for setup, which may have to fetch gigabytes first."""
BOOLEANS = {"true": True, "false": False}


EXAMPLES = """Try next:

    script/predict -i prompt="a yellow moon over purple mountains"    # draw something else
    script/predict --list                                             # see everything that you can set
    script/serve                                                      # fill in a form in your browser
"""


class Failure(Exception):
    """A run that ends without pictures. Its message is one line for the user."""


def read_inputs(assignments: Sequence[str], fields: dict[str, Json]) -> Json:
    """Convert `name=value` texts to the JSON types of the schema. Raises Failure."""
    inputs: Json = {}
    names: list[str] = []
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise Failure(f"-i {assignment}: write name=value")
        if name not in fields:
            raise Failure(f"-i {assignment}: there is no input {name}; --list shows them all")
        try:
            inputs[name] = read_value(name, text, fields[name])
            names = names_of(text) if name == "files" else names
        except Failure as error:
            raise Failure(f"-i {error}") from error
    return with_file_names(inputs, names)


def names_of(text: str) -> list[str]:
    """Return the names of files that are read here; empty for addresses, whose files keep their own names."""
    return [plain_name(Path(item[1:]).stem) if item.startswith("@") else "" for item in items_of(text)]


def with_file_names(inputs: Json, names: Sequence[str]) -> Json:
    """Add the names of files that were read here to the inputs, because data URIs have no names."""
    if not any(names):
        return inputs
    said = inputs.get("generation_data", "")
    told = f"File names: {', '.join(names)}"
    if said.strip() and not holds_settings(said):
        told = f'{said.rstrip()}, File names: "{", ".join(names)}"'  # a block has all settings on its last line
    else:
        told = f"{said}\n{told}".strip()
    return inputs | {"generation_data": told}


def read_value(name: str, text: str, field: Json) -> Any:
    """Convert a text to the JSON type of its input. Raises Failure if its type is wrong or it breaks the schema."""
    try:
        value = typed(text, field)
    except OSError as error:
        raise Failure(f"{name}={text}: {error.strerror}") from error
    except (ValueError, KeyError) as error:
        raise Failure(f"{name}={text}: not of type {field['type']}") from error
    rules = {key: rule for key, rule in field.items() if key != "allOf"}  # a reference to choices, resolved already
    for problem in Draft202012Validator(rules).iter_errors(value):
        raise Failure(f"{name}={text}: {problem.message}")
    return value


def typed(text: str, field: Json) -> Any:
    kind = field["type"]
    if kind in ("integer", "number"):
        return int(text) if kind == "integer" else float(text)
    if kind == "boolean":
        return BOOLEANS[text.lower()]
    if kind == "array":
        return [typed(item, field["items"]) if isinstance(item, str) else item for item in items_of(text)]
    return data_uri(Path(text[1:])) if field.get("format") == "uri" and text.startswith("@") else text


def items_of(text: str) -> list[Any]:
    """Return the items of a list that is written as JSON or separated by commas."""
    return list(json.loads(text)) if text.startswith("[") else text.split(",")


def data_uri(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def save(uri: str, folder: Path) -> Path:
    """Write a data URI to `<n>.<suffix>`, with the first number that is free in the folder."""
    kind, _, data = uri.removeprefix("data:").partition(";base64,")
    folder.mkdir(parents=True, exist_ok=True)
    number = next(n for n in count(1) if not any(folder.glob(f"{n}.*")))
    path = folder / f"{number}{SUFFIXES.get(kind, '.bin')}"
    path.write_bytes(base64.b64decode(data))
    return path


def describe(name: str, field: Json) -> str:
    limits = [f"{field[key]} {word}" for key, word in (("minimum", "or more"), ("maximum", "or less")) if key in field]
    choices = [str(choice) for choice in field.get("enum", [])]
    rule = ", ".join(limits) or " | ".join(choices) or field["type"]
    return f"{name} = {json.dumps(field['default'], ensure_ascii=False)}\n    {field['description']}\n    {rule}"


def show_log(line: str) -> None:
    """Show lines that setup() prints; the server's own lines only matter for debugging."""
    try:
        record = json.loads(line)
        target, message = record["target"], str(record["fields"]["message"])
    except (ValueError, KeyError, TypeError):
        sys.stderr.write(line)
        return
    if target == "coglet::setup" and "DeprecationWarning" not in message:
        print(message, file=sys.stderr)


def follow(events: Iterator[Event], folder: Path) -> Json:
    """Show the log and save each picture as it arrives. Return the finished prediction. Raises Failure."""
    for name, data in events:
        if name == "log":
            sys.stderr.write(data["data"])
            sys.stderr.flush()
        elif name == "output":
            print(save(data["chunk"], folder), flush=True)
        elif name == "completed":
            return data
    raise Failure("the server closed the connection before the prediction was done")


def predict(inputs: Json, folder: Path) -> Json:
    """Start a server, draw, stop it and return the metrics. Raises Failure, ServerError or Refused."""
    started = time.monotonic()
    print("Starting the Cog server. Imports and the model take about ten seconds ...", file=sys.stderr)
    with CogServer({}, show_log) as server:
        server.wait_until_ready(SETUP_SECONDS)
        print(f"Server ready after {time.monotonic() - started:.1f} s.", file=sys.stderr)
        identifier = uuid.uuid4().hex
        try:
            done = follow(server.events(identifier, inputs), folder)
        except KeyboardInterrupt:
            server.cancel(identifier)
            raise
    if done["status"] != "succeeded":
        raise Failure(done.get("error") or done["status"])
    metrics: Json = done["metrics"]
    return metrics


def flat(metrics: Json, prefix: str = "") -> Iterator[str]:
    for name, value in sorted(metrics.items()):
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name} {value:.2f}" if isinstance(value, float) else f"{prefix}{name} {value}"


def guide(folder: Path) -> str:
    """Return what a newcomer wants to know: what happens now, where the picture will be, and what to try next."""
    return (
        "You gave no inputs, so Cog's server draws the model's own example, first as a draft and then in detail.\n"
        f"With the embedded model this takes about half a minute. The picture will be in the folder {folder}.\n\n"
        f"{EXAMPLES}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="script/predict", description=__doc__)
    parser.add_argument(
        *("-i", "--input"), action="append", default=[], metavar="NAME=VALUE", help="one input; @FILE sends a file"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs"), metavar="FOLDER", help="default: outputs")
    parser.add_argument("--list", action="store_true", help="show the inputs and exit")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    fields = schema_inputs(json.loads(COMMITTED.read_text(encoding="utf-8")))
    if options.list:
        print("\n".join(describe(name, field) for name, field in fields.items()))
        return 0
    if not options.input:
        print(guide(options.output), file=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        print(", ".join(flat(predict(read_inputs(options.input, fields), options.output))))
    except (Failure, ServerError, Refused) as error:
        print(f"script/predict: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("script/predict: cancelled", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

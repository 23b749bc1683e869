"""Train on an archive or a folder of pictures, without Cog.

The result is an archive, which COG_WEIGHTS, `loras` and `files` take. For several GPUs or machines:
`accelerate launch -m script.train PICTURES -o FOLDER`.
"""

import argparse
import sys
import tarfile
import tempfile
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import get_args, get_type_hints

from pipelines.errors import PastelError, say
from pipelines.training.loop import Job, looked_at, train
from pipelines.training.watching import follow, shown_path
from pipelines.training.wishes import LAYERS, PRECISIONS, SCHEDULES, TASKS, Wishes
from weights_script.resolve import base_of

CHOICES = {"task": TASKS, "layers": tuple(LAYERS), "schedule": SCHEDULES, "precision": PRECISIONS}


def arguments() -> argparse.ArgumentParser:
    """Return the parser. Its options are the fields of Wishes, which docs/training.md describes."""
    parser = argparse.ArgumentParser(
        prog="script/train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", type=Path, help="a ZIP or TAR, or a folder, of pictures and captions")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where results go")
    parser.add_argument(
        "--model", default="", help="an entry of the manifest; default: PASTEL_MODEL's, or the embedded"
    )
    parser.add_argument("--resume", type=Path, metavar="ARCHIVE", help="an earlier result to go on from")
    types = get_type_hints(Wishes)
    for field in fields(Wishes):
        kind = next(each for each in (get_args(types[field.name]) or (types[field.name],)) if each is not type(None))
        shown = "the recipe's" if isinstance(types[field.name], UnionType) else repr(field.default)
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=_flag if kind is bool else kind,
            default=field.default,
            choices=CHOICES.get(field.name),
            help=f"default: {shown}",
        )
    return parser


def _flag(text: str) -> bool:
    known = {"true": True, "false": False}
    if text not in known:
        raise argparse.ArgumentTypeError("must be true or false")
    return known[text]


def archive_of(pictures: Path, stack: ExitStack) -> Path:
    """Return an archive: the given one, or one of the given folder, which is removed with the stack."""
    if not pictures.is_dir():
        return pictures
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pastel-pictures-"))
    packed = Path(folder) / f"{pictures.name}.tar"
    with tarfile.open(packed, "w") as tar:
        tar.add(pictures, ".", recursive=True)
    return packed


def main() -> int:
    """Run the command line."""
    options = vars(arguments().parse_args())
    output, resume = options.pop("output"), options.pop("resume")
    pictures, model = options.pop("pictures"), options.pop("model")
    wishes = Wishes(**options)
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(looked_at(archive_of(pictures, stack), wishes, resume))
            base, resolved = base_of(model)
            say(f"Model: {resolved.description}")
            job = Job(
                pictures=archive,
                wishes=wishes,
                base=base,
                files=resolved.files,
                settings=resolved.settings,
                folder=output,
                resume=resume,
            )
            finished = follow(train(job), lambda name, value: None)
        except (PastelError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("stopped. --resume goes on from the last save, if there is one.", file=sys.stderr)
            return 130
    print(shown_path(finished.archive))
    return 0


if __name__ == "__main__":
    sys.exit(main())

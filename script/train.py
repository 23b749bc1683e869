"""Train on an archive or a folder of pictures, without Cog.

The result is an archive, which COG_WEIGHTS, `loras` and `files` take. For several GPUs or machines:
`accelerate launch -m script.train PICTURES -o FOLDER`.
"""

import argparse
import json
import os
import sys
import tarfile
import tempfile
from collections import deque
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import get_args, get_type_hints

from pipelines.errors import PastelError, say
from pipelines.training.loop import Job, looked_at, train
from pipelines.training.watching import follow, shown_path
from pipelines.training.wishes import LAYERS, PRECISIONS, SCHEDULES, TASKS, Wishes
from script.cog_server import SCHEMA
from script.compatibility import inputs
from weights_script.resolve import base_of

CHOICES = {"task": TASKS, "layers": tuple(LAYERS), "schedule": SCHEDULES, "precision": PRECISIONS}
MORE_HELP = {
    "word_learning_rate": "The rate of the token's own vectors in pivotal tuning and DreamBooth, where 0 turns it off.",
    "word_start": "What these vectors begin as, for example: dog.",
    "alpha": "A LoRA's scale is alpha / rank. Empty: the rank.",
    "min_snr_gamma": "The limit of min-SNR weighting. 0: off.",
    "prior_weight": "How much the pictures of the class count in the loss.",
    "schedule": "How the learning rate changes, by diffusers' names.",
    "warmup_steps": "Steps in which the learning rate grows from 0. Not for the schedule constant.",
    "precision": "What a GPU computes in. Automatic: bf16 or fp16, whichever is fast.",
    "gradient_checkpointing": "Trade time for memory. Empty: only on a GPU.",
}
"""What the options do that are not on the form, whose descriptions are in the schema."""


def described() -> dict[str, str]:
    """Return what each option does."""
    form = inputs(json.loads(SCHEMA.read_bytes()), "TrainingInput")
    return {name: str(field["description"]) for name, field in form.items()} | MORE_HELP


def arguments() -> argparse.ArgumentParser:
    """Return the parser. Its options are the fields of Wishes."""
    parser = argparse.ArgumentParser(
        prog="script/train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", type=Path, help="a ZIP or TAR, or a folder, of pictures and captions")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where results go")
    parser.add_argument(
        "--model", default="", help="a model of the manifest; default: the one in PASTEL_MODEL, or the embedded model"
    )
    parser.add_argument("--resume", type=Path, metavar="ARCHIVE", help="an earlier result to go on from")
    types, told = get_type_hints(Wishes), described()
    for field in fields(Wishes):
        kind = next(each for each in (get_args(types[field.name]) or (types[field.name],)) if each is not type(None))
        shown = "" if isinstance(types[field.name], UnionType) else f" (default: {field.default!r})"
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=_flag if kind is bool else kind,
            default=field.default,
            choices=CHOICES.get(field.name),
            help=f"{told[field.name]}{shown}".replace("%", "%%"),
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
            job = Job(
                pictures=archive,
                wishes=wishes,
                base=base,
                files=resolved.files,
                settings=resolved.settings,
                folder=output,
                resume=resume,
            )
            events = train(job)
            if os.environ.get("RANK", "0") != "0":  # the first of several processes tells what all of them do
                deque(events, maxlen=0)
                return 0
            say(f"Model: {resolved.description}")
            finished = follow(events, lambda name, value: None)
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

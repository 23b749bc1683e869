"""Command line: `python -m weights_script list | fetch NAME... | verify | path NAME | clean | convert FROM TO`."""

import argparse
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pipelines.errors import ModelError
from weights_script.claims import FOLDER as CLAIMS
from weights_script.claims import claim
from weights_script.download import Expected, amount
from weights_script.extras import OWN_FOLDERS
from weights_script.fetch import cache_folder, ensure, present
from weights_script.ledger import NAME, Ledger, sha256_of
from weights_script.manifest import Entry, load_manifest
from weights_script.shelf import FETCHED


def show(entries: dict[str, Entry], options: argparse.Namespace) -> int:
    for entry in entries.values():
        here = "embedded" if entry.embedded else "here"
        state = here if present(entry, options.cache) else "not here"
        size = amount(entry.size) if entry.size else f"~{amount(entry.about)}" if entry.about else ""
        doubt = "" if entry.verified or entry.embedded else "  (unverified)"
        what = f"{entry.name:24} {entry.kind:15} {entry.base:15} {size:>8}"
        print(f"{what}  {state:12} {entry.licence.name}{doubt}")
    print("".join(f"\n{line}" for line in licence_notes(entries.values())))
    return 0


def fetch(entries: dict[str, Entry], options: argparse.Namespace) -> int:
    """Fetch the named entries and the VAEs that belong to them."""
    chosen = [_entry(entries, name) for name in options.names]
    for line in licence_notes(chosen):
        logging.warning(line)
    for entry in chosen:
        for each in filter(None, (entry, entries.get(entry.vae))):
            print(ensure(each, options.cache))
    return 0


def licence_notes(entries: Iterable[Entry]) -> list[str]:
    """Return one line for each licence note: the entries that it applies to, and the note."""
    names: dict[str, list[str]] = {}
    for entry in entries:
        names.setdefault(entry.licence.note, []).append(entry.name)
    return [f"Licence of {', '.join(about)}: {note}" for note, about in names.items() if note]


def verify(entries: dict[str, Entry], options: argparse.Namespace) -> int:
    """Read every recorded file again. Return 1 if one is missing or differs from its record."""
    records = Ledger(options.cache).records()
    problems = 0
    for key, record in records.items():
        path = options.cache / key
        problem = "missing"
        if path.is_file():
            expected = Expected(size=record.size, sha256=record.sha256)
            problem = expected.problem(path.stat().st_size, sha256_of(path))
        problems += bool(problem)
        print(f"{problem or 'ok'}: {key}")
    print(f"{len(records)} files, {problems} with problems, in {options.cache}")
    return 1 if problems else 0


def where(entries: dict[str, Entry], options: argparse.Namespace) -> int:
    found = present(_entry(entries, options.name), options.cache)
    if found is None:
        raise ModelError(f"{options.name}: not here. Run `python -m weights_script fetch {options.name}`.")
    print(found)
    return 0


def clean(entries: dict[str, Entry], options: argparse.Namespace) -> int:
    """Delete files without a record: partial downloads and unknown files; with --all, everything that was fetched."""
    cache: Path = options.cache
    freed = 0
    for path in sorted(_unrecorded(cache, options.all)):
        if _in_use(cache, path):
            print(f"kept {path.relative_to(cache)}: being fetched right now")
            continue
        freed += path.stat().st_size
        path.unlink()
        print(f"deleted {path.relative_to(cache)}")
    for path in sorted(cache.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    print(f"{amount(freed)} freed in {cache}")
    return 0


def _unrecorded(cache: Path, all_files: bool) -> Iterator[Path]:
    """Yield the files to delete. The operator's own are never among them; those of requests are with `all_files`."""
    spared = {CLAIMS, *OWN_FOLDERS} if all_files else {CLAIMS, FETCHED, *OWN_FOLDERS}
    kept = set[Path]() if all_files else {cache / NAME, *(cache / key for key in Ledger(cache).records())}
    for path in cache.rglob("*"):
        if path.is_file() and path not in kept and path.relative_to(cache).parts[0] not in spared:
            yield path


def _in_use(cache: Path, path: Path) -> bool:
    """Return whether another process fetches into this file's folder."""
    held = claim(cache, path.parent.relative_to(cache).as_posix(), alone=True)
    if held is not None:
        held.release()
    return held is None


def convert(entries: dict[str, Entry], options: argparse.Namespace) -> int:
    from weights_script.convert import convert as write  # here: torch takes a second to import

    write(options.source, options.target, half=not options.keep_precision, vae=options.vae, ema=options.ema)
    print(f"{options.target}: {amount(options.target.stat().st_size)}")
    return 0


def _entry(entries: dict[str, Entry], name: str) -> Entry:
    if name not in entries:
        raise ModelError(f"{name}: not in the manifest. Known are {', '.join(entries)}.")
    return entries[name]


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m weights_script", description="Fetch and check weight files.")
    parser.add_argument(
        "--cache", type=Path, default=cache_folder(), help="folder to keep files in (PASTEL_CACHE; %(default)s)"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    command("list", show, "show every entry of the manifest and whether it is here")
    command("fetch", fetch, "fetch entries, and the VAEs that belong to them").add_argument("names", nargs="+")
    command("verify", verify, "read every fetched file again and compare its hash")
    command("path", where, "print the path of an entry").add_argument("name")
    text = "delete partial downloads and files that no fetch recorded"
    command("clean", clean, text).add_argument("--all", action="store_true", help="every fetched file as well")
    sub = command("convert", convert, "write a .ckpt or fp32 checkpoint as fp16 safetensors, without unused tensors")
    sub.add_argument("source", type=Path)
    sub.add_argument("target", type=Path)
    sub.add_argument("--vae", type=Path, help="a VAE that replaces the checkpoint's own")
    sub.add_argument("--ema", action="store_true", help="use the moving average of the UNet's weights, if there is one")
    sub.add_argument("--keep-precision", action="store_true", help="do not convert to fp16")
    return parser


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = arguments().parse_args()
    try:
        return int(options.run(load_manifest(), options))
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run again to continue from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

"""Command line: `script/bench NAME [--json]` runs one measurement and prints its table."""

import argparse
import io
from contextlib import nullcontext, redirect_stdout
from importlib import import_module

from bench import report

NAMES = ("setup", "flops", "overhead", "step", "e2e", "peer_sdcpp", "shapes", "service", "film")


def main() -> None:
    parser = argparse.ArgumentParser(prog="script/bench", description="Run one measurement and compare it with others.")
    commands = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name in NAMES:
        module = import_module(f"bench.{name}")
        text = str(module.__doc__).split("\n")[0].partition(": ")[2]
        command = commands.add_parser(name, help=text, description=module.__doc__)
        command.add_argument("--json", action="store_true", help="print only the line of JSON")
        module.options(command)
    arguments = parser.parse_args()
    with redirect_stdout(io.StringIO()) if arguments.json else nullcontext():
        figures = import_module(f"bench.{arguments.name}").run(arguments)
    print(report.line(arguments.name, figures))


if __name__ == "__main__":
    main()

"""A server that draws all day: neither memory nor files grow."""

from pathlib import Path

import psutil

from script.cog_server import CogServer
from tests.contract.pictures import DRAFT, HIRES, draw

MEGABYTE = 2**20


def resident(server: CogServer) -> float:
    """MB of the server and its worker."""
    parent = psutil.Process(server.process.pid)
    return sum(process.memory_info().rss for process in (parent, *parent.children(recursive=True))) / MEGABYTE


def draw_both_sizes(server: CogServer, times: int) -> None:
    for seed in range(times):
        draw(server, DRAFT | {"seed": seed})
        draw(server, HIRES | {"seed": seed})


def test_ten_predictions_in_a_row_leave_nothing_behind(server: CogServer, scratch: Path) -> None:
    draw_both_sizes(server, 2)  # what is made once is made
    memory, files = resident(server), len(list(scratch.rglob("*")))
    draw_both_sizes(server, 5)
    assert len(list(scratch.rglob("*"))) == files
    assert resident(server) - memory < 60, f"{memory:.0f} MB before"

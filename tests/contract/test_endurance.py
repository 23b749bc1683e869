"""Neither memory nor files of a server grow when it draws all day."""

from pathlib import Path

import psutil

from script.cog_server import CogServer
from tests.contract.pictures import DRAFT, HIRES, draw

MEGABYTE = 2**20


def resident(server: CogServer) -> float:
    """MB of the server and its worker."""
    parent = psutil.Process(server.process.pid)
    return sum(process.memory_info().rss for process in (parent, *parent.children(recursive=True))) / MEGABYTE


def memory_while_drawing(server: CogServer, times: int) -> list[float]:
    """MB after each of so many pairs of a small and a large picture."""
    found = []
    for seed in range(times):
        draw(server, DRAFT | {"seed": seed})
        draw(server, HIRES | {"seed": seed})
        found.append(resident(server))
    return found


def test_fourteen_predictions_in_a_row_leave_nothing_behind(server: CogServer, scratch: Path) -> None:
    """Memory goes up and down by some 40 MB as the allocator gives pages back, but must not climb."""
    first = memory_while_drawing(server, 3)
    files = len(list(scratch.rglob("*")))
    later = memory_while_drawing(server, 4)
    assert len(list(scratch.rglob("*"))) == files
    assert min(later[1:]) - max(first) < 30, (first, later)

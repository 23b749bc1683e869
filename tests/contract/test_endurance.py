"""Neither memory nor files of a server grow when it draws all day."""

import base64
import random
from pathlib import Path

from script.cog_server import CogServer
from script.soak import resident
from tests.contract.pictures import DRAFT, HIRES, draw

MEGABYTE = 2**20


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


def test_nothing_is_kept_of_the_files_that_requests_send(server: CogServer) -> None:
    """Cog parses a data URI with a function whose cache keeps the last 128 of them: here 27 MB each."""
    sizes = []
    for number in range(5):
        junk = base64.b64encode(random.Random(number).randbytes(10 * MEGABYTE)).decode()
        reply = server.predict_when_free({"files": [f"data:application/octet-stream;base64,{junk}"]})
        assert reply.body["status"] == "failed"
        sizes.append(resident(server))
    assert sizes[-1] - sizes[1] < 40, sizes  # 3 more of them would be 80 MB

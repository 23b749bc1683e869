"""The limit for the files that requests name. It needs no HTTP client, so that setup can check it."""

import math
import os

from pipelines.errors import ModelError

ROOM_SETTING = "PASTEL_FETCHED_GB"
ROOM = 16 << 30
"""Most bytes of all files, including partial ones, unless the setting says otherwise. The manifest's own ControlNets
are stored elsewhere and do not count: no request can add to them."""


def room() -> int:
    """Return how many bytes the files of requests may take. Raises ModelError for a setting that is no size."""
    said = os.environ.get(ROOM_SETTING, "").strip()
    if not said:
        return ROOM
    try:
        size = float(said) * (1 << 30)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise ModelError(f"{ROOM_SETTING}={said}: must be a number of GB above 0. Leave it out for {ROOM >> 30}.")
    return int(size)

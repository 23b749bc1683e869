"""A minimal picture: requests only know its size."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sized:
    """(width, height) in pixels."""

    size: tuple[int, int]

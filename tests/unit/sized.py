"""A picture as far as requests know one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sized:
    """(width, height) in pixels."""

    size: tuple[int, int]

"""A single reason why a picture described by generation data cannot be reproduced exactly."""

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.ask.request import Settings
from pipelines.errors import shown

OBSTACLE_MAX = 300
"""The most characters in an obstacle's text."""


@dataclass(frozen=True)
class Obstacle:
    """Something that generation data asks for but is not done here. Its text is safe to show."""

    text: str
    other_picture: bool
    """Whether it makes the picture a different one."""
    instead: Callable[[Settings], Settings] | None = None
    """Makes settings that can be drawn out of those that cannot."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", shown(self.text, OBSTACLE_MAX))


def another_picture(text: str) -> Obstacle:
    """Make an obstacle that changes the picture and has no replacement."""
    return Obstacle(text, other_picture=True)

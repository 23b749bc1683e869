"""Something that stands in the way of the picture that generation data describes."""

from dataclasses import dataclass, field
from typing import Any

from pipelines.ask.request import ControlSettings
from pipelines.ask.settings import Values
from pipelines.errors import shown

OBSTACLE_MAX = 300
"""Characters of an obstacle's text."""


@dataclass(frozen=True)
class Obstacle:
    """Something that generation data asks for and that is not done here. Its text may be shown."""

    text: str
    other_picture: bool
    """The picture would be another one."""
    instead: Values = field(default_factory=dict[str, Any])
    """Settings that could not be drawn, and what takes their place."""
    controls: tuple[ControlSettings, ...] | None = None
    """The ControlNets that are left; None: all of them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", shown(self.text, OBSTACLE_MAX))


def another_picture(text: str) -> Obstacle:
    """Make an obstacle that changes the picture and has no substitute."""
    return Obstacle(text, other_picture=True)

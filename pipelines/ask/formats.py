"""The input `output_format`: the files of pictures, and of films."""

from dataclasses import dataclass

from pipelines.ask.animation import AnimationSettings
from pipelines.errors import InvalidInput

AUTOMATIC = "automatic"
PICTURES = ("png", "webp", "jpg")
FILMS = {"mp4": "mp4", "webm": "webm", "gif": "gif", "animated webp": "webp"}
"""Formats of films, and the endings of their files."""
GIF_RATE_MAX = 50
"""Frames per second. Browsers and other programs take a frame of one hundredth of a second for a mistake."""


@dataclass(frozen=True)
class Formats:
    """The endings of the files of pictures or frames, and of the film; None: there is no film."""

    picture: str
    film: str | None


def formats_of(chosen: str, animation: AnimationSettings) -> Formats:
    """Return the formats that a choice means, for a film or for pictures. Raises InvalidInput for a film of none, and
    for a rate that its format cannot show.

    A film comes after its frames, which are lossless. A format of pictures asks for the frames alone.
    """
    film, rate = animation.whole, animation.frames_per_second
    if chosen in FILMS and not film:
        rule = "is for films, and this request draws single pictures"
        raise InvalidInput("output_format", chosen, rule, f"Use {', '.join(PICTURES)}, or fill in animation.")
    if chosen == "gif" and rate > GIF_RATE_MAX:
        rule = f"a gif plays at most {GIF_RATE_MAX}: programs show shorter frames for a tenth of a second"
        raise InvalidInput("frames_per_second", rate, rule, "Use less, or another output_format.")
    if chosen in PICTURES:
        return Formats(chosen, None)
    return Formats(PICTURES[0], FILMS.get(chosen, "mp4") if film else None)

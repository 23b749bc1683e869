"""The input `output_format`: the files of pictures, and of films."""

from dataclasses import dataclass

from pipelines.errors import InvalidInput

AUTOMATIC = "automatic"
PICTURES = ("png", "webp", "jpg")
FILMS = {"mp4": "mp4", "webm": "webm", "gif": "gif", "animated webp": "webp"}
"""Formats of films, and the endings of their files."""


@dataclass(frozen=True)
class Formats:
    """The endings of the files of pictures or frames, and of the film; None: there is no film."""

    picture: str
    film: str | None


def formats_of(chosen: str, film: bool) -> Formats:
    """Return the formats that a choice means, for a film or for pictures. Raises InvalidInput for a film of none.

    A film comes after its frames, which are lossless. A format of pictures asks for the frames alone.
    """
    if chosen in FILMS and not film:
        rule = "is for animations, and this request draws pictures"
        raise InvalidInput("output_format", chosen, rule, f"Use {', '.join(PICTURES)}, or fill in animation.")
    if chosen in PICTURES:
        return Formats(chosen, None)
    return Formats(PICTURES[0], FILMS.get(chosen, "mp4") if film else None)

"""The text of an animation: key frames with their prompts -> a timeline. No tensors.

    0: a yellow sun over the sea
    24: a pink moon over the sea, seed=7, strength=0.5, guidance=6, negative=lowres, text

The short form `a yellow sun | a pink moon` spreads its prompts evenly. Only a ` | ` outside brackets separates prompts,
so that `[a|b]` and `{a | b}` stay prompts.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipelines.ask.settings import NO, Checked, Choice, Flag, Number, Rule, Text, Whole, setting
from pipelines.errors import InvalidInput

FRAMES_MAX = 240
"""Limit for the drawn frames of one film."""
FRAMES_APART = 24
"""How many frames each pair of prompts gets in the short form, unless the request says otherwise."""
ANIMATION_MAX = 20_000
"""In characters: several prompts with their settings."""
NO_LOOP, PING_PONG, CIRCLE = "no", "ping-pong", "circle"
LOOPS = (NO_LOOP, PING_PONG, CIRCLE)
NONE, FILM = "none", "FILM"
WHOLE_FILM = -1
FIELD = "animation"


@dataclass(frozen=True)
class Loop(Choice):
    """How a film goes on after its last key frame."""

    def read(self, text: str) -> str:
        return NO_LOOP if text.casefold() in NO else super().read(text)


@dataclass(frozen=True, kw_only=True)
class KeyFrame:
    """A frame that is the picture of a prompt. None and empty mean the form's value."""

    frame: int
    prompt: str
    seed: int | None = None
    strength: float | None = None
    guidance: float | None = None
    negative: str | None = None
    """An empty text is no negative prompt."""

    def __str__(self) -> str:
        """Return the line that describes it."""
        numbers = ((name, getattr(self, name)) for name in NUMBERS)
        told = [f"{name}={value}" for name, value in numbers if value is not None]
        told += [] if self.negative is None else [f"negative={self.negative}"]
        return ", ".join((f"{self.frame}: {self.prompt}", *told))


@dataclass(frozen=True, kw_only=True)
class AnimationSettings(Checked):
    """A film from prompt to prompt. Without a text there is none."""

    text: str = setting(
        FIELD,
        Text(ANIMATION_MAX),
        "",
        key="Animation",
        about="Key frames of a film, one per line or separated by ` | `. Empty: a picture.",
    )
    frames_per_second: int = setting(
        "frames_per_second",
        Whole(1, 60),
        12,
        key="Frames per second",
        hint="12 is usual; gif is exact at 10, 20, 25 and 50.",
        about="How fast the film plays.",
    )
    loop: str = setting(
        "loop",
        Loop(LOOPS),
        NO_LOOP,
        key="Loop",
        about="ping-pong plays the film back to its start, circle draws on from the last prompt to the first.",
    )
    frames: int = setting(
        "animation_frames",
        Whole(0, FRAMES_MAX),
        0,
        key="Animation frames",
        hint="For more, send several films.",
        about="Drawn frames of a film whose prompts have no frame numbers, and of a circle with numbers. 0: "
        f"{FRAMES_APART} for each pair of prompts.",
    )
    frame: float = setting(
        "animation_frame",
        Number(WHOLE_FILM, FRAMES_MAX),
        WHOLE_FILM,
        key="Animation frame",
        hint="Leave it out for the whole film.",
        about="Draw only this frame, counted from 0. 2.5 lies between the frames 2 and 3. -1: the whole film.",
    )
    even_motion: bool = setting(
        "even_motion",
        Flag(),
        True,
        key="Even motion",
        about="Draw more frames where a picture changes fast and fewer where it hardly changes, so that the film does "
        "not jump. Off: all frames between two prompts are equally far apart.",
    )
    blended_beginning: float = setting(
        "blended_beginning",
        Number(0, 1),
        0.5,
        key="Blended beginning",
        hint="0 turns it off, 0.5 is usual.",
        about="The share of the steps in which frames blend what is predicted for both key frames, so that the film "
        "does not jump and is drawn faster. With much more, a frame shows both pictures at once.",
    )
    common_beginning: float = setting(
        "common_beginning",
        Number(0, 1),
        0,
        key="Common beginning",
        hint="0 turns it off, 0.2 is usual.",
        about="The share of the steps in which frames follow the middle between two prompts, so that neighbours share "
        "shapes, instead of a blended beginning. Key frames stay as they are.",
    )
    interpolation: str = setting(
        "interpolation",
        Choice((NONE, FILM)),
        NONE,
        key="Interpolation",
        about="FILM computes frames between the drawn ones. It is fetched at its first use.",
    )
    computed: int = setting(
        "frames_between",
        Whole(1, 7),
        1,
        key="Frames between",
        hint="1 doubles the frames.",
        about="How many frames FILM computes between two drawn ones.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        last = self.timeline.last if self.asked else FRAMES_MAX
        if self.frame > last or WHOLE_FILM < self.frame < 0:
            rule = f"the film has the frames 0 to {last}"
            raise InvalidInput("animation_frame", self.frame, rule, "Name one of them.")

    @property
    def asked(self) -> bool:
        """Whether there is a film."""
        return bool(self.text.strip())

    @property
    def whole(self) -> bool:
        """Whether the whole film is drawn, not one of its frames."""
        return self.asked and self.frame == WHOLE_FILM

    @property
    def timeline(self) -> "Timeline":
        """The film's key frames. Raises InvalidInput with the line and the fix."""
        return read_timeline(self.text, self.frames, self.loop)


@dataclass(frozen=True)
class Timeline:
    """The drawn frames of a film."""

    keys: tuple[KeyFrame, ...]
    """In order, the first at 0. With a circle, the last one is the first one's picture again."""
    count: int
    """Drawn frames."""

    @property
    def last(self) -> int:
        """The number of the last frame. A circle goes on to the first one's number behind it."""
        return self.keys[-1].frame

    @property
    def prompts(self) -> int:
        """Key frames with prompts of their own."""
        return sum(key.frame < self.count for key in self.keys)

    def between(self) -> Iterator[tuple[int, range]]:
        """Yield the number of each key frame but the last, and the frames between it and the next one."""
        for number, (first, second) in enumerate(zip(self.keys, self.keys[1:], strict=False)):
            yield number, range(first.frame + 1, second.frame)

    def weight(self, number: int, frame: float) -> float:
        """Return how far a frame is on the way from key frame `number` to the next one, from 0 to 1."""
        first, second = self.keys[number].frame, self.keys[number + 1].frame
        return (frame - first) / (second - first)


def played(count: int, loop: str) -> list[int]:
    """Return the order in which a film of `count` frames shows them."""
    back = range(count - 2, 0, -1) if loop == PING_PONG else range(0)
    return [*range(count), *back]


# --- reading ----------------------------------------------------------------------------------------------------------

NUMBERS: dict[str, Rule] = {
    "seed": Whole(0, 2**32 - 1),
    "strength": Number(0, 1),
    "guidance": Number(1, 30),
}
_OPTIONS = (*NUMBERS, "negative")
_OTHERS = (
    "steps|num_inference_steps|cfg|cfg_scale|sampler|scheduler|schedule_type|model|width|height|aspect_ratio|clip_skip|"
    "loras?|controls?|highres_fix|hires_scale|frames_per_second|fps|loop"
)
"""Settings that people try to give to one key frame, and that only a whole film has."""
_NUMBERED = re.compile(r"\s*-?[0-9]{1,9}\s*:(?![0-5][0-9]\b)")  # a prompt may begin with a time, such as 12:30
_LIKE_NUMBERED = re.compile(r"\s*[-+]?[0-9][0-9.,_]*\s*:(?![0-5][0-9]\b)")
_LIKE_TIME = re.compile(r"\s*[0-9]+:[0-9]+")
_NEGATIVE = re.compile(r"(?:^|[\s,;])negative(?:_prompt)?\s?=", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?:^|(?<=[\s,;]))(?:(seed)|(?:denoising_)?(strength)|(guidance)(?:_scale)?)\s?=\s?([^\s,;]*)[,;]?", re.IGNORECASE
)
_OTHER = re.compile(rf"(?:^|(?<=[\s,;]))(?:{_OTHERS})\s?=\s?[^\s,;]*", re.IGNORECASE)
_MARK = re.compile(r"\\.|[()\[\]{}]|(?<=\s)\|(?=\s)")
_PAIRS = {")": "(", "]": "[", "}": "{"}
_SPACES = " \t,;"


def read_timeline(text: str, frames: int, loop: str) -> Timeline:
    """Read the key frames. `frames` is the number of frames of the short form; 0: it has the usual number.

    Raises InvalidInput with the line and the fix.
    """
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    pieces = [(number, piece) for number, line in lines for piece in _pieces(line)]
    if len(pieces) < 2:
        raise _broken(text, "a film needs at least two prompts", "Separate them with ` | `, or give each a line.")
    numbered = [_NUMBERED.match(piece) is not None for _, piece in pieces]
    if all(numbered):
        keys = [_key(number, *_without_number(piece)) for number, piece in pieces]
        _check_order([number for number, _ in pieces], keys)
        closing = _closing(keys, frames) if loop == CIRCLE else 0
    elif any(numbered):
        number, piece = pieces[numbered.index(False)]
        if _LIKE_NUMBERED.match(piece):
            rule = f"line {number}: a frame number must be a whole number of at most 9 digits"
            raise _broken(piece, rule, "Write it as `24: a prompt`.")
        if _LIKE_TIME.match(piece):
            rule = f"line {number}: what it begins with is a time, not a frame number"
            raise _broken(piece, rule, "Begin it with a frame number and a space: `24: 12:30 at night`.")
        raise _broken(piece, f"line {number} has no frame number, others have", "Begin it with one: `24: a prompt`.")
    else:
        places, closing = _spread(text, len(pieces), frames, loop)
        keys = [_key(number, place, piece) for place, (number, piece) in zip(places, pieces, strict=True)]
    keys = _with_prompts(text, keys)
    count = keys[-1].frame + 1
    if loop == CIRCLE:
        count = keys[-1].frame + closing
        keys.append(replace(keys[0], frame=count))
    if count > FRAMES_MAX:
        fix = "Use lower frame numbers." if all(numbered) else f"Use fewer prompts, or Animation frames: {FRAMES_MAX}."
        raise _broken(text, f"at most {FRAMES_MAX} frames, this has {count}", fix)
    return Timeline(tuple(keys), count)


def _broken(text: str, rule: str, fix: str) -> InvalidInput:
    return InvalidInput(FIELD, text.strip(), rule, fix)


def _pieces(line: str) -> list[str]:
    """Split a line at every ` | ` that is not inside a pair of brackets."""
    found = list(_MARK.finditer(line))
    opened: list[int] = []
    closed_at: dict[int, int] = {}
    for place, mark in enumerate(found):
        if mark[0] in "([{":
            opened.append(place)
        elif mark[0] in _PAIRS and opened and found[opened[-1]][0] == _PAIRS[mark[0]]:
            closed_at[opened.pop()] = place
    pieces, start, free_from = [], 0, 0
    for place, mark in enumerate(found):
        free_from = max(free_from, closed_at.get(place, 0))
        if mark[0] == "|" and place >= free_from:
            pieces.append(line[start : mark.start()])
            start = mark.end()
    return [*pieces, line[start:]]


def _without_number(piece: str) -> tuple[int, str]:
    number, _, rest = piece.partition(":")
    return int(number), rest


def _key(line: int, frame: int, text: str) -> KeyFrame:
    """Read what follows a frame's number: the prompt, with numbers anywhere, and the negative prompt at the end."""
    found = _NEGATIVE.search(text)
    before, negative = (text[: found.start()], text[found.end() :].strip()) if found else (text, None)
    values = dict[str, float]()
    place = f"line {line}, frame {frame}"
    if other := _OTHER.search(before):
        rule = f"{place}: a key frame may only have {', '.join(_OPTIONS[:-1])} and {_OPTIONS[-1]}"
        raise InvalidInput(FIELD, other[0], rule, "Set it for the whole film, or leave it out.")
    for match in _NUMBER.finditer(before):
        (name,), told = (each.lower() for each in match.groups()[:-1] if each), match[4]
        if name in values:
            raise InvalidInput(FIELD, f"{name}={told}", f"{place}: there are two of {name}", "Remove one of them.")
        try:
            values[name] = NUMBERS[name].check(name, NUMBERS[name].read(told), "")
        except ValueError:  # InvalidInput is one, too
            rule = f"{place}: {name} must be {NUMBERS[name].words}"
            raise InvalidInput(FIELD, f"{name}={told}", rule, "Correct it, or leave it out.") from None
    prompt = " ".join(_NUMBER.sub("", before).split()) if values else before
    prompt = prompt.strip(_SPACES if values or found else None)
    seed = values.pop("seed", None)
    return KeyFrame(frame=frame, prompt=prompt, seed=None if seed is None else int(seed), negative=negative, **values)


def _check_order(lines: Sequence[int], keys: Sequence[KeyFrame]) -> None:
    """Check that the numbers rise from 0. Raises InvalidInput."""
    if all(key.frame != 0 for key in keys):
        raise _broken(str(keys[0]), f"line {lines[0]}: the first key frame must be 0", "Begin it with `0:`.")
    for line, before, key in zip(lines[1:], keys, keys[1:], strict=False):
        if key.frame == before.frame:
            raise _broken(str(key), f"line {line}: there are two key frames {key.frame}", "Give one another number.")
        if key.frame < before.frame:
            rule = f"line {line}: frame {key.frame} comes after frame {before.frame}"
            raise _broken(str(key), rule, "Sort the lines by frame.")


def _closing(keys: Sequence[KeyFrame], frames: int) -> int:
    """Return how many frames a circle adds after its last key frame: to a film of `frames`, or as many as lie between
    two of its key frames on average. Raises InvalidInput."""
    last = keys[-1].frame
    if 0 < frames <= last:
        rule = f"the key frame {last} leaves no room in a circle of {frames} frames"
        raise InvalidInput("animation_frames", frames, rule, f"Use {last + 1} or more.")
    return frames - last if frames else -(-last // (len(keys) - 1))


def _spread(text: str, count: int, frames: int, loop: str) -> tuple[list[int], int]:
    """Return evenly spread frame numbers for the prompts, and how many frames a circle adds after the last of them."""
    pairs = count if loop == CIRCLE else count - 1
    frames = frames or FRAMES_APART * pairs
    if frames < count:
        raise _broken(text, f"{frames} frames are too few for {count} prompts", f"Use {count} or more.")
    last = frames if loop == CIRCLE else frames - 1
    places = [round(number * last / pairs) for number in range(count)]
    return places, frames - places[-1]


def _with_prompts(text: str, keys: list[KeyFrame]) -> list[KeyFrame]:
    """Give key frames without a prompt that of the key frame before, and the first ones that of the next."""
    prompts = [key.prompt for key in keys if key.prompt]
    if not prompts:
        raise _broken(text, "no key frame has a prompt", "Write one behind its number: `0: a prompt`.")
    filled, last = [], prompts[0]
    for key in keys:
        last = key.prompt or last
        filled.append(replace(key, prompt=last))
    return filled

"""What can be set: one row for each setting, from which everything else about it follows.

A row stands where its value lives: as a field of one of the request's classes (`request.py`). The checks, the reader
and the writer of generation data, the errors and the tables of the documentation all come from the rows.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

from pipelines.errors import InvalidInput

Values = Mapping[str, Any]
"""Settings by name. Only what somebody said is in it."""


class Rule(Protocol):
    """What values a setting may have."""

    @property
    def words(self) -> str:
        """The rule in words that follow "must be"."""

    def read(self, text: str) -> Any:
        """The value that a text stands for. Raises ValueError for a text that cannot be read."""

    def check(self, name: str, value: object, hint: str) -> Any:
        """The value in its own type. Raises InvalidInput for one that breaks the rule."""


@dataclass(frozen=True)
class Number:
    """A number within a range."""

    low: float
    high: float

    @property
    def words(self) -> str:
        return f"a number from {self.low} to {self.high}"

    def read(self, text: str) -> float:
        """A whole number stays one, so that 7 and 7.0 are written as they were read."""
        if not math.isfinite(number := float(text)):
            raise ValueError(text)
        return int(text) if re.fullmatch(r"[-+]?[0-9]{1,15}", text) else number

    def check(self, name: str, value: object, hint: str) -> float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and self.low <= value <= self.high:
            return value
        raise InvalidInput(name, value, f"must be {self.words}", hint)


@dataclass(frozen=True)
class Whole:
    """A whole number within a range. JSON clients may send it as 64.0."""

    low: int
    high: int

    @property
    def words(self) -> str:
        return f"a whole number from {self.low} to {self.high}"

    def read(self, text: str) -> int:
        if not re.fullmatch(r"[-+]?[0-9]{1,19}(\.0+)?", text):
            raise ValueError(text)
        return int(text.partition(".")[0])

    def check(self, name: str, value: object, hint: str) -> int:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and self.low <= value <= self.high and value == int(value):  # type: ignore[operator, call-overload]
            return int(value)  # type: ignore[call-overload]
        raise InvalidInput(name, value, f"must be {self.words}", hint)


@dataclass(frozen=True)
class LayerFromEnd(Whole):
    """Clip skip. Other programs write 0 for none, or count with a minus."""

    def read(self, text: str) -> int:
        return abs(super().read(text)) or 1


@dataclass(frozen=True)
class Choice:
    """One of several names. An `open` choice may be read as any name: what cannot be drawn is told later."""

    names: tuple[str, ...]
    open: bool = False

    @property
    def words(self) -> str:
        return f"one of {', '.join(self.names)}"

    def read(self, text: str) -> str:
        own = next((name for name in self.names if name.casefold() == text.casefold()), None)
        if own is None and not self.open:
            raise ValueError(text)
        return own or text

    def check(self, name: str, value: object, hint: str) -> str:
        if value in self.names:
            return str(value)
        raise InvalidInput(name, value, f"must be {self.words}", hint or f"The usual one is {self.names[0]}.")


@dataclass(frozen=True)
class Name(Choice):
    """A name that may be one of ours; whoever holds the value checks it."""

    def check(self, name: str, value: object, hint: str) -> str:
        return str(value)


YES, NO = ("yes", "on", "1"), ("no", "off", "0", "none", "false")


@dataclass(frozen=True)
class Flag:
    """Yes or no, by the words that generation data has for them."""

    yes: str = "True"
    no: str = "False"

    @property
    def words(self) -> str:
        return f"{self.yes} or {self.no}"

    def read(self, text: str) -> bool:
        folded = text.casefold()
        if folded not in (self.yes.casefold(), self.no.casefold(), *YES, *NO):
            raise ValueError(text)
        return folded == self.yes.casefold() or folded in YES

    def check(self, name: str, value: object, hint: str) -> bool:
        if isinstance(value, bool):
            return value
        raise InvalidInput(name, value, "must be true or false", hint)


@dataclass(frozen=True)
class Text:
    """A text of limited length, in valid Unicode."""

    longest: int

    @property
    def words(self) -> str:
        return f"text of at most {self.longest} characters"

    def read(self, text: str) -> str:
        return text

    def check(self, name: str, value: object, hint: str) -> str:
        if not isinstance(value, str):
            raise InvalidInput(name, value, "must be text", "Send a string.")
        if len(value) > self.longest:
            raise InvalidInput(name, value, f"at most {self.longest} characters", "Shorten it.")
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise InvalidInput(name, value, "must be text without NUL bytes or broken Unicode", "Remove them.")
        return value


SAME_AS_DEFAULT: Any = object()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One thing that can be set."""

    name: str
    """What the form, errors and the log call it."""
    rule: Rule
    default: Any = None
    """Its value where neither the request nor the model says one."""
    key: str = ""
    """What generation data calls it. Empty: generation data does not hold it, or only as a part of a `Pair`."""
    unsaid: Any = None
    """Its value in a block of generation data that does not say one."""
    written: bool = True
    """Whether we write it into generation data. WebUI does not write everything that ours may hold."""
    hint: str = ""
    """How to mend a value that breaks the rule."""
    about: str = ""
    """What it does, in one sentence, for the documentation."""

    def check(self, value: object) -> Any:
        """The value in its own type. Raises InvalidInput."""
        return self.rule.check(self.name, value, self.hint)


@dataclass(frozen=True)
class Key:
    """What generation data calls a setting, where its silence or its writing is not the usual."""

    name: str
    unsaid: Any = SAME_AS_DEFAULT
    written: bool = True


def setting(
    name: str, rule: Rule, default: Any = dataclasses.MISSING, *, key: str | Key = "", hint: str = "", about: str = ""
) -> Any:
    """Make a dataclass field that is the row of a setting. A field without a default must be given."""
    known = None if default is dataclasses.MISSING else default
    called = key if isinstance(key, Key) else Key(key)
    row = Setting(
        name=name,
        rule=rule,
        default=known,
        key=called.name,
        unsaid=known if called.unsaid is SAME_AS_DEFAULT else called.unsaid,
        written=called.written,
        hint=hint,
        about=about,
    )
    return field(default=default, metadata={"setting": row})


@cache
def rows(group: type) -> dict[str, Setting]:
    """The rows of one of the request's classes, by the attribute that holds the value."""
    fields = dataclasses.fields(group)
    return {each.name: each.metadata["setting"] for each in fields if "setting" in each.metadata}


class Checked:
    """Base of a dataclass whose settings are checked when one is made. Raises InvalidInput."""

    def __post_init__(self) -> None:
        for attribute, row in rows(type(self)).items():  # type: ignore[arg-type]
            object.__setattr__(self, attribute, row.check(getattr(self, attribute)))


def of_group(group: type, values: Values) -> dict[str, Any]:
    """The arguments that make the group from those of its settings that are said."""
    return {attribute: values[row.name] for attribute, row in rows(group).items() if row.name in values}


def values_of(group: Checked) -> dict[str, Any]:
    """The settings of one of the request's groups, by name."""
    return {row.name: getattr(group, attribute) for attribute, row in rows(type(group)).items()}  # type: ignore[arg-type]

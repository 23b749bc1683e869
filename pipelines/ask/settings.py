"""Settings: one row describes each of them, and everything else about it is derived from that row.

A row is declared where its value is stored: as a field of one of the request's classes (`request.py`). The checks, the
reader and writer of generation data, the errors and the tables in the documentation all use the rows.
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
"""Settings by name. It holds only those that were given."""


class Rule(Protocol):
    """The values that a setting may have."""

    @property
    def words(self) -> str:
        """The rule in words that follow "must be" in an error."""

    def read(self, text: str) -> Any:
        """Parse the text into a value. Raises ValueError if it cannot be parsed."""

    def check(self, name: str, value: object, hint: str) -> Any:
        """Return the value in its own type. Raises InvalidInput if it breaks the rule."""


@dataclass(frozen=True)
class Number:
    """A number within a range."""

    low: float
    high: float

    @property
    def words(self) -> str:
        return f"a number from {self.low} to {self.high}"

    def read(self, text: str) -> float:
        """Parse a number. Keep a whole number as an int, so that 7 and 7.0 are written back as they were read."""
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
    """Clip skip. Other programs write 0 for none, or negative numbers."""

    def read(self, text: str) -> int:
        return abs(super().read(text)) or 1


@dataclass(frozen=True)
class Choice:
    """One of several names. An `open` choice accepts any name until a request is made of it."""

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


YES, NO = ("yes", "on", "1"), ("no", "off", "0", "none", "false")


@dataclass(frozen=True)
class Flag:
    """Yes or no, by the words that generation data uses for them."""

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


@dataclass(frozen=True)
class ModelName(Text):
    """The name of another model of this container, or nothing."""

    def read(self, text: str) -> str:
        return "" if text.casefold() in NO_MODEL else text


NO_MODEL = ("", "none", "use same checkpoint")
"""What WebUI and other programs write where no other model is used."""
SAME_AS_DEFAULT: Any = object()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One thing that can be set."""

    name: str
    """Its name in the form, in errors and in the log."""
    rule: Rule
    default: Any = None
    """Its value if neither the request nor the model gives one."""
    key: str = ""
    """Its key in generation data. Empty: it has none of its own, though it may be part of a pair (`table.PAIRS`)."""
    unsaid: Any = None
    """Its value when a block of generation data does not mention it."""
    written: bool = True
    """Whether we write it into generation data. WebUI does not write every setting."""
    hint: str = ""
    """How to fix a value that breaks the rule."""
    about: str = ""
    """One sentence for the documentation about what it does."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of an open choice; None for other settings."""
        return self.rule.names if isinstance(self.rule, Choice) and self.rule.open else None

    def check(self, value: object) -> Any:
        """Return the value in its own type. Raises InvalidInput if it breaks the rule."""
        return self.rule.check(self.name, value, self.hint)


@dataclass(frozen=True)
class Key:
    """A setting's key in generation data, for settings that differ in `unsaid` or `written`."""

    name: str
    unsaid: Any = SAME_AS_DEFAULT
    written: bool = True


def setting(
    name: str, rule: Rule, default: Any = dataclasses.MISSING, *, key: str | Key = "", hint: str = "", about: str = ""
) -> Any:
    """Make a dataclass field that carries a setting's row. A field without a default is required."""
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
    """Return the rows of one of the request's classes, by the attribute that holds the value."""
    fields = dataclasses.fields(group)
    return {each.name: each.metadata["setting"] for each in fields if "setting" in each.metadata}


class Checked:
    """Base of a dataclass that checks its settings when it is created, apart from open choices. Raises InvalidInput."""

    def __post_init__(self) -> None:
        for attribute, row in _rows_of(self).items():
            if row.names is None:
                object.__setattr__(self, attribute, row.check(getattr(self, attribute)))

    def unavailable(self) -> dict[str, Setting]:
        """Return the rows of open choices whose name is none of ours, by attribute."""
        found = _rows_of(self).items()
        return {each: row for each, row in found if row.names is not None and getattr(self, each) not in row.names}

    def check_names(self) -> None:
        """Check the open choices, too. Raises InvalidInput."""
        for attribute, row in self.unavailable().items():
            row.check(getattr(self, attribute))


def _rows_of(group: Checked) -> dict[str, Setting]:
    """Return the rows of one of the request's groups."""
    return rows(type(group))  # type: ignore[arg-type]


def of_group(group: type, values: Values) -> dict[str, Any]:
    """Return the arguments for the group's constructor: those of its settings that `values` holds."""
    return {attribute: values[row.name] for attribute, row in rows(group).items() if row.name in values}


def values_of(group: Checked) -> dict[str, Any]:
    """Return the settings of one of the request's groups, by name."""
    return {row.name: getattr(group, attribute) for attribute, row in _rows_of(group).items()}

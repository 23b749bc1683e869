"""The models of a container by their names, as people and generation data write them."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pipelines.ask.identity import ModelIdentity
from pipelines.errors import InvalidInput

_TITLE = re.compile(r"(?P<name>.*?)\s*\[(?P<digits>[0-9a-f]{6,64})\]", re.IGNORECASE | re.DOTALL)
"""How WebUI names a model: its file's name, and the first digits of its SHA-256."""
_DIGITS = re.compile(r"[0-9a-f]{8,64}", re.IGNORECASE)


def stem(name: str) -> str:
    """Return a model's name without folder and extension, in lower case."""
    return re.sub(r"\.(safetensors|ckpt|pt|vae)", "", name.replace("\\", "/").rpartition("/")[2].casefold())


def split_title(text: str) -> tuple[str, str]:
    """Split `name [digits]` into the name and the digits in lower case, which are empty if there are none."""
    told = _TITLE.fullmatch(text.strip())
    return (told["name"], told["digits"].lower()) if told else (text.strip(), "")


@dataclass(frozen=True, kw_only=True)
class ModelNames:
    """The models of a container. They are called as its settings name them: a manifest entry, or a file's name."""

    identities: Mapping[str, ModelIdentity]
    """The models that can be used. The first is used unless a request says otherwise."""
    broken: Mapping[str, str] = field(default_factory=dict[str, str])
    """Models that cannot be used, and why."""

    def find(self, text: str) -> str | None:
        """Return the model that a text means: by its title, else by the hash, else by its name alone. None: no model.

        Case, a folder and a file's extension do not matter.
        """
        name, digits = split_title(text)
        if not digits and _DIGITS.fullmatch(name):
            digits = name.lower()
        named = [label for label, model in self.identities.items() if stem(name) in (stem(label), stem(model.name))]
        hashed = [label for label in self.identities if self.hashed(label, digits)]
        both = [label for label in named if label in hashed]
        return next(iter((*both, *hashed, *named)), None)

    def hashed(self, label: str, digits: str) -> bool:
        """Return whether the model's hash begins with these digits."""
        return bool(digits) and self.identities[label].sha256.startswith(digits.lower())

    def differs(self, label: str, text: str) -> bool:
        """Return whether the text gives another hash than the model's. The hash of a folder cannot be compared."""
        _, digits = split_title(text)
        return bool(digits) and not self.identities[label].folder and not self.hashed(label, digits)

    def refusal(self, where: str, text: str, shown: str = "") -> InvalidInput:
        """Return the error for a name that means no model that can be used. `shown` is the value to show."""
        return refusal(where, text, self.identities, self.broken, shown)


def refusal(where: str, text: str, models: Iterable[str], broken: Mapping[str, str], shown: str = "") -> InvalidInput:
    """Return the error for a name that means none of these models. It lists them, the closest name first."""
    fix = f"The models here are {', '.join(closest_first(text, models))}."
    if reason := reason_of(text, broken):
        return InvalidInput(where, shown or text, f"this model cannot be used here: {reason.rstrip('.')}", fix)
    return InvalidInput(where, shown or text, "is not one of this container's models", fix)


def reason_of(text: str, broken: Mapping[str, str]) -> str:
    """Return why a model that the text names cannot be used; empty if it names no such model."""
    name, _ = split_title(text)
    return next((reason for label, reason in broken.items() if stem(label) == stem(name)), "")


def closest_first(text: str, models: Iterable[str]) -> list[str]:
    """Return the names, the most similar to the text first."""
    name = stem(split_title(text)[0])
    return sorted(models, key=lambda label: -difflib.SequenceMatcher(None, name, stem(label)).ratio())

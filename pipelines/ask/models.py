"""The models of a container by their names, as people and generation data write them."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

from pipelines.ask.identity import SHORT_HASH, ModelIdentity
from pipelines.errors import InvalidInput

_TITLE = re.compile(r"(?P<name>.*?)\s*\[(?P<digits>[0-9a-f]{6,64})\]", re.IGNORECASE | re.DOTALL)
"""How WebUI names a model: its file's name, and the first digits of its SHA-256."""
_HASH = re.compile(r"[0-9a-f]{8,64}", re.IGNORECASE)
"""Fewer digits do not tell files apart."""
_EXTENSIONS = re.compile(r"(\.(safetensors|ckpt|pt|vae))+$")


def stem(name: str) -> str:
    """Return a model's name without folder and extensions, in lower case."""
    return _EXTENSIONS.sub("", name.replace("\\", "/").rpartition("/")[2].casefold())


def split_title(text: str) -> tuple[str, str]:
    """Split `name [digits]` into the name and the digits in lower case, which are empty if there are none."""
    told = _TITLE.fullmatch(text.strip())
    return (told["name"], told["digits"].lower()) if told else (text.strip(), "")


def same_hash(sha256: str, digits: str) -> bool:
    """Return whether a hash begins with these digits, and they are enough of them."""
    return bool(_HASH.fullmatch(digits)) and sha256.startswith(digits.lower())


@dataclass(frozen=True, kw_only=True)
class ModelNames:
    """The models of a container. They are called as its settings name them: a manifest entry, or a file's name."""

    identities: Mapping[str, ModelIdentity]
    """The models that can be used. The first is used unless a request says otherwise."""
    broken: Mapping[str, str] = field(default_factory=dict[str, str])
    """Models that cannot be used, and why."""
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    """Names of files, also of models that cannot be used, as far as they are known without an identity."""
    unfit: Mapping[str, str] = field(default_factory=dict[str, str])
    """Models that cannot take part in a picture of the one that draws it, and why."""

    def find(self, text: str, digits: str = "") -> str | None:
        """Return the model that a text means: by its title, else by the hash, else by its name alone. None: no model.

        `digits` is the hash if the text is only a name. Case, a folder and a file's extension do not matter.
        """
        text = text.strip()
        if text in [*self.identities] and not digits:  # the mapping itself would look its value up
            return text
        name, told = split_title(text)
        wanted = digits or told or name
        if _HASH.fullmatch(wanted):
            for label in chain(self._named(name), self.identities):
                if same_hash(self.identities[label].sha256, wanted):
                    return label
        return next(self._named(name), None)

    def _named(self, name: str) -> Iterator[str]:
        """Yield the models that are called so, then those whose files are. Only unknown files wait for identities."""
        if name:
            yield from (label for label in self.identities if stem(label) == stem(name))
            yield from (label for label in self.identities if stem(self._file(label)) == stem(name))

    def _file(self, label: str) -> str:
        return self.files[label] if label in self.files else self.identities[label].name

    def meant(self, where: str, text: str, shown: str = "") -> str:
        """Return the model that a text means. Raises InvalidInput for the input `where` if it means none that fits.

        `shown` is the value to show.
        """
        label = self.find(text)
        if label is None:
            fix = f"The models here are {', '.join(closest_first(text, self.identities))}."
            reason = self.reason(text)
            told = f"this model cannot be used here: {reason}" if reason else "is not one of this container's models"
            raise InvalidInput(where, shown or text, told, fix)
        if self.differs(label, text):
            raise InvalidInput(where, shown or text, self.told(label), "Leave out the hash to use this one.")
        if label in self.unfit:
            fix = "Name a text-to-image model or refiner of the same kind."
            raise InvalidInput(where, shown or text, self.unfit[label], fix)
        return label

    def differs(self, label: str, text: str) -> bool:
        """Return whether the text gives another hash than the model's. The hash of a folder cannot be compared."""
        _, digits = split_title(text)
        if not digits or text.strip() == label:
            return False
        model = self.identities[label]
        return not model.folder and not same_hash(model.sha256, digits)

    def told(self, label: str) -> str:
        """Tell the model's hash."""
        return f"{label} here is {self.identities[label].sha256[:SHORT_HASH]}"

    def reason(self, text: str) -> str:
        """Return why a model that the text names cannot be used; empty if it names no such model."""
        name, _ = split_title(text)
        for label, reason in self.broken.items():
            if stem(name) in (stem(label), stem(self.files.get(label, label))):
                return reason.rstrip(".")
        return ""


def closest_first(text: str, models: Iterable[str]) -> list[str]:
    """Return the names, the most similar to the text first."""
    name = stem(split_title(text)[0])
    return sorted(models, key=lambda label: -difflib.SequenceMatcher(None, name, stem(label)).ratio())

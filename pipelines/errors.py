"""Named errors, and the one place that cleans every text that leaves: errors, log lines and names.

Each message says what was wrong and what to do about it. It holds no secret, no control character, and is never long: a
server may choke on megabytes of text, and a file or a request can bring them.
"""

import logging
import os
import re
import unicodedata
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

TEXT_MAX = 2000
"""Characters of an error or a log line."""
NAME_MAX = 100
"""Characters of a name that a file or a request brings."""
READ_MAX = 20 * TEXT_MAX
"""Characters of a text that are looked at. What lies beyond them is never shown."""


class PastelError(Exception):
    """Base of every error that this project raises on purpose."""

    def __init__(self, text: str) -> None:
        super().__init__(shown(text))


class InvalidInput(PastelError, ValueError):
    """One input breaks a rule. The text names the field, its value, the rule and the fix."""

    def __init__(self, field: str, value: object, rule: str, fix: str) -> None:
        self.field, self.value, self.rule, self.fix = field, value, rule, fix
        told = repr(shown(value, 200) if isinstance(value, str) else value)
        if len(told) > 80:
            told = f"{told[:60]}... ({len(value) if isinstance(value, str) else len(told)} characters)"
        super().__init__(f"{field}={told}: {rule}. {fix}")


class UnexpectedError(PastelError):
    """Something failed that nobody foresaw. The log has the traceback."""


class DeviceError(PastelError):
    """There is a GPU, and it cannot be used."""


class ModelError(PastelError):
    """A checkpoint, VAE or other weight file cannot be used. Raised while loading, before any prediction."""


class NonFiniteError(PastelError):
    """Networks returned NaN or infinity and the float32 retry did not help."""


class OutOfMemory(PastelError):
    """The device has no room for the plan."""


class OutputError(PastelError):
    """A picture cannot be written. The text names the folder, what the system said and the fix."""


class AllPicturesFlagged(PastelError):
    """The safety checker left nothing to return."""

    def __init__(self) -> None:
        super().__init__(
            "Every picture was flagged as explicit and left out (the log has the scores). Try another prompt or seed, "
            "or set disable_safety_checker if your use allows it."
        )


# --- texts ------------------------------------------------------------------------------------------------------------

log = logging.getLogger(__name__)

_WORD = re.compile(r"[^\s'\"<>]+")
"""A run of text in which an address would stand."""
_WORD_WITH_MARK = re.compile(r"[^\s.,:;)\]}]([.,:;)\]}]+)(?=\s|$)")
"""The end of a word that ends a part of a sentence."""
_TOKEN = re.compile(r"(hf|r8|sk|ghp)_[A-Za-z0-9]{8,}")
_CREDENTIAL = re.compile(
    r"(?i)\b(authorization['\"]?\s{0,3}[:=]\s{0,3}['\"]?(?:(?:bearer|basic|token|digest)\s{1,3})?)[^\s'\"]+"
)
_BEARER = re.compile(r"(?i)\b(bearer\s{1,3})[^\s'\"]{16,}")
_ASSIGNED = re.compile(
    r"(?i)\b((?:(?:x-)?api[-_]?key|(?:access[-_]?)?token|sig(?:nature)?|password|secret)"
    r"(?:\s{0,3}=['\"]?(?=\S)|['\"]\s{0,3}:\s{0,3}['\"]|\s{0,3}:\s{0,3}(?=[^\s&'\"]{6})))[^\s&'\"]+"
)
_QUERY = re.compile(r"[?&][\w.%-]+=.")
"""A query of an address that has no host, such as a redirect's."""
_UPLOADED = re.compile(r"(?<![\w./-])(?:/[\w.-]+){0,8}/tmp[a-z0-9_]{8}(?=[^\s/'\":,)])")
"""Where the server puts a file that a request brings, before the file's own name."""
_HOST = re.compile(r"\.[A-Za-z][^.:]+\.?(:\d+)?$|^(\d+\.){3}\d+(:\d+)?$|^localhost(:\d+)?$", re.IGNORECASE)
"""How the name of a host ends that has no scheme before it: with letters, or it is four numbers."""
_CONTROL = dict.fromkeys((*range(32), *range(127, 160), 8232, 8233), " ") | dict.fromkeys(
    (0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF), ""
)
"""Control characters, which become spaces, and those that are not seen or turn the direction of a text, which go."""


def shown(text: str, longest: int = TEXT_MAX) -> str:
    """Return the text as it may be shown: bounded, in valid Unicode, without control characters, secrets and the
    folders of uploaded files.

    What is too long loses its middle, where errors have the value that they are about: their end says what to do. Of
    a text beyond READ_MAX the end is lost: a secret that begins before it could not be known there.
    Takes time in proportion to the text's length.
    """
    whole = len(text)
    text = text[:READ_MAX].encode("utf-8", "replace").decode("utf-8").translate(_CONTROL)
    text = _UPLOADED.sub("", redacted(text))
    if len(text) <= longest and whole <= READ_MAX:
        return text
    mark = f"... ({whole} characters)"
    end = text[len(text) - longest // 4 :] if whole <= READ_MAX else ""
    mark += " ... " if end else ""
    return text[: max(0, longest - len(mark) - len(end))] + mark + end


def shown_name(name: str) -> str:
    """A name that a file or a request brings, as it may be shown and written into generation data."""
    return shown(" ".join(name[: 2 * NAME_MAX].split()), 2 * NAME_MAX)[:NAME_MAX].strip()


def redacted(text: str, secrets: tuple[str, ...] = ()) -> str:
    """The text without what may be secret: user names, queries and fragments of addresses, and tokens.

    An address is known by its structure, in whatever spelling. `secrets` are values that are known to be secret.
    """
    for secret in (*secrets, os.environ.get("HF_TOKEN", "")):
        if len(secret) >= 4:
            text = text.replace(secret, "***").replace(urllib.parse.quote(secret, safe=""), "***")
    text = _without_queries(text)
    text = _CREDENTIAL.sub(r"\1***", text)
    text = _BEARER.sub(r"\1***", text)
    text = _ASSIGNED.sub(r"\1***", text)
    return _TOKEN.sub(r"\1_***", text)


def _without_queries(text: str) -> str:
    """Each address without its user name, query and fragment.

    A token may hold a space. So a query in quotation marks ends where they do, and another one at a word that ends
    with a mark, or at the end of the text.
    """
    pieces: list[str] = []
    done = 0
    for match in _WORD.finditer(text):
        if match.start() < done:
            continue
        word = match[0]
        plain = _address_without_query(word)
        if plain is None:
            continue
        end = match.end()
        quote = text[match.start() - 1] if match.start() else ""
        if quote in ("'", '"') and plain != word:
            closing = text.find(quote, end)
            end = closing if closing >= 0 else end
        elif plain != word and _has_query(word) and not _end_of(word):
            last = _WORD_WITH_MARK.search(text, end)
            end = last.start(1) if last else len(text)
        pieces += (text[done : match.start()], plain)
        done = end
    return "".join((*pieces, text[done:]))


def _address_without_query(word: str) -> str | None:
    """The word without what may be secret in it; None where it is no address."""
    plain = word
    for _ in range(3):  # it may be encoded more than once
        plain = urllib.parse.unquote(plain)
    plain = unicodedata.normalize("NFKC", plain)  # of wide marks
    if "://" in plain or _QUERY.search(plain):
        word = plain
    head = re.split(r"[?#]", word, maxsplit=1)[0]
    before, separator, rest = head.rpartition("://")
    if head.startswith("//"):
        before, separator, rest = "", "//", head[2:]
    host, slash, path = rest.partition("/")
    host = host.rpartition("@")[2]
    if not separator and not ((slash or head != word) and _HOST.search(host)):
        query = _QUERY.search(word)
        return word[: query.start()] + _end_of(word) if query else None
    end = _end_of(word) if head != word else ""
    return f"{before}{separator}{host}{slash}{path}{end}"


def _has_query(word: str) -> bool:
    return bool(re.search(r"[?#]|%(?:25)*(?:3f|23)", word, re.IGNORECASE))


def _end_of(word: str) -> str:
    """The marks at its end, which end a sentence and no address."""
    return word[len(word.rstrip(").,:;]}")) :]


def in_one_line(error: BaseException) -> str:
    """What a library's error says, for a message of ours: its first line, and the next where that only announces it."""
    text = str(error)[:READ_MAX].strip()
    lines = [line.strip() for line in text.splitlines()[:2]] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


@contextmanager
def clean_errors() -> Iterator[None]:
    """Inside, every error that leaves is one of ours, and brings no other one along whose text was not cleaned."""
    try:
        yield
    except PastelError as error:
        raise error from None
    except Exception as error:
        log.exception("Unexpected error")
        raise UnexpectedError(f"{type(error).__name__}: {in_one_line(error)}. This is a fault of ours.") from None


class CleanFormatter(logging.Formatter):
    """Formats log records so that each line may be shown."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return "\n".join(shown(line).rstrip() for line in text[:READ_MAX].splitlines())


def say(text: str) -> None:
    """Print lines for the log of a prediction."""
    for line in text.splitlines():
        print(shown(line))

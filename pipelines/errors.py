"""Named errors, and the one place that cleans all outgoing text: errors, log lines and names.

Each message says what was wrong and what to do about it. It holds no secrets and no control characters, and its length
is limited: a file or a request can bring megabytes of text, and a server may choke on them.
"""

import logging
import os
import re
import unicodedata
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

TEXT_MAX = 2000
"""The most characters in an error or a log line."""
NAME_MAX = 100
"""The most characters in a name that comes from a file or a request."""
READ_MAX = 20 * TEXT_MAX
"""How many characters of a text are processed. Everything beyond them is dropped."""


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
        # The name is ours. Together with it, the value of an input called token would be taken for a secret.
        Exception.__init__(self, f"{field}={shown(f'{told}: {rule}. {fix}')}")


class UnexpectedError(PastelError):
    """Something failed unexpectedly. The log has the traceback."""


class DeviceError(PastelError):
    """There is a GPU, but it cannot be used."""


class ModelError(PastelError):
    """A checkpoint, VAE or other weight file cannot be used. Raised while loading, before any prediction."""


class NonFiniteError(PastelError):
    """Networks returned NaN or infinity, and the float32 retry did not help."""


class OutOfMemory(PastelError):
    """The device has too little memory for the plan."""


class OutputError(PastelError):
    """A picture or a result cannot be written. The text names the folder, the system's error and the fix."""


class AllPicturesFlagged(PastelError):
    """The safety checker flagged every picture, so there is nothing to return."""

    def __init__(self) -> None:
        super().__init__(
            "Every picture was flagged as explicit and left out (the log has the scores). Try another prompt or seed, "
            "or set disable_safety_checker if your use allows it."
        )


# --- texts ------------------------------------------------------------------------------------------------------------

log = logging.getLogger(__name__)

_WORD = re.compile(r"[^\s'\"<>]+")
"""A run of text that may contain an address."""
_WORD_WITH_MARK = re.compile(r"[^\s.,:;)\]}]([.,:;)\]}]+)(?=\s|$)")
"""The end of a word that is followed by punctuation."""
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
"""A query in an address without a host, such as a relative redirect."""
_UPLOADED = re.compile(r"(?<![\w./-])(?:/[\w.-]+){0,8}/tmp[a-z0-9_]{8}(?=[^\s/'\":,)])")
"""The folder and prefix under which the server stores an uploaded file; the file's own name follows."""
_HOST = re.compile(r"\.[A-Za-z][^.:]+\.?(:\d+)?$|^(\d+\.){3}\d+(:\d+)?$|^localhost(:\d+)?$", re.IGNORECASE)
"""A host name without a scheme: it ends with letters, or it is four numbers."""
_CONTROL = dict.fromkeys((*range(32), *range(127, 160), 8232, 8233), " ") | dict.fromkeys(
    (0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF), ""
)
"""Control characters become spaces. Invisible characters and those that change the text direction are removed."""


def shown(text: str, longest: int = TEXT_MAX) -> str:
    """Return the text in a form that is safe to show: bounded, in valid Unicode, without control characters, secrets
    and the folders of uploaded files.

    A text that is too long loses its middle. That is where errors quote the bad value; their end says what to do.
    A text beyond READ_MAX loses its end instead, because a secret that begins before the cut would not be recognised
    after it. The time taken is proportional to the text's length.
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
    """Return a name from a file or a request in a form that is safe to show and to write into generation data."""
    return shown(" ".join(name[: 2 * NAME_MAX].split()), 2 * NAME_MAX)[:NAME_MAX].strip()


def redacted(text: str, secrets: tuple[str, ...] = ()) -> str:
    """Return the text without anything that may be secret: user names, queries and fragments of addresses, and tokens.

    Addresses are recognised by their structure, however they are spelled. `secrets` are values known to be secret.
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
    """Remove the user name, query and fragment from each address.

    A token may contain a space. So a quoted query ends at the closing quotation mark. Any other query ends at the next
    word that is followed by punctuation, or at the end of the text.
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
    """Return the word without anything that may be secret; None if it is not an address."""
    plain = word
    for _ in range(3):  # it may be encoded more than once
        plain = urllib.parse.unquote(plain)
    plain = unicodedata.normalize("NFKC", plain)  # turns full-width punctuation into ASCII
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
    """Return the punctuation at the end of the word, which belongs to the sentence and not to an address."""
    return word[len(word.rstrip(").,:;]}")) :]


def counted(number: int, word: str) -> str:
    """Return a number of things, in the singular for one."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def in_one_line(error: BaseException) -> str:
    """Return a library's error text for one of our messages: its first line, and the next if the first ends in ":"."""
    text = str(error)[:READ_MAX].strip()
    lines = [line.strip() for line in text.splitlines()[:2]] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


@contextmanager
def clean_errors() -> Iterator[None]:
    """Turn every error raised inside into one of ours, without a chained error whose text was not cleaned."""
    try:
        yield
    except PastelError as error:
        raise error from None
    except Exception as error:
        log.exception("Unexpected error")
        raise UnexpectedError(f"{type(error).__name__}: {in_one_line(error)}. This is a bug in this project.") from None


class CleanFormatter(logging.Formatter):
    """Formats log records so that each line is safe to show."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return "\n".join(shown(line).rstrip() for line in text[:READ_MAX].splitlines())


def log_plainly() -> None:
    """Let log records from INFO on reach the log as lines without time, level or logger."""
    logging.basicConfig(level=logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(CleanFormatter("%(message)s"))


def say(text: str) -> None:
    """Print lines to the log of a prediction."""
    for line in text.splitlines():
        print(shown(line))

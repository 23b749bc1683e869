"""Named errors. Each message says what was wrong and what to do about it, and no secret."""

import os
import re


class PastelError(Exception):
    """Base of every error that this project raises on purpose."""


class InvalidInput(PastelError, ValueError):
    """One input breaks a rule. The text names the field, its value, the rule and the fix."""

    def __init__(self, field: str, value: object, rule: str, fix: str) -> None:
        self.field, self.value, self.rule, self.fix = field, value, rule, fix
        shown = repr(redacted(value) if isinstance(value, str) else value)
        if len(shown) > 80:
            shown = f"{shown[:60]}... ({len(shown)} characters)"
        super().__init__(f"{field}={shown}: {rule}. {fix}")


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


def redacted(text: str) -> str:
    """The text without passwords and queries in its links (tokens, signatures), and without Hugging Face tokens."""
    text = re.sub(r"(https?://)[^/\s@]*@", r"\1", text)
    text = re.sub(r"((?:https?://|(?<![\w.-])(?:[\w-]+\.)+[a-z]+/)[^\s?#]*)[?#]\S*", r"\1", text)
    secret = os.environ.get("HF_TOKEN")
    text = text.replace(secret, "***") if secret else text
    return re.sub(r"hf_[A-Za-z0-9]{8,}", "hf_***", text)


def in_one_line(error: BaseException) -> str:
    """What a library's error says, for a message of ours: its first line, and the next where that only announces it."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])

"""Errors a user can fix: each says what is wrong, where, and how to fix it, in one or two lines.

The command line prints the message alone. Any other exception is a bug of this project and keeps its traceback.
"""

from __future__ import annotations


class GlmtuneError(Exception):
    """Base class of the errors a user can fix.

    Args:
        message: what is wrong and where (a path, `file:line`, a config key).
        hint: how to fix it; printed as a second line.
    """

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class ConfigError(GlmtuneError):
    """An unknown key, a wrong type or a contradiction in a run's configuration."""


class ModelError(GlmtuneError):
    """A checkpoint or tokenizer that cannot be loaded."""


class DataError(GlmtuneError):
    """A data file that cannot be read or has no usable rows."""


class RunError(GlmtuneError):
    """A run folder in the wrong state: in use, not resumable, or its base model has changed."""


class TrainingError(GlmtuneError):
    """Training that had to stop: a loss that is not finite, no space left on the disk."""


class ServerError(GlmtuneError):
    """A server that cannot start as it was asked to."""


def summarize_error(error: BaseException, max_length: int | None = None) -> str:
    """The first line of an error's message, or the name of its type where the message is empty.

    Args:
        error: any exception.
        max_length: longer lines are cut there and end in `…`.
    """
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if max_length is None or len(line) <= max_length else f"{line[:max_length]}…"


def join_lines(error: BaseException, max_length: int = 200) -> str:
    """An error's message as part of a sentence, for messages whose first line is a heading.

    Args:
        error: any exception.
        max_length: longer messages are cut there and end in `…`.
    """
    text = " ".join((str(error).strip() or type(error).__name__).split()).rstrip(".")
    return text if len(text) <= max_length else f"{text[:max_length]}…"

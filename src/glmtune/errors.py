"""Errors a user can mend. Each says what is wrong, where, and how to mend it, in one or two lines.

The command line prints the message alone; anything that is not a `GlmtuneError` is a bug of ours and keeps
its traceback.
"""

from __future__ import annotations


class GlmtuneError(Exception):
    """A mistake the user can mend.

    Args:
        message: what is wrong and where (a path, `file:line`, a config key).
        hint: how to mend it; printed as a second line.
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
    """A checkpoint or tokenizer that cannot be loaded as it is."""


class DataError(GlmtuneError):
    """A data file that cannot be read or has no usable rows."""


class RunError(GlmtuneError):
    """A run folder in the wrong state: in use, not resumable, or its base has changed."""


class TrainingError(GlmtuneError):
    """Training that had to stop: a loss that is not finite, no space left."""


def first_line(error: BaseException, most: int | None = None) -> str:
    """The first line of what an error says, its type where it says nothing; cut, and marked so, after `most`."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if most is None or len(line) <= most else f"{line[:most]}…"

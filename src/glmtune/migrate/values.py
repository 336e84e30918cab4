"""Values as they stand in a command line or in YAML, read as what they mean."""

from __future__ import annotations

from typing import Any

from glmtune.errors import ConfigError

_TRUE = {"true", "t", "yes", "y", "1"}
_FALSE = {"false", "f", "no", "n", "0"}


def is_bool_word(text: str) -> bool:
    """Whether a word can be the value of a switch."""
    return text.lower() in _TRUE | _FALSE


def is_true(value: Any, shown: str, source: str) -> bool:
    """What a switch says.

    Raises:
        ConfigError: neither yes nor no.
    """
    if isinstance(value, bool) or value is None:
        return bool(value)
    if is_bool_word(str(value)):
        return str(value).lower() in _TRUE
    raise ConfigError(f"{source}: {shown} must be true or false, not {value!r}.")

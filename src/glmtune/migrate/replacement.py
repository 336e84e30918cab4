"""Commands of glmtune that do what another script does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glmtune.utils import shell_words
from glmtune.utils.documents import DocumentError, parse_yaml


@dataclass
class ReplacementCommand:
    """A command of glmtune for a command of another project.

    Attributes:
        source: file and line of the other command, for messages.
        script: name of the other script.
        words: the command without `glmtune`.
        notes: one line each: what differs, what was ignored and why.
        environment: variables that are set before the command.
        needs_launcher: whether it is a training with DeepSpeed, which needs `--nproc` for one process too.
    """

    source: str
    script: str
    words: list[str]
    notes: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    needs_launcher: bool = False

    @property
    def text(self) -> str:
        """The command as it is typed in a shell."""
        return shell_words.add_variables(self.environment, shell_words.join_words(["glmtune", *self.words]))


def join_commands(commands: list[ReplacementCommand]) -> str:
    """Return commands as one line of a shell."""
    return shell_words.join_commands([command.text for command in commands])


def make_options(values: Mapping[str, Any]) -> list[str]:
    """Return options with their values; those without a value (None, empty text) are left out.

    Args:
        values: option to value, in order.
    """
    return [word for option, value in values.items() if value not in (None, "") for word in (option, str(value))]


def make_overrides(values: Mapping[str, Any]) -> list[str]:
    """Return `--set key=value` for each value that is given; texts that YAML would read as another type are quoted."""
    words = []
    for key, value in values.items():
        if value in (None, ""):
            continue
        text = str(value)
        if isinstance(value, str) and _read_yaml(text) != text:
            text = json.dumps(text, ensure_ascii=False)
        words += ["--set", f"{key}={text}"]
    return words


def _read_yaml(text: str) -> Any:
    try:
        return parse_yaml(text)
    except DocumentError:
        return None

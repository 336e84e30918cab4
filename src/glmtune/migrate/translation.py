"""A run of another project as a run of glmtune, and its config file."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import Any

import yaml

from glmtune.config import METHOD_RATES, TRAINING_DEFAULTS, RunConfig, config_to_dict
from glmtune.config_parsing import build_dataclass

_MISSING = object()


@dataclass
class Translation:
    """A run that is being translated.

    Attributes:
        source: what is translated, for messages: a file or the name of a script.
        tree: nested plain values, from which `config_parsing.build_dataclass` builds a `RunConfig`.
        notes: one line each: what was translated, what differs, what was ignored and why.
        nproc: number of processes that the script started; 0: one for every GPU of the machine.
        resume: whether the script resumed from its last checkpoint.
        translated_keys: `their key -> our key` of every key with an equivalent; `add_summary` makes one note of them.
    """

    source: str
    tree: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    nproc: int = 1
    resume: bool = False
    translated_keys: list[str] = field(default_factory=list, repr=False)

    def set_value(self, key: str, value: Any) -> None:
        """Set a dotted key of the tree."""
        *parents, last = key.split(".")
        node = self.tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value

    def get_value(self, key: str) -> Any:
        """Return the value of a dotted key, or None if it is not set."""
        node: Any = self.tree
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    def set_default(self, key: str, value: Any) -> None:
        """Set a dotted key if it is not set yet."""
        if self.get_value(key) is None:
            self.set_value(key, value)

    def add_note(self, text: str) -> None:
        """Add a note, unless it is there already."""
        if text not in self.notes:
            self.notes.append(text)

    def add_summary(self) -> None:
        """Insert the list of translated keys before the other notes."""
        if self.translated_keys:
            self.notes.insert(0, f"Translated: {', '.join(self.translated_keys)}.")
            self.translated_keys = []


def dump_translation(translation: Translation) -> str:
    """Write the run as YAML for `load_config`: values that differ from the defaults, the notes as comments above.

    Raises:
        ConfigError: the run holds a value of the wrong type.
    """
    config = build_dataclass(RunConfig, translation.tree, translation.source)
    rates = {"learning_rate": METHOD_RATES[config.method]}
    defaults = {**config_to_dict(RunConfig()), "training": {**TRAINING_DEFAULTS, **rates}}
    comments = [f"Translated from {translation.source}. Keys that are not listed have their defaults."]
    comments += [f"- {note}" for note in translation.notes]
    wrapper = textwrap.TextWrapper(
        110, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False, break_long_words=False
    )
    lines = [line for comment in comments for line in wrapper.wrap(comment)]
    tree = _drop_defaults(config_to_dict(config), defaults)
    return "\n".join(lines) + "\n" + yaml.safe_dump(tree, allow_unicode=True, sort_keys=False, width=100)


def _drop_defaults(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    result = {}
    for key, value in values.items():
        default = defaults.get(key, _MISSING)
        if isinstance(value, dict) and isinstance(default, dict):
            value = _drop_defaults(value, default)
            if not value:
                continue
        elif value == default and type(value) is type(default):
            continue
        result[key] = value
    return result

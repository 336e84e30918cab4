"""A translated run as a config file that a person keeps: what differs from the defaults, and the notes as comments."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml

from glmtune.config import METHOD_RATES, TRAINING_DEFAULTS, RunConfig, to_tree
from glmtune.config_parsing import from_tree
from glmtune.migrate.draft import Translation

_MISSING = object()


def to_yaml(translation: Translation) -> str:
    """The run as YAML for `load_config`, with the notes as comments above it.

    Raises:
        ConfigError: the run holds a value of the wrong type.
    """
    config = from_tree(RunConfig, translation.tree, translation.source)
    rates = {"learning_rate": METHOD_RATES[config.method]}
    defaults = {**to_tree(RunConfig()), "training": {**TRAINING_DEFAULTS, **rates}}
    comments = [f"Translated from {translation.source}. Keys that are not here have their defaults."]
    comments += [f"- {note}" for note in translation.notes]
    lines = [line for comment in comments for line in _comment(comment)]
    body = yaml.safe_dump(_differing(to_tree(config), defaults), allow_unicode=True, sort_keys=False, width=100)
    return "\n".join(lines) + "\n" + body


def _differing(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for key, value in values.items():
        default = defaults.get(key, _MISSING)
        if isinstance(value, dict) and isinstance(default, dict):
            value = _differing(value, default)
            if not value:
                continue
        elif value == default and type(value) is type(default):
            continue
        kept[key] = value
    return kept


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text, 110, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False, break_long_words=False
    )

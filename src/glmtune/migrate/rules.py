"""What becomes of one key of another script. Each script's table of them is what the documentation shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from glmtune.config_parsing import as_number, nearest
from glmtune.errors import ConfigError
from glmtune.migrate.draft import Translation
from glmtune.migrate.values import is_true


@dataclass(frozen=True)
class Rule:
    """What becomes of a key.

    Attributes:
        key: ours, dotted; empty: it has none.
        why: what differs, or why it has no meaning here; said to the user.
        only: the values that mean the same without a key of ours; None: all.
        hint: how to get what the other values meant.
        switch: a flag that may stand without a value.
        values: theirs to ours, where they are spelt differently; others are refused.
    """

    key: str = ""
    why: str = ""
    only: tuple[Any, ...] | None = None
    hint: str = ""
    switch: bool = False
    values: Mapping[Any, Any] | None = None

    @property
    def ours(self) -> str:
        """What the documentation calls it: our key, or none."""
        return self.key or ("" if self.only is None else "refused")


def to(key: str, why: str = "", *, switch: bool = False, values: Mapping[Any, Any] | None = None) -> Rule:
    """A key with one of ours to hold its value."""
    return Rule(key=key, why=why, switch=switch, values=values)


def without(why: str, *, switch: bool = False) -> Rule:
    """A key that has no meaning here; the run is the same without it."""
    return Rule(why=why, switch=switch)


def only(*values: Any, why: str, hint: str, switch: bool = False) -> Rule:
    """A key that would change the run and has nothing here to honour it, except with these values."""
    return Rule(why=why, only=values, hint=hint, switch=switch)


Rules = Mapping[str, Rule]
Label = Callable[[str], str]
"""A key as its own script spells it: `--train_file`, `data_config.train_file`."""


def flag(name: str) -> str:
    """A key of a command line."""
    return f"--{name}"


def switches(rules: Rules) -> set[str]:
    """The flags of a table that may stand without a value."""
    return {name for name, rule in rules.items() if rule.switch}


def apply(rules: Rules, given: Mapping[str, Any], draft: Translation, label: Label) -> None:
    """Carry every given key over, or say what becomes of it.

    Raises:
        ConfigError: a key of no rule (the nearest known one is named), or a value that cannot be honoured.
    """
    for name, value in given.items():
        if name not in rules:
            raise unknown(label(name), name, rules, draft)
        _apply(rules[name], label(name), value, draft)


def unknown(shown: str, name: str, known: Iterable[str], draft: Translation) -> ConfigError:
    """The error for a key that a script never had."""
    return ConfigError(f"{draft.source}: unknown {shown}.", nearest(name, list(known)))


def _apply(rule: Rule, shown: str, value: Any, draft: Translation) -> None:
    if rule.switch:
        value = is_true(value, shown, draft.source)
    if rule.only is not None and value is not None and value not in rule.only:
        raise ConfigError(f"{draft.source}: {shown} {value}: {rule.why}.", rule.hint)
    if rule.values is not None and value is not None:
        value = as_number(value)
        if value not in rule.values:
            said = ", ".join(str(known) for known in rule.values)
            raise ConfigError(f"{draft.source}: {shown} {value}: has nothing like it here.", f"Known: {said}.")
        value = rule.values[value]
    if rule.key and value is not None:
        draft.put(rule.key, value)
        draft.moved.append(f"{shown} -> {rule.key}")
    if rule.why and rule.only is None:
        draft.note(f"{shown}: {rule.why}.")

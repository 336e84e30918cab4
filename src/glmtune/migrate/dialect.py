"""The keys of another training script, and the rules that translate them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from glmtune.config_parsing import parse_number, suggest_key
from glmtune.errors import ConfigError
from glmtune.migrate.argument_names import (
    OLD_KEYS,
    OLD_SWITCHES,
    TRAINING_KEYS,
    TRAINING_SWITCHES,
    complete_training_section,
    parse_bool,
)
from glmtune.migrate.translation import Translation


@dataclass(frozen=True)
class Rule:
    """How one key of another script is translated. The tables of docs/migrate.md show these rules.

    Attributes:
        key: our dotted key; empty: there is none.
        note: what differs, or why the key is not needed or not supported; shown to the user.
        accepted_values: values that need no key of ours, other values are errors; None: all values.
        hint: how to get the effect of the other values.
        switch: whether the flag may have no value.
        value_map: their values to ours where they differ, other values are errors.
    """

    key: str = ""
    note: str = ""
    accepted_values: tuple[Any, ...] | None = None
    hint: str = ""
    switch: bool = False
    value_map: Mapping[Any, Any] | None = None


def map_key(key: str, note: str = "", *, switch: bool = False, values: Mapping[Any, Any] | None = None) -> Rule:
    """Return the rule of a key with an equivalent."""
    return Rule(key=key, note=note, switch=switch, value_map=values)


def ignore_key(note: str, *, switch: bool = False) -> Rule:
    """Return the rule of a key that the run does not need."""
    return Rule(note=note, switch=switch)


def accept_values(*values: Any, note: str, hint: str, switch: bool = False) -> Rule:
    """Return the rule of a key that is not supported, except with these values."""
    return Rule(note=note, accepted_values=values, hint=hint, switch=switch)


Rules = Mapping[str, Rule]
KeyFormatter = Callable[[str], str]
"""Returns a key as the user wrote it: `--train_file`, `data_config.train_file`."""

RUN_RULES: Rules = {
    "output_dir": map_key("output"),
    "do_train": ignore_key("what `glmtune train` does", switch=True),
    "do_eval": ignore_key("score the run afterwards: glmtune eval RUN --data FILE", switch=True),
    "do_predict": ignore_key("score the run afterwards: glmtune eval RUN --data FILE", switch=True),
    "resume_from_checkpoint": accept_values(
        *(False, "False", "false", "None", ""),
        note="the optimizer state of that script cannot be resumed",
        hint="Start from its weights with `adapter: PATH`; runs of glmtune resume with --resume.",
    ),
}
"""Keys of `TrainingArguments` that are not in the `training:` section of our config."""


@dataclass(frozen=True)
class Dialect:
    """A script whose keys are all flags.

    Attributes:
        name: for messages and documentation.
        scripts: its file names.
        marker_keys: keys that no other script has.
        rules: of its own keys; it takes those of `TrainingArguments` too.
        set_defaults: sets the script's defaults and adds notes about what differs.
    """

    name: str
    scripts: tuple[str, ...]
    marker_keys: frozenset[str]
    rules: Rules
    set_defaults: Callable[[Translation, Mapping[str, Any]], None]

    @property
    def switches(self) -> set[str]:
        """All flags that may have no value."""
        own = {name for name, rule in {**RUN_RULES, **self.rules}.items() if rule.switch}
        return own | TRAINING_SWITCHES | OLD_SWITCHES

    @property
    def keys(self) -> set[str]:
        """All keys."""
        return {*RUN_RULES, *self.rules} | TRAINING_KEYS | OLD_KEYS


def format_flag(name: str) -> str:
    """Return a key as a flag of the command line."""
    return f"--{name}"


def translate_keys(
    dialect: Dialect, values: Mapping[str, Any], translation: Translation, format_key: KeyFormatter
) -> None:
    """Translate the keys of a script.

    Args:
        dialect: the script.
        values: key to value, not nested.
        translation: is filled.
        format_key: for messages.

    Raises:
        ConfigError: an unknown key, a value that is not supported, or nothing to train.
    """
    rules = {**RUN_RULES, **dialect.rules}
    for name in values:
        if name not in dialect.keys:
            raise unknown_key_error(format_key(name), name, dialect.keys, translation)
    apply_rules(rules, {name: value for name, value in values.items() if name in rules}, translation, format_key)
    set_training_section({name: value for name, value in values.items() if name not in rules}, translation)
    dialect.set_defaults(translation, values)
    translation.add_summary()


def apply_rules(
    rules: Rules, values: Mapping[str, Any], translation: Translation, format_key: KeyFormatter = str
) -> None:
    """Translate values by rules, with a note for each one that has no equivalent.

    Raises:
        ConfigError: a key without a rule (the nearest one is named), or a value that is not supported.
    """
    for name, value in values.items():
        label = format_key(name)
        if name not in rules:
            raise unknown_key_error(label, name, rules, translation)
        rule = rules[name]
        if rule.switch:
            value = parse_bool(value, label, translation.source)
        if rule.accepted_values is not None and value is not None and value not in rule.accepted_values:
            raise ConfigError(f"{translation.source}: {label} {value}: {rule.note}.", rule.hint)
        if rule.value_map is not None and value is not None:
            value = parse_number(value)
            if value not in rule.value_map:
                options = ", ".join(str(option) for option in rule.value_map)
                raise ConfigError(f"{translation.source}: {label} {value} is not supported.", f"One of: {options}.")
            value = rule.value_map[value]
        if rule.key and value is not None:
            translation.set_value(rule.key, value)
            translation.translated_keys.append(f"{label} -> {rule.key}")
        if rule.note and rule.accepted_values is None:
            translation.add_note(f"{label}: {rule.note}.")


def unknown_key_error(label: str, name: str, keys: Iterable[str], translation: Translation) -> ConfigError:
    """Return the error for a key that the script does not have."""
    return ConfigError(f"{translation.source}: unknown {label}.", suggest_key(name, list(keys)))


def set_training_section(values: Mapping[str, Any], translation: Translation) -> None:
    """Set the `training:` section from a script's `TrainingArguments`.

    Rows are not packed, and no training rows are split off for evaluation, as in the scripts.
    """
    section, notes = complete_training_section(values)
    for key, value in section.items():
        translation.set_value(f"training.{key}", value)
    for note in notes:
        translation.add_note(note)
    translation.set_default("data.packing", False)
    translation.set_default("data.eval_fraction", 0.0)


def disable_evaluation_without_data(translation: Translation) -> None:
    """Turn evaluation off if there is no evaluation data."""
    has_data = translation.get_value("data.eval") or translation.get_value("data.eval_fraction")
    if translation.get_value("training.eval_strategy") != "no" and not has_data:
        translation.set_value("training.eval_strategy", "no")
        translation.add_note("training.eval_strategy: set to no, because there is no evaluation data.")

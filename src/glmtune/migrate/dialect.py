"""The keys of another training script, and the rules that translate them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from glmtune.config_parsing import parse_number
from glmtune.errors import ConfigError
from glmtune.migrate.argument_names import (
    CONVERTED_KEYS,
    OLD_KEYS,
    OLD_SWITCHES,
    RENAMED_KEYS,
    SCRIPT_DEFAULTS,
    TRAINING_KEYS,
    TRAINING_SWITCHES,
    complete_training_section,
    parse_bool,
)
from glmtune.migrate.replacement import ReplacementCommand
from glmtune.migrate.translation import EVALUATION, DefaultValue, Translation


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


_LISTED_DEFAULTS = (
    *("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("lr_scheduler_type", "warmup_steps"),
)
"""Keys of `TrainingArguments` whose defaults change the result."""

Rules = Mapping[str, Rule]
KeyFormatter = Callable[[str], str]
"""Returns a key as the user wrote it: `--train_file`, `data_config.train_file`."""

RUN_RULES: Rules = {
    "output_dir": map_key("output"),
    "do_train": ignore_key("what `glmtune train` does", switch=True),
    "do_eval": ignore_key(f"score the run afterwards: {EVALUATION}", switch=True),
    "do_predict": ignore_key(f"score the run afterwards: {EVALUATION}", switch=True),
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
        marker_keys: keys that few other scripts have.
        rules: of its own keys; it takes those of `TrainingArguments` too.
        set_defaults: sets the script's defaults and adds notes about what differs.
        decisive_keys: keys that no other script has.
        list_keys: flags that take several values.
        make_evaluations: returns the commands for a line that evaluates and does not train; None: it always trains.
    """

    name: str
    scripts: tuple[str, ...]
    marker_keys: frozenset[str]
    rules: Rules
    set_defaults: Callable[[Translation, Mapping[str, Any]], None]
    decisive_keys: frozenset[str] = frozenset()
    list_keys: frozenset[str] = frozenset()
    make_evaluations: Callable[[Mapping[str, Any], str], list[ReplacementCommand]] | None = None

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
    require_known_keys(values, dialect.keys, format_key, translation.source, dialect.name)
    apply_rules(rules, {name: value for name, value in values.items() if name in rules}, translation, format_key)
    set_training_section({name: value for name, value in values.items() if name not in rules}, translation)
    dialect.set_defaults(translation, values)
    translation.add_summary()
    translation.add_default_notes({rule.key: name for name, rule in reversed(rules.items()) if rule.key})


def require_known_keys(
    names: Iterable[str], known: Iterable[str], format_key: KeyFormatter, source: str, script: str
) -> None:
    """Check that a script has all keys.

    Raises:
        ConfigError: names all that it does not have, and what they may be misspelled for.
    """
    known = list(known)
    unknown = [name for name in names if name not in known]
    if not unknown:
        return
    near = {name: difflib.get_close_matches(name, known, n=1, cutoff=0.8) for name in unknown}
    corrections = [f"{format_key(name)}: {format_key(match[0])}" for name, match in near.items() if match]
    if not corrections:
        hint = "Remove what the run does not need. docs/migrate.md lists the keys that are read."
    elif len(unknown) == 1:
        hint = f"Did you mean {format_key(near[unknown[0]][0])}?"
    else:
        hint = f"Did you mean ({', '.join(corrections)})?"
    labels = ", ".join(map(format_key, unknown))
    raise ConfigError(f"{source}: unknown {labels}. Read as the keys of {script}.", hint)


def apply_rules(
    rules: Rules, values: Mapping[str, Any], translation: Translation, format_key: KeyFormatter = str
) -> None:
    """Translate values by rules, with a note for each one that has no equivalent.

    Raises:
        ConfigError: a value that is not supported.
    """
    for name, value in values.items():
        label = format_key(name)
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


def set_training_section(values: Mapping[str, Any], translation: Translation) -> None:
    """Set the `training:` section from a script's `TrainingArguments`.

    Rows are not packed, and no training rows are split off for evaluation, as in the scripts.
    """
    section, notes = complete_training_section(values)
    given = _list_given_keys(values)
    for key, value in section.items():
        if key not in given and translation.get_value(f"training.{key}") is not None:
            continue  # a rule has set it
        translation.set_value(f"training.{key}", value)
        if key in _LISTED_DEFAULTS and key not in given and value == SCRIPT_DEFAULTS.get(key):
            translation.defaults.append(DefaultValue(f"training.{key}", value, "transformers' of version 4"))
    for note in notes:
        translation.add_note(note)
    translation.set_default("data.packing", False)
    translation.set_default("data.eval_fraction", 0.0)


def replace_training_defaults(
    translation: Translation, values: Mapping[str, Any], defaults: Mapping[str, Any], source: str
) -> None:
    """Set `training:` keys that are not given to the defaults of a script, in place of those of transformers.

    Args:
        translation: has a training section.
        values: all keys and values of the script.
        defaults: without the prefix `training.`.
        source: whose defaults they are.
    """
    given = _list_given_keys(values)
    for key, value in defaults.items():
        name = f"training.{key}"
        is_default = translation.get_value(name) in (None, SCRIPT_DEFAULTS.get(key))
        if key not in given and is_default:
            translation.set_value(name, value)
            translation.defaults = [default for default in translation.defaults if default.key != name]
            translation.defaults.append(DefaultValue(name, value, source))


def _list_given_keys(values: Mapping[str, Any]) -> set[str]:
    """Return the new names of the keys that are given, and of those that others make meaningless."""
    names = {RENAMED_KEYS.get(name, CONVERTED_KEYS.get(name, name)) for name in values}
    if (parse_number(values.get("max_steps")) or -1) > 0:
        names.add("num_train_epochs")
    return names


def disable_evaluation_without_data(translation: Translation) -> None:
    """Turn evaluation off if there is no evaluation data."""
    has_data = any(translation.get_value(f"data.{key}") for key in ("eval", "eval_fraction", "eval_rows"))
    if translation.get_value("training.eval_strategy") != "no" and not has_data:
        translation.set_value("training.eval_strategy", "no")
        translation.add_note("training.eval_strategy: set to no, because there is no evaluation data.")

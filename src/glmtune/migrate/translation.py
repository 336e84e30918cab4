"""A run of another project as a run of glmtune, and its config file."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from glmtune.config import RunConfig, config_to_dict
from glmtune.config_parsing import build_dataclass, parse_number
from glmtune.errors import ConfigError
from glmtune.migrate.replacement import ReplacementCommand
from glmtune.utils.shell_words import join_words, quote_word

_MISSING = object()
EVALUATION = "glmtune eval RUN --data FILE"
"""In the notes of rules; `fill_commands` replaces RUN and FILE by what the user typed."""
TRAINING = "glmtune train CONFIG"
"""In notes; `fill_commands` replaces CONFIG by the words that the user typed."""


@dataclass(frozen=True)
class DefaultValue:
    """A value that the other command line did not give.

    Attributes:
        key: our dotted key.
        value: its value.
        source: whose default it is, such as `LLaMA-Factory's of 2025`.
        older: what it was in other versions of that project; empty: the same.
    """

    key: str
    value: Any
    source: str
    older: str = ""


@dataclass
class Translation:
    """A run that is being translated.

    Attributes:
        source: what is translated, for messages: a file or the name of a script.
        tree: nested plain values, from which `config_parsing.build_dataclass` builds a `RunConfig`.
        notes: one line each: what was translated, what differs, what was ignored and why.
        nproc: number of processes that the script started; 0: one for every GPU of the machine.
        resume: whether the script resumed from its last checkpoint.
        script: name of the script, as it was typed.
        environment: variables that were set before the command.
        test_file: rows that the script generated replies for.
        evaluations: commands that do what the script did after the training.
        words: of the command line that was translated.
        translated_keys: `their key -> our key` of every key with an equivalent; `add_summary` makes one note of them.
        defaults: values that were not given; `add_default_notes` makes notes of them.
    """

    source: str
    tree: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    nproc: int = 1
    resume: bool = False
    script: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    test_file: str = ""
    evaluations: list[ReplacementCommand] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    translated_keys: list[str] = field(default_factory=list, repr=False)
    defaults: list[DefaultValue] = field(default_factory=list, repr=False)

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

    def set_default(self, key: str, value: Any, source: str = "", older: str = "") -> None:
        """Set a dotted key if it is not set yet.

        Args:
            key: our dotted key.
            value: its value.
            source: whose default it is; the user is told. Empty: not worth a note.
            older: what it was in other versions of that project.
        """
        if self.get_value(key) is None:
            self.set_value(key, value)
            if source:
                self.defaults.append(DefaultValue(key, value, source, older))

    def add_note(self, text: str) -> None:
        """Add a note, unless it is there already."""
        if text not in self.notes:
            self.notes.append(text)

    def add_summary(self) -> None:
        """Insert the list of translated keys before the other notes."""
        if self.translated_keys:
            self.notes.insert(0, f"Translated: {', '.join(self.translated_keys)}.")
            self.translated_keys = []

    def add_default_notes(self, names: Mapping[str, str]) -> None:
        """Add notes about values that were not given, with their source.

        Args:
            names: our dotted key to the name of the other project.
        """
        groups: dict[str, list[str]] = {}
        for default in self.defaults:
            name = names.get(default.key, default.key.removeprefix("training."))
            value = ", ".join(default.value) if isinstance(default.value, list) else default.value
            if default.older:
                self.add_note(f"Not given: {name}, taken as {value}, {default.source}; {default.older}.")
            else:
                groups.setdefault(default.source, []).append(f"{name} {value}")
        for source, values in groups.items():
            self.add_note(f"Not given, taken as {source}: {', '.join(values)}.")
        self.defaults = []

    def complete(self, folders: Iterable[Path]) -> None:
        """Find the DeepSpeed file, and add a note if no model is named.

        Args:
            folders: of the script and of its config file, where the file may be if it is not in the working directory.
        """
        name = self.get_value("training.deepspeed")
        if isinstance(name, str) and name and not Path(name).is_file():
            found = next((folder / name for folder in folders if (folder / name).is_file()), None)
            if found:
                self.set_value("training.deepspeed", str(found))
                self.add_note(f"deepspeed {name}: found as {found}.")
        if not self.get_value("model.path"):
            self.add_note("No model is named: give it with --model PATH.")

    def fill_commands(self, words: list[str]) -> None:
        """Replace the placeholders of commands in the notes by typed values.

        Args:
            words: of `glmtune train` for this run.
        """
        run = quote_word(str(self.get_value("output") or "RUN"))
        entry = self.test_file or self.get_value("data.eval") or "FILE"
        if isinstance(entry, list):
            entry = entry[0]
        if isinstance(entry, dict):
            entry = entry.get("path", "FILE")
        evaluation = f"glmtune eval {run} --data {quote_word(str(entry))}"
        training = join_words(["glmtune", "train", *words])
        self.notes = [note.replace(EVALUATION, evaluation).replace(TRAINING, training) for note in self.notes]


def limit_rows(translation: Translation, key: str, count: Any) -> None:
    """Use at most `count` rows of each entry of `data.train` or `data.eval`; None: all.

    Raises:
        ConfigError: the count is not a whole number above 0.
    """
    entries = translation.get_value(key)
    if count is None or not entries:
        return
    number = parse_number(count)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ConfigError(f"{translation.source}: the number of rows must be a whole number above 0, not {count}.")
    entries = entries if isinstance(entries, list) else [entries]
    translation.set_value(
        key,
        [
            {**(entry if isinstance(entry, dict) else {"path": entry}), "num_samples": number, "repeat": False}
            for entry in entries
        ],
    )


def dump_translation(translation: Translation) -> str:
    """Write the run as YAML for `load_config`: values that differ from the defaults, the notes as comments above.

    Raises:
        ConfigError: the run holds a value of the wrong type.
    """
    config = build_dataclass(RunConfig, translation.tree, translation.source)
    # Method and stage decide other defaults, such as the learning rate.
    defaults = config_to_dict(RunConfig(method=config.method, stage=config.stage))
    defaults |= {key: config_to_dict(RunConfig())[key] for key in ("method", "stage")}
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

"""A script that people know, and how a flat set of its keys becomes a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from glmtune.migrate.argument_names import TRAINING_KEYS, TRAINING_SWITCHES
from glmtune.migrate.draft import Translation
from glmtune.migrate.rules import Label, Rules, apply, only, switches, to, unknown, without
from glmtune.migrate.training import OLD_KEYS, OLD_SWITCHES, script_training

OUTSIDE: Rules = {
    "output_dir": to("output"),
    "do_train": without("what `glmtune train` does", switch=True),
    "do_eval": without("score the run afterwards: glmtune eval RUN --data FILE", switch=True),
    "do_predict": without("score the run afterwards: glmtune eval RUN --data FILE", switch=True),
    "resume_from_checkpoint": only(
        *(False, "False", "false", "None", ""),
        why="the state of that script's optimiser cannot be continued here",
        hint="Start from its weights with `adapter: PATH`; runs of glmtune continue with --resume.",
    ),
}
"""Keys of `TrainingArguments` that a run holds outside its `training:` section."""


@dataclass(frozen=True)
class Dialect:
    """The keys of a script.

    Attributes:
        name: how the user knows it.
        scripts: its file names.
        signs: keys that tell it from the others.
        rules: what becomes of its own keys; those of `TrainingArguments` come on top.
        complete: fills in what the script does without being told, and says what differs.
    """

    name: str
    scripts: tuple[str, ...]
    signs: frozenset[str]
    rules: Rules
    complete: Callable[[Translation, Mapping[str, Any]], None]

    @property
    def switches(self) -> set[str]:
        """Every flag that may stand without a value."""
        return switches({**OUTSIDE, **self.rules}) | TRAINING_SWITCHES | OLD_SWITCHES

    @property
    def keys(self) -> set[str]:
        """Every key."""
        return {*OUTSIDE, *self.rules} | TRAINING_KEYS | OLD_KEYS


def take(dialect: Dialect, given: Mapping[str, Any], draft: Translation, label: Label) -> Translation:
    """A run from a script's keys, flat as in its command line.

    Raises:
        ConfigError: an unknown key, a value that cannot be honoured, or nothing to train.
    """
    rules = {**OUTSIDE, **dialect.rules}
    training = {}
    for name in given:
        if name in rules:
            continue
        if name not in TRAINING_KEYS | OLD_KEYS:
            raise unknown(label(name), name, dialect.keys, draft)
        training[name] = given[name]
    apply(rules, {name: value for name, value in given.items() if name in rules}, draft, label)
    put_training(training, draft)
    dialect.complete(draft, given)
    return draft.finish()


def put_training(given: Mapping[str, Any], draft: Translation) -> None:
    """Set the `training:` section and what goes with it: rows are not packed, and none are kept back."""
    values, notes = script_training(given)
    for key, value in values.items():
        draft.put(f"training.{key}", value)
    for note in notes:
        draft.note(note)
    draft.default("data.packing", False)
    draft.default("data.eval_fraction", 0.0)


def stop_evaluation_without_data(draft: Translation) -> None:
    """No evaluation where there are no rows to evaluate on, and a note if it was asked for."""
    asked = draft.get("training.eval_strategy") != "no"
    if asked and not draft.get("data.eval") and not draft.get("data.eval_fraction"):
        draft.put("training.eval_strategy", "no")
        draft.note("training.eval_strategy: no, as no evaluation data is given.")

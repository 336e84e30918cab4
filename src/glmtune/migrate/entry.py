"""Translate command lines, shell scripts and config files of other projects."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from glmtune.errors import ConfigError
from glmtune.migrate.argument_names import OLD_KEYS, TRAINING_KEYS
from glmtune.migrate.command_words import CommandWords, find_flag_names, parse_words, split_glued_words
from glmtune.migrate.config_files import is_own_config, translate_config_file, translate_finetune_command
from glmtune.migrate.dialects import ALL_FLAGS, ALL_SWITCHES, DIALECTS, find_dialect, list_script_names
from glmtune.migrate.launchers import ScriptLaunch, find_launch
from glmtune.migrate.replacement import ReplacementCommand, join_commands
from glmtune.migrate.script_launches import (
    JSON_FLAG,
    Step,
    does_not_train,
    is_known_script,
    translate_flags,
    translate_launch,
)
from glmtune.migrate.shell import ShellCommand, read_commands, require_value, split_environment
from glmtune.migrate.translation import Translation
from glmtune.utils.documents import DocumentError, read_document
from glmtune.utils.shell_words import join_words

_CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
_SHELL_SUFFIXES = (".sh", ".bash")
_SHELLS = {"bash", "sh", "source", ".", "zsh"}
_RUN_PREFIX = "glmtune run"


def translate_command(words: list[str], source: str = "options") -> Translation | None:
    """Translate the arguments of `glmtune train`, if they are those of another project.

    Supported: the flags of a known script, with or without the command that starts it; a shell script that starts one;
    a YAML or JSON file of one. Options of `glmtune train`, such as --model and --set, override translated values.

    Args:
        words: the arguments.
        source: for messages.

    Returns:
        The run; None if the arguments are those of `glmtune train`.

    Raises:
        ConfigError: an unknown flag or key, a value that is not supported, a command that does not train, or a
            `training` key given as a flag.
    """
    steps = _interpret(words, source)
    if steps is None:
        return None
    trainings = [step for step in steps if isinstance(step, Translation)]
    others = [step for step in steps if isinstance(step, ReplacementCommand)]
    if not trainings:
        raise _no_training_error(others)
    if len(trainings) > 1:
        lines = ", ".join(training.source for training in trainings)
        raise ConfigError(
            f"{words[0]}: starts several trainings ({lines}).",
            f"Write one script for each, or run all: {_RUN_PREFIX} {join_words(words)}",
        )
    translation = trainings[0]
    for command in others:
        translation.add_note(f"{command.source}: {command.script} ignored. Use: {command.text}")
    translation.fill_commands(words)
    return translation


def require_translation(words: list[str], source: str = "options") -> Translation:
    """Translate a command line as `translate_command` does.

    Raises:
        ConfigError: not the command line of another project, or one that cannot be translated.
    """
    translation = translate_command(words, source)
    if translation is None:
        raise _unknown_command_error(source)
    return translation


def plan_commands(words: list[str], source: str = "command line") -> list[ReplacementCommand]:
    """Return the commands of glmtune that do what a script, a command line or a config file does, in order.

    `--nproc 0` stands for one process on every GPU of the machine.

    Args:
        words: a shell script, a YAML or JSON file, or a command line, with options of `glmtune train` perhaps.
        source: for messages.

    Raises:
        ConfigError: not of another project, or it cannot be translated.
    """
    steps = _interpret(words, source)
    if steps is None:
        if is_own_config(words):
            return [ReplacementCommand(words[0], "config", ["train", *words])]
        raise _unknown_command_error(source)
    commands: list[ReplacementCommand] = []
    is_single = len(steps) == 1
    for step in steps:
        if isinstance(step, ReplacementCommand):
            commands.append(step)
            continue
        is_typed = is_single and " " not in words[0] and not split_environment(words)[0]
        arguments = words if is_typed else step.words or words
        step.fill_commands(arguments)
        environment = {name: value for name, value in step.environment.items() if name != "NPROC_PER_NODE"}
        needs_launcher = bool(step.get_value("training.deepspeed"))
        options = [] if step.nproc == 1 and not needs_launcher else ["--nproc", str(step.nproc)]
        command_words = ["train", *arguments, *options]
        commands.append(ReplacementCommand(step.source, step.script, command_words, [], environment, needs_launcher))
        commands += step.evaluations
    return commands


def _unknown_command_error(source: str) -> ConfigError:
    return ConfigError(
        f"{source}: not the command line of a supported script.",
        f"Supported: {', '.join([*(dialect.name for dialect in DIALECTS), 'finetune_hf.py'])}; see docs/migrate.md.",
    )


def _no_training_error(commands: Sequence[ReplacementCommand]) -> ConfigError:
    first = commands[0]
    if first.words[0] == "eval":
        return ConfigError(
            f"{first.source}: no --do_train, so there is nothing to train.",
            f"To evaluate: {join_commands(list(commands))}",
        )
    return ConfigError(f"{first.source}: {first.script} does not train.", f"Use: {join_commands(list(commands))}")


def _interpret(words: list[str], source: str) -> list[Step] | None:
    """Translate words to trainings and other commands, in order; None if they are those of `glmtune train`."""
    words, notes = split_glued_words(words, ALL_FLAGS)
    environment, words = split_environment(words)
    if not words:
        return None
    if len(words) == 1 and " " in words[0] and not Path(words[0]).exists():  # a command line in quotes
        steps = _interpret_script(words[0], source, None)
    else:
        result = _interpret_words(words, environment, source)
        if result is None:
            return None
        steps = result
    for step in steps:
        if isinstance(step, Translation) and not step.words:
            step.words = words
        for note in reversed(notes):
            step.notes.insert(0, note)
    return steps


def _interpret_words(words: list[str], environment: dict[str, str], source: str) -> list[Step] | None:
    if Path(words[0]).name in _SHELLS and len(words) > 1:
        words = words[1:]
    launch = find_launch(ShellCommand(words, source, environment))
    if launch and Path(words[0]).suffix not in _SHELL_SUFFIXES:
        return translate_launch(launch, None)
    names = find_flag_names(words)
    dialect = find_dialect(names)
    if dialect or JSON_FLAG in names:
        return translate_flags(dialect, words, source, None)

    keys = TRAINING_KEYS | OLD_KEYS
    parsed = parse_words(words, ALL_SWITCHES, keys, source)
    positionals = parsed.positionals
    if len(positionals) >= 3 and Path(positionals[2]).suffix in (".yaml", ".yml"):
        return [translate_finetune_command(parsed, source, None)]
    steps: list[Step] | None = None
    if len(positionals) == 1:
        path = Path(positionals[0])
        if path.suffix in _SHELL_SUFFIXES:
            steps = _interpret_file(path)
            for step in steps:
                _apply_options(parsed, step)
        elif path.suffix in _CONFIG_SUFFIXES and path.is_file():
            steps = translate_config_file(path, parsed)
    if steps is None and names & keys:
        name = min(names & keys)
        raise ConfigError(f"--{name} is a key of the training section.", f"Give it as --set training.{name}=VALUE.")
    return steps


def _apply_options(words: CommandWords, step: Step) -> None:
    """Apply the options of `glmtune train` after a script to one of its commands."""
    if isinstance(step, Translation):
        words.apply_options(step)
        return
    for override in words.overrides:
        if step.words[0] == "eval" and override.startswith("data."):
            step.words += ["--set", override]
        else:
            step.notes.append(f"--set {override}: an option of glmtune train, not of glmtune {step.words[0]}.")
    for key, value in words.key_values.items():
        step.notes.append(f"{key} {value}: an option of glmtune train, not of glmtune {step.words[0]}.")


def _interpret_file(path: Path) -> list[Step]:
    """Translate what a shell script starts."""
    try:
        text = read_document(path)
    except DocumentError as error:
        raise ConfigError(error.describe(path), "Give a shell script, a YAML or a JSON file.") from None
    return _interpret_script(text, str(path), path.parent)


def _interpret_script(text: str, name: str, folder: Path | None) -> list[Step]:
    """Translate what the text of a shell script starts.

    Args:
        text: the script.
        name: its file name, for messages.
        folder: of the file.

    Raises:
        ConfigError: it starts no supported script, or one that cannot be translated.
    """
    notes: list[str] = []
    launches: list[ScriptLaunch] = []
    for command in read_commands(text, name, os.environ, notes):
        launch = find_launch(command)
        if launch is None and launches and command.words[0].startswith("--"):
            # The line before has no backslash, so a shell starts the script without these flags.
            launches[-1].arguments += command.words
            words = " ".join(command.words)
            notes.append(f"{command.location}: {words} is read as part of the command above: its last \\ is missing.")
        elif launch is None and command.words[0] == "cd":
            notes.append(f"{command.location}: {' '.join(command.words)} is not done: start glmtune in that folder.")
        elif launch is None:
            notes.append(f"{command.location}: ignored, not a training: {' '.join(command.words)[:60]}")
        else:
            launches.append(launch)
    known = [launch for launch in launches if is_known_script(launch)]
    if not launches:
        raise ConfigError(f"{name}: starts no supported script.", f"Supported: {', '.join(list_script_names())}.")
    steps: list[Step] = []
    errors: list[ConfigError] = []
    for launch in known or launches[:1]:
        try:
            steps += _interpret_launch(launch, folder, name if len(known) == 1 and folder else "")
        except ConfigError as error:
            if not does_not_train(launch):
                raise
            errors.append(error)
    if errors and not steps:
        raise errors[0]
    notes += [f"{error.message} {error.hint or ''}".strip() for error in errors]
    notes += [
        f"{launch.command.location}: ignored, not a training: {launch.script}"
        for launch in launches
        if launch not in known
    ]
    trainings = [step for step in steps if isinstance(step, Translation)]
    for step in trainings or steps[:1]:
        step.notes += notes
    return steps


def _interpret_launch(launch: ScriptLaunch, folder: Path | None, source: str) -> list[Step]:
    """Translate a command of a shell script, with the words that `glmtune train` takes for it alone."""
    steps = translate_launch(launch, folder)
    for step in steps:
        if isinstance(step, Translation):
            step.words = [launch.script, *(require_value(word, launch.command.location) for word in launch.arguments)]
            step.source = source or step.source
    return steps

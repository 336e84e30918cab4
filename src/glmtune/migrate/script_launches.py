"""Translate the command that starts a script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glmtune.config_parsing import read_config_file
from glmtune.errors import ConfigError
from glmtune.migrate.argument_names import OLD_KEYS, TRAINING_KEYS, parse_bool
from glmtune.migrate.command_words import find_flag_names, parse_words
from glmtune.migrate.config_files import find_file, make_config_steps, translate_finetune_command
from glmtune.migrate.dialect import Dialect, format_flag, require_known_keys, translate_keys
from glmtune.migrate.dialects import ALL_SWITCHES, SHARED_NAMES, choose_dialect, list_script_names
from glmtune.migrate.factory_commands import FACTORY_COMMANDS_KEYS, FACTORY_SCRIPTS, make_factory_command
from glmtune.migrate.finetune_demo import SCRIPT_NAMES as FINETUNE_DEMO_SCRIPTS
from glmtune.migrate.launchers import ScriptLaunch, translate_launcher
from glmtune.migrate.llama_factory import LLAMA_FACTORY
from glmtune.migrate.lora_scripts import QLORA_SCRIPT
from glmtune.migrate.other_scripts import OTHER_SCRIPTS, read_arguments
from glmtune.migrate.replacement import ReplacementCommand
from glmtune.migrate.shell import require_value
from glmtune.migrate.swift_script import SWIFT_SCRIPT, make_swift_command
from glmtune.migrate.translation import Translation
from glmtune.migrate.trl_script import COMMANDS, TRL_SCRIPT
from glmtune.migrate.trl_source import is_trl_source, translate_trl_source
from glmtune.migrate.xtuner_config import translate_xtuner

Step = Translation | ReplacementCommand
JSON_FLAG = "train_args_json"
_CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
_FACTORY_MARKERS = {"template", "finetuning_type", "adapter_name_or_path", "task"}
"""Flags that its versions of cli_demo.py, web_demo.py and others have."""


def is_known_script(launch: ScriptLaunch) -> bool:
    """Return whether a script is one that is read; those of unknown projects with a common name are too."""
    script, names = launch.script, find_flag_names(launch.arguments)
    if script in OTHER_SCRIPTS or script in FACTORY_SCRIPTS or script in FINETUNE_DEMO_SCRIPTS:
        return True
    if script in SHARED_NAMES or script == "xtuner" or choose_dialect(script, names) is not None:
        return True
    return _find_trl_source(launch, None) is not None


def does_not_train(launch: ScriptLaunch) -> bool:
    """Return whether a script is one that merges, answers or serves: an error of it does not stop a training."""
    if launch.script in ("llamafactory-cli", "swift", "trl", "xtuner"):
        return launch.arguments[:1] not in (["train"], ["sft"], ["pt"], ["rlhf"], *([name] for name in COMMANDS))
    return launch.script in OTHER_SCRIPTS or launch.script in FACTORY_SCRIPTS


def translate_launch(launch: ScriptLaunch, folder: Path | None) -> list[Step]:
    """Translate the command of a script; its files are searched in the working directory, then in `folder`.

    Raises:
        ConfigError: an unknown script or flag, or a value that is not supported.
    """
    location, script = launch.command.location, launch.script
    environment = {name: require_value(value, location) for name, value in launch.command.environment.items()}
    names = find_flag_names(launch.arguments)
    if script in FACTORY_SCRIPTS and (names & _FACTORY_MARKERS or script == "evaluate.py"):
        words = [require_value(word, location) for word in launch.arguments]
        values = _read_factory_values(words, location, folder)
        return [make_factory_command(FACTORY_SCRIPTS[script], values, location, environment)]
    if script in OTHER_SCRIPTS:
        return [OTHER_SCRIPTS[script].make(read_arguments(launch))]

    words = [require_value(word, location) for word in launch.arguments]
    subcommand = words[0] if words and not words[0].startswith("-") else ""
    if script == "llamafactory-cli" and subcommand and subcommand != "train" and "." not in subcommand:
        values = _read_factory_values(words[1:], location, folder)
        return [make_factory_command(subcommand, values, location, environment)]
    if script == "swift" and subcommand not in ("sft", "pt", "rlhf", "train"):
        return [make_swift_command(subcommand, words[1:], location, environment)]
    if script in ("llamafactory-cli", "swift"):
        words = words[1:] if subcommand and "." not in subcommand else words
        if subcommand == "rlhf" and "rlhf_type" not in names:
            words = ["--rlhf_type", "dpo", *words]

    steps: list[Step]
    source = _find_trl_source(launch, folder)
    if script == "trl":
        if subcommand not in COMMANDS:
            raise ConfigError(
                f"{location}: trl {subcommand}: has no equivalent.", f"Read are: trl {', '.join(COMMANDS)}."
            )
        script, words = f"{subcommand}.py", words[1:]
    dialect = SWIFT_SCRIPT if script == "swift" else choose_dialect(script, names)
    dialect = TRL_SCRIPT if launch.script == "trl" else dialect
    has_config = any(Path(word).suffix in _CONFIG_SUFFIXES for word in words)
    if source is not None:
        steps = [translate_trl_source(source, location)]
    elif script == "xtuner":
        steps = [translate_xtuner(words, location, folder)]
    elif script == FINETUNE_DEMO_SCRIPTS[0] or (script in FINETUNE_DEMO_SCRIPTS and dialect is None and has_config):
        parsed = parse_words(words, ALL_SWITCHES, TRAINING_KEYS | OLD_KEYS, location)
        steps = [translate_finetune_command(parsed, location, folder)]
    elif dialect is None:
        raise _unknown_script_error(location, script, names)
    else:
        steps = translate_flags(dialect, words, location, folder, script)
    for step in steps:
        if isinstance(step, Translation):
            translate_launcher(launch, step)
        else:
            step.environment = {**environment, **step.environment}
            step.script = script
    return steps


def _find_trl_source(launch: ScriptLaunch, folder: Path | None) -> Path | None:
    """The script of a command without flags of its own, if it trains with TRL."""
    if not launch.script.endswith(".py") or find_flag_names(launch.arguments):
        return None
    words = [word for word in launch.command.words if Path(word).name == launch.script]
    path = find_file(words[0], folder) if words else Path(launch.script)
    return path if path.is_file() and is_trl_source(path) else None


def translate_flags(
    dialect: Dialect | None, words: list[str], source: str, folder: Path | None, script: str = ""
) -> list[Step]:
    """Translate the flags of a script, and the JSON or YAML file that they name.

    Args:
        dialect: the script; None: train_qlora.py.
        words: the flags.
        source: for messages.
        folder: where files are searched too.
        script: file name, as it was typed.

    Raises:
        ConfigError: an unknown flag, or a value that is not supported.
    """
    dialect = dialect or QLORA_SCRIPT
    parsed = parse_words(words, dialect.switches, dialect.keys | {JSON_FLAG}, source, list_flags=dialect.list_keys)
    values = parsed.flags
    if dialect is TRL_SCRIPT and "config" in values:
        parsed.positionals.append(str(values.pop("config")))
    positionals = [word for word in parsed.positionals if not (dialect is LLAMA_FACTORY and word == "train")]
    translation = Translation(source, script=script)
    folders = [folder] if folder else []
    if dialect is QLORA_SCRIPT and JSON_FLAG in values:
        # Flags override the file, as in the script. Its --seed has a default, which overrides the file too.
        section = read_config_file(find_file(str(values.pop(JSON_FLAG)), folder))
        values = {**section, "seed": 42, **values}
        translation.translated_keys.append(f"--{JSON_FLAG} -> training")
    elif positionals and Path(positionals[0]).suffix in _CONFIG_SUFFIXES:
        overrides = [word.partition("=") for word in positionals[1:]]  # llamafactory-cli's key=value
        path = find_file(positionals[0], folder)
        values = {**read_config_file(path), **values, **{key: value for key, _, value in overrides}}
        folders.append(path.parent)
        positionals = []
    if positionals:
        raise ConfigError(f"{source}: {positionals[0]!r} belongs to no flag.", "Quote values that contain spaces.")
    if dialect is LLAMA_FACTORY:
        steps = make_config_steps(values, source)
        if steps:
            return list(steps)
    trains = parse_bool(values.get("do_train"), "--do_train", source)
    evaluates = any(parse_bool(values.get(name), f"--{name}", source) for name in ("do_predict", "do_eval"))
    if dialect.make_evaluations and evaluates and not trains:
        require_known_keys(values, dialect.keys | FACTORY_COMMANDS_KEYS, format_flag, source, dialect.name)
        return list(dialect.make_evaluations(values, source))
    translate_keys(dialect, values, translation, format_flag)
    parsed.apply_options(translation)
    translation.complete(folders)
    return [translation]


def _read_factory_values(words: list[str], location: str, folder: Path | None) -> dict[str, Any]:
    """Read the keys of a command of llamafactory-cli that does not train.

    Raises:
        ConfigError: an unknown key.
    """
    keys = LLAMA_FACTORY.keys | FACTORY_COMMANDS_KEYS
    parsed = parse_words(words, LLAMA_FACTORY.switches, keys, location, own_options=False)
    values = dict(parsed.flags)
    for word in parsed.positionals:
        key, equals, value = word.partition("=")
        if equals:
            values[key] = value
        elif Path(word).suffix in _CONFIG_SUFFIXES:
            values = {**read_config_file(find_file(word, folder)), **values}
        else:
            raise ConfigError(f"{location}: {word!r} belongs to no flag.", "Quote values that contain spaces.")
    require_known_keys(values, keys, format_flag, location, LLAMA_FACTORY.name)
    return values


def _unknown_script_error(location: str, script: str, names: set[str]) -> ConfigError:
    if script in SHARED_NAMES:
        flags = ", ".join(f"--{name}" for name in sorted(names - TRAINING_KEYS - OLD_KEYS)) or "its own settings"
        return ConfigError(
            f"{location}: {script} of an unknown project: no known script of this name has {flags}.",
            "Describe the run by glmtune's own keys: glmtune train --model MODEL --data FILE --method lora",
        )
    return ConfigError(f"{location}: {script} is not supported.", f"Supported: {', '.join(list_script_names())}.")

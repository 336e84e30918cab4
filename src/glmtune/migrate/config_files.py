"""Translate YAML and JSON files of other projects, and the command line of finetune_hf.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from glmtune.config import RunConfig
from glmtune.config_parsing import read_config_file
from glmtune.errors import ConfigError
from glmtune.migrate.argument_names import OLD_KEYS, TRAINING_KEYS, parse_bool
from glmtune.migrate.command_words import CommandWords
from glmtune.migrate.dialect import require_known_keys, translate_keys
from glmtune.migrate.dialects import find_dialect
from glmtune.migrate.factory_commands import FACTORY_COMMANDS_KEYS, make_factory_command
from glmtune.migrate.finetune_demo import is_finetune_demo, translate_finetune_demo
from glmtune.migrate.llama_factory import LLAMA_FACTORY
from glmtune.migrate.lora_scripts import QLORA_SCRIPT
from glmtune.migrate.replacement import ReplacementCommand
from glmtune.migrate.translation import Translation

_KEYS = TRAINING_KEYS | OLD_KEYS


def is_own_config(words: list[str]) -> bool:
    """Return whether the words are a config file of glmtune, with options perhaps."""
    path = Path(words[0])
    return path.suffix in (".yaml", ".yml", ".json") and path.is_file()


def translate_config_file(path: Path, words: CommandWords) -> list[Translation | ReplacementCommand] | None:
    """Translate a YAML or JSON file and the words after it; None if it is a config of glmtune.

    Raises:
        ConfigError: an unknown key, or a value that is not supported.
    """
    tree = read_config_file(path)
    names = set(map(str, tree))
    if names & {field.name for field in fields(RunConfig)} - {"stage"}:  # a key of LLaMA-Factory too
        return None
    translation = Translation(str(path))
    dialect = find_dialect(names)
    values = {**tree, **words.flags}
    if not dialect and "export_dir" in names:
        dialect = LLAMA_FACTORY
    if is_finetune_demo(tree):
        translate_finetune_demo(tree, translation, flags=words.flags)
    elif dialect:
        if dialect is LLAMA_FACTORY:
            steps = make_config_steps(values, str(path))
            if steps:
                return list(steps)
        translate_keys(dialect, values, translation, str)
    elif names and names <= _KEYS:
        translate_keys(QLORA_SCRIPT, values, translation, str)
        translation.add_note("Read as the TrainingArguments of train_qlora.py; give the rows with --data.")
    else:
        return None
    words.apply_options(translation)
    translation.complete([path.parent])
    return [translation]


def make_config_steps(values: Mapping[str, Any], source: str) -> list[ReplacementCommand]:
    """Return the commands for keys of LLAMA-Factory that do not train; empty if they train.

    Raises:
        ConfigError: an unknown key, or a value that is not supported.
    """
    trains = parse_bool(values.get("do_train"), "do_train", source)
    evaluates = any(parse_bool(values.get(name), name, source) for name in ("do_predict", "do_eval"))
    has_rows = bool(values.get("dataset"))
    if trains or not (values.get("export_dir") or evaluates or not has_rows):
        return []
    if not values.get("export_dir") and not evaluates and values.get("stage"):
        return []
    known = LLAMA_FACTORY.keys | FACTORY_COMMANDS_KEYS
    require_known_keys(values, known, str, source, LLAMA_FACTORY.name)
    if values.get("export_dir"):
        return [make_factory_command("export", values, source, {})]
    if evaluates and LLAMA_FACTORY.make_evaluations:
        return LLAMA_FACTORY.make_evaluations(values, source)
    if values.get("model_name_or_path") and not values.get("output_dir"):
        return [make_factory_command("chat", values, source, {})]
    return []


def translate_finetune_command(words: CommandWords, source: str, folder: Path | None) -> Translation:
    """Translate `finetune_hf.py DATA_DIR MODEL_DIR CONFIG [RESUME]`.

    Raises:
        ConfigError: another number of arguments, an unknown key, or a value that is not supported.
    """
    if not 3 <= len(words.positionals) <= 4:
        raise ConfigError(
            f"{source}: {len(words.positionals)} arguments.", "It takes DATA_DIR MODEL_DIR CONFIG.yaml [yes]."
        )
    data_dir, model, config, *resume = words.positionals
    translation = Translation(source, script="finetune_hf.py")
    path = find_file(config, folder)
    translate_finetune_demo(read_config_file(path), translation, data_dir, model, words.flags)
    if resume and resume[0].lower() != "no":
        if resume[0].lower() != "yes" and not resume[0].isdigit():
            raise ConfigError(
                f"{source}: {resume[0]!r} after the config.", "It takes yes, no or the step of a checkpoint."
            )
        translation.resume = True
        translation.add_note(f"{resume[0]}: resumes from the last checkpoint of the run, as --resume does.")
    words.apply_options(translation)
    translation.complete([*([folder] if folder else []), path.parent])
    return translation


def find_file(name: str, folder: Path | None) -> Path:
    """Return a file in the working directory, or in the folder of the script that names it."""
    path = Path(name)
    if folder and not path.is_file() and (folder / name).is_file():
        return folder / name
    return path

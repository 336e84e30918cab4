"""Translate command lines, shell scripts and config files of other projects."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

from glmtune.config import RunConfig
from glmtune.config_parsing import read_config_file, suggest_key
from glmtune.errors import ConfigError
from glmtune.migrate.argument_names import OLD_KEYS, OLD_SWITCHES, TRAINING_KEYS, TRAINING_SWITCHES
from glmtune.migrate.command_words import CommandWords, find_flag_names, parse_words
from glmtune.migrate.dialect import Dialect, format_flag, translate_keys
from glmtune.migrate.finetune_demo import SCRIPT_NAMES as FINETUNE_DEMO_SCRIPTS
from glmtune.migrate.finetune_demo import is_finetune_demo, translate_finetune_demo
from glmtune.migrate.launchers import ScriptLaunch, find_launch, translate_launcher
from glmtune.migrate.llama_factory import LLAMA_FACTORY
from glmtune.migrate.lora_scripts import FINETUNE_SCRIPT, QLORA_SCRIPT
from glmtune.migrate.ptuning_script import PTUNING_SCRIPT
from glmtune.migrate.shell import ShellCommand, read_commands, require_value
from glmtune.migrate.translation import Translation

DIALECTS = (PTUNING_SCRIPT, QLORA_SCRIPT, LLAMA_FACTORY, FINETUNE_SCRIPT)
"""Scripts whose options are all flags."""

OTHER_SCRIPTS = {
    "merge_lora_and_quantize.py": "Use: glmtune export RUN OUT --format official --bits 4",
    "inference_test.py": "Use: glmtune eval RUN --data F, which also measures tokens per second",
    "inference_hf.py": "Use: glmtune chat RUN --prompt TEXT",
    "inference.py": "Use: glmtune chat RUN --prompt TEXT",
    "infer.py": "Use: glmtune chat RUN",
    "api.py": "Use: glmtune export RUN OUT, then: vllm serve OUT",
    "cli_demo.py": "Use: glmtune chat RUN",
    "web_demo.py": "Use: glmtune ui",
    "webui.py": "Use: glmtune ui",
    "train_web.py": "Use: glmtune ui",
    "tokenize_dataset_rows.py": "glmtune train encodes the rows; to do it before: glmtune data tokenize",
    "cover_alpaca2jsonl.py": "Not needed: glmtune train reads alpaca rows directly.",
}
"""Scripts that do not train, and the command of glmtune that replaces them."""

_CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
_JSON_FLAG = "train_args_json"
_KEYS = TRAINING_KEYS | OLD_KEYS
_SWITCHES = TRAINING_SWITCHES | OLD_SWITCHES


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
        ConfigError: an unknown flag or key, a value that is not supported, or a `training` key given as a flag.
    """
    if not words:
        return None
    launch = find_launch(ShellCommand(words, source))
    if launch and Path(words[0]).suffix != ".sh":
        return _translate_launch(launch, None)
    names = find_flag_names(words)
    dialect = _find_dialect(names)
    if dialect or _JSON_FLAG in names:
        return _translate_flags(dialect or QLORA_SCRIPT, words, source, None)

    parsed = parse_words(words, _SWITCHES, _KEYS, source)
    positionals = parsed.positionals
    if len(positionals) >= 3 and Path(positionals[2]).suffix in (".yaml", ".yml"):
        return _translate_finetune_command(parsed, source, None)
    translation = None
    if len(positionals) == 1:
        path = Path(positionals[0])
        if path.suffix in (".sh", ".bash"):
            translation = _translate_script(path)
            parsed.apply_options(translation)
        elif path.suffix in _CONFIG_SUFFIXES and path.is_file():
            translation = _translate_config(path, parsed)
    if translation is None and names & _KEYS:
        name = min(names & _KEYS)
        raise ConfigError(f"--{name} is a key of the training section.", f"Give it as --set training.{name}=VALUE.")
    return translation


def require_translation(words: list[str], source: str = "options") -> Translation:
    """Translate a command line as `translate_command` does.

    Raises:
        ConfigError: not the command line of another project, or one that cannot be translated.
    """
    translation = translate_command(words, source)
    if translation is None:
        raise ConfigError(
            f"{source}: not the command line of a supported script.",
            f"Supported: {', '.join([*(dialect.name for dialect in DIALECTS), 'finetune_hf.py'])}.",
        )
    return translation


def _find_dialect(names: set[str]) -> Dialect | None:
    """Return the script that most of the marker keys among `names` belong to."""
    best = max(DIALECTS, key=lambda dialect: len(names & dialect.marker_keys))
    return best if names & best.marker_keys else None


def _translate_config(path: Path, words: CommandWords) -> Translation | None:
    """Translate a YAML or JSON file and the words after it; None if it is a config of glmtune."""
    tree = read_config_file(path)
    names = set(map(str, tree))
    if names & {field.name for field in fields(RunConfig)}:
        return None
    translation = Translation(str(path))
    dialect = _find_dialect(names)
    if is_finetune_demo(tree):
        translate_finetune_demo(tree, translation, flags=words.flags)
    elif dialect:
        translate_keys(dialect, {**tree, **words.flags}, translation, str)
    elif names and names <= _KEYS:
        translate_keys(QLORA_SCRIPT, {**tree, **words.flags}, translation, str)
        translation.add_note("Read as the TrainingArguments of train_qlora.py; give the rows with --data.")
    else:
        return None
    words.apply_options(translation)
    return translation


def _translate_script(path: Path) -> Translation:
    """Translate the only training that a shell script starts."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'}).") from None
    launches, other_commands = [], []
    for command in read_commands(text, str(path), os.environ):
        launch = find_launch(command)
        if launch:
            launches.append(launch)
        else:
            other_commands.append(command)
    if not launches:
        raise ConfigError(f"{path}: starts no supported script.", f"Supported: {', '.join(_script_names())}.")
    trainings = [launch for launch in launches if launch.script not in OTHER_SCRIPTS] or launches[:1]
    if len(trainings) > 1:
        lines = ", ".join(launch.command.location for launch in trainings)
        raise ConfigError(f"{path}: starts several trainings ({lines}).", "Write one script for each.")

    translation = _translate_launch(trainings[0], path.parent)
    translation.source = str(path)
    for launch in launches:
        if launch is not trainings[0]:
            translation.add_note(f"{launch.command.location}: {launch.script} ignored. {OTHER_SCRIPTS[launch.script]}")
    for command in other_commands:
        translation.add_note(f"{command.location}: ignored, not a training: {' '.join(command.words)[:60]}")
    return translation


def _script_names() -> list[str]:
    return [*(name for dialect in DIALECTS for name in dialect.scripts), FINETUNE_DEMO_SCRIPTS[0]]


def _translate_launch(launch: ScriptLaunch, folder: Path | None) -> Translation:
    """Translate the command of a script; its files are searched in the working directory, then in `folder`."""
    location = launch.command.location
    if launch.script in OTHER_SCRIPTS:
        raise ConfigError(f"{location}: {launch.script} does not train.", OTHER_SCRIPTS[launch.script])
    words = [require_value(word, location) for word in launch.arguments]
    names = find_flag_names(words)
    # Several projects have a finetune.py or a train.py: the flags decide where they can.
    dialect = next((dialect for dialect in DIALECTS if launch.script in dialect.scripts), None)
    if dialect is None or not names & dialect.marker_keys:
        dialect = _find_dialect(names) or dialect
    has_config = any(Path(word).suffix in _CONFIG_SUFFIXES for word in words)
    if launch.script in FINETUNE_DEMO_SCRIPTS and has_config and not names & FINETUNE_SCRIPT.marker_keys:
        parsed = parse_words(words, _SWITCHES, _KEYS, location)
        translation = _translate_finetune_command(parsed, location, folder)
    elif dialect is None:
        raise ConfigError(f"{location}: {launch.script} is not supported.", suggest_key(launch.script, _script_names()))
    else:
        translation = _translate_flags(dialect, words, location, folder)
    translate_launcher(launch, translation)
    return translation


def _translate_flags(dialect: Dialect, words: list[str], source: str, folder: Path | None) -> Translation:
    """Translate the flags of a script, and the JSON or YAML file that they name."""
    parsed = parse_words(words, dialect.switches, dialect.keys | {_JSON_FLAG}, source)
    values = parsed.flags
    positionals = [word for word in parsed.positionals if not (dialect is LLAMA_FACTORY and word == "train")]
    translation = Translation(source)
    if dialect is QLORA_SCRIPT and _JSON_FLAG in values:
        # Flags override the file, as in the script. Its --seed has a default, which overrides the file too.
        section = read_config_file(_find_file(str(values.pop(_JSON_FLAG)), folder))
        values = {**section, "seed": 42, **values}
        translation.translated_keys.append(f"--{_JSON_FLAG} -> training")
    elif positionals and Path(positionals[0]).suffix in _CONFIG_SUFFIXES:
        overrides = [word.partition("=") for word in positionals[1:]]  # llamafactory-cli's key=value
        section = read_config_file(_find_file(positionals[0], folder))
        values = {**section, **values, **{key: value for key, _, value in overrides}}
        positionals = []
    if positionals:
        raise ConfigError(f"{source}: {positionals[0]!r} belongs to no flag.", "Quote values that contain spaces.")
    translate_keys(dialect, values, translation, format_flag)
    parsed.apply_options(translation)
    return translation


def _translate_finetune_command(words: CommandWords, source: str, folder: Path | None) -> Translation:
    """Translate `finetune_hf.py DATA_DIR MODEL_DIR CONFIG [RESUME]`."""
    if not 3 <= len(words.positionals) <= 4:
        raise ConfigError(
            f"{source}: {len(words.positionals)} arguments.", "It takes DATA_DIR MODEL_DIR CONFIG.yaml [yes]."
        )
    data_dir, model, config, *resume = words.positionals
    translation = Translation(source)
    translate_finetune_demo(read_config_file(_find_file(config, folder)), translation, data_dir, model, words.flags)
    if resume and resume[0].lower() != "no":
        if resume[0].lower() != "yes" and not resume[0].isdigit():
            raise ConfigError(
                f"{source}: {resume[0]!r} after the config.", "It takes yes, no or the step of a checkpoint."
            )
        translation.resume = True
        translation.add_note(f"{resume[0]}: resumes from the last checkpoint of the run, as --resume does.")
    words.apply_options(translation)
    return translation


def _find_file(name: str, folder: Path | None) -> Path:
    path = Path(name)
    if folder and not path.is_file() and (folder / name).is_file():
        return folder / name
    return path

"""The doors into this room: a file, a command line, or whatever stood behind `glmtune train`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from glmtune.config import RunConfig
from glmtune.config_parsing import nearest, read_file
from glmtune.errors import ConfigError
from glmtune.migrate.argument_names import TRAINING_KEYS, TRAINING_SWITCHES
from glmtune.migrate.dialect import Dialect, take
from glmtune.migrate.draft import Translation
from glmtune.migrate.finetune_demo import SCRIPTS as DEMO_SCRIPTS
from glmtune.migrate.finetune_demo import is_demo, take_demo
from glmtune.migrate.finetune_lora import FINETUNE_LORA
from glmtune.migrate.flags import Words, flag_names, sort_words
from glmtune.migrate.launchers import Launch, describe_launch, find_launch
from glmtune.migrate.llama_factory import FACTORY
from glmtune.migrate.ptuning_script import PTUNING
from glmtune.migrate.qlora import QLORA
from glmtune.migrate.rules import flag
from glmtune.migrate.shell import Command, need, read_commands
from glmtune.migrate.training import OLD_KEYS, OLD_SWITCHES

DIALECTS = (PTUNING, QLORA, FACTORY, FINETUNE_LORA)
"""Scripts that are told everything by flags."""

ELSEWHERE = {
    "merge_lora_and_quantize.py": "Use: glmtune export RUN OUT --format official --bits 4",
    "inference_test.py": "Use: glmtune eval RUN --data F, which says tokens per second too",
    "inference_hf.py": "Use: glmtune chat RUN --prompt TEXT",
    "inference.py": "Use: glmtune chat RUN --prompt TEXT",
    "infer.py": "Use: glmtune chat RUN",
    "api.py": "Use: glmtune export RUN OUT, then: vllm serve OUT",
    "cli_demo.py": "Use: glmtune chat RUN",
    "web_demo.py": "Use: glmtune ui",
    "webui.py": "Use: glmtune ui",
    "train_web.py": "Use: glmtune ui",
    "tokenize_dataset_rows.py": "Rows are encoded by glmtune train; to do it before: glmtune data tokenize",
    "cover_alpaca2jsonl.py": "Not needed: glmtune train reads alpaca rows as they are.",
}
"""Scripts that train nothing, and what does their work here."""

_JSON_FLAG = "train_args_json"
_KEYS = TRAINING_KEYS | OLD_KEYS
_SWITCHES = TRAINING_SWITCHES | OLD_SWITCHES


def read_config(path: str | Path, environment: Mapping[str, str] | None = None) -> Translation | None:
    """A run from a config file or shell script of another project; None if the file is a run of ours.

    Args:
        path: a YAML file of the ChatGLM3 finetune_demo or of LLaMA-Factory, a JSON file of `TrainingArguments` or of
            main.py's arguments, or a shell script that starts one of the known scripts.
        environment: variables that a shell script may rely on; None: those of this process.

    Raises:
        ConfigError: it cannot be read, holds an unknown key or a value that cannot be honoured.
    """
    path = Path(path)
    if path.suffix in (".sh", ".bash"):
        return _from_script(path, os.environ if environment is None else environment)
    if path.suffix not in (".yaml", ".yml", ".json") or not path.is_file():
        return None
    return _from_tree(read_file(path), Translation(str(path)), Words())


def read_flags(words: list[str], source: str = "options") -> Translation:
    """A run from a command line: the flags of a known script, with or without the words that start it.

    Raises:
        ConfigError: flags of no known script, an unknown one, or a value that cannot be honoured.
    """
    translation = translate(words, source)
    if translation is None:
        raise ConfigError(
            f"{source}: not the command line of a script known here.",
            f"Known: {', '.join([*(dialect.name for dialect in DIALECTS), 'finetune_hf.py'])}.",
        )
    return translation


def translate(words: list[str], source: str = "options") -> Translation | None:
    """What stood behind `glmtune train`, if it is another project's way to say it.

    Our own options (--model, --set and so on) are put on top of what was translated.

    Args:
        words: the raw arguments.
        source: for messages.

    Returns:
        The run; None if the arguments are our own.

    Raises:
        ConfigError: an unknown flag, a value that cannot be honoured, or a training key given as a flag.
    """
    if not words:
        return None
    launch = find_launch(Command(words, source))
    if launch and Path(words[0]).suffix != ".sh":
        return _from_launch(launch, None)
    names = flag_names(words)
    dialect = _by_signs(names)
    if dialect or _JSON_FLAG in names:
        return _from_flags(dialect or QLORA, words, source, None)
    sorted_words = sort_words(words, _SWITCHES, _KEYS, source)
    alone = sorted_words.alone
    if len(alone) >= 3 and Path(alone[2]).suffix in (".yaml", ".yml"):
        return _from_demo_words(sorted_words, source, None)
    translation = _from_file(sorted_words) if len(alone) == 1 else None
    if translation is None:
        _refuse_training_flags(names)
    return translation


def _from_file(words: Words) -> Translation | None:
    path = Path(words.alone[0])
    if path.suffix in (".sh", ".bash"):
        translation = _from_script(path, os.environ)
        words.put_own(translation)
        return translation
    if path.suffix not in (".yaml", ".yml", ".json") or not path.is_file():
        return None
    return _from_tree(read_file(path), Translation(str(path)), words)


def _refuse_training_flags(names: set[str]) -> None:
    for name in sorted(names & _KEYS):
        raise ConfigError(f"--{name} is a key of the training section.", f"Give it as --set training.{name}=VALUE.")


def _by_signs(names: set[str]) -> Dialect | None:
    best = max(DIALECTS, key=lambda dialect: len(names & dialect.signs))
    return best if names & best.signs else None


def _from_tree(tree: dict[str, Any], draft: Translation, words: Words) -> Translation | None:
    """A config file's run, with the flags beside it; None if the file is ours."""
    names = set(map(str, tree))
    if names & {field.name for field in fields(RunConfig)}:
        return None
    dialect = _by_signs(names)
    if is_demo(tree):
        take_demo(tree, draft, extra=words.given)
    elif dialect:
        take(dialect, {**tree, **words.given}, draft, str)
    elif names and names <= _KEYS:
        take(QLORA, {**tree, **words.given}, draft, str)
        draft.note("Taken for the TrainingArguments of train_qlora.py; give the rows with --data.")
    else:
        return None
    words.put_own(draft)
    return draft


def _from_script(path: Path, environment: Mapping[str, str]) -> Translation:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'}).") from None
    launches, others = [], []
    for command in read_commands(text, str(path), environment):
        launch = find_launch(command)
        if launch:
            launches.append(launch)
        else:
            others.append(command)
    if not launches:
        raise ConfigError(f"{path}: starts no script known here.", f"Known: {', '.join(_scripts())}.")
    training = [launch for launch in launches if launch.script not in ELSEWHERE] or launches[:1]
    if len(training) > 1:
        lines = ", ".join(launch.command.where for launch in training)
        raise ConfigError(f"{path}: starts several trainings ({lines}).", "Make a script of each.")
    translation = _from_launch(training[0], path.parent)
    translation.source = str(path)
    for launch in launches:
        if launch is not training[0]:
            translation.note(f"{launch.command.where}: {launch.script} left out. {ELSEWHERE[launch.script]}")
    for command in others:
        translation.note(f"{command.where}: left out, not a training: {' '.join(command.words)[:60]}")
    return translation


def _scripts() -> list[str]:
    return [*(name for dialect in DIALECTS for name in dialect.scripts), DEMO_SCRIPTS[0]]


def _from_launch(launch: Launch, near: Path | None) -> Translation:
    """A run from a script's command; files are looked for here and in folder `near`."""
    where = launch.command.where
    if launch.script in ELSEWHERE:
        raise ConfigError(f"{where}: {launch.script} trains nothing.", ELSEWHERE[launch.script])
    words = [need(word, where) for word in launch.words]
    names = flag_names(words)
    by_name = next((dialect for dialect in DIALECTS if launch.script in dialect.scripts), None)
    dialect = by_name if by_name and names & by_name.signs else _by_signs(names) or by_name
    configs = [word for word in words if Path(word).suffix in (".yaml", ".yml", ".json")]
    if launch.script in DEMO_SCRIPTS and configs and not names & FINETUNE_LORA.signs:
        sorted_words = sort_words(words, _SWITCHES, _KEYS, where)
        translation = _from_demo_words(sorted_words, where, near)
    elif dialect is None:
        raise ConfigError(f"{where}: {launch.script} is not known here.", nearest(launch.script, _scripts()))
    else:
        translation = _from_flags(dialect, words, where, near)
    describe_launch(launch, translation)
    return translation


def _from_flags(dialect: Dialect, words: list[str], source: str, near: Path | None) -> Translation:
    sorted_words = sort_words(words, dialect.switches, dialect.keys | {_JSON_FLAG}, source)
    given = sorted_words.given
    alone = [word for word in sorted_words.alone if not (dialect is FACTORY and word == "train")]
    draft = Translation(source)
    if dialect is QLORA and _JSON_FLAG in given:
        # The flags win, as in the script; its --seed has a default and always won.
        arguments = read_file(_find(str(given.pop(_JSON_FLAG)), near))
        given = {**arguments, "seed": 42, **given}
        draft.moved.append(f"--{_JSON_FLAG} -> training")
    elif alone and Path(alone[0]).suffix in (".yaml", ".yml", ".json"):
        overrides = [word.partition("=") for word in alone[1:]]  # llamafactory-cli's key=value
        given = {**read_file(_find(alone[0], near)), **given, **{key: value for key, _, value in overrides}}
        alone = []
    if alone:
        raise ConfigError(f"{source}: {alone[0]!r} belongs to no flag.", "A value with spaces needs quotes.")
    take(dialect, given, draft, flag)
    sorted_words.put_own(draft)
    return draft


def _from_demo_words(words: Words, source: str, near: Path | None) -> Translation:
    """`finetune_hf.py DATA_DIR MODEL_DIR CONFIG [RESUME]`."""
    if not 3 <= len(words.alone) <= 4:
        raise ConfigError(f"{source}: {len(words.alone)} words.", "It takes DATA_DIR MODEL_DIR CONFIG.yaml [yes].")
    data_dir, model, config, *resume = words.alone
    draft = Translation(source)
    take_demo(read_file(_find(config, near)), draft, data_dir, model, words.given)
    if resume and resume[0].lower() != "no":
        if resume[0].lower() != "yes" and not resume[0].isdigit():
            raise ConfigError(f"{source}: {resume[0]!r} behind the config.", "It takes yes, no or a checkpoint's step.")
        draft.resume = True
        draft.note(f"{resume[0]}: continues from the run's last checkpoint, as --resume does.")
    words.put_own(draft)
    return draft


def _find(name: str, near: Path | None) -> Path:
    path = Path(name)
    beside = near / name if near else path
    return path if path.is_file() or not beside.is_file() else beside

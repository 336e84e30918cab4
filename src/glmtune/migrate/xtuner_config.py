"""xtuner: `xtuner train CONFIG.py`, `xtuner chat` and `xtuner convert merge`. A config is parsed, never executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glmtune.config_parsing import parse_number
from glmtune.errors import ConfigError
from glmtune.migrate.command_words import parse_words
from glmtune.migrate.dialect import disable_evaluation_without_data, set_training_section
from glmtune.migrate.replacement import ReplacementCommand, make_options
from glmtune.migrate.translation import Translation
from glmtune.utils.documents import read_document

SETTINGS = {
    "pretrained_model_name_or_path": "model.path",
    "data_path": "data.train",
    "alpaca_zh_path": "data.train",
    "alpaca_en_path": "data.train",
    "data_files": "data.train",
    "max_length": "data.max_length",
    "pack_to_max_length": "data.packing",
    "batch_size": "training.per_device_train_batch_size",
    "accumulative_counts": "training.gradient_accumulation_steps",
    "max_epochs": "training.num_train_epochs",
    "lr": "training.learning_rate",
    "betas": "training.adam_beta1",
    "weight_decay": "training.weight_decay",
    "max_norm": "training.max_grad_norm",
    "warmup_ratio": "training.warmup_steps",
    "save_steps": "training.save_steps",
    "save_total_limit": "training.save_total_limit",
    "dataloader_num_workers": "training.dataloader_num_workers",
    "r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
}
"""Settings of a config, and arguments of its `LoraConfig`, with our keys."""

_LORA_KEYS = {"r", "lora_alpha", "lora_dropout"}


def translate_xtuner(words: list[str], location: str, folder: Path | None) -> Translation | ReplacementCommand:
    """Translate a command of xtuner.

    Args:
        words: after `xtuner`.
        location: for messages.
        folder: where the config is searched too.

    Raises:
        ConfigError: a config that is not a file, or a command that has no equivalent.
    """
    parsed = parse_words(words, {"int8"}, set(), location, own_options=False)
    command, *positionals = [*parsed.positionals, ""]
    flags = {name: value for name, value in parsed.flags.items() if value is not True}
    if command == "train":
        return _translate_training(positionals[0], flags, location, folder)
    if command == "chat":
        adapter = flags.get("adapter")
        target = [str(adapter), "--base", positionals[0]] if adapter else [positionals[0]]
        options = {
            "--system": flags.get("system"),
            "--max-new-tokens": flags.get("max_new_tokens"),
            "--temperature": flags.get("temperature"),
            "--top-p": flags.get("top_p"),
            "--quantization": {"4": "nf4", "8": "int8"}.get(str(flags.get("bits"))),
            "--seed": flags.get("seed"),
        }
        return ReplacementCommand(location, "xtuner chat", ["chat", *target, *make_options(options)])
    if command == "convert" and positionals[0] == "merge" and len(positionals) >= 4:
        base, adapter, output = positionals[1:4]
        options = {"--max-shard-size": flags.get("max_shard_size")}
        arguments = ["export", adapter, output, "--base", base, *make_options(options)]
        return ReplacementCommand(location, "xtuner convert merge", arguments)
    raise ConfigError(
        f"{location}: xtuner {command}: has no equivalent.", "Read are: xtuner train, chat and convert merge."
    )


def _translate_training(name: str, flags: dict[str, Any], location: str, folder: Path | None) -> Translation:
    path = next((path for path in (Path(name), (folder or Path()) / name) if path.is_file()), None)
    if path is None:
        raise ConfigError(
            f"{location}: {name or 'xtuner train'} is no file here; a config of xtuner's own is Python code inside it.",
            f"Copy it with: xtuner copy-cfg {name or 'NAME'} . - or describe the run: "
            "glmtune train --model MODEL --data FILE --method qlora",
        )
    translation = Translation(location, script="xtuner")
    values: dict[str, Any] = {}
    ignored = []
    for key, value in _read_settings(path):
        if key in SETTINGS and value is not None:
            values[key] = value
            translation.translated_keys.append(f"{key} -> {SETTINGS[key]}")
        elif key not in SETTINGS and key != "load_in_4bit":
            ignored.append(key)
        elif key == "load_in_4bit" and value:
            translation.set_value("model.quantization", "nf4")
    training = {
        SETTINGS[key].removeprefix("training."): value
        for key, value in values.items()
        if SETTINGS[key].startswith("training.") and key != "betas"
    }
    if isinstance(values.get("betas"), tuple):
        training["adam_beta1"], training["adam_beta2"] = values["betas"]
    training.setdefault("lr_scheduler_type", "cosine")
    training.setdefault("learning_rate", 2e-4)
    set_training_section(training, translation)
    for key, value in values.items():
        if not SETTINGS[key].startswith("training."):
            translation.set_value(SETTINGS[key], value)
    translation.set_value("method", "lora" if values.keys() & _LORA_KEYS else "full")
    translation.set_value("output", str(flags.get("work_dir") or f"work_dirs/{path.stem}"))
    if flags.get("deepspeed"):
        translation.add_note(f"--deepspeed {flags['deepspeed']}: set training.deepspeed to a file if you need it.")
    translation.set_default("training.gradient_checkpointing", True)
    translation.add_note(f"{path}: parsed, not executed; only plain settings are read.")
    if ignored:
        translation.add_note(f"Not read: {', '.join(dict.fromkeys(ignored))}.")
    disable_evaluation_without_data(translation)
    translation.add_summary()
    translation.complete([path.parent])
    return translation


def _read_settings(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the assignments of constants in a config, and the constants in the arguments of its calls.

    Raises:
        ConfigError: the file is no Python code.
    """
    try:
        tree = ast.parse(read_document(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # MemoryError: nested too deeply
        line = getattr(error, "lineno", None)
        raise ConfigError(f"{path}{f':{line}' if line else ''}: cannot be read as a config of xtuner.") from None
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                continue
            if isinstance(value, (str, int, float, bool, tuple)):
                yield node.targets[0].id, parse_number(value)
    for part in ast.walk(tree):
        if not isinstance(part, ast.keyword) or not isinstance(part.value, ast.Constant):
            continue
        if part.arg in {*_LORA_KEYS, "load_in_4bit"}:
            yield part.arg, part.value.value

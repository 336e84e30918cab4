"""Python scripts that use TRL's trainers: the arguments of `DPOConfig`, `LoraConfig` and the like are read from the
parsed text. Nothing of it is executed."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from glmtune.errors import ConfigError
from glmtune.migrate.dialect import translate_keys
from glmtune.migrate.translation import Translation
from glmtune.migrate.trl_script import TRL_SCRIPT
from glmtune.utils.documents import DocumentError, read_document

_CONFIGS = {
    **{"SFTConfig": "sft", "DPOConfig": "dpo", "KTOConfig": "kto", "ORPOConfig": "orpo", "CPOConfig": "cpo"},
    **{"RewardConfig": "reward", "GRPOConfig": "grpo", "PPOConfig": "ppo"},
}
_LORA_KEYS = {
    **{"r": "lora_r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"},
    **{"target_modules": "lora_target_modules", "modules_to_save": "lora_modules_to_save"},
    **{"use_rslora": "use_rslora", "use_dora": "use_dora"},
}
_FILE_KINDS = ("json", "csv", "parquet")


def is_trl_source(path: Path) -> bool:
    """Return whether a file is a Python script that makes one of TRL's configs."""
    try:
        text = read_document(path)
    except (OSError, DocumentError):
        return False
    return "trl" in text and any(f"{name}(" in text for name in _CONFIGS)


def translate_trl_source(path: Path, location: str) -> Translation:
    """Translate a Python script that trains with TRL.

    Args:
        path: the script.
        location: for messages.

    Raises:
        ConfigError: no Python code, several configs, or a key that is not supported.
    """
    try:
        tree = ast.parse(read_document(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # MemoryError: nested too deeply
        line = getattr(error, "lineno", None)
        raise ConfigError(f"{path}{f':{line}' if line else ''}: cannot be read as Python code.") from None
    reader = _SourceReader(tree)
    if len(reader.commands) != 1:
        raise ConfigError(
            f"{path}: makes {len(reader.commands)} of TRL's configs ({', '.join(reader.commands)}).",
            "Keep the one of the training, or give its values as flags: trl dpo --beta 0.1 ...",
        )
    translation = Translation(location, script=f"{reader.commands[0]}.py")
    translate_keys(TRL_SCRIPT, reader.values, translation, str)
    translation.add_note(f"{path}: parsed, not executed; only plain values are read.")
    if reader.unread:
        translation.add_note(f"Not read, for they are computed: {', '.join(dict.fromkeys(reader.unread))}.")
    translation.complete([path.parent])
    return translation


class _SourceReader:
    """Values of a script by the names of TRL's flags.

    Attributes:
        commands: of `trl`, one for each config.
        values: by key.
        unread: keys whose values are not constants.
    """

    def __init__(self, tree: ast.Module):
        self.commands: list[str] = []
        self.values: dict[str, Any] = {}
        self.unread: list[str] = []
        self._constants: dict[str, Any] = {}
        nodes = list(ast.walk(tree))
        for node in nodes:
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                found, value = self._evaluate(node.value)
                if found:
                    self._constants[node.targets[0].id] = value
        for node in nodes:
            if isinstance(node, ast.Call):
                self._read_call(node)

    def _read_call(self, call: ast.Call) -> None:
        function = call.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        keywords = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        if name in _CONFIGS:
            self.commands.append(_CONFIGS[name])
            if call.args:
                self._set("output_dir", call.args[0])
            for key, value in keywords.items():
                self._set(key, value)
        elif name == "LoraConfig":
            self.values["use_peft"] = True
            for key, value in keywords.items():
                if key in _LORA_KEYS:
                    self._set(_LORA_KEYS[key], value)
        elif name == "BitsAndBytesConfig":
            for key in ("load_in_4bit", "load_in_8bit"):
                if key in keywords:
                    self._set(key, keywords[key])
        elif name == "from_pretrained" and call.args:
            owner = getattr(function, "value", None)
            is_model = "Model" in ast.dump(owner) if owner is not None else False
            if is_model or "model_name_or_path" not in self.values:
                self._set("model_name_or_path", call.args[0])
        elif name == "load_dataset" and call.args and not {"dataset_name", "datasets"} & self.values.keys():
            self._read_dataset(call.args, keywords)

    def _read_dataset(self, arguments: list[ast.expr], keywords: dict[str, ast.expr]) -> None:
        _, kind = self._evaluate(arguments[0])
        if kind in _FILE_KINDS and "data_files" in keywords:
            found, files = self._evaluate(keywords["data_files"])
            files = files.get("train") if isinstance(files, dict) else files
            if not found or not files:
                self.unread.append("data_files")
                return
            names = [files] if isinstance(files, str) else list(files)
            self.values["datasets"] = [{"path": name} for name in names]
            return
        self._set("dataset_name", arguments[0])
        if len(arguments) > 1:
            self._set("dataset_config", arguments[1])
        if "split" in keywords:
            self._set("dataset_train_split", keywords["split"])

    def _set(self, key: str, node: ast.expr) -> None:
        found, value = self._evaluate(node)
        if found:
            self.values[key] = value
        else:
            self.unread.append(key)

    def _evaluate(self, node: ast.expr) -> tuple[bool, Any]:
        """Whether a value is constant, and the value."""
        if isinstance(node, ast.Name):
            return node.id in self._constants, self._constants.get(node.id)
        try:
            return True, ast.literal_eval(node)
        except (ValueError, TypeError, RecursionError):
            return False, None

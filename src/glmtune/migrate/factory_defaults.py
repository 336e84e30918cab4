"""Defaults of LLaMA-Factory's versions, and of ChatGLM-Efficient-Tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glmtune.migrate.translation import Translation

_NEW = "LLaMA-Factory's of 2025"
_OLD = "LLaMA-Factory's before 2024-04, the time of train_bash.py"
_OLDEST = "ChatGLM-Efficient-Tuning's"
_OLD_SCRIPTS = ("train_bash.py", "train_sft.py", "finetune.py", "finetune_chatglm.py")


def split_names(value: Any) -> list[str]:
    """Return the names in a text with commas, or in a list."""
    names = value if isinstance(value, list) else str(value).split(",")
    return [str(name).strip() for name in names if str(name).strip()]


def set_factory_defaults(translation: Translation, values: Mapping[str, Any]) -> None:
    """Set what a line does not give to the defaults of the version that the line is of.

    `train_bash.py` was replaced by llamafactory-cli in 2024; without a `template` it is ChatGLM-Efficient-Tuning's.

    Args:
        translation: has the translated keys.
        values: all keys and values.
    """
    is_old = translation.script in _OLD_SCRIPTS
    is_oldest = is_old and not {"template", "cutoff_len", "prompt_template"} & values.keys()
    source = _OLDEST if is_oldest else _OLD if is_old else _NEW
    if is_oldest:
        translation.set_default("model.path", "THUDM/chatglm-6b", source)
        translation.set_default("data.train", "data:alpaca_zh", source)
    _set_lengths(translation, values, source, is_old, is_oldest)
    translation.set_default("method", "lora", source)
    translation.set_default("training.gradient_checkpointing", True)
    method = translation.get_value("method")
    if method == "freeze":
        translation.set_default(
            "freeze.trainable_layers", 3 if is_old else 2, source, "" if is_old else "before 2024 it was 3"
        )
    if method == "ptuning":
        translation.set_default("ptuning.num_virtual_tokens", 64, _OLDEST)
        packed = {"nf4": "packed4", "int8": "packed8"}
        if translation.get_value("model.quantization"):
            translation.set_value("model.quantization", packed[translation.get_value("model.quantization")])
    if method == "lora":
        _set_lora_defaults(translation, values, source, is_old)


def _set_lengths(
    translation: Translation, values: Mapping[str, Any], source: str, is_old: bool, is_oldest: bool
) -> None:
    if values.get("cutoff_len"):
        return
    if is_oldest or values.get("max_source_length") or values.get("max_target_length"):
        for key in ("data.max_source_length", "data.max_target_length"):
            translation.set_default(key, 512, source)
    elif is_old:
        translation.set_default("data.max_length", 1024, source, "before 2023-10 it was 512 and 512")
    else:
        translation.set_default("data.max_length", 2048, source, "before 2024-05 it was 1024")


def _set_lora_defaults(translation: Translation, values: Mapping[str, Any], source: str, is_old: bool) -> None:
    translation.set_default("lora.rank", 8, source)
    rank = int(translation.get_value("lora.rank"))
    if is_old:
        translation.set_default("lora.alpha", 32, source, "later versions take twice the rank")
        translation.set_default("lora.dropout", 0.1, source, "since 2024-04 it is 0")
    else:
        translation.set_default("lora.alpha", 2 * rank, source, "before 2024-04 it was 32")
        translation.set_default("lora.dropout", 0.0, source, "before 2024-04 it was 0.1")
    if values.get("lora_target"):
        targets = split_names(values["lora_target"])
        translation.set_value("lora.targets", ["all-linear" if name == "all" else name for name in targets])
    elif is_old:
        translation.set_default("lora.targets", ["query_key_value"], source, "since 2024-05 all linear layers")
    else:
        translation.set_default("lora.targets", ["all-linear"], source, "before 2024-05 query_key_value")

"""`train.py` of the project ChatGLM-Finetuning: LoRA, P-Tuning, freeze and full tuning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from glmtune.errors import ConfigError
from glmtune.migrate.dialect import (
    Dialect,
    Rules,
    disable_evaluation_without_data,
    ignore_key,
    map_key,
    replace_training_defaults,
)
from glmtune.migrate.factory_defaults import split_names
from glmtune.migrate.translation import Translation

_SOURCE = "ChatGLM-Finetuning's"
RULES: Rules = {
    "model_name_or_path": map_key("model.path"),
    "train_path": map_key("data.train"),
    "max_len": map_key("data.max_length"),
    "max_src_len": ignore_key("data.max_length limits prompt and answer together"),
    "is_skip": map_key("data.overlength", switch=True, values={True: "drop", False: "cut"}),
    "mode": map_key("model.family", values={"glm": "chatglm", "glm2": "chatglm2", "glm3": "chatglm3"}),
    "train_type": map_key("method", values={"lora": "lora", "freeze": "freeze", "ptuning": "ptuning", "all": "full"}),
    "freeze_module_name": ignore_key("the number of these layers is freeze.trainable_layers"),
    "lora_dim": map_key("lora.rank"),
    "lora_alpha": map_key("lora.alpha"),
    "lora_dropout": map_key("lora.dropout"),
    "lora_module_name": map_key("lora.targets"),
    "pre_seq_len": map_key("ptuning.num_virtual_tokens"),
    "prefix_projection": map_key("ptuning.prefix_projection", switch=True),
    "ds_file": ignore_key("not needed on one GPU; for several, set training.deepspeed to a file of transformers' form"),
    "show_loss_step": map_key("training.logging_steps"),
    "save_model_step": map_key("training.save_steps"),
}
"""Keys of the script; it takes some of `TrainingArguments` too."""

_TRAINING_DEFAULTS = {
    **{"per_device_train_batch_size": 16, "learning_rate": 1e-3, "num_train_epochs": 1, "warmup_steps": 0.1},
    **{"weight_decay": 0.1, "adam_beta2": 0.95, "seed": 1234, "logging_steps": 10},
}


def _set_defaults(translation: Translation, values: Mapping[str, Any]) -> None:
    translation.set_default("method", "lora", _SOURCE)
    translation.set_default("data.max_length", 1024, _SOURCE)
    method = translation.get_value("method")
    if method == "lora":
        for key, value in (("rank", 8), ("alpha", 30), ("dropout", 0.1), ("targets", ["query_key_value"])):
            translation.set_default(f"lora.{key}", value, _SOURCE)
        translation.set_value("lora.targets", split_names(translation.get_value("lora.targets")))
    elif method == "ptuning":
        translation.set_default("ptuning.num_virtual_tokens", 16, _SOURCE)
        translation.set_default("ptuning.prefix_projection", True, _SOURCE)
    elif method == "freeze":
        names = str(values.get("freeze_module_name") or "layers.27.")
        translation.set_value("freeze.trainable_layers", _count_last_layers(names, translation.source))
    replace_training_defaults(translation, values, _TRAINING_DEFAULTS, _SOURCE)
    if values.get("save_model_step") is None:
        translation.set_value("training.save_strategy", "epoch")
    translation.set_default("training.gradient_checkpointing", False)
    translation.add_note("Prompts have the chat format of the model; train.py used the bare instruction and input.")
    disable_evaluation_without_data(translation)


def _count_last_layers(names: str, source: str) -> int:
    """Return the number of layers in a text such as `layers.27.,layers.26.`, if they are the last ones of 28.

    Raises:
        ConfigError: other modules, or layers that are not the last ones.
    """
    numbers = [int(match[1]) for name in split_names(names) if (match := re.fullmatch(r"layers\.(\d+)\.?", name))]
    if len(numbers) != len(split_names(names)) or set(numbers) != set(range(28 - len(numbers), 28)):
        raise ConfigError(
            f"{source}: --freeze_module_name {names}: only the last whole layers are trained.",
            'For example: --freeze_module_name "layers.27.,layers.26."',
        )
    return len(numbers)


CHATGLM_FINETUNING = Dialect(
    name="train.py (ChatGLM-Finetuning)",
    scripts=("train.py",),
    marker_keys=frozenset({"train_path", "max_src_len", "freeze_module_name", "lora_dim", "lora_module_name"}),
    decisive_keys=frozenset({"train_path", "max_src_len", "lora_module_name"}),
    rules=RULES,
    set_defaults=_set_defaults,
)
